"""Files of a run on a local or mounted file system.

A file is written under a temporary name in its own folder, synced and renamed, so a reader (and the
same run after a crash) sees the old content or the new, never half of it.
"""

from __future__ import annotations

import errno
import fcntl
import hashlib
import os
import re
import shutil
import socket
import time
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import BinaryIO

from scholarch.errors import UserError

LOCK_NAME = ".lock"
_FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
_READ_ONLY = (errno.EROFS, errno.EACCES, errno.EPERM)


@contextmanager
def atomic(path: Path) -> Iterator[BinaryIO]:
    """A binary file that takes the name `path` when the block ends, and vanishes if it raises.

    Raises:
        UserError: if the disk is full or the folder cannot be written to.
    """
    temporary = path.with_name(f".{path.name}.{uuid.uuid4().hex[:8]}.tmp")
    try:
        with temporary.open("xb") as file:
            yield file
            file.flush()
            os.fsync(file.fileno())
        temporary.replace(path)
        _sync_folder(path.parent)
    except BaseException as error:
        temporary.unlink(missing_ok=True)
        if isinstance(error, OSError):
            plainly(error, str(path))
        raise


def write_bytes(path: Path, data: bytes) -> None:
    """Write `data` to `path`, all of it or nothing; raises as `atomic` does."""
    with atomic(path) as file:
        file.write(data)


def write_text(path: Path, text: str) -> None:
    """Write `text` to `path` as UTF-8, all of it or nothing; raises as `atomic` does."""
    write_bytes(path, text.encode())


def append_line(path: Path, line: str) -> None:
    """Add one line to a log; after a kill the last line may be torn, the ones before it are not.

    Raises:
        ValueError: if `line` holds a line break.
        UserError: if the disk is full or the file cannot be written to.
    """
    if "\n" in line:
        raise ValueError(f"one line at a time, not {line!r}")
    data = f"{line}\n".encode()
    try:
        # Unbuffered, so that the line goes out in one write.
        with path.open("ab", buffering=0) as file:
            if file.write(data) != len(data):
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), str(path))
    except OSError as error:
        plainly(error, str(path))


def sha256(path: Path) -> str:
    """Hexadecimal SHA-256 of a file's content."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


@contextmanager
def lock(folder: Path, patience: float = 0.0) -> Iterator[None]:
    """Hold an existing folder for this process; the kernel lets go of it when the process dies.

    Args:
        folder: what to hold.
        patience: seconds to wait for another process to let go.

    Raises:
        UserError: if another process holds it; the folder is left as it is.
        FileNotFoundError: if the folder does not exist.
    """
    path = folder / LOCK_NAME
    descriptor = _acquire(path, time.monotonic() + patience)
    try:
        os.ftruncate(descriptor, 0)
        os.write(descriptor, f"process {os.getpid()} on {socket.gethostname()}".encode())
        yield
    finally:
        path.unlink(missing_ok=True)
        os.close(descriptor)


def _acquire(path: Path, until: float) -> int:
    while True:
        try:
            descriptor = os.open(path, os.O_RDWR | os.O_CREAT, 0o644)
        except OSError as error:
            plainly(error, str(path))
            raise
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
            # The holder before us may have removed the name between our open and our lock; then
            # what is locked here is a file that nobody else will find.
            if path.exists() and os.path.samestat(path.stat(), os.fstat(descriptor)):
                return descriptor
        except BlockingIOError:
            owner = os.read(descriptor, 200).decode(errors="replace") or "another process"
            os.close(descriptor)
            if time.monotonic() < until:
                time.sleep(0.2)
                continue
            raise UserError(
                f"is in use by {owner}",
                where=str(path.parent),
                fix="wait for it, stop it, or give this run another folder",
            ) from None
        except OSError as error:
            os.close(descriptor)
            raise UserError(
                f"the file system has no locks ({error.strerror})",
                where=str(path.parent),
                fix="put the run on a local disk or another mount",
            ) from error
        os.close(descriptor)


def check_writable(folder: Path) -> None:
    """Check that `folder` can be written to, or made; creates nothing.

    Raises:
        UserError: if it cannot.
    """
    existing = nearest_existing(folder)
    if not existing.is_dir():
        raise UserError("is a file, not a folder", where=str(existing), fix="name another folder")
    if not os.access(existing, os.W_OK | os.X_OK, effective_ids=True):
        raise UserError(
            "cannot be written to",
            where=str(existing),
            fix="change its permissions, or name another folder",
        )


def check_free(folder: Path, needed: int) -> None:
    """Check that the disk of `folder` (which may not exist yet) has `needed` bytes free.

    Raises:
        UserError: if it has less.
    """
    free = shutil.disk_usage(nearest_existing(folder)).free
    if free < needed:
        raise UserError(
            f"needs {readable_size(needed)} and the disk has {readable_size(free)} free",
            where=str(folder),
            fix="free some space, keep fewer checkpoints, or name a folder on another disk",
        )


def nearest_existing(path: Path) -> Path:
    """`path` itself or its closest parent that exists."""
    path = path.absolute()
    while not path.exists():
        path = path.parent
    return path


def readable_size(size: int) -> str:
    """A number of bytes for people, such as `1.5 GiB`."""
    value = float(size)
    for unit in ("bytes", "KiB", "MiB", "GiB"):
        if value < 1024:
            return f"{value:.0f} {unit}" if unit == "bytes" else f"{value:.1f} {unit}"
        value /= 1024
    return f"{value:.1f} TiB"


_UNITS = {unit: 1000**power for power, unit in enumerate(("b", "kb", "mb", "gb", "tb"))} | {
    unit: 1024**power for power, unit in enumerate(("b", "kib", "mib", "gib", "tib"))
}


def parse_size(text: str, where: str) -> int:
    """A number of bytes from what people write: `20 GB`, `64MiB`, `1000000`.

    Raises:
        UserError: if it is no size, or not positive.
    """
    found = re.fullmatch(r"\s*(\d+(?:\.\d+)?)\s*([a-z]*)\s*", text.lower())
    size = int(float(found[1]) * _UNITS.get(found[2] or "b", 0)) if found else 0
    if size <= 0:
        raise UserError(f"{text!r} is not a size", where=where, fix="write it as 20 GB or 64 MiB")
    return size


def _sync_folder(folder: Path) -> None:
    # A rename lasts through a power cut only when the folder itself has been synced.
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def plainly(error: OSError, where: str) -> None:
    """Raises a UserError in place of `error` where it is of a kind that a person can mend."""
    if error.errno in _FULL:
        raise UserError("the disk is full", where=where, fix="free some space and resume") from error
    if error.errno in _READ_ONLY:
        raise UserError(
            f"cannot be written ({error.strerror})",
            where=where,
            fix="change the permissions, or name another folder",
        ) from error
