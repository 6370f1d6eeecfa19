"""What Ray workers are given to do; they import it."""

from __future__ import annotations

import os
import signal
from pathlib import Path

from scholarch.errors import UserError


def dies_once(shared: tuple[Path], item: int) -> int:
    """Kills its own process at the first call of an item."""
    seen = shared[0] / str(item)
    if not seen.exists():
        seen.touch()
        os.kill(os.getpid(), signal.SIGKILL)
    return item * item


class DiesOnce:
    """The same as a worker that is kept."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def __call__(self, item: int) -> int:
        return dies_once((self.folder,), item)


def refuses(_shared: tuple[()], item: int) -> int:
    raise UserError(f"{item} is wrong", where="here", fix="another one")
