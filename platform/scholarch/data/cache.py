"""A bounded folder of this machine that holds files of packed data, shared by all its processes.

What lies there is whole: a file comes by a rename. Only the holder of the folder's lock adds and
removes, so the bound holds at every moment; readers need no lock. Nothing of a data set in use is
evicted: in a pass every sample is read once, so no file is worth more than another, and taking turns
would only fetch the same bytes again.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
import shutil
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

from scholarch.errors import UserError
from scholarch.storage.local import check_writable, parse_size, readable_size

FOLDER, SIZE = "SCHOLARCH_CACHE", "SCHOLARCH_CACHE_SIZE"
DEFAULT_FOLDER, DEFAULT_SIZE = "~/.cache/scholarch/shards", "20 GB"
IDLE_SECONDS = 3600.0
"""A data set that nobody has used for so long may be evicted."""
_LOCK, _USED = ".lock", ".used"


class Cache:
    """The cached files of one data set.

    Args:
        key: names the data set; equal for equal contents.
        root: the folder of all data sets; None: SCHOLARCH_CACHE.
        bound: bytes of all data sets together; None: SCHOLARCH_CACHE_SIZE.

    Raises:
        UserError: if the folder cannot be written to, or the bound is no size.
    """

    def __init__(self, key: str, root: Path | None = None, bound: int | None = None) -> None:
        self.root = root or Path(os.environ.get(FOLDER) or DEFAULT_FOLDER).expanduser()
        self.bound = bound or parse_size(os.environ.get(SIZE) or DEFAULT_SIZE, SIZE)
        self.folder = self.root / key
        try:
            check_writable(self.folder)
        except UserError as error:
            raise UserError(
                f"the cache of packed data {error.what}", where=error.where, fix=f"set {FOLDER} to a folder"
            ) from error
        self.folder.mkdir(parents=True, exist_ok=True)

    def path(self, name: str) -> Path:
        """Where a file lies, if it is here."""
        return self.folder / name

    def required(self, name: str, size: int, fetch: Callable[[Path], None]) -> Path:
        """A file that must be here; `fetch` writes it, whole, under the path that it is given.

        Raises:
            UserError: if it does not fit.
        """
        path = self.path(name)
        if not path.is_file():
            with self.adding(wait=True):
                self._tidy()
                if not path.is_file():
                    if not self._make_room(size):
                        raise UserError(
                            f"{readable_size(self.bound)} are too few for the index of this data set "
                            f"({readable_size(size)})",
                            where=SIZE,
                            fix="give the cache more",
                        )
                    self._fetch(path, fetch)
        self.touch()
        return path

    def fill(self, files: Iterator[tuple[str, int, Callable[[Path], None]]]) -> bool:
        """Adds (name, bytes, fetch) as long as there is room; False if another process does so already."""
        with self.adding(wait=False) as ours:
            if not ours:
                return False
            self._tidy()
            for name, size, fetch in files:
                self.touch()
                if self.path(name).is_file():
                    continue
                if not self._make_room(size):
                    break
                self._fetch(self.path(name), fetch)
        return True

    def drop(self, name: str) -> None:
        """Removes a file, such as a damaged one."""
        self.path(name).unlink(missing_ok=True)

    def touch(self) -> None:
        """Marks the data set as in use."""
        with contextlib.suppress(OSError):
            (self.folder / _USED).touch()

    @contextmanager
    def adding(self, *, wait: bool) -> Iterator[bool]:
        """The right to add files; the kernel takes it back when the process dies."""
        descriptor = os.open(self.root / _LOCK, os.O_RDWR | os.O_CREAT, 0o644)
        try:
            try:
                fcntl.flock(descriptor, fcntl.LOCK_EX | (0 if wait else fcntl.LOCK_NB))
            except BlockingIOError:
                yield False
                return
            yield True
        finally:
            os.close(descriptor)

    def used(self) -> int:
        """Bytes of all files here."""
        return sum(size for folder in self._folders() for size in _sizes(folder))

    def _folders(self) -> list[Path]:
        return [path for path in self.root.iterdir() if path.is_dir()]

    def _tidy(self) -> None:
        """Removes what a killed process left half-written: we hold the lock, so nobody writes now."""
        for path in self.root.glob("*/*.part"):
            path.unlink(missing_ok=True)

    def _fetch(self, path: Path, fetch: Callable[[Path], None]) -> None:
        part = path.with_name(f"{path.name}.part")
        try:
            fetch(part)
            part.replace(path)
        finally:
            part.unlink(missing_ok=True)

    def _make_room(self, size: int) -> bool:
        idle = sorted((_last_use(folder), folder) for folder in self._folders() if folder != self.folder)
        while self.used() + size > self.bound:
            if not idle or idle[0][0] > time.time() - IDLE_SECONDS:
                return False
            shutil.rmtree(idle.pop(0)[1], ignore_errors=True)
        return True


def _last_use(folder: Path) -> float:
    try:
        return (folder / _USED).stat().st_mtime
    except OSError:
        return 0.0


def _sizes(folder: Path) -> Iterator[int]:
    for path in folder.iterdir():
        with contextlib.suppress(OSError):
            yield path.stat().st_size
