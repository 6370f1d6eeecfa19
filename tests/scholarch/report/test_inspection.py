"""Maps of one picture, from a backbone whose output is known."""

from __future__ import annotations

import io
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from scholarch.draws import Draws, torch_generator
from scholarch.models.features import Backbone, Features, Views
from scholarch.report.inspection import (
    Scene,
    draw_heads,
    draw_norms,
    draw_sizes,
    facts,
    inspect_picture,
    marked,
    similarity_to,
    write_inspection,
)
from scholarch.report.page import Content
from scholarch.report.theme import png
from torch import Tensor, nn

OUTLIERS = (7, 20)
MEAN, STD = (0.5, 0.5, 0.5), (0.25, 0.25, 0.25)


class Planted(Backbone):
    """Tokens of norm about 10, and two of norm 100; features point along the colour of the patch."""

    def __init__(self) -> None:
        super().__init__()
        self.width, self.patch, self.channels = 8, 4, 3
        self.blocks = nn.ModuleList()
        self.weight = nn.Parameter(torch.zeros(1))

    def forward(self, views: list[Views], draws: Draws | None = None) -> list[Features]:  # noqa: ARG002
        (view,) = views
        height, width = self.grid(view.images)
        noise = torch.randn(height * width, 8, generator=torch_generator(0, "planted"))
        tokens = 10 * noise / noise.norm(dim=-1, keepdim=True)
        tokens = tokens * (1 + 0.01 * torch.arange(len(tokens))[:, None] / len(tokens))
        tokens[list(OUTLIERS)] *= 10
        colours = nn.functional.avg_pool2d(view.images, 4)[0].flatten(1).T  # [N, 3]
        patches = nn.functional.pad(colours, (0, 5))
        registers = torch.full((3, 8), 1e6)  # CLS and two registers are no patches
        return [
            Features(
                registers[:1],
                registers[None, 1:],
                patches[None],
                torch.cat([registers, tokens])[None],
            )
        ]


def two_halves() -> Tensor:
    """[3, 24, 48]: red on the left, blue on the right."""
    picture = torch.zeros(3, 24, 48, dtype=torch.uint8)
    picture[0, :, :24] = 255
    picture[2, :, 24:] = 255
    return picture


def inspection(threshold: float | None = None, point: tuple[float, float] = (0.1, 0.1)):  # type: ignore[no-untyped-def]
    return inspect_picture(
        Planted(), two_halves(), sizes=(16, 32), mean=MEAN, std=STD, point=point, threshold=threshold
    )


def test_planted_outliers_are_found_and_no_others() -> None:
    found = inspection()
    assert found.scenes[0].grid == (4, 8)
    assert tuple(np.flatnonzero(found.outliers)) == OUTLIERS
    np.testing.assert_allclose(found.scenes[0].norms.flatten()[list(OUTLIERS)], 100, rtol=0.02)


def test_a_threshold_replaces_the_rule() -> None:
    assert inspection(threshold=150.0).outliers.sum() == 0
    assert inspection(threshold=1.0).outliers.all()


def test_the_point_is_like_its_own_half() -> None:
    left, right = inspection(point=(0.1, 0.9)), inspection(point=(0.99, 0.0))
    assert (left.point, right.point) == ((3, 0), (0, 7))
    assert left.similarity.shape == (4, 8)
    assert left.similarity[:, :3].min() > 0.99  # antialiasing blurs the border
    assert left.similarity[:, 5:].max() < 0.5
    assert right.similarity[:, 5:].min() > 0.99


def test_similarity_is_the_cosine() -> None:
    patches = torch.tensor([[3.0, 4.0], [4.0, 3.0], [0.0, 2.0], [-3.0, -4.0]])
    np.testing.assert_allclose(similarity_to(patches, (2, 2), (0, 0)), [[1, 24 / 25], [4 / 5, -1]], atol=1e-6)


def test_marked_patches_change_and_others_do_not() -> None:
    image = np.full((4, 6, 3), 0.5)
    chosen = np.array([[False, True, False], [False, False, False]])
    result = marked(image, chosen)
    assert (result[:2, 2:4] != 0.5).any(axis=-1).all()
    result[:2, 2:4] = 0.5
    assert (result == 0.5).all()


def test_the_page_holds_its_figures(tmp_path: Path) -> None:
    found = inspection()
    written = write_inspection(tmp_path, found, Content(title="halves", state="", mean=MEAN, std=STD))
    assert [path.name for path in written.pictures] == ["similarity.png", "sizes.png", "norms.png"]
    text = written.page.read_text()
    assert text.count("data:image/png;base64,") == 6  # light and dark
    assert "6.25%" in text  # 2 of 32 tokens
    assert "2 of 32, above norm" in dict(facts(found))["Outlier tokens"]
    assert "left out" in dict(facts(found))["Attention"]
    assert all(Image.open(path).width > 1000 for path in written.pictures)


def test_norms_are_drawn_beside_the_picture() -> None:
    figure = draw_norms(inspection(), MEAN, STD)
    assert figure.get_size_inches()[0] == 10


@pytest.mark.parametrize(("height", "width"), [(375, 500), (500, 375), (400, 400), (100, 1000), (427, 640)])
def test_sizes_whose_whole_patches_differ_in_shape(height: int, width: int) -> None:
    """A photograph of 375 x 500 pixels is 224 x 304 in patches of 16, and 448 x 592."""
    grids = [
        tuple(max(round(size * length / min(height, width) / 16), 1) for length in (height, width))
        for size in (224, 448, 672)
    ]
    scenes = [
        Scene(
            image=torch.zeros(3, 16 * h, 16 * w),
            patches=torch.randn(h * w, 8, generator=torch_generator(0, "sizes")),
            norms=np.ones((h, w)),
            grid=(h, w),
        )
        for h, w in grids
    ]
    figure = draw_sizes(scenes, MEAN, STD)
    pixels = np.asarray(Image.open(io.BytesIO(png(figure))).convert("RGB")).astype(int)
    grey = (np.abs(pixels - 127) <= 1).all(-1).sum()  # of the picture: zeros, normalised, are the mean
    cell = (1440 - 3 * 6) // 4
    assert grey == pytest.approx(cell**2 * min(height, width) / max(height, width), rel=0.05)


def test_each_head_is_bright_where_it_looks() -> None:
    maps = np.zeros((2, 2, 2))
    maps[0, 0, 1] = 0.3  # one patch of the first head; the second looks nowhere
    figure = draw_heads(torch.zeros(3, 8, 8), maps, MEAN, STD)
    pixels = np.asarray(Image.open(io.BytesIO(png(figure))).convert("RGB")).astype(int)
    brightest = (np.abs(pixels - np.asarray((252, 253, 191))).max(-1) <= 2).sum()  # the end of magma
    cell = (1440 - 2 * 6) // 3
    assert brightest == pytest.approx(cell**2 / 4, rel=0.02)
