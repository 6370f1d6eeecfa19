"""From the sample stream to the micro-batches of a rank, in worker processes or in this one."""

from __future__ import annotations

import multiprocessing
import multiprocessing.connection
import multiprocessing.forkserver
import os
import signal
import threading
from collections import deque
from collections.abc import Callable, Generator, Iterator, Mapping, Sequence
from contextlib import closing
from dataclasses import dataclass, field
from itertools import islice
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset, get_worker_info

from scholarch import draws
from scholarch.config.views import CAPTION
from scholarch.data.batch import MicroBatch
from scholarch.data.source import BrokenPicture, Source, captions, expect, foresees
from scholarch.data.stream import Stream, rank_positions
from scholarch.data.tokenizer import Tokenizer
from scholarch.data.views import MultiCrop
from scholarch.errors import RunFailed, UserError

if TYPE_CHECKING:  # what reads shards needs more than training on a folder does
    from scholarch.data.kept_features import FeatureRows, KeptFeatures

_TRIES = 10_000
"""Broken pictures in a row after which the data, not a picture, is at fault."""

_TOLD, _TOLD_AT_ONCE = 16_384, 16
"""Samples that a source is told of before they are read, and micro-batches told with each one read."""

DrawMask = Callable[[int, int, int, tuple[int, int]], np.ndarray]
"""(step, row, rows in all, (h, w)) -> bool [h * w]; row v * G + p is crop v at position p."""


@dataclass(frozen=True)
class ViewMask:
    """Masks for the crops of one view.

    Attributes:
        view: name of the view.
        draw: makes one crop's mask; picklable.
        grid: patches of a crop, (h, w).
    """

    view: str
    draw: DrawMask
    grid: tuple[int, int]


@dataclass(frozen=True)
class Cut:
    """What is made of a picture in the steps that are drawn for it.

    Attributes:
        crops: cuts the views; or puts a picture's features in their row.
        masks: by the name that the micro-batch gives them.
        ratio: how often, relative to the other cuts.
    """

    crops: MultiCrop | FeatureRows
    masks: Mapping[str, ViewMask] = field(default_factory=dict)
    ratio: float = 1.0


@dataclass(frozen=True)
class Captioning:
    """How captions become tokens.

    Attributes:
        tokenizer: makes ids.
        length: of every row of ids.
    """

    tokenizer: Tokenizer
    length: int


class StreamDataset(Dataset[MicroBatch]):
    """Micro-batches by (step, positions): crops, masks and ids, a function of the key alone.

    A picture that cannot be used is replaced by the next good one of its data set, and named.

    Args:
        source: the pictures; as many as the stream has samples. Names and captions are its in any case.
        stream: which sample stands where; its seed is the seed of crops too.
        cuts: what is made of them; with several, one is drawn for each step, the same on every rank.
        captioning: None: no captions are read. Of several of a picture one is drawn each time.
    """

    def __init__(
        self, source: Source, stream: Stream, *cuts: Cut, captioning: Captioning | None = None
    ) -> None:
        if len(source) != stream.samples:
            raise ValueError(f"the source has {len(source)} pictures, the stream {stream.samples} samples")
        self.source, self.stream, self.cuts = source, stream, cuts
        self.seen: Source | KeptFeatures = source
        self.captioning = captioning
        self.ratios = np.cumsum([cut.ratio for cut in cuts])

    def read_features(self, kept: KeptFeatures) -> None:
        """From now on pictures are read as what a locked backbone made of them."""
        self.seen, self.cuts = kept, (Cut(kept.rows()),)

    def cut(self, step: int) -> Cut:
        """The cut of a step, a function of the seed and the step."""
        if len(self.cuts) == 1:
            return self.cuts[0]
        drawn = draws.generator(self.stream.seed, "step", step, "resolution").random() * self.ratios[-1]
        return self.cuts[min(int(np.searchsorted(self.ratios, drawn, side="right")), len(self.cuts) - 1)]

    def __getitem__(self, key: tuple[int, np.ndarray]) -> MicroBatch:
        """The micro-batch of a step's positions, an int64 array in increasing order (empty: no samples)."""
        step, positions = key
        cut = self.cut(step)
        views = cut.crops.empty(len(positions))
        ids = self.due(step, positions)
        broken: list[str] = []
        upscaled = 0
        for row, position in enumerate(positions.tolist()):
            ids[row], picture = self._read(int(ids[row]), cut.crops, broken)
            upscaled += min(picture.shape[1:]) < cut.crops.largest
            cut.crops.fill(views, row, picture, self.stream.seed, step, position)
        if self.captioning is not None:
            views[CAPTION] = self._tokens(self.captioning, ids, step, positions)
        masks = {name: self._mask(mask, cut, step, positions) for name, mask in cut.masks.items()}
        return MicroBatch(
            views=views,
            masks=masks,
            places={name: mask.flatten().nonzero().squeeze(1) for name, mask in masks.items()},
            positions=torch.from_numpy(positions.copy()),
            sample_ids=torch.from_numpy(ids),
            broken=broken,
            upscaled=upscaled,
        )

    def due(self, step: int, positions: np.ndarray) -> np.ndarray:
        """Sample ids at increasing positions of a step, int64; broken pictures are not yet replaced."""
        if len(positions) == 0:
            return np.empty(0, dtype=np.int64)
        first = int(positions[0])
        ids: np.ndarray = self.stream.ids(step, first, int(positions[-1]) + 1)[positions - first]
        return ids

    def _read(self, index: int, crops: MultiCrop | FeatureRows, broken: list[str]) -> tuple[int, Tensor]:
        """The picture at `index` or the next good one, and its number."""
        before = len(broken)
        for candidate in islice(self.stream.ring(index), _TRIES):
            try:
                picture = self.seen.read(candidate)
                return candidate, crops.fitting(picture, self.source.name(candidate))
            except BrokenPicture as problem:
                broken.append(str(problem))
        raise RuntimeError(f"{len(broken) - before} pictures in a row cannot be used; the last: {broken[-1]}")

    def _tokens(self, captioning: Captioning, ids: np.ndarray, step: int, positions: np.ndarray) -> Tensor:
        """[1, b, length] int64."""
        rows = torch.empty(1, len(ids), captioning.length, dtype=torch.int64)
        for row, (index, position) in enumerate(zip(ids.tolist(), positions.tolist(), strict=True)):
            said = captions(self.source, index)
            drawn = draws.generator(self.stream.seed, "step", step, position, CAPTION).integers(len(said))
            rows[0, row] = torch.from_numpy(captioning.tokenizer.encode(said[int(drawn)], captioning.length))
        return rows

    def _mask(self, mask: ViewMask, cut: Cut, step: int, positions: np.ndarray) -> Tensor:
        assert isinstance(cut.crops, MultiCrop)  # what features are kept of has no masks
        crops, batch = cut.crops.views[mask.view].crops, self.stream.global_batch
        drawn = torch.empty(crops, len(positions), mask.grid[0] * mask.grid[1], dtype=torch.bool)
        for view in range(crops):
            for row, position in enumerate(positions.tolist()):
                cells = mask.draw(step, view * batch + position, crops * batch, mask.grid)
                drawn[view, row] = torch.from_numpy(np.asarray(cells).reshape(-1))
        return drawn


def _as_it_is(item: Any) -> Any:
    return item


class StepLoader:
    """For each step from `start_step` to before `end_step`, this rank's micro-batches.

    The results do not depend on `workers`. Workers are forked by a server process that has imported
    torch, not by this one: threads in this process are safe, and a worker starts in milliseconds.
    A script that uses workers must therefore start its work below `if __name__ == "__main__":`.

    Args:
        dataset: makes the micro-batches.
        micro_batches: parts of the global batch; they must divide it.
        rank, world: this process among those that share the global batch.
        whole: processes take micro-batches in turn; else each has a share of every one.
        shares: positions of each micro-batch of this process, where they are not those of `rank_positions`.
        workers: processes that decode and crop; 0: this one does.
        ahead: micro-batches that each worker prepares in advance.
        pin_memory: copy into page-locked memory, for a GPU.
    """

    def __init__(
        self,
        dataset: StreamDataset,
        *,
        start_step: int,
        end_step: int,
        micro_batches: int = 1,
        rank: int = 0,
        world: int = 1,
        whole: bool = False,
        shares: Sequence[np.ndarray] | None = None,
        workers: int = 0,
        ahead: int = 2,
        pin_memory: bool = False,
    ) -> None:
        self.dataset = dataset
        self.steps = range(start_step, end_step)
        count = dataset.stream.global_batch
        self.shares = list(shares or rank_positions(count, micro_batches, rank, world, whole=whole))
        self.workers, self.ahead, self.pin_memory = workers, ahead, pin_memory

    def __len__(self) -> int:
        return len(self.steps)

    def __iter__(self) -> Iterator[list[MicroBatch]]:
        """Yields the micro-batches of one step at a time; closing the iterator ends the workers.

        Raises:
            RuntimeError: if a worker dies, or the data cannot be read any more.
            UserError, RunFailed: as the source raised it.
        """
        keys = _Keys(self.steps, self.shares)
        loader = DataLoader(
            _Foreseen(self.dataset, keys),
            batch_size=None,
            sampler=range(len(keys)),
            collate_fn=_as_it_is,
            num_workers=self.workers,
            prefetch_factor=self.ahead if self.workers else None,
            pin_memory=self.pin_memory,
            multiprocessing_context=_fork_server() if self.workers else None,
            worker_init_fn=_end_with_trainer if self.workers else None,
            # Its own, so that torch's global generator is left alone.
            generator=torch.Generator(),
        )
        with closing(_supervised(iter(loader))) as batches:
            for _ in self.steps:
                yield [next(batches) for _ in self.shares]


class _Keys:
    """(step, positions) of every micro-batch, in order."""

    def __init__(self, steps: range, shares: list[np.ndarray]) -> None:
        self.steps, self.shares = steps, shares

    def __len__(self) -> int:
        return len(self.steps) * len(self.shares)

    def __getitem__(self, number: int) -> tuple[int, np.ndarray]:
        step, share = divmod(number, len(self.shares))
        return self.steps[step], self.shares[share]


@dataclass(frozen=True)
class _Stopped:
    """An error that has a message of its own, on its way from a worker: torch would add a traceback."""

    error: UserError | RunFailed


class _Foreseen(Dataset[MicroBatch | _Stopped]):
    """Micro-batches by their number among the keys; tells the source what this process reads next."""

    def __init__(self, dataset: StreamDataset, keys: _Keys) -> None:
        self.dataset, self.keys = dataset, keys
        self.told: deque[int] = deque()  # samples of each micro-batch that was told and not yet read
        self.next: int | None = None

    def __getitem__(self, number: int) -> MicroBatch | _Stopped:
        try:
            if foresees(self.dataset.seen):
                self._tell(number)
            return self.dataset[self.keys[number]]
        except (UserError, RunFailed) as error:
            return _Stopped(error)

    def _tell(self, number: int) -> None:
        worker = get_worker_info()
        turns = worker.num_workers if worker else 1  # torch hands the keys out in turn
        afresh = self.next is None
        if self.next is None:
            self.next = number
        else:
            self.told.popleft()
        for _ in range(_TOLD_AT_ONCE):
            if self.next >= len(self.keys) or sum(self.told) >= _TOLD:
                break
            ids = self.dataset.due(*self.keys[self.next])
            expect(self.dataset.seen, ids, afresh=afresh)
            afresh = False
            self.told.append(len(ids))
            self.next += turns


def _end_with_trainer(_worker: int) -> None:
    """Ends this worker when the trainer dies without a word.

    Torch's own watch looks at the parent process, which is the fork server; and that server lives as
    long as a worker does, since each worker holds the pipe by which the server sees the trainer.
    """
    trainer = multiprocessing.parent_process()
    if trainer is not None:
        threading.Thread(target=_exit_after, args=(trainer.sentinel,), daemon=True).start()


def _exit_after(sentinel: int) -> None:
    multiprocessing.connection.wait([sentinel])
    os._exit(1)


def prepare_workers() -> None:
    """Starts the server that forks workers, and returns at once: its imports take seconds, so a program
    that will use workers calls this first and builds its model meanwhile."""
    _fork_server()
    multiprocessing.forkserver.ensure_running()


def _fork_server() -> Any:
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["scholarch.data.fork_server"])
    return context


_CAUSES = {
    signal.SIGKILL: "; out of memory is the usual cause: give the process more, or set training.workers lower",
    signal.SIGBUS: "; shared memory is full: enlarge /dev/shm, or set training.workers=0",
}


def _supervised(batches: Iterator[MicroBatch | _Stopped]) -> Generator[MicroBatch, None, None]:
    """`batches`, with a worker's death told in plain words."""
    try:
        for batch in batches:
            if isinstance(batch, _Stopped):
                raise batch.error
            yield batch
    except RuntimeError as error:
        # Torch keeps its workers to itself and, under a fork server, does not learn how they ended.
        codes = [worker.exitcode for worker in getattr(batches, "_workers", ())]
        code = next((code for code in codes if code), None)
        if code is None:
            raise
        how = f"exit code {code}" if code > 0 else signal.Signals(-code).name
        raise RuntimeError(
            f"a data worker died: {how}{_CAUSES.get(-code, '; its own message stands above')}"
        ) from error
