"""Stochastic depth that skips the computation of what it drops (reference.md section 1.2).

Which pictures keep a branch is decided over the global rows of a group of views, so that it does
not depend on how the rows are spread over ranks and micro-batches. Every process runs the branch
on its own kept rows, be they none: an empty batch still gives every parameter its zero gradient,
without which ranks would disagree on what to reduce.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Literal, NamedTuple

import numpy as np
import torch
from torch import Tensor

from scholarch.draws import Draws
from scholarch.models.features import Views

RateShape = Literal["constant", "linear"]
DrawForm = Literal["subset", "sample"]


class Kept(NamedTuple):
    """What one block keeps of a group of views.

    Attributes:
        rows: for each branch, the local rows it runs on; None: all of them.
        scale: by which what a branch adds is multiplied.
    """

    rows: tuple[Tensor | None, ...]
    scale: float


def block_rates(rate: float, shape: RateShape, depth: int) -> list[float]:
    """The rate of each block: the same everywhere, or linear from 0 to `rate` in the last block."""
    if shape == "constant":
        return [rate] * depth
    return [rate * block / max(depth - 1, 1) for block in range(depth)]


def decide(
    views: Views, draws: Draws | None, rates: Sequence[float], branches: Sequence[str], form: DrawForm
) -> list[Kept]:
    """Which local rows each branch of each block runs on.

    Args:
        views: their `rows` and `total` say what part of the global rows is here.
        draws: needed when a rate is above 0.
        rates: of each block.
        branches: names of a block's branches.
        form: "subset" keeps exactly max(int(total * (1 - rate)), 1) global rows and scales by
            total / kept; "sample" keeps each row with probability 1 - rate and scales by 1 / (1 - rate).

    Raises:
        ValueError: if draws are needed and not given.
    """
    if not any(rates):
        return [Kept((None,) * len(branches), 1.0) for _ in rates]
    parts = kept_rows(views, draws, rates, branches, form)
    # One transfer for all blocks.
    moved = torch.from_numpy(np.concatenate(parts)).to(views.images.device, non_blocking=True)
    split = iter(torch.split(moved, [len(part) for part in parts]))
    decided = []
    for rate in rates:
        kept = tuple(next(split) for _ in branches) if rate else (None,) * len(branches)
        decided.append(Kept(kept, scale_of(views, rate, form) if rate else 1.0))
    return decided


def kept_rows(
    views: Views, draws: Draws | None, rates: Sequence[float], branches: Sequence[str], form: DrawForm
) -> list[np.ndarray]:
    """The local rows that are kept, for each branch of each block whose rate is above 0, on the host.

    Raises:
        ValueError: if draws are not given.
    """
    if draws is None:
        raise ValueError("training with stochastic depth needs `draws`")
    total = _total(views)
    rows = np.arange(views.images.shape[0]) if views.rows is None else views.rows.numpy()
    return [
        np.flatnonzero(_chosen(draws, total, rate, form, views.name, block, branch)[rows])
        for block, rate in enumerate(rates)
        if rate
        for branch in branches
    ]


def scale_of(views: Views, rate: float, form: DrawForm) -> float:
    """By which what a kept row receives is multiplied."""
    return _total(views) / _subset_size(_total(views), rate) if form == "subset" else 1 / (1 - rate)


def _total(views: Views) -> int:
    return views.images.shape[0] if views.total is None else views.total


def _subset_size(total: int, rate: float) -> int:
    return max(int(total * (1 - rate)), 1)


def _chosen(
    draws: Draws, total: int, rate: float, form: DrawForm, name: str, block: int, branch: str
) -> np.ndarray:
    key = ("stochastic depth", name, block, branch)
    if form == "sample":
        return draws.uniform(0.0, 1.0, total, *key) >= rate
    chosen = np.zeros(total, dtype=bool)
    chosen[draws.subset(total, _subset_size(total, rate), *key).numpy()] = True
    return chosen


def add_branch(x: Tensor, branch: Callable[[Tensor], Tensor], kept: Tensor | None, scale: float) -> Tensor:
    """`x` plus the branch, run on the rows `kept` (None: all) and scaled. [B, ...] -> [B, ...]."""
    if kept is None:
        return x + branch(x)
    return x.index_add(0, kept, (scale * branch(x[kept])).to(x.dtype))
