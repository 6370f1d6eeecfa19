"""Pictures: colours mean what the caption says."""

from __future__ import annotations

import io

import numpy as np
import pytest
import torch
from matplotlib.figure import Figure
from PIL import Image
from scholarch.models import build_backbone
from scholarch.models.features import Views
from scholarch.models.initialise import initialise
from scholarch.models.vit import ViTOptions
from scholarch.report import pictures
from scholarch.report.look import look_at
from scholarch.report.theme import DARK, png

MEAN, STD = (0.5, 0.4, 0.3), (0.1, 0.2, 0.3)


def pixels(figure: Figure) -> np.ndarray:
    return np.asarray(Image.open(io.BytesIO(png(figure))).convert("RGB")).astype(int)


def count(image: np.ndarray, colour: tuple[int, int, int]) -> int:
    return int((np.abs(image - np.asarray(colour)).max(-1) <= 2).sum())


def plain(colour: tuple[float, float, float], *shape: int) -> torch.Tensor:
    """Normalised pictures [*shape[:-1], 3, side, side] of one colour."""
    values = (torch.tensor(colour) - torch.tensor(MEAN)) / torch.tensor(STD)
    return values.view(3, 1, 1).expand(*shape[:-1], 3, shape[-1], shape[-1]).clone()


def test_pictures_get_their_colours_back() -> None:
    original = torch.rand(2, 3, 4, 5, generator=torch.Generator().manual_seed(0))
    normalised = (original - torch.tensor(MEAN).view(3, 1, 1)) / torch.tensor(STD).view(3, 1, 1)

    shown = pictures.to_rgb_images(normalised, MEAN, STD)

    np.testing.assert_allclose(shown, original.permute(0, 2, 3, 1).numpy(), atol=1e-6)


def test_other_numbers_of_channels_can_be_shown() -> None:
    grey = torch.full((1, 1, 2, 2), 2.0)
    many = torch.arange(6.0).view(1, 6, 1, 1) / 10

    assert pictures.to_rgb_images(grey, (0.5,), (0.1,))[0, 0, 0].tolist() == pytest.approx([0.7] * 3)
    shown = pictures.to_rgb_images(many, (0.0,) * 6, (1.0,) * 6)
    assert shown[0, 0, 0].tolist() == pytest.approx([0.0, 0.1, 0.2])


def two_regions() -> tuple[torch.Tensor, torch.Tensor]:
    """Features [2, 50, 16] of two kinds with a little noise, and the kind of each."""
    generator = torch.Generator().manual_seed(1)
    kinds = torch.rand(2, 50, generator=generator) < 0.4
    centres = torch.randn(2, 16, generator=generator) * 5
    return centres[kinds.long()] + 0.1 * torch.randn(2, 50, 16, generator=generator), kinds


def test_two_regions_get_two_colours_in_all_pictures() -> None:
    features, kinds = two_regions()

    colours = pictures.pca_colours(features)

    assert colours.shape == (2, 50, 3)
    first = colours[..., 0]
    inside, outside = first[kinds.numpy()], first[~kinds.numpy()]
    assert abs(inside.mean() - outside.mean()) > 0.5
    assert max(inside.std(), outside.std()) < 0.05


def test_colours_are_whitened_components_through_a_sigmoid() -> None:
    tokens = np.random.default_rng(0).normal(size=(40, 6)) * [5, 3, 2, 0.5, 0.3, 0.1]
    covariance = np.cov(tokens.T)
    values, vectors = np.linalg.eigh(covariance)

    colours = pictures.pca_colours(torch.from_numpy(tokens)[None])[0]

    for number in range(3):
        vector = vectors[:, -1 - number]
        vector = vector * np.sign(vector[np.abs(vector).argmax()])
        whitened = (tokens - tokens.mean(0)) @ vector / np.sqrt(values[-1 - number])
        np.testing.assert_allclose(colours[:, number], 1 / (1 + np.exp(-2 * whitened)), atol=1e-9)


def test_a_few_outlier_tokens_do_not_choose_the_colours() -> None:
    features, _ = two_regions()
    spoilt = features.clone()
    spoilt[0, :3] = 300 * torch.randn(3, 16, generator=torch.Generator().manual_seed(2))

    clean, found = pictures.pca_colours(features), pictures.pca_colours(spoilt)

    assert np.abs(found[1] - clean[1]).mean() < 0.1
    assert found[1, :, 0].std() > 0.3  # the regions of the other picture still stand apart


def test_features_without_differences_are_grey() -> None:
    assert (pictures.pca_colours(torch.ones(2, 9, 8)) == 0.5).all()
    assert (pictures.pca_colours(torch.zeros(1, 4, 8)) == 0.5).all()


def test_attention_is_cut_to_patches_in_row_order() -> None:
    row = torch.arange(2 * 3 * (1 + 2 + 6.0)).view(2, 3, 9)

    maps = pictures.attention_maps(row, registers=2, grid=(2, 3))

    assert maps.shape == (2, 3, 2, 3)
    assert maps[0, 0].tolist() == [[3, 4, 5], [6, 7, 8]]


@pytest.mark.parametrize("share", [0.0, 0.25, 1.0])
def test_masked_patches_are_covered(share: float) -> None:
    masks = torch.zeros(1, 2, 16, dtype=torch.bool)
    masks[:, :, : int(16 * share)] = True
    view = pictures.Crops("global", plain((1, 0, 0), 1, 2, 8), masks, patch=2)

    red = count(pixels(pictures.draw_crops([view], MEAN, STD)), (255, 0, 0))

    assert red == pytest.approx(2 * 480**2 * (1 - share), rel=0.02)


def test_crops_are_shown_in_their_true_sizes_to_each_other() -> None:
    views = [
        pictures.Crops("global", plain((1, 0, 0), 2, 3, 16)),
        pictures.Crops("local", plain((0, 0, 1), 6, 3, 8)),
    ]

    image = pixels(pictures.draw_crops(views, MEAN, STD))

    # Twice the side, a third as many: 4 / 3 of the area.
    assert count(image, (255, 0, 0)) / count(image, (0, 0, 255)) == pytest.approx(4 / 3, rel=0.03)
    dark = pixels(pictures.draw_crops(views, MEAN, STD, DARK))
    assert count(dark, (0, 0, 255)) == count(image, (0, 0, 255))


def test_crops_stacked_with_gaps_may_be_taller_than_a_large_one() -> None:
    views = [
        pictures.Crops("global", plain((1, 0, 0), 2, 3, 32)),
        pictures.Crops("local", plain((0, 0, 1), 4, 3, 8)),  # four times a quarter, and three gaps
    ]

    image = pixels(pictures.draw_crops(views, MEAN, STD))

    assert count(image, (255, 0, 0)) / count(image, (0, 0, 255)) == pytest.approx(8, rel=0.03)


def test_the_pca_figure_shows_the_regions_under_the_picture() -> None:
    features, _ = two_regions()
    grid = (5, 10)

    def figure(patches: torch.Tensor) -> np.ndarray:
        return pixels(pictures.draw_pca(plain((0, 1, 0), 2, 20), patches, grid, MEAN, STD))

    image, other = figure(features), figure(features.flip(1))

    assert count(image, (0, 255, 0)) == pytest.approx(2 * 480**2, rel=0.02)
    assert (image != other).any()
    assert (image[:480] == other[:480]).all()


def test_a_backbone_is_looked_at_as_it_is() -> None:
    options = ViTOptions(
        size=None, embed_dim=16, depth=2, heads=2, ffn="mlp", ffn_ratio=2, patch=4, registers=2
    )
    backbone = build_backbone(options)
    initialise(backbone, seed=0)
    backbone.eval()
    images = torch.rand(2, 3, 8, 12, generator=torch.Generator().manual_seed(0))

    seen = look_at(backbone, images)

    with torch.no_grad():
        (features,) = backbone([Views(images)])
    assert torch.equal(seen.patches, features.patches)
    assert seen.grid == (2, 3)
