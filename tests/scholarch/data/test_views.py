"""Crops as a whole: keys, sizes, normalisation, depth, views that are like another."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from PIL import Image
from scholarch import draws
from scholarch.data.distort import DISTORTION_DRAWS, GEOMETRY_DRAWS, blur, crop_box, distort, mirrored
from scholarch.data.options import ViewOptions
from scholarch.data.views import IMAGENET_MEAN, IMAGENET_STD, EvaluationView, MultiCrop
from scipy.stats import chi2

PLAIN = ViewOptions(size=20, distortions="none")


def smooth(height: int = 60, width: int = 80, channels: int = 3) -> torch.Tensor:
    y, x = np.mgrid[0:height, 0:width]
    planes = [127 + 100 * np.sin(x / (7 + c) + c) * np.cos(y / (9 + c)) for c in range(channels)]
    return torch.from_numpy(np.stack(planes).round().astype(np.uint8))


def geometry(
    options: ViewOptions, picture: torch.Tensor, name: str, number: int = 0
) -> tuple[tuple[int, ...], bool]:
    generator = draws.generator(7, "step", 3, 11, "crop", name)
    numbers = generator.random((number + 1, GEOMETRY_DRAWS))[number].tolist()
    box = crop_box(picture.shape[1], picture.shape[2], options.scale, options.ratio, numbers)
    return box, mirrored(options, numbers)


def test_shapes_and_types() -> None:
    views = {
        "global": ViewOptions(count=2, size=32),
        "local": ViewOptions(count=4, size=16, scale=(0.05, 0.32)),
    }
    crops = MultiCrop(views, IMAGENET_MEAN, IMAGENET_STD)(smooth(), 0, 0, 0)
    assert {name: tuple(t.shape) for name, t in crops.items()} == {
        "global": (2, 3, 32, 32),
        "local": (4, 3, 16, 16),
    }
    assert all(t.dtype == torch.float32 for t in crops.values())


def test_plain_crop_against_pillow() -> None:
    picture = smooth()
    crop = MultiCrop({"global": PLAIN}, (0.5, 0.4, 0.3), (0.2, 0.25, 0.5))(picture, 7, 3, 11)["global"][0]
    (top, left, height, width), flipped = geometry(PLAIN, picture, "global")
    expected = Image.fromarray(picture.permute(1, 2, 0).numpy()).resize(
        (20, 20), Image.Resampling.BICUBIC, box=(left, top, left + width, top + height)
    )
    # Cut first, as we do: the box form of Pillow looks past the border.
    cut = Image.fromarray(picture[:, top : top + height, left : left + width].permute(1, 2, 0).numpy().copy())
    expected = cut.resize((20, 20), Image.Resampling.BICUBIC)
    pixels = np.asarray(expected)[:, ::-1] if flipped else np.asarray(expected)
    normal = (pixels / 255 - (0.5, 0.4, 0.3)) / (0.2, 0.25, 0.5)
    # Pillow and torch round the weights of the uint8 kernel differently: at most one level of 255.
    assert np.abs(crop.permute(1, 2, 0).numpy() - normal).max() <= 1.01 / 255 / 0.2


def test_draws_depend_on_the_key_alone() -> None:
    crops = MultiCrop({"global": ViewOptions(count=2, size=24)}, (0.5,) * 3, (0.5,) * 3)
    picture, state = smooth(), torch.get_rng_state()
    one = crops(picture, 1, 2, 3)["global"]
    torch.rand(5)
    assert crops(picture, 1, 2, 3)["global"].equal(one)
    assert not one[0].equal(one[1])
    for key in ((2, 2, 3), (1, 3, 3), (1, 2, 4)):
        assert not crops(picture, *key)["global"].equal(one)
    torch.set_rng_state(state)
    crops(picture, 1, 2, 3)
    assert torch.get_rng_state().equal(state)


def test_one_view_does_not_depend_on_the_others() -> None:
    view, mean, std = ViewOptions(count=2, size=24), (0.5,) * 3, (0.5,) * 3
    alone = MultiCrop({"global": view}, mean, std)(smooth(), 1, 2, 3)["global"]
    local = ViewOptions(count=3, size=16)
    beside = MultiCrop({"local": local, "global": view}, mean, std)(smooth(), 1, 2, 3)["global"]
    assert beside.equal(alone)


@pytest.mark.parametrize("channels", [1, 2, 3, 7])
def test_depth_and_channels(channels: int) -> None:
    picture = smooth(channels=channels)
    crops = MultiCrop({"global": ViewOptions(count=3, size=24)}, (0.5,) * channels, (1.0,) * channels)
    from_bytes = crops(picture, 1, 2, 3)["global"]
    from_floats = crops(picture / 255, 1, 2, 3)["global"]
    assert from_bytes.shape == (3, channels, 24, 24)
    assert from_bytes.abs().max() <= 0.5 + 1e-6
    # The uint8 path rounds once, after the resize; a hue turn and contrast can stretch that.
    assert (from_bytes - from_floats).abs().mean() < 1 / 255


def test_overshoot_of_a_bicubic_kernel_is_cut() -> None:
    edges = torch.zeros(1, 16, 16)
    edges[:, :, 8:] = 1
    crop = MultiCrop({"x": ViewOptions(size=40, scale=(1.0, 1.0), distortions="none")}, (0.0,), (1.0,))(
        edges, 0, 0, 0
    )
    assert crop["x"].min() == 0
    assert crop["x"].max() == 1


def test_more_crops_leave_the_first_ones() -> None:
    mean, std = (0.5,) * 3, (0.5,) * 3
    two, four = (
        MultiCrop({"x": ViewOptions(count=n, size=16)}, mean, std)(smooth(), 1, 2, 3)["x"] for n in (2, 4)
    )
    assert four[:2].equal(two)


def test_small_pictures_are_enlarged() -> None:
    crops = MultiCrop({"global": ViewOptions(size=32)}, (0.5,), (0.5,))
    assert crops.largest == 32
    for side in (1, 2, 8):
        assert crops(torch.full((1, side, side), 255, dtype=torch.uint8), 0, 0, 0)["global"].shape == (
            1,
            1,
            32,
            32,
        )


def test_wrong_channels_are_an_error_of_the_caller() -> None:
    with pytest.raises(ValueError, match="picture has 1 channels, mean and std 3"):
        MultiCrop({"global": PLAIN}, IMAGENET_MEAN, IMAGENET_STD)(torch.zeros(1, 8, 8), 0, 0, 0)
    with pytest.raises(ValueError, match="std positive"):
        MultiCrop({"global": PLAIN}, (0.5,), (0.0,))


def test_like_without_distortions() -> None:
    original = ViewOptions(count=2, size=24, jitter=1.0, blur=0.0, grey=0.0)
    gram = ViewOptions(like="global", size=48, distortions="none")
    crops = MultiCrop({"global": original, "gram": gram}, (0.0,) * 3, (1.0,) * 3)(smooth(), 7, 3, 11)
    picture = smooth()
    for number in range(2):
        (top, left, height, width), flipped = geometry(original, picture, "global", number)
        cut = picture[:, top : top + height, left : left + width].permute(1, 2, 0).numpy().copy()
        base = np.asarray(Image.fromarray(cut).resize((48, 48), Image.Resampling.BICUBIC)) / 255
        base = base[:, ::-1] if flipped else base
        np.testing.assert_allclose(crops["gram"][number].permute(1, 2, 0).numpy(), base, atol=1.01 / 255)
    undistorted = MultiCrop(
        {"global": ViewOptions(count=2, size=24, distortions="none"), "gram": gram}, (0.0,) * 3, (1.0,) * 3
    )(smooth(), 7, 3, 11)
    assert undistorted["gram"].equal(crops["gram"])
    assert not undistorted["global"].equal(crops["global"])
    halved = torch.nn.functional.interpolate(crops["gram"], (24, 24), mode="bicubic", antialias=True)
    assert (undistorted["global"] - halved).abs().max() < 1e-5


def test_like_with_the_same_distortions() -> None:
    views = {"global": ViewOptions(count=2, size=24), "gram": ViewOptions(like="global", size=48)}
    crops = MultiCrop(views, (0.0,) * 3, (1.0,) * 3)(smooth(), 7, 3, 11)
    halved = torch.nn.functional.interpolate(crops["gram"], (24, 24), mode="bicubic", antialias=True).clamp(
        0, 1
    )
    assert (crops["global"] - halved).abs().max() < 1e-5
    alone = MultiCrop({"global": ViewOptions(count=2, size=48)}, (0.0,) * 3, (1.0,) * 3)(smooth(), 7, 3, 11)
    assert alone["global"].equal(crops["gram"])


@pytest.mark.parametrize(("height", "width"), [(300, 400), (400, 300), (40, 60), (64, 64)])
def test_evaluation_view_against_pillow(height: int, width: int) -> None:
    picture = smooth(height, width)
    short = round(56 * 256 / 224)
    size = (short * width // height, short) if width >= height else (short, short * height // width)
    resized = Image.fromarray(picture.permute(1, 2, 0).numpy().copy()).resize(size, Image.Resampling.BICUBIC)
    left, top = round((size[0] - 56) / 2), round((size[1] - 56) / 2)
    pixels = np.asarray(resized)[top : top + 56, left : left + 56] / 255
    expected = (pixels - IMAGENET_MEAN) / IMAGENET_STD
    found = EvaluationView(56, IMAGENET_MEAN, IMAGENET_STD)(picture)
    assert np.abs(found.permute(1, 2, 0).numpy() - expected).max() <= 1.01 / 255 / 0.224


def base_of(options: ViewOptions, picture: torch.Tensor, name: str, number: int, side: int) -> torch.Tensor:
    """A crop at `side`, mirrored or not, as float: cut and resized with torch alone."""
    (top, left, height, width), flipped = geometry(options, picture, name, number)
    cut = picture[None, :, top : top + height, left : left + width]
    if not cut.is_floating_point():
        whole = torch.nn.functional.interpolate(cut, (side, side), mode="bicubic", antialias=True) / 255
    else:
        whole = torch.nn.functional.interpolate(cut, (side, side), mode="bicubic", antialias=True).clamp(0, 1)
    return whole[0].flip(-1) if flipped else whole[0]


def colour_draws(name: str, number: int) -> list[float]:
    numbers: list[float] = (
        draws.generator(7, "step", 3, 11, "colour", name).random((number + 1, DISTORTION_DRAWS))[number]
    ).tolist()
    return numbers


def test_a_colour_for_the_whole_picture() -> None:
    views = {
        "global": ViewOptions(count=2, size=24, colour="picture", blur=0.0),
        "local": ViewOptions(count=1, size=16, scale=(0.1, 0.3), colour="picture", blur=1.0, blur_kernel=3),
        "plain": ViewOptions(size=16, distortions="none"),
    }
    picture = smooth()
    crops = MultiCrop(views, (0.0,) * 3, (1.0,) * 3)(picture, 7, 3, 11)
    uniform = draws.generator(7, "step", 3, 11, "colour of the picture").random(DISTORTION_DRAWS).tolist()
    assert uniform[0] < 0.8  # so that there is a change of colour
    free = replace(views["global"], colour="crop", solarise=0.0)
    recoloured = distort(picture / 255, free, 0, uniform)
    for number in range(2):
        expected = base_of(views["global"], recoloured, "global", number, 24)
        torch.testing.assert_close(crops["global"][number], expected, rtol=0, atol=1e-6)
    local = base_of(views["local"], recoloured, "local", 0, 16)
    sigma = 0.1 + 1.9 * colour_draws("local", 0)[11]
    torch.testing.assert_close(crops["local"][0], blur(local, 3, sigma), rtol=0, atol=1e-6)
    torch.testing.assert_close(
        crops["plain"][0], base_of(views["plain"], picture, "plain", 0, 16), rtol=0, atol=1e-6
    )


def test_crops_within_others_are_pieces_on_the_grid() -> None:
    own = ViewOptions(count=2, size=48, jitter=1.0, blur=1.0)
    views = {
        "global": own,
        "gram": ViewOptions(like="global", size=96, distortions="none"),
        "local": ViewOptions(count=4, size=16, within="global", blur=1.0, blur_kernel=3, grey=0.0),
    }
    crop, picture = MultiCrop(views, (0.0,) * 3, (1.0,) * 3, patch=8), smooth()
    found = crop(picture, 7, 3, 11)
    offsets = crop.offsets("local", 7, 3, 11)
    for number in range(4):
        # The piece is of the undistorted crop, at the size of `global` though it was made at gram's.
        base = base_of(own, picture, "global", number // 2, 96)
        base = torch.nn.functional.interpolate(base[None], (48, 48), mode="bicubic", antialias=True)[0]
        whole = distort(
            base.clamp(0, 1), replace(views["local"], within=None), number, colour_draws("local", number)
        )
        top, left = offsets[number].tolist()
        torch.testing.assert_close(
            found["local"][number], whole[:, top : top + 16, left : left + 16], rtol=0, atol=2e-3
        )
    alone = MultiCrop({"global": own, "gram": views["gram"]}, (0.0,) * 3, (1.0,) * 3)(picture, 7, 3, 11)
    assert found["global"].equal(alone["global"])


def test_places_within_are_all_as_likely() -> None:
    views = {
        "global": ViewOptions(size=32),
        "local": ViewOptions(count=4, size=16, within="global", blur=0.0),
    }
    crop = MultiCrop(views, (0.0,), (1.0,), patch=8)
    drawn = np.concatenate([crop.offsets("local", 0, step, 5) for step in range(300)])
    places, counts = np.unique(drawn, axis=0, return_counts=True)
    assert places.tolist() == [[top, left] for top in (0, 8, 16) for left in (0, 8, 16)]
    assert ((counts - 1200 / 9) ** 2 / (1200 / 9)).sum() < chi2.ppf(0.9999, 8)


def test_teachers_see_crops_without_distortions() -> None:
    own = ViewOptions(count=2, size=24, jitter=1.0, blur=1.0, teacher_distortions="none")
    picture = smooth()
    plain = MultiCrop({"global": replace(own, teacher_distortions="all")}, (0.0,) * 3, (1.0,) * 3)
    found = MultiCrop({"global": own}, (0.0,) * 3, (1.0,) * 3)(picture, 7, 3, 11)
    assert set(found) == {"global", "global/teacher"}
    assert found["global"].equal(plain(picture, 7, 3, 11)["global"])
    for number in range(2):
        expected = base_of(own, picture, "global", number, 24)
        torch.testing.assert_close(found["global/teacher"][number], expected, rtol=0, atol=1e-6)
    undistorted = MultiCrop({"global": replace(own, distortions="none")}, (0.0,) * 3, (1.0,) * 3)
    assert set(undistorted(picture, 7, 3, 11)) == {"global"}
