"""Code that takes the place of an image's: an archive whose name is its SHA-256, so that an edit needs no image."""

from __future__ import annotations

import gzip
import hashlib
import io
import os
import tarfile
import tempfile
from pathlib import Path, PurePosixPath

from scholarch.errors import UserError
from scholarch.storage.objects import open_objects

ENDING = ".tar.gz"
LARGEST_BYTES = 32 << 20
"""Of all files: code, and not the data beside it."""


def pack(folder: Path) -> tuple[str, bytes]:
    """The archive of a folder's files and its name; the same for the same files.

    Hidden files and compiled ones stay behind; links are followed to files.

    Raises:
        UserError: if there is no such folder, nothing in it, or too much.
    """
    if not folder.is_dir():
        raise UserError(
            "there is no such folder", where=f"code: {folder}", fix="name the one that holds packages"
        )
    content = io.BytesIO()
    paths = [
        path for path in sorted(folder.rglob("*")) if path.is_file() and _is_code(path.relative_to(folder))
    ]
    if not paths:
        raise UserError(
            "the folder is empty", where=f"code: {folder}", fix="name the one that holds packages"
        )
    if sum(path.stat().st_size for path in paths) > LARGEST_BYTES:
        raise UserError(
            f"more than {LARGEST_BYTES >> 20} MiB of files",
            where=f"code: {folder}",
            fix="name a folder with packages alone, such as platform",
        )
    # Neither clock nor user nor name of this machine goes in.
    with (
        gzip.GzipFile(fileobj=content, mode="wb", filename="", mtime=0) as zipped,
        tarfile.open(fileobj=zipped, mode="w") as archive,
    ):
        for path in paths:
            member = tarfile.TarInfo(path.relative_to(folder).as_posix())
            member.size, member.mode = path.stat().st_size, 0o755 if os.access(path, os.X_OK) else 0o644
            with path.open("rb") as file:
                archive.addfile(member, file)
    data = content.getvalue()
    return f"{hashlib.sha256(data).hexdigest()}{ENDING}", data


def send(address: str, data: bytes) -> None:
    """Puts an archive to its address, unless it is there already.

    Raises:
        UserError, Unreachable: if it cannot be written.
    """
    place, _, name = address.rpartition("/")
    objects = open_objects(place)
    if objects.entry(name) is None:
        objects.write(name, data)


def bring(address: str, folder: Path) -> Path:
    """Unpacks the archive at an address below `folder`; gives the folder with its files.

    Raises:
        UserError: if there is none, or it is not what its name says.
        Unreachable: if the store does not answer.
    """
    place, _, name = address.rpartition("/")
    target = folder / name.removesuffix(ENDING)
    if target.is_dir():  # a rename made it, so it is whole
        return target
    try:
        data = open_objects(place).read(name)
    except FileNotFoundError:
        raise UserError("there is no such archive", where=address, fix="submit the run again") from None
    found = hashlib.sha256(data).hexdigest()
    if f"{found}{ENDING}" != name:
        raise UserError(f"the archive has SHA-256 {found}", where=address, fix="submit the run again")
    folder.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=folder) as unfinished:
        whole = Path(unfinished) / "code"
        _unpack(data, whole, address)
        whole.rename(target)
    return target


def _unpack(data: bytes, folder: Path, address: str) -> None:
    # By hand: the filters of `extractall` are not in every Python 3.11.
    with tarfile.open(fileobj=io.BytesIO(data), mode="r:gz") as archive:
        for member in archive:
            path = PurePosixPath(member.name)
            file = archive.extractfile(member) if member.isfile() else None
            if file is None or path.is_absolute() or ".." in path.parts:
                raise UserError(
                    f"{member.name!r} is no file of a package", where=address, fix="submit the run again"
                )
            target = folder / path
            target.parent.mkdir(parents=True, exist_ok=True)
            target.write_bytes(file.read())
            target.chmod(member.mode & 0o755)


def _is_code(path: Path) -> bool:
    hidden = any(part.startswith(".") or part == "__pycache__" for part in path.parts)
    return not hidden and path.suffix not in (".pyc", ".so")
