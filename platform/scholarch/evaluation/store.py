"""Outputs of a frozen backbone, extracted once by all ranks together and shared by evaluations.

    KEY/OUTPUT/00000.safetensors     a shard: rows of the samples, their numbers and grids

KEY says model, data and view, so that nothing stale is read. A shard is written whole or not at all, and one
that is there is not made again: a command that was cut short goes on by being given again. Which samples a
shard holds does not depend on the number of ranks.
"""

from __future__ import annotations

import hashlib
from collections import defaultdict
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, field
from functools import lru_cache

import numpy as np
import torch
from safetensors.torch import load, save
from torch import Tensor
from torch.distributed import ProcessGroup

from scholarch.collectives import rank, world_size
from scholarch.data.annotated.face import Annotated
from scholarch.data.evaluation import viewed
from scholarch.data.source import BrokenPicture
from scholarch.data.views import EvaluationView, WholeView
from scholarch.errors import UserError
from scholarch.evaluation import outputs
from scholarch.evaluation.face import Output, ViewName
from scholarch.models.features import Backbone
from scholarch.storage.objects import Objects

FORMAT = "1"
SHARD = 128
"""Samples of a shard."""


@dataclass(frozen=True)
class Subject:
    """A model under evaluation.

    Attributes:
        backbone: on `device`, in evaluation mode.
        sha256: of its weights.
        size: pixels of the pictures that it was made for.
        mean, std: of the channels, for values in [0, 1].
        device: where it computes.
    """

    backbone: Backbone
    sha256: str
    size: int
    mean: Sequence[float]
    std: Sequence[float]
    device: torch.device

    def view(self, name: ViewName, size: int) -> EvaluationView | WholeView:
        """How pictures of about `size` pixels reach it: sides are multiples of the patch."""
        patch = self.backbone.patch
        size = max(round(size / patch), 1) * patch
        if name == "crop":
            return EvaluationView(size, self.mean, self.std)
        return WholeView(size, patch, self.mean, self.std)


@dataclass(frozen=True)
class Request:
    """Outputs of one split in one view.

    Attributes:
        subject: the model.
        data: the split.
        indices: numbers of the samples, rising, [n] int64.
        view: how they are seen.
        size: asked for, in pixels.
        wanted: which outputs.
    """

    subject: Subject
    data: Annotated
    indices: np.ndarray
    view: ViewName
    size: int
    wanted: frozenset[Output]

    @property
    def key(self) -> str:
        """Name of the folder of its shards."""
        view = self.subject.view(self.view, self.size)
        samples = hashlib.sha256(self.indices.tobytes()).hexdigest()
        parts = (
            FORMAT,
            self.subject.sha256,
            self.data.fingerprint(),
            self.view,
            view.size,
            SHARD,
            tuple(self.subject.mean),
            tuple(self.subject.std),
            samples,
        )
        return hashlib.sha256(repr(parts).encode()).hexdigest()[:24]

    def shards(self) -> list[np.ndarray]:
        """The numbers of each shard's samples."""
        return [self.indices[start : start + SHARD] for start in range(0, len(self.indices), SHARD)]


def extract(
    request: Request,
    objects: Objects,
    *,
    batch: int,
    group: ProcessGroup | None = None,
    each: Callable[[], None] = lambda: None,
) -> int:
    """Makes the shards that are not there yet; ranks take them in turns. Every rank must call it.

    Args:
        request: what is wanted.
        objects: where shards are; seen by all ranks.
        batch: pictures that go through the backbone together, at most.
        each: is called before each shard; it may raise, and what was made stands.

    Returns:
        how many shards this rank made.
    """
    outputs.check(request.subject.backbone, request.wanted)
    view, written = request.subject.view(request.view, request.size), 0
    for number, indices in enumerate(request.shards()):
        if number % world_size(group) != rank(group):
            continue
        missing = [n for n in sorted(request.wanted) if objects.entry(_shard(request, n, number)) is None]
        if not missing:
            continue
        each()
        made = _made(request, indices, view, missing, batch)
        for name, tensors in made.items():
            objects.write(_shard(request, name, number), save(tensors))
            written += 1
    return written


def _shard(request: Request, output: Output, number: int) -> str:
    return f"{request.key}/{output}/{number:05d}.safetensors"


def _made(
    request: Request,
    indices: np.ndarray,
    view: EvaluationView | WholeView,
    wanted: Collection[Output],
    batch: int,
) -> dict[Output, dict[str, Tensor]]:
    """Rows of the samples that can be read, in order; ragged outputs one behind the other."""
    subject = request.subject
    rows: dict[int, dict[Output, Tensor]] = {}
    grids: dict[int, tuple[int, int]] = {}
    for numbers, loaded in viewed(request.data, indices, view, batch):
        by_shape: dict[torch.Size, list[tuple[int, Tensor]]] = defaultdict(list)
        for index, item in zip(numbers, loaded, strict=True):
            if not isinstance(item, BrokenPicture):
                by_shape[item.shape].append((index, item))
        for of_shape in by_shape.values():
            images = torch.stack([image for _, image in of_shape]).to(subject.device)
            grid = subject.backbone.grid(images)
            found = outputs.outputs(subject.backbone, images, wanted)
            for row, (index, _) in enumerate(of_shape):
                rows[index] = {name: tensor[row].cpu() for name, tensor in found.items()}
                grids[index] = grid
    kept = sorted(rows)
    common = {
        "samples": torch.tensor(kept, dtype=torch.int64),
        "grids": torch.tensor([grids[i] for i in kept], dtype=torch.int64).reshape(-1, 2),
    }
    return {
        name: common
        | {
            "values": torch.cat([rows[i][name] for i in kept]) if kept else torch.empty(0),
            "lengths": torch.tensor([len(rows[i][name]) for i in kept], dtype=torch.int64),
        }
        for name in wanted
    }


@dataclass
class Stored:
    """Outputs that `extract` made; a `face.Seen`."""

    request: Request
    objects: Objects
    samples: np.ndarray = field(init=False)
    grids: np.ndarray = field(init=False)
    size: int = field(init=False)

    def __post_init__(self) -> None:
        self.size = self.request.subject.view(self.request.view, self.request.size).size
        first = min(self.request.wanted)
        shards = [self._read(first, number) for number in range(len(self.request.shards()))]
        empty = [torch.empty(0, dtype=torch.int64)]
        self.samples = torch.cat([*empty, *(shard["samples"] for shard in shards)]).numpy()
        self.grids = torch.cat([torch.empty(0, 2, dtype=torch.int64), *(s["grids"] for s in shards)]).numpy()
        counts = [len(shard["samples"]) for shard in shards]
        self._starts = np.cumsum([0, *counts])
        # Evaluations walk through samples in order: two shards at a time are enough.
        self._shard = lru_cache(maxsize=4)(self._read)

    def __len__(self) -> int:
        return len(self.samples)

    def stacked(self, output: Output) -> Tensor:
        """See face.Seen."""
        parts = []
        for number in range(len(self.request.shards())):
            shard = self._read(output, number)
            if len(shard["samples"]):
                parts.append(shard["values"].reshape(len(shard["samples"]), *_row(shard)))
        return torch.cat(parts)

    def one(self, output: Output, row: int) -> Tensor:
        """See face.Seen."""
        number = int(np.searchsorted(self._starts, row, side="right")) - 1
        shard, place = self._shard(output, number), row - int(self._starts[number])
        start = int(shard["lengths"][:place].sum())
        return shard["values"][start : start + int(shard["lengths"][place])]

    def _read(self, output: Output, number: int) -> Mapping[str, Tensor]:
        name = _shard(self.request, output, number)
        try:
            shard: Mapping[str, Tensor] = load(self.objects.read(name))
            return shard
        except FileNotFoundError:
            raise UserError(
                f"{name} was made by another process and is not seen here",
                where=self.objects.address,
                fix="name a place that all processes share: --features s3://BUCKET/PREFIX or a shared folder",
            ) from None


def _row(shard: Mapping[str, Tensor]) -> tuple[int, ...]:
    """Shape of a sample's output, one shape for all of the shard."""
    lengths, values = shard["lengths"], shard["values"]
    if int(lengths.min()) != int(lengths.max()):
        raise ValueError("samples of several sizes cannot be stacked")
    return (int(lengths[0]), *values.shape[1:])
