"""Ray behind two verbs: carry out a function on items, and stream items through workers that hold a model."""

from __future__ import annotations

import logging
import os
import pickle
from collections import OrderedDict, deque
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any, Protocol

from scholarch.curation.vectors import Item, Result, Shared, in_process
from scholarch.errors import RunFailed, UserError

IN_FLIGHT = 2
"""Tasks for each core that are handed out at once: what comes early waits in memory."""
_RETRIES = 3
_KEPT_PARTS = 8


class Engine(Protocol):
    """What carries out the steps."""

    def map(
        self, function: Callable[[Shared, Item], Result], shared: Shared, items: Iterable[Item]
    ) -> Iterator[Result]:
        """See scholarch.curation.vectors.Mapper."""
        ...

    def stream(self, worker: type, options: Mapping[str, Any], items: Sequence[Any]) -> Iterator[Any]:
        """`worker(**options)(item)` of every item, in any order; workers are made a few times and kept."""
        ...


class Here:
    """Everything in this process, one after the other."""

    def map(
        self, function: Callable[[Shared, Item], Result], shared: Shared, items: Iterable[Item]
    ) -> Iterator[Result]:
        return in_process(function, shared, items)

    def stream(self, worker: type, options: Mapping[str, Any], items: Sequence[Any]) -> Iterator[Any]:
        made = worker(**options)
        for item in items:
            yield made(item)


class RayEngine:
    """Tasks and actors of the Ray cluster that this process is connected to.

    A task whose worker dies is carried out again.

    Args:
        gpus: for each worker that holds a model, and each task; 0: none.
        workers: tasks, and workers that hold a model, at once; None: as many as there are cores or GPUs for.
    """

    def __init__(self, gpus: float = 0.0, workers: int | None = None) -> None:
        self.gpus, self.workers = gpus, workers
        self._put: OrderedDict[int, tuple[Any, Any]] = OrderedDict()

    def with_workers(self, count: int) -> RayEngine:
        """The same cluster, but only so many tasks at once."""
        return RayEngine(self.gpus, count)

    def map(
        self, function: Callable[[Shared, Item], Result], shared: Shared, items: Iterable[Item]
    ) -> Iterator[Result]:
        import ray

        remote = ray.remote(num_cpus=1, num_gpus=self.gpus, max_retries=_RETRIES)(_on_one_thread)
        parts = [self._once(part) for part in shared]
        waiting: deque[Any] = deque()
        most = self.workers or max(IN_FLIGHT * int(ray.cluster_resources().get("CPU", 1)), 2)
        try:
            for item in items:
                if len(waiting) >= most:
                    yield _got(waiting.popleft())
                waiting.append(remote.remote(function, item, *parts))
            while waiting:
                yield _got(waiting.popleft())
        finally:
            for left in waiting:
                ray.cancel(left)

    def _once(self, part: Any) -> Any:
        """A reference to a part that was put before, or is put now: vectors are shared by many calls."""
        import ray

        # The part is held, so that its id is of no other one.
        if id(part) not in self._put:
            self._put[id(part)] = part, ray.put(part)
        self._put.move_to_end(id(part))
        while len(self._put) > _KEPT_PARTS:
            self._put.popitem(last=False)
        return self._put[id(part)][1]

    def stream(self, worker: type, options: Mapping[str, Any], items: Sequence[Any]) -> Iterator[Any]:
        import ray

        if not items:
            return
        context = ray.data.DataContext.get_current()
        context.enable_progress_bars = False
        # Workers hold a model each: as many as there are items, cores or GPUs to hold them.
        resources = ray.cluster_resources()
        room = resources.get("GPU", 0) / self.gpus if self.gpus else resources.get("CPU", 1)
        logging.getLogger("ray.data").setLevel(logging.WARNING)
        # As bytes: items are Python's objects, whatever Arrow would make of them.
        found = ray.data.from_items(
            [{"item": pickle.dumps(item)} for item in items], override_num_blocks=len(items)
        ).map_batches(
            _Holder,
            fn_constructor_kwargs={"worker": worker, "options": dict(options)},
            batch_size=1,
            compute=ray.data.ActorPoolStrategy(size=max(1, min(self.workers or int(room), len(items)))),
            num_cpus=1,
            num_gpus=self.gpus,
        )
        with _plain_errors():
            for row in found.iter_rows():
                yield pickle.loads(row["found"])


def _on_one_thread(function: Callable[[Any, Any], Any], item: Any, *shared: Any) -> Any:
    # One thread, so that a machine with more of them comes to the same numbers.
    import torch

    torch.set_num_threads(1)
    return function(shared, item)


class _Holder:
    """A worker as Ray Data calls it: with a batch of one item."""

    def __init__(self, worker: type, options: dict[str, Any]) -> None:
        self.made = worker(**options)

    def __call__(self, batch: dict[str, Any]) -> dict[str, list[Any]]:
        return {"found": [pickle.dumps(self.made(pickle.loads(item))) for item in batch["item"]]}


def _got(reference: Any) -> Any:
    import ray

    with _plain_errors():
        return ray.get(reference)


@contextmanager
def _plain_errors() -> Iterator[None]:
    """What a worker raises for a person comes out as it was raised."""
    import ray

    try:
        yield
    except ray.exceptions.RayError as error:
        cause: BaseException | None = error
        while cause is not None:
            inner = getattr(cause, "cause", None)
            for found in (inner, cause):
                if type(found) in (UserError, RunFailed) or type(found).__mro__[1:2] == (RunFailed,):
                    raise found from None  # type: ignore[misc]
            cause = cause.__cause__
        raise RunFailed(f"the workers could not go on: {error}") from error


@contextmanager
def ray_engine(address: str, cpus: int | None, object_store_bytes: int | None = None) -> Iterator[RayEngine]:
    """Workers on a Ray cluster, which is left, or, if it was begun here, ended at the end.

    Args:
        address: of a cluster, `auto` for the one of this machine; empty: begin one here.
        cpus: cores of one that is begun here; None: all.
        object_store_bytes: likewise, its shared memory; None: Ray's own rule.

    Raises:
        UserError: if there is no such cluster.
    """
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    os.environ.setdefault("RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO", "0")
    # Ray's own 30 s are too few on a machine that is busy.
    os.environ.setdefault("RAY_raylet_start_wait_time_s", "180")
    import ray

    begun: dict[str, Any] = {
        "address": "local",  # else Ray joins a cluster that it finds on this machine
        "num_cpus": cpus,
        "include_dashboard": False,
        "object_store_memory": object_store_bytes,
    }
    try:
        ray.init(
            **({"address": address} if address else begun), log_to_driver=False, logging_level=logging.ERROR
        )
    except (ConnectionError, ValueError) as error:
        raise UserError(
            f"there is no Ray cluster: {error}", where=f"--ray {address}", fix="start one, or leave --ray out"
        ) from None
    try:
        yield RayEngine(gpus=1.0 if ray.cluster_resources().get("GPU", 0) else 0.0)
    finally:
        ray.shutdown()
