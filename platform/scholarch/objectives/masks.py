"""Which patches of a view the student does not see.

A mask is a pure function of (seed, step, row), where row v * G + p is view v of position p in the
global batch of G samples, so that any process can make the mask of any view of any step.

Legend: h x w grid of patches, row-major, N = h * w.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import lru_cache
from typing import Any, ClassVar, Literal

import numpy as np
import torch
from numpy.typing import NDArray

from scholarch.draws import generator

Mask = NDArray[np.bool_]
TRIES = 10
"""Rectangles that are tried before a mask is left as it is (reference.md 3.5)."""


def _check_shares(**shares: float) -> None:
    for name, value in shares.items():
        if not 0 <= value <= 1:
            raise ValueError(f"{name} must lie in [0, 1], not {value}")


@dataclass(frozen=True, kw_only=True)
class BlockMaskOptions:
    """Rectangles on a share of the views (reference.md 3.5; defaults: DINOv3).

    Attributes:
        share: of the views of a step that are masked; which ones is drawn anew at each step.
        ratio: smallest and largest share of patches masked in a masked view.
        ratios: how ratios are spread. "even": as many equal steps as there are masked views, each
            view at the upper end of its own (DINOv3); "within": the same, drawn uniformly within
            it (DINOv2); "independent": every view alone decides whether it is masked, and draws
            its ratio from the whole range (iBOT).
        fill: add single patches up to the exact count (DINOv3), or stay below it where rectangles
            do not fit (DINOv2, iBOT).
        min_area: smallest rectangle in patches; None: (shorter side // 3) squared (iBOT).
        max_share: largest share of the grid's rows, times all columns, that one rectangle covers;
            1 leaves it to the count (iBOT).
        min_aspect: smallest ratio of sides, in (0, 1]; the largest is its inverse.
        roll: shift the mask by a random number of rows and columns, around the border.
        hide: whether the student does not see what is masked. Without it (distillation, reference.md
            6.3), terms read the masked places of what it sees whole.
    """

    kind: Literal["block"] = "block"
    share: float = 0.5
    ratio: tuple[float, float] = (0.1, 0.5)
    ratios: Literal["even", "within", "independent"] = "even"
    fill: bool = True
    min_area: int | None = 4
    max_share: float = 0.5
    min_aspect: float = 0.3
    roll: bool = False
    hide: bool = True

    def __post_init__(self) -> None:
        _check_shares(share=self.share, max_share=self.max_share)
        _check_shares(smallest_ratio=self.ratio[0], largest_ratio=self.ratio[1])
        if self.ratio[0] > self.ratio[1]:
            raise ValueError(f"ratio must be (smallest, largest), not {self.ratio}")
        if self.min_area is not None and self.min_area < 1:
            raise ValueError(f"min_area must be at least 1, not {self.min_area}")
        if not 0 < self.min_aspect <= 1:
            raise ValueError(f"min_aspect must lie in (0, 1], not {self.min_aspect}")


@dataclass(frozen=True, kw_only=True)
class InverseBlockMaskOptions:
    """All but one rectangle, on every view (CAPI, reference.md 3.8).

    Attributes:
        ratio: share of patches masked, rounded down to patches.
        predicted: share of the masked patches that are predicted, rounded down.
        aspect: smallest and largest ratio of height to width of the visible rectangle.
        roll: shift the mask by a random number of rows and columns, around the border.
    """

    kind: Literal["inverse_block"] = "inverse_block"
    ratio: float = 0.65
    predicted: float = 0.05
    aspect: tuple[float, float] = (0.5, 2.0)
    roll: bool = True
    hide: ClassVar[bool] = True

    def __post_init__(self) -> None:
        _check_shares(ratio=self.ratio, predicted=self.predicted)
        if not 0 < self.aspect[0] <= self.aspect[1]:
            raise ValueError(f"aspect must be (smallest, largest) above 0, not {self.aspect}")


class MaskSampler:
    """Masks of the views of one name.

    Args:
        seed: of the run; give views of another name another one.
    """

    Options: ClassVar[type[Any]]

    def __init__(self, options: Any, seed: int) -> None:
        self.options = options
        self.seed = seed

    def mask(self, step: int, row: int, rows_total: int, grid: tuple[int, int]) -> Mask:
        """[N] bool, True = masked, of global row `row` out of `rows_total` = V * G."""
        raise NotImplementedError

    def predicted(self, step: int, row: int, rows_total: int, grid: tuple[int, int]) -> Mask:
        """[N] bool, True = predicted: a part of the mask, by default all of it."""
        return self.mask(step, row, rows_total, grid)

    def _generator(self, step: int, *key: int | str) -> np.random.Generator:
        return generator(self.seed, "mask", step, *key)

    def _rolled(self, cells: Mask, draws: np.random.Generator) -> Mask:
        if not self.options.roll:
            return cells
        shift = (int(draws.integers(cells.shape[0])), int(draws.integers(cells.shape[1])))
        return np.roll(cells, shift, axis=(0, 1))


class BlockMasks(MaskSampler):
    """Masks as unions of random rectangles."""

    Options = BlockMaskOptions
    options: BlockMaskOptions

    def mask(self, step: int, row: int, rows_total: int, grid: tuple[int, int]) -> Mask:
        draws = self._generator(step, row)
        count = int(self._ratio(step, row, rows_total, draws) * np.float32(grid[0] * grid[1]))
        cells = np.zeros(grid, dtype=np.bool_)
        self._add_rectangles(cells, count, draws)
        if self.options.fill:
            free = np.flatnonzero(~cells)
            missing = count - (cells.size - free.size)
            cells.reshape(-1)[draws.permutation(free)[:missing]] = True
        return self._rolled(cells, draws).reshape(-1)

    def _ratio(self, step: int, row: int, rows_total: int, draws: np.random.Generator) -> np.float32:
        options = self.options
        if options.ratios == "independent":
            masked = draws.uniform() < options.share
            return np.float32(draws.uniform(*options.ratio) if masked else 0.0)
        edges = _ratio_edges(int(rows_total * options.share), options.ratio)
        place = _order(self.seed, step, rows_total)[row]
        if place >= len(edges) - 1:
            return np.float32(0.0)
        if options.ratios == "within":
            return np.float32(draws.uniform(edges[place], edges[place + 1]))
        return np.float32(edges[place + 1])

    def _add_rectangles(self, cells: Mask, count: int, draws: np.random.Generator) -> None:
        height, width = cells.shape
        # Rounded down to rows: not half of the area on odd grids.
        largest = int(height * self.options.max_share) * width
        masked = 0
        while masked < count:
            added = self._add_rectangle(cells, min(count - masked, largest), draws)
            if added == 0:
                break
            masked += added

    def _add_rectangle(self, cells: Mask, budget: int, draws: np.random.Generator) -> int:
        """Patches that one more rectangle adds, at most `budget`; 0 if none was found."""
        height, width = cells.shape
        smallest = (min(height, width) // 3) ** 2 if self.options.min_area is None else self.options.min_area
        bound = -math.log(self.options.min_aspect)
        for _ in range(TRIES):
            # Near the end the budget is below the smallest area: the interval is then reversed.
            area = smallest + (budget - smallest) * draws.random()
            aspect = math.exp(draws.uniform(-bound, bound))
            h, w = round(math.sqrt(area * aspect)), round(math.sqrt(area / aspect))
            if h >= height or w >= width:
                continue
            top, left = int(draws.integers(height - h + 1)), int(draws.integers(width - w + 1))
            block = cells[top : top + h, left : left + w]
            new = block.size - int(np.count_nonzero(block))
            if 0 < new <= budget:
                block[:] = True
                return new
        return 0


class InverseBlockMasks(MaskSampler):
    """Masks that leave one rectangle visible, with few of the masked patches to predict."""

    Options = InverseBlockMaskOptions
    options: InverseBlockMaskOptions

    def mask(self, step: int, row: int, rows_total: int, grid: tuple[int, int]) -> Mask:  # noqa: ARG002
        draws = self._generator(step, row)
        height, width = grid
        visible = height * width - int(self.options.ratio * (height * width))
        cells = np.ones(grid, dtype=np.bool_)
        if visible:
            h, w = self._sides(visible, grid, draws)
            top, left = int(draws.integers(height - h + 1)), int(draws.integers(width - w + 1))
            inside = np.arange(h * w).reshape(h, w)
            cells[top : top + h, left : left + w] = inside >= visible
        return self._rolled(cells, draws).reshape(-1)

    def predicted(self, step: int, row: int, rows_total: int, grid: tuple[int, int]) -> Mask:
        masked = np.flatnonzero(self.mask(step, row, rows_total, grid))
        chosen = self._generator(step, row, "predicted").permutation(masked)
        cells = np.zeros(grid[0] * grid[1], dtype=np.bool_)
        cells[chosen[: int(self.options.predicted * len(masked))]] = True
        return cells

    def _sides(self, visible: int, grid: tuple[int, int], draws: np.random.Generator) -> tuple[int, int]:
        """Height and width of the visible rectangle, holding at least `visible` patches."""
        height, width = grid
        # The ratios of height to width at which the rectangle fills the grid's width or height.
        flattest, steepest = visible / width**2, height**2 / visible
        low, high = (min(max(ratio, flattest), steepest) for ratio in self.options.aspect)
        ratio = math.exp(draws.uniform(math.log(low), math.log(high)))
        h = min(math.ceil(math.sqrt(visible * ratio)), height)
        w = min(math.ceil(math.sqrt(visible / ratio)), width)
        # Rounding at the bounds must not lose a row or column.
        return max(h, math.ceil(visible / w)), w


@lru_cache(maxsize=8)
def _order(seed: int, step: int, rows_total: int) -> NDArray[np.int64]:
    """The place of each row in a random order of the step's rows."""
    return generator(seed, "mask", step, "order").permutation(rows_total)


@lru_cache(maxsize=8)
def _ratio_edges(masked: int, ratio: tuple[float, float]) -> NDArray[np.float32]:
    """[masked + 1] edges of equal steps. float32 as in the sources: rounding moves counts by one."""
    edges: NDArray[np.float32] = torch.linspace(*ratio, masked + 1, dtype=torch.float32).numpy()
    return edges
