"""What Ray workers are given to do; they import it."""

from __future__ import annotations

import os
import signal
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from scholarch.errors import UserError


def die_once(mark: Path | None) -> None:
    """Kills its own process unless a process did so before; None: never."""
    if mark is not None and not mark.exists():
        mark.touch()
        os.kill(os.getpid(), signal.SIGKILL)


def done_and_dead(shared: tuple[Any, ...], task: tuple[Callable[..., Any], Any, Path | None]) -> Any:
    """Carries out a function on an item; the first worker that does dies with what it made."""
    function, item, mark = task
    found = function(shared, item)
    die_once(mark)
    return found


class DoneAndDead:
    """The same as a worker that is kept."""

    def __init__(self, worker: type, options: Mapping[str, Any]) -> None:
        self.made = worker(**options)

    def __call__(self, task: tuple[Any, Path | None]) -> Any:
        item, mark = task
        found = self.made(item)
        die_once(mark)
        return found


def refuses(_shared: tuple[()], item: int) -> int:
    raise UserError(f"{item} is wrong", where="here", fix="another one")
