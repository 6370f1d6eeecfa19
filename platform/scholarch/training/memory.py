"""The launcher's folder in memory, in which workers keep what is to outlive them."""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

FOLDER = "SCHOLARCH_REPLICAS"
"""Environment variable: the folder; none: nobody outlives the workers."""


@contextmanager
def memory() -> Iterator[None]:
    """A folder that workers know by its name while the context lasts; none where there is no such place."""
    shared = Path("/dev/shm")
    prefix = f"scholarch-replicas-{os.getuid()}-"
    try:
        for left in shared.glob(f"{prefix}*"):  # by a launcher that was killed
            if _ended(int(left.name.removeprefix(prefix))):
                shutil.rmtree(left, ignore_errors=True)
        folder = shared / f"{prefix}{os.getpid()}"
        folder.mkdir(mode=0o700)
    except (OSError, ValueError):
        yield
        return
    os.environ[FOLDER] = str(folder)
    try:
        yield
    finally:
        os.environ.pop(FOLDER, None)
        shutil.rmtree(folder, ignore_errors=True)


def _ended(process: int) -> bool:
    if process == os.getpid():  # of one before this, which had the same number in its container
        return True
    try:
        os.kill(process, 0)
    except ProcessLookupError:
        return True
    except PermissionError:
        return False
    return False
