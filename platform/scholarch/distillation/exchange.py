"""The teacher's pass, shared by all processes, and the all-to-all that brings each what its student reads.

A process runs the teacher on its part of the global batch, up to the bottleneck of the heads. Each row (the CLS of
a view of a sample, or one patch of it) then goes to the processes whose students train on that sample, one of each
student, and nowhere else. How many rows go where follows from the groups and the masks, which both ends know.

Features are made one step ahead: the teacher does not move, so those of step t + 1 are under way while the student
trains on step t, and a process with a small student may do a larger part of the teacher's work.

Legend: G samples of the global batch, V views, b samples of a part, N patches, W processes, D width of a row.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Generator, Mapping, Sequence
from contextlib import closing
from dataclasses import dataclass, field
from types import FrameType
from typing import NamedTuple

import numpy as np
import torch
import torch.distributed as dist
from torch import Tensor

from scholarch.data.batch import MicroBatch
from scholarch.data.loader import StepLoader, StreamDataset
from scholarch.distillation.measured import Meter, Observed
from scholarch.objectives.term import Output
from scholarch.training.distributed import World
from scholarch.training.learner import project, share_of, teacher_features
from scholarch.training.networks import DTYPES, Network
from scholarch.training.trainer import Loader, Stop

PLACES = 2**20
"""More than there are patches in a view: a row's key is ((view * G) + position) * PLACES + patch."""

Pair = tuple[str, Output]
"""A teacher and what is sent of it."""


class Read(NamedTuple):
    """What a student reads of a teacher.

    Attributes:
        teacher: its name.
        output: what its term reads.
        sent: what crosses the wire for it: the same, or all patches where students have masks of their own.
    """

    teacher: str
    output: Output
    sent: Output


@dataclass(frozen=True)
class Needs:
    """What a process needs of the teachers in every step.

    Attributes:
        student: whose process it is.
        shares: positions of its micro-batches, an array for each.
        reads: what its student reads.
    """

    student: str
    shares: Sequence[np.ndarray]
    reads: Sequence[Read]

    def sent(self) -> list[Pair]:
        """What crosses the wire to it, in the order in which it does."""
        return sorted({(read.teacher, read.sent) for read in self.reads}, key=str)


def keys_of(output: Output, batch: MicroBatch, global_batch: int) -> np.ndarray:
    """Keys, int64 [n], of an output's rows on a micro-batch, in the order in which the learner has them."""
    views = len(batch.views[output.view])
    places: np.ndarray = np.arange(views)[:, None] * global_batch + batch.positions.numpy()
    pictures: np.ndarray = places.reshape(-1) * PLACES  # [V * b]
    if output.tokens == "cls":
        return pictures
    patches = batch.masks[output.view].shape[-1]
    keys: np.ndarray = (pictures[:, None] + np.arange(patches)).reshape(-1)
    if output.tokens == "patches":
        return keys
    apart = f"{output.view}/predicted"
    name = apart if output.tokens == "predicted" and apart in batch.places else output.view
    chosen: np.ndarray = keys[batch.places[name].numpy()]
    return chosen


def positions_of(keys: np.ndarray, global_batch: int) -> np.ndarray:
    """Positions in the global batch of rows with these keys."""
    positions: np.ndarray = keys // PLACES % global_batch
    return positions


@dataclass
class AgreedStop(Stop):
    """A wish to end, which processes of other students must hear of before any of them ends.

    Attributes:
        wished: this process was asked to.
    """

    wished: bool = False

    def __call__(self, number: int, frame: FrameType | None) -> None:
        if self.wished:
            super().__call__(number, frame)
        self.wished = True


@dataclass
class Coming:
    """Features that are on their way to this process.

    Attributes:
        batches: of its student, which they are for.
        received: bytes, by sender and then by what was sent; whole once `work` is done.
        sending: what goes to others meanwhile.
        work: the exchange.
    """

    batches: Sequence[MicroBatch]
    received: Tensor
    sending: Tensor
    work: dist.Work


@dataclass
class Counted:
    """Bytes that left this process for others, and that came from others, since the beginning."""

    sent: int = 0
    received: int = 0


@dataclass
class Exchange:
    """Gives a trainer its student's batches with the features that its teachers made elsewhere.

    Attributes:
        world: all processes.
        needs: of every process, by rank.
        parts: [W + 1] edges of the processes' parts of the teachers' work.
        teachers: by name, filled; run by all processes at the same time.
        dataset: of what the teachers see.
        own: the student's loader.
        steps: of the run, the same for all students.
        precision: of the run.
        micro_batch: samples that a teacher has at once on a process.
        workers: loader processes for the teachers' pictures.
        stop: of the trainer.
        counted: what was moved.
        coming: the next step's features.
        every: finished steps between which `replanned` is asked; None: never.
        replanned: whether what all processes saw asks for another plan, and so for an end after this step; the
            same on all of them.
        ended: it did.
    """

    world: World
    needs: Sequence[Needs]
    parts: Sequence[int]
    teachers: Mapping[str, Network]
    dataset: StreamDataset
    own: Loader
    steps: int
    precision: str = "fp32"
    micro_batch: int | None = None
    workers: int = 0
    stop: AgreedStop = field(default_factory=AgreedStop)
    counted: Counted = field(default_factory=Counted)
    coming: Coming | None = None
    every: int | None = None
    replanned: Callable[[Sequence[Observed]], bool] = lambda _: False
    ended: bool = False

    def __post_init__(self) -> None:
        self.teaching, self.training = Meter(self.world.device), Meter(self.world.device)
        self._next = 0
        self._seconds = self._waited = 0.0
        self._pictures: Generator[Sequence[MicroBatch], None, None] | None = None
        self.global_batch = self.dataset.stream.global_batch
        everything = np.zeros((self.world.size, self.global_batch), dtype=bool)
        for row, needs in zip(everything, self.needs, strict=True):
            for share in needs.shares:
                row[share] = True
        self._needed = everything  # [W, G]

    def seconds(self) -> float:
        """Of what the last batch took to come, without the time that data was waited for."""
        return self._seconds

    def __call__(self, start: int) -> Generator[Sequence[MicroBatch], None, None]:
        """The student's batches from its step `start` on."""
        self._next = start
        with closing(self.own(start)) as own:
            began, self._waited = time.perf_counter(), 0.0
            self.coming = self._launch(own, first=True)
            for step in range(start, self.steps):
                assert self.coming is not None
                ready = self._landed(self.coming)
                self.coming = self._launch(own) if step + 1 < self.steps else None
                self._seconds = time.perf_counter() - began - self._waited
                self.training.begin()
                try:
                    yield ready
                except GeneratorExit:
                    if self.coming is not None:
                        self.coming.work.wait()
                    raise
                self.training.end()
                began, self._waited = time.perf_counter(), 0.0

    def serve(self, beat: Callable[[], object] = lambda: None) -> None:
        """Goes on with this process's part of the teachers' work while some student wants it.

        Called by every process when its own student has ended, in whatever way.
        """
        with self.stop.listening():
            while self._next < self.steps:
                wants, stops = self._told(wanting=False)
                if not any(wants):
                    break
                if not any(stops) and not self.ended:
                    self._pass(None, wants).work.wait()
                beat()

    def close(self) -> None:
        """Ends the loader of the teachers' pictures."""
        if self._pictures is not None:
            self._pictures.close()
            self._pictures = None

    def _launch(self, own: Generator[Sequence[MicroBatch], None, None], first: bool = False) -> Coming | None:
        """The next step's features; None: all were asked to stop."""
        wants, stops = self._told(wanting=True)
        if (any(stops) or self.ended) and not first:
            self.stop.asked = True
            return None
        return self._pass(own, wants)

    def _told(self, *, wanting: bool) -> tuple[list[bool], list[bool]]:
        """Which processes want features of the next step, and which were asked to stop."""
        due = bool(self.every and self._next % self.every == 0)
        seen = self._seen() if due else []
        rows = self.world.gather_row([float(wanting), float(self.stop.wished), *seen])
        wants, stops = rows[:, :2].bool().T.tolist()
        if due and all(wants) and bool(torch.isfinite(rows).all()):
            self.ended = self.replanned(self._observed(rows[:, 2:].tolist()))
        return wants, stops

    def observed(self) -> list[Observed]:
        """What each process saw up to now; all take part."""
        return self._observed(self.world.gather_row(self._seen()).tolist())

    def _seen(self) -> list[float]:
        training, teaching = self.training, self.teaching
        error = math.hypot(training.error(), teaching.error())
        return [training.seconds(), teaching.seconds(), error]

    def _observed(self, rows: Sequence[Sequence[float]]) -> list[Observed]:
        parts = np.diff(self.parts).tolist()
        return [
            Observed(needs.student, sum(map(len, needs.shares)), part, *seconds)
            for needs, part, seconds in zip(self.needs, parts, rows, strict=True)
        ]

    def _pass(self, own: Generator[Sequence[MicroBatch], None, None] | None, wants: Sequence[bool]) -> Coming:
        """Runs the teachers on this process's part of the next step and sends what they made.

        Args:
            own: batches of this process's student; None: it wants nothing.
            wants: by process.
        """
        step, self._next = self._next, self._next + 1
        began = time.perf_counter()
        batches = next(own) if own is not None else []
        pictures = next(self._loader(step))
        self._waited += time.perf_counter() - began
        self.teaching.begin()
        made = self._run(step, pictures)
        self.teaching.end()
        return self._send(made, batches, wants)

    def _loader(self, step: int) -> Generator[Sequence[MicroBatch], None, None]:
        if self._pictures is None:
            self._pictures = self._pictures_from(step)
        return self._pictures

    def _pictures_from(self, step: int) -> Generator[Sequence[MicroBatch], None, None]:
        yield from StepLoader(
            self.dataset,
            start_step=step,
            end_step=self.steps,
            shares=self._cut(),
            workers=self.workers,
            pin_memory=torch.cuda.is_available(),
        )

    def _cut(self) -> list[np.ndarray]:
        """This process's part in runs of at most `micro_batch`; as many for each process, since all run together."""
        lengths = np.diff(self.parts)
        runs = -(-int(lengths.max()) // (self.micro_batch or self.global_batch)) or 1
        mine = np.arange(self.parts[self.world.rank], self.parts[self.world.rank + 1], dtype=np.int64)
        return np.array_split(mine, runs)

    @torch.no_grad()
    def _run(self, step: int, pictures: Sequence[MicroBatch]) -> dict[Pair, tuple[np.ndarray, Tensor]]:
        """Keys and rows, [n, D], of what the teachers made of this process's part."""
        wanted: dict[str, set[Output]] = {}
        for teacher, output in {pair for needs in self.needs for pair in needs.sent()}:
            wanted.setdefault(teacher, set()).add(output)
        made: dict[Pair, list[tuple[np.ndarray, Tensor]]] = {}
        for batch in pictures:
            placed = batch.to(self.world.device, DTYPES[self.precision])
            share = share_of(placed, (0, self.global_batch), self.global_batch, step)
            for name in sorted(wanted):
                network = self.teachers[name]
                features = teacher_features(network, placed, share, wanted[name])
                for output, rows in project(network, features, wanted[name], share, "bottleneck").items():
                    keys = keys_of(output, batch, self.global_batch)
                    made.setdefault((name, output), []).append(
                        (keys, rows.reshape(len(keys), rows.shape[-1]))
                    )
        return {
            pair: (np.concatenate([keys for keys, _ in parts]), torch.cat([rows for _, rows in parts]))
            for pair, parts in made.items()
        }

    def _send(
        self,
        made: Mapping[Pair, tuple[np.ndarray, Tensor]],
        batches: Sequence[MicroBatch],
        wants: Sequence[bool],
    ) -> Coming:
        """Begins to move what was made; `batches` are empty where this process's student wants nothing."""
        self._rows = {pair: rows[:0] for pair, (_, rows) in made.items()}
        outgoing: list[list[Tensor]] = []
        for needs, needed, wanted in zip(self.needs, self._needed, wants, strict=True):
            parts = (
                [_bytes(*made[pair], needed, self.global_batch) for pair in needs.sent()] if wanted else []
            )
            outgoing.append(parts)
        sizes = [sum(part.numel() for part in parts) for parts in outgoing]
        incoming = [
            sum(len(keys) * self._row_bytes(pair) for pair, keys in plan.items())
            for plan in self._incoming(batches)
        ]
        received = torch.empty(sum(incoming), dtype=torch.uint8, device=self.world.device)
        sending = torch.cat([received[:0], *(part for parts in outgoing for part in parts)])
        mine = self.world.rank
        self.counted.sent += sum(sizes) - sizes[mine]
        self.counted.received += sum(incoming) - incoming[mine]
        work = dist.all_to_all_single(
            received, sending, incoming, sizes, group=self.world.group, async_op=True
        )
        assert work is not None
        return Coming(batches, received, sending, work)

    def _row_bytes(self, pair: Pair) -> int:
        return self._rows[pair].shape[-1] * self._rows[pair].element_size()

    def _incoming(self, batches: Sequence[MicroBatch]) -> list[dict[Pair, np.ndarray]]:
        """By sender the keys of what it sends here, ascending."""
        plan: list[dict[Pair, np.ndarray]] = [{} for _ in range(self.world.size)]
        if not batches:
            return plan
        for pair in self.needs[self.world.rank].sent():
            keys = np.sort(np.concatenate([keys_of(pair[1], batch, self.global_batch) for batch in batches]))
            sender = np.searchsorted(self.parts[1:], positions_of(keys, self.global_batch), side="right")
            for rank, found in enumerate(plan):
                found[pair] = keys[sender == rank]
        return plan

    def _landed(self, coming: Coming) -> Sequence[MicroBatch]:
        """The batches with their features, which have come."""
        coming.work.wait()
        arrived: dict[Pair, list[tuple[np.ndarray, Tensor]]] = {}
        begin = 0
        for plan in self._incoming(coming.batches):
            for pair, keys in plan.items():
                end = begin + len(keys) * self._row_bytes(pair)
                like = self._rows[pair]
                rows = coming.received[begin:end].view(like.dtype).view(-1, like.shape[-1])
                arrived.setdefault(pair, []).append((keys, rows))
                begin = end
        for teacher, output, sent in self.needs[self.world.rank].reads:
            parts = arrived[teacher, sent]
            keys, rows = np.concatenate([k for k, _ in parts]), torch.cat([r for _, r in parts])
            order = np.argsort(keys)
            for batch in coming.batches:
                wanted = keys_of(output, batch, self.global_batch)
                index = torch.from_numpy(order[np.searchsorted(keys[order], wanted)])
                found = rows.index_select(0, index.to(rows.device))
                shape = (len(batch.views[output.view]), len(batch))
                if output.tokens == "cls":
                    found = found.view(*shape, -1)
                elif output.tokens == "patches":
                    found = found.view(*shape, batch.masks[output.view].shape[-1], -1)
                batch.bottlenecks.setdefault(teacher, {})[output] = found
        return coming.batches


def _bytes(keys: np.ndarray, rows: Tensor, needed: np.ndarray, global_batch: int) -> Tensor:
    """The rows of needed positions, ascending by key, as bytes."""
    chosen = np.flatnonzero(needed[positions_of(keys, global_batch)])
    chosen = chosen[np.argsort(keys[chosen])]
    index = torch.from_numpy(chosen).to(rows.device)
    return rows.index_select(0, index).view(torch.uint8).flatten()
