"""What an evaluation is given, made by hand: features and annotations of a few samples."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, cast

import numpy as np
import torch
from scholarch.data.annotated.face import Annotated, Kind, SplitName
from scholarch.data.annotated.generated import Pictures
from scholarch.evaluation.face import Given, Output
from torch import Tensor


@dataclass
class Rows:
    """Outputs by name, one tensor for each sample; a Seen."""

    outputs: Mapping[Output, Sequence[Tensor]]
    grid: tuple[int, int] = (1, 1)
    size: int = 16
    samples: np.ndarray = field(init=False)
    grids: np.ndarray = field(init=False)

    def __post_init__(self) -> None:
        self.samples = np.arange(len(next(iter(self.outputs.values()))))
        self.grids = np.tile(np.array(self.grid), (len(self.samples), 1))

    def __len__(self) -> int:
        return len(self.samples)

    def stacked(self, output: Output) -> Tensor:
        return torch.stack(list(self.outputs[output]))

    def one(self, output: Output, row: int) -> Tensor:
        return self.outputs[output][row]


def annotated(
    known: Mapping[Kind, Sequence[Any]], names: Mapping[Kind, Sequence[str]] | None = None, side: int = 16
) -> Annotated:
    """A split whose annotations are these, of pictures that are all alike."""
    count = len(next(iter(known.values())))
    readers: dict[Kind, Callable[[int], Any]] = {kind: (lambda i, v=v: v[i]) for kind, v in known.items()}
    return Annotated(
        Pictures([np.full((side, side, 3), i % 256, np.uint8) for i in range(count)], "made"), readers, names
    )


def given(
    rows: Mapping[SplitName, Rows],
    data: Mapping[SplitName, Annotated],
    patch: int = 4,
    others: Mapping[tuple[SplitName, float, bool], Rows] | None = None,
) -> Given:
    """`others`: rows at other sizes, or of the reference."""
    table = {(split, 1.0, False): one for split, one in rows.items()} | dict(others or {})
    return Given(data=data, backbone=cast(Any, None), seen=lambda *key: table[key], patch=patch)


def of_classes(
    train: tuple[Tensor, Sequence[int]], test: tuple[Tensor, Sequence[int]], output: Output = "cls"
) -> Given:
    """Features [n, D] of labelled samples."""
    splits: dict[SplitName, tuple[Tensor, Sequence[int]]] = {"train": train, "test": test}
    return given(
        {split: Rows({output: list(values)}) for split, (values, _) in splits.items()},
        {split: annotated({"class": list(labels)}) for split, (_, labels) in splits.items()},
    )
