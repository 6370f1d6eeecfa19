"""The one training loop.

A step: micro-batches in, gradients added up, one exchange of scalars between ranks (losses, stop
flag, data wait), a check that all is finite, clip, AdamW, teachers. Nothing else talks per step.
"""

from __future__ import annotations

import math
import signal
import threading
import time
from collections import deque
from collections.abc import Callable, Generator, Iterator, Mapping, Sequence
from contextlib import closing, contextmanager
from dataclasses import dataclass, field
from types import FrameType

import torch
from torch import Tensor

from scholarch.config.schema import Recipe, settled
from scholarch.data.batch import MicroBatch
from scholarch.errors import RunFailed
from scholarch.training.checkpoint import Checkpoint, load_state
from scholarch.training.distributed import World
from scholarch.training.initial import begin
from scholarch.training.layout import Layout
from scholarch.training.learner import Learner, StepValues
from scholarch.training.networks import DTYPES
from scholarch.training.observe import Observer, Outcome
from scholarch.training.optimizer import Optimizer
from scholarch.training.replicas import Replicas
from scholarch.training.saving import Checkpoints
from scholarch.training.teachers import Teachers

Loader = Callable[[int], Generator[Sequence[MicroBatch], None, None]]
"""Batches of this rank from a step on, one list of micro-batches for each step; closing it ends its workers."""
Probe = Callable[[int, StepValues], Mapping[str, float]]
"""Measured before the first step, every so often and at the end, given the finished steps and the last
step's values; all ranks take part and get the same metrics."""


@dataclass
class Stop:
    """A wish to end at the next step's border, set by SIGTERM or Ctrl-C; a second Ctrl-C ends at once."""

    asked: bool = False

    def __call__(self, number: int, _frame: FrameType | None) -> None:
        if self.asked and number == signal.SIGINT:
            raise KeyboardInterrupt
        self.asked = True

    @contextmanager
    def listening(self) -> Iterator[None]:
        """Takes the signals while the context lasts; in a thread of another launcher they are that one's."""
        if threading.current_thread() is not threading.main_thread():
            yield
            return
        before = {number: signal.signal(number, self) for number in (signal.SIGTERM, signal.SIGINT)}
        try:
            yield
        finally:
            for number, handler in before.items():
                signal.signal(number, handler)


@dataclass
class Speed:
    """Images per second, share of time spent waiting for data, and who has the most to do, over the last steps."""

    images: int
    window: deque[tuple[float, float, Tensor]] = field(default_factory=lambda: deque(maxlen=50))

    def took(self, seconds: float, waited: float, own: Tensor) -> None:
        self.window.append((seconds, waited, own))

    def metrics(self, remaining: int) -> dict[str, float]:
        seconds = sum(s for s, _, _ in self.window)
        if not seconds:
            return {}
        return {
            "images_per_second": self.images * len(self.window) / seconds,
            "data_wait": sum(w for _, w, _ in self.window) / seconds,
            "eta_seconds": remaining * seconds / len(self.window),
            "slowest_rank": float(torch.stack([own for _, _, own in self.window]).sum(0).argmax()),
        }


class Trainer:
    """Trains a learner by a recipe.

    Args:
        recipe: resolved, without `auto`.
        learner, optimizer, teachers: over the same networks.
        loader: gives this rank's batches from a step on.
        layout: how the global batch is cut.
        checkpoints: where the state is committed.
        replicas: keep the newest steps in memory.
        world: the processes of the run.
        observers: told on rank 0.

    Attributes:
        probes: measured before the first step, every `evaluation.every` steps and at the end.
        busy: seconds of the last wait for a batch that were the loader's own work and not waiting for data.
    """

    def __init__(
        self,
        recipe: Recipe,
        learner: Learner,
        optimizer: Optimizer,
        teachers: Teachers,
        loader: Loader,
        layout: Layout,
        checkpoints: Checkpoints,
        replicas: Replicas,
        world: World,
        observers: Sequence[Observer] = (),
    ) -> None:
        self.recipe, self.learner, self.optimizer, self.teachers = recipe, learner, optimizer, teachers
        self.loader, self.layout, self.world = loader, layout, world
        self.checkpoints, self.replicas = checkpoints, replicas
        self.observers = observers if world.first else ()
        self.probes: list[Probe] = []
        self.busy: Callable[[], float] = lambda: 0.0
        self.speed = Speed(recipe.training.global_batch)
        self.stop = Stop()
        self.named: set[str] = set()
        self.counts = {"data/broken": 0.0, "data/upscaled": 0.0}

    def resume(self, checkpoint: Checkpoint) -> int:
        """Loads a checkpoint of this run; gives its finished steps."""
        load_state(checkpoint, self.learner, self.optimizer, self.world.members)
        return checkpoint.step

    def begin(self) -> int:
        """Fills the networks of a new run as the recipe's `init_from` says; gives its finished steps."""
        return begin(self.recipe, self.learner, self.optimizer, self.world.members)

    def run(self, start: int = 0) -> tuple[Outcome, int]:
        """Trains from `start` finished steps to the end, or to where it was asked to stop.

        Returns:
            how it ended, and the number of finished steps, which are committed.

        Raises:
            RunFailed: a loss or gradient is not finite; the last checkpoint stands.
            SaveFailed: a checkpoint could not be written; the one before it stands.
        """
        steps = self.recipe.training.steps
        every = settled(self.recipe.training.checkpoint_every)
        finished, saved = start, start
        if start == 0:
            self._tell({"step": 0, "time": time.time(), **self._probed(0, StepValues())})
        self.learner.train()
        heartbeat, checkpoints = self.world.heartbeat, self.checkpoints
        # A save in flight is waited for when steps are over, and no step is due while it takes its time.
        with (
            self.stop.listening(),
            checkpoints.drained(),
            closing(self.replicas),
            heartbeat.training(start),
            closing(self.loader(start)) as batches,
        ):
            while finished < steps:
                began = time.perf_counter()
                batch = next(batches)
                waited = max(time.perf_counter() - began - self.busy(), 0.0)
                stopping = self._step(finished, batch, began, waited)
                finished += 1
                heartbeat.beat(finished, checkpoints.committed or start or -1)
                if finished < steps and not stopping:
                    self.replicas.keep(self.learner, self.optimizer, finished)
                if finished == steps or stopping or finished % every == 0:
                    checkpoints.save(self.learner, self.optimizer, finished)
                    saved = finished
                if stopping:
                    break
        heartbeat.committed(saved)
        return ("done" if finished == steps else "interrupted"), saved

    def _step(self, step: int, batch: Sequence[MicroBatch], began: float, waited: float) -> bool:
        """One step; True when some rank was asked to stop."""
        worked = time.thread_time()
        placed = [self._place(part) for part in batch]
        layout, world = self.layout, self.world
        bounds = layout.bounds(world.rank, world.size)
        values = self.learner.accumulate(placed, bounds, layout.global_batch, step, whole=layout.whole)
        names = sorted(values.parts)
        clipped = self.optimizer.clip()
        # The one wait for the device: nothing is moved before all is known to be finite.
        known = _on_host([*(values.parts[name] for name in names), *clipped.values()])
        mine, norms = known[: len(names)], dict(zip(clipped, known[len(names) :], strict=True))
        # Exchanges make all ranks take equally long: what a rank works and waits for data is its own.
        own = waited + time.thread_time() - worked
        broken = sorted({name for part in batch for name in part.broken})
        upscaled = sum(part.upscaled for part in batch)
        # Where a save has failed, all ranks meet at this border, and its error there.
        stopping = self.stop.asked or self.checkpoints.failed
        row = [*mine, float(stopping), own, waited, float(len(broken)), float(upscaled)]
        rows = self.world.gather_row(row)  # [ranks, parts + 5]
        self._check_finite(step, names, rows)
        if bad := [part for part, norm in norms.items() if not math.isfinite(norm)]:
            raise RunFailed(f"step {step}: the gradient of {', '.join(bad)} is not finite; {self._advice()}")
        self.optimizer.step(step)
        self.teachers.step(step)
        self.speed.took(time.perf_counter() - began, float(rows[:, -3].max()), rows[:, -4])
        self._count(rows, broken)
        self._record(
            step, dict(zip(names, rows[:, : len(names)].sum(0).tolist(), strict=True)), norms, values
        )
        return bool(rows[:, len(names)].any())

    def _place(self, part: MicroBatch) -> MicroBatch:
        dtype = DTYPES[self.recipe.training.precision]
        return part.to(self.world.device, dtype)

    def _check_finite(self, step: int, names: Sequence[str], rows: Tensor) -> None:
        losses = rows[:, : len(names)]
        if bool(torch.isfinite(losses).all()):
            return
        rank, part = (~torch.isfinite(losses)).nonzero()[0].tolist()
        raise RunFailed(
            f"step {step}: the loss term {names[part]} is not finite ({losses[rank, part].item()}) "
            f"on rank {rank}; {self._advice()}"
        )

    def _advice(self) -> str:
        return (
            "the weights were not moved by it and the last checkpoint stands. "
            "Try a lower optimizer.lr, a longer warm-up, or precision=fp32"
        )

    def _count(self, rows: Tensor, broken: Sequence[str]) -> None:
        self.counts["data/broken"] += float(rows[:, -2].sum())
        self.counts["data/upscaled"] += float(rows[:, -1].sum())
        for name in broken:
            if name not in self.named:
                self.named.add(name)
                self._warn(f"picture left out: {name}")

    def _warn(self, message: str) -> None:
        for observer in self.observers:
            observer.warned(message)

    def _record(
        self, step: int, losses: Mapping[str, float], norms: Mapping[str, float], values: StepValues
    ) -> None:
        steps = self.recipe.training.steps
        finished = step + 1
        probing = finished == steps or finished % settled(self.recipe.evaluation.every) == 0
        if not (probing or finished % settled(self.recipe.training.log_every) == 0):
            return
        record: dict[str, float] = {"step": finished, "time": time.time()}
        record["loss/total"] = sum(losses.values())
        record |= {f"loss/{name}": value for name, value in losses.items()}
        record |= {f"gradient_norm/{part}": norm for part, norm in norms.items()}
        record |= self.optimizer.rates(step) | self.teachers.rates(step)
        record |= self.speed.metrics(steps - finished) | self.counts | self.checkpoints.metrics
        record |= self.replicas.metrics
        record["memory_gib"] = _memory_gib(self.world.device)
        if probing:
            record |= self._probed(finished, values)
            self.learner.train()
        self._tell(record)

    def _probed(self, finished: int, values: StepValues) -> dict[str, float]:
        return {name: value for probe in self.probes for name, value in probe(finished, values).items()}

    def _tell(self, record: Mapping[str, float]) -> None:
        for observer in self.observers:
            observer.recorded(record)


def _on_host(scalars: Sequence[Tensor]) -> list[float]:
    """Scalars as numbers, brought over together."""
    if not scalars:
        return []
    numbers: list[float] = torch.stack([scalar.detach().double() for scalar in scalars]).tolist()
    return numbers


def _memory_gib(device: torch.device) -> float:
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device) / 2**30
    import psutil

    return float(psutil.Process().memory_info().rss) / 2**30
