"""Crop geometry and distortions against slow, obvious forms in NumPy."""

import colorsys
import math

import numpy as np
import pytest
import torch
from scholarch.data.distort import DISTORTION_DRAWS, GEOMETRY_DRAWS, blur, crop_box, distort, mirrored
from scholarch.data.options import ViewOptions
from torchvision.transforms.v2 import RandomResizedCrop

NEVER, ALWAYS = 0.999999, 0.0
RATIO = (3 / 4, 4 / 3)


def uniform(count: int, seed: int) -> list[float]:
    return np.random.default_rng(seed).random(count).tolist()


@pytest.mark.parametrize("scale", [(0.05, 0.32), (0.32, 1.0)])
@pytest.mark.parametrize(("height", "width"), [(100, 160), (120, 90)])
def test_boxes_are_distributed_as_torchvision_draws_them(
    scale: tuple[float, float], height: int, width: int
) -> None:
    count = 4000
    ours = np.array([crop_box(height, width, scale, RATIO, uniform(GEOMETRY_DRAWS, i)) for i in range(count)])
    theirs_of = RandomResizedCrop(32, scale=scale, ratio=RATIO)
    picture = torch.empty(1, height, width)
    state = torch.get_rng_state()
    torch.manual_seed(0)
    drawn = [theirs_of.make_params([picture]) for _ in range(count)]
    torch.set_rng_state(state)
    theirs = np.array([[p["top"], p["left"], p["height"], p["width"]] for p in drawn])
    for a, b in (
        (ours, theirs),
        (ours[:, 2] * ours[:, 3], theirs[:, 2] * theirs[:, 3]),
        (np.log(ours[:, 3] / ours[:, 2]), np.log(theirs[:, 3] / theirs[:, 2])),
    ):
        error = np.sqrt((a.var(0) + b.var(0)) / count)
        assert (np.abs(a.mean(0) - b.mean(0)) < 4.5 * error).all()
        assert np.allclose(a.std(0), b.std(0), rtol=0.08)
    assert (ours[:, :2] >= 0).all()
    assert (ours[:, 0] + ours[:, 2] <= height).all()
    assert (ours[:, 1] + ours[:, 3] <= width).all()


def test_one_box_by_hand() -> None:
    numbers = [0.5] * GEOMETRY_DRAWS  # scale 0.2 to 0.6: 0.4 of 100 x 200; ratio: sqrt(3/4 * 4/3) = 1
    side = round(math.sqrt(0.4 * 100 * 200))
    assert crop_box(100, 200, (0.2, 0.6), RATIO, numbers) == (
        int((100 - side + 1) / 2),
        int((200 - side + 1) / 2),
        side,
        side,
    )


def test_a_box_that_never_fits_is_central_and_as_large_as_the_ratio_lets() -> None:
    # The whole area of a long picture cannot be nearly square.
    assert crop_box(10, 400, (1.0, 1.0), RATIO, [0.5] * GEOMETRY_DRAWS) == (0, 193, 10, 13)
    assert crop_box(400, 10, (1.0, 1.0), RATIO, [0.5] * GEOMETRY_DRAWS) == (193, 0, 13, 10)
    assert crop_box(1, 1, (0.05, 0.3), RATIO, [0.5] * GEOMETRY_DRAWS) == (0, 0, 1, 1)


def test_mirror() -> None:
    numbers = [0.0] * (GEOMETRY_DRAWS - 1)
    assert mirrored(ViewOptions(flip=0.5), [*numbers, 0.49])
    assert not mirrored(ViewOptions(flip=0.5), [*numbers, 0.51])


def draws(**slots: float) -> list[float]:
    """Numbers that do nothing, but for the slots named."""
    numbers = [NEVER] * DISTORTION_DRAWS
    names = {"jitter": 0, "grey": 9, "blur": 10, "sigma": 11, "solarise": 12}
    for name, value in slots.items():
        numbers[names[name]] = value
    return numbers


def picture(channels: int, seed: int = 0) -> torch.Tensor:
    return torch.from_numpy(np.random.default_rng(seed).random((channels, 16, 16)).astype(np.float32))


def test_nothing_drawn_changes_nothing() -> None:
    for channels in (1, 3, 5):
        crop = picture(channels)
        assert distort(crop, ViewOptions(), 0, draws()) is crop


@pytest.mark.parametrize("order", [(0, 1, 2, 3), (3, 1, 0, 2), (2, 3, 1, 0)])
def test_jitter_against_numpy(order: tuple[int, ...]) -> None:
    options = ViewOptions()
    numbers = draws(jitter=ALWAYS)
    amounts = (0.9, 0.2, 0.7, 0.8)
    numbers[1:5] = amounts
    for place, change in enumerate(order):
        numbers[5 + change] = place / 10
    crop = picture(3)
    brightness, contrast, saturation = (
        1 + strength * (2 * amount - 1) for strength, amount in zip((0.4, 0.4, 0.2), amounts, strict=False)
    )
    x = crop.permute(1, 2, 0).double().numpy()
    weights = np.array([0.2989, 0.587, 0.114])
    for change in order:
        if change == 0:
            x = x * brightness
        elif change == 1:
            x = contrast * x + (1 - contrast) * (x @ weights).mean()
        elif change == 2:
            x = saturation * x + (1 - saturation) * (x @ weights)[..., None]
        else:
            turned = [colorsys.rgb_to_hsv(*pixel) for pixel in x.reshape(-1, 3)]
            x = np.array([colorsys.hsv_to_rgb((h + 0.1 * 0.6) % 1, s, v) for h, s, v in turned]).reshape(
                x.shape
            )
        x = np.clip(x, 0, 1)
    found = distort(crop, options, 0, numbers).permute(1, 2, 0).numpy()
    np.testing.assert_allclose(found, x, atol=2e-5)


@pytest.mark.parametrize("channels", [1, 2, 5])
def test_jitter_without_colour(channels: int) -> None:
    numbers = draws(jitter=ALWAYS)
    numbers[1:5] = 0.9, 0.2, 0.7, 0.8
    numbers[5:9] = 0.1, 0.2, 0.3, 0.4
    crop = picture(channels)
    x = np.clip(crop.numpy() * (1 + 0.4 * 0.8), 0, 1)
    contrast = 1 - 0.4 * 0.6
    expected = np.clip(contrast * x + (1 - contrast) * x.mean((1, 2), keepdims=True), 0, 1)
    np.testing.assert_allclose(distort(crop, ViewOptions(), 0, numbers).numpy(), expected, atol=1e-6)


def test_grey_needs_colour() -> None:
    grey = distort(picture(3), ViewOptions(), 0, draws(grey=ALWAYS))
    expected = np.tensordot([0.2989, 0.587, 0.114], picture(3).numpy(), 1)
    for channel in grey:
        np.testing.assert_allclose(channel.numpy(), expected, atol=1e-6)
    assert distort(picture(5), ViewOptions(), 0, draws(grey=ALWAYS)).equal(picture(5))


@pytest.mark.parametrize("sigma", [0.1, 0.7, 2.0])
@pytest.mark.parametrize("channels", [1, 3])
def test_blur_against_a_loop(sigma: float, channels: int) -> None:
    x = picture(channels).double().numpy()
    padded = np.pad(x, ((0, 0), (4, 4), (4, 4)), mode="reflect")
    reach = np.arange(-4, 5)
    kernel = np.exp(-(reach[:, None] ** 2 + reach[None] ** 2) / (2 * sigma**2))
    kernel /= kernel.sum()
    expected = np.zeros_like(x)
    for row in range(16):
        for column in range(16):
            expected[:, row, column] = (padded[:, row : row + 9, column : column + 9] * kernel).sum((1, 2))
    np.testing.assert_allclose(blur(picture(channels), 9, sigma).numpy(), expected, atol=1e-6)


def test_blur_and_solarise_follow_the_crop_of_the_view() -> None:
    options = ViewOptions(count=2, blur=(0.0, 0.9), solarise=(0.2, 0.0))
    first = distort(picture(3), options, 0, draws(blur=0.0, solarise=0.1, sigma=0.5))
    x = picture(3).numpy()
    np.testing.assert_allclose(first.numpy(), np.where(x >= 128 / 255, 1 - x, x), atol=1e-7)
    second = distort(picture(3), options, 1, draws(blur=0.89, solarise=0.1, sigma=0.5))
    assert second.equal(blur(picture(3), 9, 0.1 + 1.9 * 0.5))
