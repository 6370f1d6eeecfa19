"""Depth from frozen patches by a linear head over bins (reference.md section 9.5).

Legend: N patches, b patches of a batch, K bins, H x W pixels.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import numpy as np
import torch
from torch import Tensor

from scholarch.errors import UserError
from scholarch.evaluation.dense import (
    HeadOptions,
    patch_means,
    picture_of,
    test_samples,
    to_pixels,
    trained_head,
    training_patches,
)
from scholarch.evaluation.face import Evaluation, Given, Needs, Outcome, Tiles, means

SHOWN = 4
SPREAD = 0.15
"""Weight of the squared mean in the loss."""
FIRST = 100
"""Steps in which the loss is that of the mean alone."""
SMALL = 1e-3


@dataclass(frozen=True, kw_only=True)
class DepthOptions(HeadOptions):
    """Options of linear depth; its head's besides.

    Attributes:
        data: name of the suite's data; empty: its first.
        nearest, farthest: range of depth in metres; pixels outside are not evaluated.
        bins: K, evenly over the range.
        crop: top, bottom, left, right of the pixels that are evaluated; null: all. NYU's is 45, 471, 41, 601.
    """

    kind: Literal["depth"] = "depth"
    data: str = ""
    rate: float = 3e-4
    weight_decay: float = 1e-4
    nearest: float = 1e-3
    farthest: float = 10.0
    bins: int = 256
    crop: tuple[int, int, int, int] | None = None

    def __post_init__(self) -> None:
        super().__post_init__()
        if not 0 < self.nearest < self.farthest or self.bins < 2:
            raise ValueError("nearest must lie above 0 and below farthest, bins be 2 or more")


class Depth(Evaluation):
    """`rmse` (metres), `abs_rel` and `a1` (share within a factor of 1.25), each averaged over pictures."""

    Options = DepthOptions

    def needs(self) -> Needs:
        return Needs(known=frozenset({"depth"}), outputs=frozenset({"patches"}), view="whole")

    def run(self, given: Given) -> Outcome:
        options: DepthOptions = self.options
        patches = training_patches(given, "depth", patch_means, options.most)
        bins = torch.linspace(options.nearest, options.farthest, options.bins)

        def loss(outputs: Tensor, target: Tensor, step: int) -> Tensor:
            return sig_loss(expected(outputs, bins), target, mean_alone=step < FIRST)

        head = trained_head(patches, options.bins, options, loss)
        data = given.data["test"]
        found: dict[str, list[float]] = {"rmse": [], "abs_rel": [], "a1": []}
        rows: list[list[np.ndarray]] = []
        for index, values, grid in test_samples(given):
            truth = data.annotation(index, "depth")
            guess = to_pixels(expected(head(values), bins)[:, None], grid, truth.shape)[0].numpy()
            guess = guess.clip(options.nearest, options.farthest)
            errors = depth_errors(*_cropped(guess, truth, options.crop), options.nearest, options.farthest)
            if errors is None:
                raise UserError(
                    f"no pixel of {data.name(index)} has a depth between {options.nearest} and {options.farthest} m",
                    where="evaluations",
                    fix="change nearest, farthest or crop, or remove the sample",
                )
            for name, value in errors.items():
                found[name].append(value)
            if len(rows) < SHOWN:
                shown = [_grey(one, options.farthest) for one in (truth, guess)]
                rows.append([picture_of(data, index), *shown])
        metrics, samples = means({name: np.array(values) for name, values in found.items()})
        tiles = Tiles(rows, ("picture", "measured", "found"))
        return Outcome(metrics=metrics, samples=samples, pictures={"maps": tiles})


def expected(outputs: Tensor, bins: Tensor) -> Tensor:
    """[b] metres: the mean of the bins [K] under relu(outputs) + 0.1, made to sum to 1."""
    weights = outputs.relu() + 0.1
    return (weights / weights.sum(dim=-1, keepdim=True)) @ bins


def sig_loss(found: Tensor, truth: Tensor, *, mean_alone: bool) -> Tensor:
    """sqrt(var(g) + 0.15 mean(g)^2) of g = ln(found + 0.001) - ln(truth + 0.001), var unbiased; see FIRST."""
    g = (found + SMALL).log() - (truth + SMALL).log()
    spread = SPREAD * g.mean().square()
    # The root has no slope at 0.
    return ((spread if mean_alone else spread + g.var()) + 1e-12).sqrt()


def depth_errors(
    found: np.ndarray, truth: np.ndarray, nearest: float, farthest: float
) -> dict[str, float] | None:
    """Errors over the pixels whose true depth lies in the range; None if there is none."""
    there = (truth >= nearest) & (truth <= farthest)
    if not there.any():
        return None
    a, b = found[there].astype(np.float64), truth[there].astype(np.float64)
    return {
        "rmse": float(np.sqrt(np.mean((a - b) ** 2))),
        "abs_rel": float(np.mean(np.abs(a - b) / b)),
        "a1": float(np.mean(np.maximum(a / b, b / a) < 1.25)),
    }


def _cropped(
    found: np.ndarray, truth: np.ndarray, crop: tuple[int, int, int, int] | None
) -> tuple[np.ndarray, np.ndarray]:
    if crop is None:
        return found, truth
    top, bottom, left, right = crop
    return found[top:bottom, left:right], truth[top:bottom, left:right]


def _grey(metres: np.ndarray, farthest: float) -> np.ndarray:
    """Near is light."""
    return np.repeat(1 - (metres / farthest).clip(0, 1)[..., None], 3, axis=-1)
