"""Objects by name under one address: a folder, or a prefix of an S3 bucket.

    open_objects("runs/a").write("recipe.yaml", data)
    open_objects("s3://datasets/digits").read("shard-00000.tar", start=512, length=4096)

A name is a relative path with `/`. An object exists whole or not at all.
"""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Protocol

from scholarch.errors import EXIT_INTERRUPTED, RunFailed
from scholarch.storage.local import atomic, write_bytes

SCHEME = "s3://"


class Unreachable(RunFailed):
    """The store did not answer, or not whole, in all tries; the message names address and cause.

    A command that it ends can be given again, or a run resumed, when the store is back.
    """

    exit_code = EXIT_INTERRUPTED


@dataclass(frozen=True, order=True)
class Entry:
    """An object that exists.

    Attributes:
        name: under the address.
        bytes: its size.
    """

    name: str
    bytes: int


class Objects(Protocol):
    """Objects under one address; picklable, and usable from several threads."""

    @property
    def address(self) -> str:
        """As it was named, without a slash at the end."""
        ...

    def read(self, name: str, start: int = 0, length: int | None = None) -> bytes:
        """`length` bytes from `start`, or all behind it.

        Raises:
            FileNotFoundError: if there is no such object.
            EOFError: if it ends before `start + length`.
            Unreachable: if the store does not answer.
        """
        ...

    def write(self, name: str, data: bytes) -> None:
        """Creates or replaces an object; raises Unreachable, or UserError where it may not be written."""
        ...

    def upload(self, name: str, path: Path) -> None:
        """As `write`, from a file of any size."""
        ...

    def download(self, name: str, path: Path) -> None:
        """Into a file, which exists whole or not at all; raises as `read`."""
        ...

    def entry(self, name: str) -> Entry | None:
        """The object of this name; None if there is none."""
        ...

    def entries(self, under: str = "") -> Iterator[Entry]:
        """All objects whose name begins with `under`, in the order of their names."""
        ...

    def children(self, under: str = "") -> list[str]:
        """First parts of the names below `under` (a name without a slash at its end), sorted."""
        ...

    def remove(self, name: str) -> None:
        """Removes an object; one that does not exist is none."""
        ...

    def remove_all(self, under: str) -> None:
        """Removes all objects below `under`; a kill on the way may leave some of them."""
        ...

    def check(self) -> None:
        """Checks that the place can be reached and read; for a folder: that it, or a parent, exists.

        Raises:
            UserError: naming what is wrong: address, bucket, credentials, rights.
        """
        ...


def is_s3(address: str) -> bool:
    """Whether an address is of an S3 store."""
    return address.startswith(SCHEME)


def open_objects(address: str) -> Objects:
    """The objects under `s3://BUCKET/PREFIX` or a folder; nothing is contacted yet.

    Raises:
        UserError: if an S3 address names no bucket.
    """
    if is_s3(address):
        from scholarch.storage.s3 import S3Objects

        return S3Objects.at(address)
    return FolderObjects(Path(address.removeprefix("file://")).expanduser())


def joined(address: str, *names: str) -> str:
    """The address of what lies under another one."""
    return "/".join([address.rstrip("/"), *names])


class FolderObjects:
    """Objects that are files of a folder, which is made at the first write."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    @property
    def address(self) -> str:
        return str(self.folder)

    def read(self, name: str, start: int = 0, length: int | None = None) -> bytes:
        with self._path(name).open("rb") as file:
            file.seek(start)
            data = file.read() if length is None else file.read(length)
        if length is not None and len(data) < length:
            raise EOFError(f"{self._path(name)} ends after {start + len(data)} bytes")
        return data

    def write(self, name: str, data: bytes) -> None:
        write_bytes(self._made(name), data)

    def upload(self, name: str, path: Path) -> None:
        with path.open("rb") as source, atomic(self._made(name)) as target:
            shutil.copyfileobj(source, target, 1 << 20)

    def download(self, name: str, path: Path) -> None:
        with self._path(name).open("rb") as source, atomic(path) as target:
            shutil.copyfileobj(source, target, 1 << 20)

    def entry(self, name: str) -> Entry | None:
        path = self._path(name)
        return Entry(name, path.stat().st_size) if path.is_file() else None

    def entries(self, under: str = "") -> Iterator[Entry]:
        found = []
        for path in self.folder.rglob("*"):
            name = path.relative_to(self.folder).as_posix()
            # Names with a dot in front are files being written.
            if name.startswith(under) and not path.name.startswith(".") and path.is_file():
                found.append(Entry(name, path.stat().st_size))
        yield from sorted(found)

    def children(self, under: str = "") -> list[str]:
        folder = self._path(under) if under else self.folder
        return sorted(path.name for path in folder.iterdir()) if folder.is_dir() else []

    def remove(self, name: str) -> None:
        self._path(name).unlink(missing_ok=True)

    def remove_all(self, under: str) -> None:
        path = self._path(under)
        if path.is_dir():
            shutil.rmtree(path)

    def check(self) -> None:
        """Nothing to reach."""

    def _path(self, name: str) -> Path:
        relative = PurePosixPath(name)
        if relative.is_absolute() or ".." in relative.parts or not relative.parts:
            raise ValueError(f"{name!r} is not a name within {self.folder}")
        return self.folder / relative

    def _made(self, name: str) -> Path:
        path = self._path(name)
        path.parent.mkdir(parents=True, exist_ok=True)
        return path
