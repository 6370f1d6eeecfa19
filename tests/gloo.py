"""Runs a function on several real processes that talk over gloo.

Functions travel by value, so a function inside a test may be given too.
"""

from __future__ import annotations

import pickle
import sys
import tempfile
import traceback
from collections.abc import Callable
from multiprocessing.connection import Connection
from multiprocessing.connection import wait as wait_for
from pathlib import Path
from typing import Any, TypeVar

import cloudpickle
import torch
import torch.distributed as dist
from processes import clean_context

T = TypeVar("T")
TIMEOUT_SECONDS = 120


def _rank_main(rank: int, world: int, store: str, work: bytes, pipe: Connection) -> None:
    torch.set_num_threads(1)
    # Plain pickle: a Connection's own would send tensors as file handles, which end with this process.
    try:
        fn, args = pickle.loads(work)
        dist.init_process_group("gloo", init_method=f"file://{store}", rank=rank, world_size=world)
        group = dist.group.WORLD
        assert group is not None
        result = fn(group, *args)
        dist.barrier()
        pipe.send_bytes(pickle.dumps((True, result)))
        dist.destroy_process_group()
    except BaseException:
        pipe.send_bytes(pickle.dumps((False, traceback.format_exc())))


def _by_value(fn: Callable[..., Any], args: tuple[Any, ...]) -> bytes:
    module = sys.modules[fn.__module__]
    # A test module cannot be imported by its name; helpers such as tests/terms.py can.
    if not Path(str(module.__file__)).name.startswith("test_"):
        return bytes(cloudpickle.dumps((fn, args)))
    cloudpickle.register_pickle_by_value(module)
    try:
        return bytes(cloudpickle.dumps((fn, args)))
    finally:
        cloudpickle.unregister_pickle_by_value(module)


def run_ranks(world: int, fn: Callable[..., T], *args: Any) -> list[T]:
    """Results of `fn(group, *args)` on `world` ranks, in rank order.

    Raises:
        AssertionError: with the traceback of the first rank that failed or hung.
    """
    context = clean_context()
    work = _by_value(fn, args)
    with tempfile.TemporaryDirectory() as folder:
        store = str(Path(folder) / "store")
        pipes, processes = [], []
        for rank in range(world):
            receiver, sender = context.Pipe(duplex=False)
            process = context.Process(target=_rank_main, args=(rank, world, store, work, sender))
            process.start()
            sender.close()
            pipes.append(receiver)
            processes.append(process)
        try:
            return _collect(pipes)
        finally:
            for process in processes:
                process.join(timeout=5)
                if process.is_alive():
                    process.kill()


def _collect(pipes: list[Connection]) -> list[Any]:
    results: dict[int, Any] = {}
    while len(results) < len(pipes):
        waiting = [pipe for rank, pipe in enumerate(pipes) if rank not in results]
        ready = wait_for(waiting, timeout=TIMEOUT_SECONDS)
        if not ready:
            raise AssertionError(f"ranks {sorted(set(range(len(pipes))) - set(results))} hang")
        for pipe in ready:
            rank = pipes.index(pipe)  # type: ignore[arg-type]
            try:
                done, value = pickle.loads(pipe.recv_bytes())  # type: ignore[union-attr]
            except EOFError:
                raise AssertionError(f"rank {rank} died without a word") from None
            if not done:
                raise AssertionError(f"rank {rank} failed:\n{value}")
            results[rank] = value
    return [results[rank] for rank in range(len(pipes))]
