"""Labelled pictures in order, for evaluations."""

from __future__ import annotations

import os
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Protocol

import numpy as np
import torch
from torch import Tensor

from scholarch.data.decode import to_channels
from scholarch.data.source import BrokenPicture, Source, expect
from scholarch.data.views import EvaluationView


@dataclass
class EvaluationBatch:
    """Pictures as an evaluation sees them.

    Attributes:
        pictures: [b, C, size, size], normalised.
        labels: [b] int64; -1 without labels.
        sample_ids: numbers within the source, [b] int64.
        broken: "name: reason" of pictures that were left out.
    """

    pictures: Tensor
    labels: Tensor
    sample_ids: Tensor
    broken: list[str]


class View(Protocol):
    """What is made of each picture."""

    @property
    def channels(self) -> int:
        """That a picture must have."""
        ...

    def __call__(self, picture: Tensor) -> Tensor:
        """[C, H, W] as it was decoded to what a model is shown."""
        ...


def evaluation_batches(
    source: Source, indices: np.ndarray, view: EvaluationView, batch_size: int, threads: int | None = None
) -> Iterator[EvaluationBatch]:
    """The pictures at `indices`, in order, in batches; broken ones are left out and named.

    Args:
        threads: that decode, at most one batch ahead; None: up to 8, one for each core.
    """
    for part, loaded in viewed(source, indices, view, batch_size, threads):
        yield _collate(source, part, loaded, view)


def viewed(
    source: Source,
    indices: np.ndarray,
    view: View,
    batch_size: int,
    threads: int | None = None,
) -> Iterator[tuple[list[int], list[Tensor | BrokenPicture]]]:
    """The same as lists of so many numbers and what became of each picture."""

    def load(index: int) -> Tensor | BrokenPicture:
        try:
            return view(to_channels(source.read(index), view.channels, source.name(index)))
        except BrokenPicture as broken:
            return broken

    expect(source, indices, afresh=True)
    parts = [indices[start : start + batch_size] for start in range(0, len(indices), batch_size)]
    with ThreadPoolExecutor(threads or min(8, os.cpu_count() or 1)) as pool:
        pending = pool.map(load, parts[0].tolist()) if parts else iter(())
        for number, part in enumerate(parts):
            loaded, pending = pending, iter(())
            if number + 1 < len(parts):
                pending = pool.map(load, parts[number + 1].tolist())
            yield part.tolist(), list(loaded)


def _collate(
    source: Source, indices: list[int], loaded: list[Tensor | BrokenPicture], view: EvaluationView
) -> EvaluationBatch:
    good = [(index, item) for index, item in zip(indices, loaded, strict=True) if isinstance(item, Tensor)]
    labels = [source.label(index) for index, _ in good]
    return EvaluationBatch(
        pictures=torch.stack([picture for _, picture in good])
        if good
        else torch.empty(0, view.channels, view.size, view.size),
        labels=torch.tensor([-1 if label is None else label for label in labels], dtype=torch.int64),
        sample_ids=torch.tensor([index for index, _ in good], dtype=torch.int64),
        broken=[str(item) for item in loaded if isinstance(item, BrokenPicture)],
    )
