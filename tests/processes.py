"""Processes that are forked by a clean server with torch loaded, never by the test's own process.

A process that ran a backward pass, started Ray or has threads cannot be forked safely: a child may inherit a
lock that nobody releases, and carries the memory of every test before it.
"""

from __future__ import annotations

import multiprocessing
import os
from collections.abc import Callable
from multiprocessing.context import ForkServerContext, ForkServerProcess
from typing import Any

PRELOAD = ["torch", "torch.distributed", "scholarch.training.assemble", "scholarch.training.launch"]


def clean_context() -> ForkServerContext:
    """What starts processes and pipes to them."""
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(PRELOAD)
    return context


def start_process(target: Callable[..., object], *args: Any) -> ForkServerProcess:
    """A process that calls `target(*args)` with this process's environment, which the server's is not.

    `target` must be importable: of the product or of a helper such as this file, not of a test's file.
    """
    process = clean_context().Process(target=_call, args=(dict(os.environ), target, args))
    process.start()
    return process


def _call(environment: dict[str, str], target: Callable[..., object], args: tuple[Any, ...]) -> None:
    os.environ.clear()
    os.environ.update(environment)
    target(*args)
