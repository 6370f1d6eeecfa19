"""Keeps a folder and what is under an S3 prefix alike, for the small files of a run.

Files are worked on in the folder, and copied whole when they have changed: now and then, when they must be
there (before a checkpoint is committed), and at the end. Checkpoints are no business of it.
"""

from __future__ import annotations

import hashlib
import os
import sys
import tempfile
import threading
from collections.abc import Iterator
from contextlib import suppress
from functools import cache
from pathlib import Path

from scholarch.errors import UserError
from scholarch.storage.lease import LEASE_NAME
from scholarch.storage.objects import Objects, Unreachable, open_objects

EVERY_SECONDS = 15.0
_LEFT_OUT = frozenset({"checkpoints", "mlflow"})
"""Folders that are not copied: checkpoints go to the store directly, MLflow's own records to its server."""
_KEPT_OF_MLFLOW = "mlflow/run.json"
_SMALL_BYTES = 8 << 20


class Mirror:
    """A folder whose files are copied to objects of the same names.

    Args:
        folder: where files are worked on.
        objects: where they belong.
    """

    def __init__(self, folder: Path, objects: Objects) -> None:
        self.folder, self.objects = folder, objects
        self._seen: dict[str, tuple[int, int]] = {}
        self._lock = threading.Lock()
        self._closing = threading.Event()
        self._thread = threading.Thread(target=self._now_and_then, name="mirror", daemon=True)

    def pull(self, ending: str | tuple[str, ...] = "") -> None:
        """Copies every object, or those whose names end so, into the folder.

        Raises:
            Unreachable, UserError: if the store does not answer, or may not be read.
        """
        self.folder.mkdir(parents=True, exist_ok=True)
        for entry in self.objects.entries():
            if _belongs(entry.name) and entry.name.endswith(ending):
                path = self.folder / entry.name
                path.parent.mkdir(parents=True, exist_ok=True)
                self.objects.download(entry.name, path)
                self._seen[entry.name] = _state(path)

    def start(self) -> None:
        """Copies now and then from here on."""
        self._thread.start()

    def push(self) -> None:
        """Copies what has changed, and removes what has gone, since the last time.

        Raises:
            Unreachable, UserError: if the store does not answer, or may not be written to.
        """
        with self._lock:
            found = dict(self._files())
            for name, path in found.items():
                with suppress(FileNotFoundError):  # being replaced just now: next time
                    state = _state(path)
                    if self._seen.get(name) != state:
                        self._copy(name, path)
                        self._seen[name] = state
            for name in self._seen.keys() - found.keys():
                self.objects.remove(name)
                del self._seen[name]

    def stop(self) -> None:
        """Ends the copying now and then; `push` copies the rest."""
        self._closing.set()
        if self._thread.is_alive():
            self._thread.join()

    def _copy(self, name: str, path: Path) -> None:
        # What is replaced while it is read must not be of two sizes; large files are only appended to.
        if path.stat().st_size < _SMALL_BYTES:
            self.objects.write(name, path.read_bytes())
        else:
            self.objects.upload(name, path)

    def _now_and_then(self) -> None:
        told = False
        while not self._closing.wait(EVERY_SECONDS):
            try:
                self.push()
            except (UserError, Unreachable) as error:
                if not told:
                    sys.stderr.write(f"warning: files of the run wait to be copied: {error}\n")
                told = True

    def _files(self) -> Iterator[tuple[str, Path]]:
        for path in sorted(self.folder.rglob("*")):
            name = path.relative_to(self.folder).as_posix()
            if _belongs(name) and path.is_file():
                yield name, path


def copied(address: str, folder: Path) -> Path:
    """Copies the small files under an address into a folder of its last name within `folder`; returns that.

    Raises:
        UserError: if the store cannot be reached or read.
    """
    objects = open_objects(address)
    objects.check()
    target = folder / objects.address.rpartition("/")[2]
    Mirror(target, objects).pull()
    return target


def copies() -> Path:
    """A folder for copies of what is in S3; it goes when this process ends."""
    return Path(_temporary().name)


def scratch(address: str) -> Path:
    """Folder of this machine for the files of a run in S3: below `SCHOLARCH_SCRATCH`, or the temporary folder."""
    default = Path(tempfile.gettempdir()) / f"scholarch-{os.getuid()}"
    key = hashlib.sha256(address.encode()).hexdigest()[:16]
    return Path(os.environ.get("SCHOLARCH_SCRATCH") or default) / "runs" / key


@cache
def _temporary() -> tempfile.TemporaryDirectory[str]:
    return tempfile.TemporaryDirectory(prefix="scholarch-copies-", ignore_cleanup_errors=True)


def _belongs(name: str) -> bool:
    parts = name.split("/")
    if name.endswith(_KEPT_OF_MLFLOW):
        return True
    return name != LEASE_NAME and not (
        _LEFT_OUT & set(parts[:-1]) or any(part.startswith(".") for part in parts)
    )


def _state(path: Path) -> tuple[int, int]:
    found = path.stat()
    return found.st_size, found.st_mtime_ns
