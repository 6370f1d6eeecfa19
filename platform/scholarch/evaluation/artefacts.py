"""Patches whose features stand far out in length, and what they hold (reference.md section 9.9).

Legend: n pictures, N patches of each, D width, m patches that are looked at.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from scholarch.evaluation.dense import grid_of
from scholarch.evaluation.face import Evaluation, Given, Needs, Outcome, Output, means
from scholarch.objectives.monitors import usual_norms


@dataclass(frozen=True, kw_only=True)
class ArtefactOptions:
    """Options of artefacts.

    Attributes:
        data: name of the suite's data; empty: its first.
        threshold: norm before the final norm above which a patch is an outlier (150 for DINOv2-g, section 9.9);
            null: 6 deviations above the median of all patches.
        largest: share of patches, by norm, that the probes compare with the rest: outliers of a model that has
            none would be no patches at all.
        penalty: of the ridge regressions that are the probes, as a share of the mean squared feature.
    """

    kind: Literal["artefacts"] = "artefacts"
    data: str = ""
    threshold: float | None = None
    largest: float = 0.02
    penalty: float = 1e-3

    def __post_init__(self) -> None:
        if not 0 < self.largest < 1 or self.penalty <= 0:
            raise ValueError("largest must lie between 0 and 1, penalty above 0")


class Artefacts(Evaluation):
    """`outlier_share`; `largest_over_median` of norms; and for the largest patches and the rest:

    `neighbour_cosine_*`, of the patch embedding with its neighbours (large where nothing happens);
    `position_error_*`, in patches, of a linear guess of where the patch lies; `pixel_error_*`, of a linear
    guess of its normalised pixels (mean squared). Outliers in the paper's sense lie where neighbours are alike
    and know neither their place nor their pixels.
    """

    Options = ArtefactOptions

    def needs(self) -> Needs:
        outputs: frozenset[Output] = frozenset({"patches", "norms", "embedded", "pixels"})
        return Needs(known=frozenset(), outputs=outputs, view="whole")

    def run(self, given: Given) -> Outcome:
        options: ArtefactOptions = self.options
        train, test = _tokens(given, "train"), _tokens(given, "test")
        norms = np.concatenate(test.norms)
        limit = usual_norms(norms)[1] if options.threshold is None else options.threshold
        border = float(np.quantile(norms, 1 - options.largest))
        large = norms > border
        measured = {
            "neighbour_cosine": test.neighbours,
            "position_error": _guess_errors(train, test, lambda t: t.places, options.penalty, _distance),
            "pixel_error": _guess_errors(train, test, lambda t: t.pixels, options.penalty, _squares),
        }
        halves = {
            f"{name}_{half}": float(values[chosen].mean()) if chosen.any() else float("nan")
            for name, values in measured.items()
            for half, chosen in (("largest", large), ("rest", ~large))
        }
        metrics, samples = means(
            {"outlier_share": np.array([(one > limit).mean() for one in test.norms])},
            largest_over_median=float(norms.max() / np.median(norms)),
            median_norm=float(np.median(norms)),
            **halves,
        )
        return Outcome(metrics=metrics, samples=samples)


@dataclass(frozen=True)
class Tokens:
    """Patches of a split, picture by picture and then row by row.

    Attributes:
        features: [m, D].
        norms: of each picture, [N], after the last block and before the final norm.
        neighbours: [m], mean cosine of the patch embedding with its 2 to 4 neighbours.
        places: [m, 2], row and column in patches.
        pixels: [m, P].
    """

    features: Tensor
    norms: list[np.ndarray]
    neighbours: np.ndarray
    places: Tensor
    pixels: Tensor


def _tokens(given: Given, split: Literal["train", "test"]) -> Tokens:
    seen = given.features(split)
    rows = given.by_name(split) if split == "train" else np.arange(len(seen))
    grids = [grid_of(seen.grids[row]) for row in rows]
    return Tokens(
        features=torch.cat([seen.one("patches", int(row)) for row in rows]),
        norms=[seen.one("norms", int(row))[:, -1].numpy() for row in rows],
        neighbours=np.concatenate(
            [
                neighbour_cosine(seen.one("embedded", int(row)), grid)
                for row, grid in zip(rows, grids, strict=True)
            ]
        ),
        places=torch.cat([torch.cartesian_prod(*(torch.arange(float(s)) for s in grid)) for grid in grids]),
        pixels=torch.cat([seen.one("pixels", int(row)) for row in rows]),
    )


def neighbour_cosine(embedded: Tensor, grid: tuple[int, int]) -> np.ndarray:
    """[N]: mean cosine of what the patch embedding [N, D] gives with that of the 2 to 4 neighbours."""
    unit = F.normalize(embedded, dim=-1).reshape(*grid, -1)
    total, count = torch.zeros(grid), torch.zeros(grid)
    for axis in (0, 1):
        length = grid[axis] - 1
        cosines = (unit.narrow(axis, 0, length) * unit.narrow(axis, 1, length)).sum(-1)
        for start in (0, 1):
            total.narrow(axis, start, length).add_(cosines)
            count.narrow(axis, start, length).add_(1)
    return np.asarray((total / count.clamp(min=1)).flatten().numpy())


def ridge(features: Tensor, targets: Tensor, penalty: float) -> Callable[[Tensor], Tensor]:
    """The linear map that makes the mean squared error plus the penalty smallest, in float64.

    Args:
        features: [m, D].
        targets: [m, K].
        penalty: of the weights' squares, as a share of the features' mean square; above 0.
    """
    x, y = features.double(), targets.double()
    centre, mean = x.mean(0), y.mean(0)
    x, y = x - centre, y - mean
    strength = penalty * float(x.square().mean()) * len(x)
    weight = torch.linalg.solve(x.T @ x + strength * torch.eye(x.shape[1], dtype=x.dtype), x.T @ y)

    def guess(rows: Tensor) -> Tensor:
        found: Tensor = (rows.double() - centre) @ weight + mean
        return found

    return guess


def _guess_errors(
    train: Tokens,
    test: Tokens,
    target: Callable[[Tokens], Tensor],
    penalty: float,
    error: Callable[[Tensor], Tensor],
) -> np.ndarray:
    guess = ridge(train.features, target(train), penalty)
    return np.asarray(error(guess(test.features) - target(test)).numpy())


def _distance(off: Tensor) -> Tensor:
    found: Tensor = torch.linalg.vector_norm(off, dim=1)
    return found


def _squares(off: Tensor) -> Tensor:
    return off.square().mean(dim=1)
