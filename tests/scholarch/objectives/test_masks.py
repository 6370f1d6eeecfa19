import math
import pickle
import random as python_random

import numpy as np
import pytest
import torch
from scholarch.objectives import MASKS
from scholarch.objectives.masks import (
    BlockMaskOptions,
    BlockMasks,
    InverseBlockMaskOptions,
    InverseBlockMasks,
)

GRIDS = [(16, 16), (14, 14), (7, 7), (5, 12), (12, 5), (1, 9), (3, 3), (37, 37)]


def counts(sampler: BlockMasks, rows: int, grid: tuple[int, int], step: int = 0) -> list[int]:
    return [int(sampler.mask(step, row, rows, grid).sum()) for row in range(rows)]


def test_exact_counts_of_the_source() -> None:
    # reference.md 12.5: 256 / 16, B = 16: 32 rows, 16 of them masked, from about 32 to 128.
    found = sorted(counts(BlockMasks(BlockMaskOptions(), seed=1), 32, (16, 16)))
    ratios = torch.linspace(0.1, 0.5, 17)
    expected = [0] * 16 + [int(256 * ratios[i + 1]) for i in range(16)]
    assert found == expected
    assert found[16] in (31, 32)
    assert found[-1] == 128


@pytest.mark.parametrize("grid", GRIDS)
def test_exact_counts_on_any_grid(grid: tuple[int, int]) -> None:
    patches = grid[0] * grid[1]
    ratios = torch.linspace(0.1, 0.5, 6)
    expected = [0] * 5 + [int(patches * ratios[i + 1]) for i in range(5)]
    assert sorted(counts(BlockMasks(BlockMaskOptions(roll=True), seed=2), 10, grid)) == expected


@pytest.mark.parametrize("grid", GRIDS)
def test_without_fill_counts_stay_within_their_step(grid: tuple[int, int]) -> None:
    sampler = BlockMasks(BlockMaskOptions(ratios="within", fill=False), seed=3)
    patches = grid[0] * grid[1]
    ratios = torch.linspace(0.1, 0.5, 6)
    found = counts(sampler, 10, grid)
    assert sum(count == 0 for count in found) >= 5
    assert max(found) <= int(patches * ratios[-1])


def test_independent_ratios() -> None:
    options = BlockMaskOptions(ratios="independent", min_area=None, max_share=1.0, fill=True)
    found = np.array(counts(BlockMasks(options, seed=4), 1000, (10, 10)))
    masked = found[found > 0]
    assert abs(len(masked) - 500) < 60  # 3.8 standard deviations of a fair coin
    assert 10 <= masked.min() < 14
    assert 46 < masked.max() <= 50
    assert abs(masked.mean() - 29.5) < 2


def slow_block_count(target: int, height: int, width: int, rng: python_random.Random) -> int:
    """reference.md 3.5, word for word, counting cells of a set."""
    cells: set[tuple[int, int]] = set()
    while len(cells) < target:
        budget = min(target - len(cells), int(0.5 * height) * width)
        added = False
        for _ in range(10):
            area = rng.uniform(4, budget)
            aspect = math.exp(rng.uniform(math.log(0.3), math.log(1 / 0.3)))
            h, w = round(math.sqrt(area * aspect)), round(math.sqrt(area / aspect))
            if w < width and h < height:
                top, left = rng.randint(0, height - h), rng.randint(0, width - w)
                new = {(y, x) for y in range(top, top + h) for x in range(left, left + w)} - cells
                if 0 < len(new) <= budget:
                    cells |= new
                    added = True
                    break
        if not added:
            break
    return len(cells)


def test_shortfall_without_fill_is_that_of_the_source() -> None:
    options = BlockMaskOptions(ratio=(0.5, 0.5), share=1.0, fill=False)
    ours = counts(BlockMasks(options, seed=5), 400, (9, 11))
    rng = python_random.Random(0)
    theirs = [slow_block_count(49, 9, 11, rng) for _ in range(400)]
    assert max(ours) == max(theirs) == 49
    assert abs(np.mean(ours) - np.mean(theirs)) < 4 * np.std(theirs) / math.sqrt(200)
    assert 0.5 < np.std(ours) / np.std(theirs) < 2


@pytest.mark.parametrize("grid", [(16, 16), (5, 12), (13, 7)])
def test_one_accepted_rectangle_is_a_rectangle_below_the_grid(grid: tuple[int, int]) -> None:
    sampler = BlockMasks(BlockMaskOptions(), seed=6)
    for row in range(50):
        cells = np.zeros(grid, dtype=np.bool_)
        added = sampler._add_rectangle(cells, 20, sampler._generator(0, row))
        y, x = np.nonzero(cells)
        if added:
            height, width = np.ptp(y) + 1, np.ptp(x) + 1
            assert height * width == added == cells.sum() <= 20
            assert height < grid[0]
            assert width < grid[1]


def test_largest_rectangle_is_half_of_the_rows_rounded_down() -> None:
    # reference.md 3.5: 666 at 518 / 14, where half of the area would be 684.
    assert int(37 * BlockMaskOptions().max_share) * 37 == 666


def test_masked_rows_change_from_step_to_step_and_are_spread() -> None:
    sampler = BlockMasks(BlockMaskOptions(), seed=7)
    masked = np.array([[c > 0 for c in counts(sampler, 8, (4, 4), step)] for step in range(200)])
    assert (masked.sum(axis=1) == 4).all()
    assert (abs(masked.mean(axis=0) - 0.5) < 0.15).all()


@pytest.mark.parametrize("kind", sorted(MASKS))
def test_a_row_is_a_function_of_seed_step_and_row(kind: str) -> None:
    make = MASKS[kind]
    sampler = make(make.Options(), 8)
    forward = [sampler.mask(3, row, 6, (8, 8)) for row in range(6)]
    other = pickle.loads(pickle.dumps(sampler))
    other.mask(4, 1, 6, (8, 8))
    backward = [other.mask(3, row, 6, (8, 8)) for row in reversed(range(6))][::-1]
    assert all(a.dtype == np.bool_ and a.shape == (64,) for a in forward)
    assert all(np.array_equal(a, b) for a, b in zip(forward, backward, strict=True))
    changed = [make(make.Options(), 9).mask(3, row, 6, (8, 8)) for row in range(6)]
    assert any(not np.array_equal(a, b) for a, b in zip(forward, changed, strict=True))


def test_predicted_patches_of_blocks_are_the_masked_ones() -> None:
    sampler = BlockMasks(BlockMaskOptions(share=1.0), seed=1)
    assert np.array_equal(sampler.predicted(0, 1, 4, (6, 6)), sampler.mask(0, 1, 4, (6, 6)))


def test_capi_counts() -> None:
    # reference.md 12.10: 256 tokens, 166 masked, 90 visible, 8 predicted.
    sampler = InverseBlockMasks(InverseBlockMaskOptions(), seed=1)
    for row in range(30):
        mask, predicted = sampler.mask(0, row, 30, (16, 16)), sampler.predicted(0, row, 30, (16, 16))
        assert (mask.sum(), (~mask).sum(), predicted.sum()) == (166, 90, 8)
        assert not (predicted & ~mask).any()


@pytest.mark.parametrize("grid", GRIDS)
@pytest.mark.parametrize("ratio", [0.0, 0.1, 0.65, 0.95, 1.0])
def test_inverse_block_on_any_grid(grid: tuple[int, int], ratio: float) -> None:
    patches = grid[0] * grid[1]
    for roll in (False, True):
        sampler = InverseBlockMasks(InverseBlockMaskOptions(ratio=ratio, roll=roll), seed=2)
        for row in range(10):
            assert sampler.mask(0, row, 10, grid).sum() == int(ratio * patches)


def test_visible_patches_are_a_rectangle_short_of_its_last_cells() -> None:
    sampler = InverseBlockMasks(InverseBlockMaskOptions(roll=False), seed=3)
    aspects = []
    for row in range(200):
        visible = ~sampler.mask(0, row, 200, (16, 16)).reshape(16, 16)
        y, x = np.nonzero(visible)
        box = visible[y.min() : y.max() + 1, x.min() : x.max() + 1]
        flat = box.reshape(-1)
        assert flat[:90].all()
        assert not flat[90:].any()
        aspects.append(box.shape[0] / box.shape[1])
    # Rounding up to whole cells can widen the range a little.
    assert 0.45 < min(aspects) < 0.7
    assert 1.5 < max(aspects) < 2.3


def test_roll_reaches_every_position() -> None:
    sampler = InverseBlockMasks(InverseBlockMaskOptions(), seed=4)
    visible = np.mean([~sampler.mask(step, 0, 1, (16, 16)) for step in range(400)], axis=0)
    assert abs(visible - 90 / 256).max() < 0.12  # without roll, corners are seen far less


@pytest.mark.parametrize(
    ("options", "wrong", "name"),
    [
        (BlockMaskOptions, {"share": 1.2}, "share"),
        (BlockMaskOptions, {"ratio": (0.5, 0.1)}, "ratio"),
        (BlockMaskOptions, {"min_area": 0}, "min_area"),
        (BlockMaskOptions, {"min_aspect": 0.0}, "min_aspect"),
        (InverseBlockMaskOptions, {"predicted": -0.1}, "predicted"),
        (InverseBlockMaskOptions, {"aspect": (2.0, 0.5)}, "aspect"),
    ],
)
def test_wrong_options(options: type, wrong: dict[str, object], name: str) -> None:
    with pytest.raises(ValueError, match=name):
        options(**wrong)
