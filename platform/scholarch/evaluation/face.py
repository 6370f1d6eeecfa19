"""The face of every evaluation: what it needs, and `run(given) -> Outcome`.

Legend: n samples, N patches, h x w their grid, D width.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, ClassVar, Literal, Protocol

import numpy as np
from torch import Tensor

from scholarch.data.annotated.face import Annotated, Kind, SplitName
from scholarch.models.features import Backbone

Output = Literal["cls", "cls_last", "mean_patch", "patches", "keys", "norms", "embedded", "pixels"]
"""What of a backbone an evaluation may ask for, for each sample:

    cls         [D], after the final norm
    cls_last    [4, D], CLS of the last 4 blocks (or of all, where there are fewer), normed; not of ConvNeXt
    mean_patch  [D], mean of `patches`
    patches     [N, D], after the final norm
    keys        [N, D], of all heads of the last block's attention, in a row; of ViTs only
    norms       [N, L], length of each patch after each of L blocks, before the final norm; not of ConvNeXt
    embedded    [N, D], of the patch embedding; of ViTs only
    pixels      [N, C * patch * patch], the normalised pixels themselves
"""
ViewName = Literal["crop", "whole"]
"""`crop`: the central square, as for classification; `whole`: the whole picture in its own ratio."""


@dataclass(frozen=True, kw_only=True)
class Needs:
    """What an evaluation must be given.

    Attributes:
        known: what must be known of samples of both splits.
        outputs: of the backbone, for every sample.
        splits: that it reads; of data without a `train` split only evaluations of `test` alone can be run.
        view: how pictures reach the backbone.
        sizes: pixels of the (shorter) side, as multiples of the suite's size.
        reference: address of another model whose outputs are needed too; empty: none.
    """

    known: frozenset[Kind]
    outputs: frozenset[Output]
    splits: tuple[SplitName, ...] = ("train", "test")
    view: ViewName = "crop"
    sizes: tuple[float, ...] = (1.0,)
    reference: str = ""


class Seen(Protocol):
    """Outputs of one model for one split, extracted before `run` is called. On the CPU, float32.

    Attributes:
        samples: numbers of the samples that could be read, rising, [n] int64; outputs stand in this order.
        grids: patches down and across of each, [n, 2] int64.
        size: pixels of the (shorter) side of the view.
    """

    samples: np.ndarray
    grids: np.ndarray
    size: int

    def __len__(self) -> int: ...

    def stacked(self, output: Output) -> Tensor:
        """[n, ...], of an output with one shape for all samples."""
        ...

    def one(self, output: Output, row: int) -> Tensor:
        """Of the `row`-th of the samples, such as [N, D]."""
        ...


def _no_views(name: ViewName, size: int) -> Callable[[Tensor], Tensor]:
    raise ValueError(f"no {name} view of {size} pixels was given")


@dataclass(frozen=True, kw_only=True)
class Given:
    """What an evaluation is given: outputs and annotations; and the backbone, should these not do.

    Attributes:
        data: by split.
        backbone: on `device`, in evaluation mode, whole on this process.
        seen: outputs of the evaluated model by split, multiple of the size and whether of the reference.
        patch: side of a patch in pixels.
        views: how a picture of about so many pixels reaches the backbone, by name of the view.
    """

    data: Mapping[SplitName, Annotated]
    backbone: Backbone
    seen: Callable[[SplitName, float, bool], Seen]
    patch: int
    views: Callable[[ViewName, int], Callable[[Tensor], Tensor]] = field(default=_no_views)

    def features(self, split: SplitName, size: float = 1.0, *, reference: bool = False) -> Seen:
        """Outputs that `Needs` asked for."""
        return self.seen(split, size, reference)

    def labels(self, split: SplitName, size: float = 1.0) -> np.ndarray:
        """[n] int64, classes of the samples that could be read."""
        data = self.data[split]
        found = [data.annotation(int(i), "class") for i in self.features(split, size).samples]
        return np.array(found, dtype=np.int64)

    def by_name(self, split: SplitName) -> np.ndarray:
        """[n] int64, rows of the split in the order of the samples' names.

        What draws samples draws them from this order, so that the order of the data changes nothing.
        """
        data = self.data[split]
        names = [data.name(int(i)) for i in self.features(split).samples]
        return np.argsort(np.array(names), kind="stable")


@dataclass(frozen=True)
class Tiles:
    """A picture of rows of pictures.

    Attributes:
        rows: [H, W, 3] in [0, 1] each.
        titles: of the columns.
    """

    rows: Sequence[Sequence[np.ndarray]]
    titles: Sequence[str] = ()


@dataclass(frozen=True)
class Confusion:
    """How often each class (row) was taken for each (column), [classes, classes]."""

    counts: np.ndarray
    classes: Sequence[str]


@dataclass(frozen=True, kw_only=True)
class Outcome:
    """What an evaluation found.

    Attributes:
        metrics: by name; NaN where one has no value.
        samples: by name of the metric [n] float64, in the order of the test samples; the metric is their mean.
            A metric that is not a mean over samples has none.
        pictures: by name.
    """

    metrics: Mapping[str, float]
    samples: Mapping[str, np.ndarray] = field(default_factory=dict)
    pictures: Mapping[str, Tiles | Confusion] = field(default_factory=dict)


class Evaluation(ABC):
    """An evaluation with its options.

    `run` is called on one process, which may be any, and takes no part in collectives: outputs were
    extracted by all processes before. What it draws it draws from `scholarch.draws`. Neither the order
    of samples within `given` nor batches of its own may change what it finds.

    Attributes:
        Options: a frozen, keyword-only dataclass; `kind` is the name in EVALUATIONS.
    """

    Options: ClassVar[type[Any]]

    def __init__(self, options: Any) -> None:
        self.options = options

    @abstractmethod
    def needs(self) -> Needs:
        """What it must be given."""

    @abstractmethod
    def run(self, given: Given) -> Outcome:
        """Metrics, their samples and pictures."""


def means(
    samples: Mapping[str, np.ndarray], **metrics: float
) -> tuple[dict[str, float], dict[str, np.ndarray]]:
    """Metrics and samples of an Outcome: the mean of each array, and `metrics` that have no samples."""
    arrays = {name: np.asarray(values, dtype=np.float64) for name, values in samples.items()}
    found = {name: float(values.mean()) if len(values) else float("nan") for name, values in arrays.items()}
    return found | metrics, arrays
