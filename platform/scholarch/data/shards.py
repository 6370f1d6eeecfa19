"""Packed pictures, read at random from a folder or from S3 (docs/decisions/0004-shard-format.md)."""

from __future__ import annotations

import os
import threading
import zlib
from collections.abc import Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from torch import Tensor

from scholarch.data.ahead import ReadAhead
from scholarch.data.cache import Cache
from scholarch.data.decode import decode
from scholarch.data.index import MANIFEST, RECORD
from scholarch.data.manifest import FilePart, Manifest, read_manifest
from scholarch.data.source import Labels, listing_fingerprint
from scholarch.data.statistics import ScanReport
from scholarch.errors import RunFailed, UserError
from scholarch.storage.local import sha256
from scholarch.storage.objects import FolderObjects, Objects, joined

GAP_BYTES = 64 << 10
"""Two samples with less than this between them come by one request: about what a store sends in the
time that a request takes."""


class ShardSource:
    """The pictures of a packed data set, by number, each checked against its checksum.

    What is expected (scholarch.data.source.expect) is fetched ahead by ranges of shards. Meanwhile
    one process of the machine fills the cache with whole shards, up to its bound, and whoever reads
    them later reads them there.

    Args:
        objects: where manifest and shards lie.
        labels: `none` leaves the packed labels out, `folders` asks for them.
        cache: None: the machine's, for data in S3; a folder needs none.
        features: the samples are to be tokens of a backbone (scholarch.data.kept_features), not pictures.

    Raises:
        UserError: if there is no manifest, a shard is missing or has another size, labels are asked for and
            there are none, or the samples are of the other kind.
        Unreachable: if the store does not answer.
    """

    def __init__(
        self,
        objects: Objects,
        labels: Labels = "auto",
        cache: Cache | None = None,
        manifest: Manifest | None = None,
        *,
        features: bool = False,
    ) -> None:
        self.objects = objects
        manifest = manifest or read_manifest(objects)
        if manifest is None:
            raise UserError(
                f"holds no packed pictures: {MANIFEST} is missing",
                where=objects.address,
                fix="pack them with `scholarch pack SOURCE TARGET`; one that was cut short goes on by the same command",
            )
        if (manifest.features is not None) != features:
            raise UserError(
                f"holds {'pictures' if features else 'features of a backbone'}",
                where=objects.address,
                fix="name pictures as data=, and an empty or new place as data.features=",
            )
        self.manifest = manifest
        _check_sizes(objects, manifest)
        local = isinstance(objects, FolderObjects)
        self.cache = None if local else cache or Cache(manifest.digest())
        self._index_path, self._names_path = (
            self._brought(part) for part in (manifest.index, manifest.names)
        )
        self._captions_path = None if manifest.captions is None else self._brought(manifest.captions)
        if labels == "folders" and manifest.classes is None:
            raise UserError(
                "these pictures were packed without labels", where=objects.address, fix="set labels=none"
            )
        self._classes = None if labels == "none" or manifest.classes is None else list(manifest.classes)
        self._forget_process()

    def _forget_process(self) -> None:
        self._process = 0
        self._opened: tuple[np.ndarray, np.ndarray] | None = None
        self._said: Any = None
        self._ahead: ReadAhead | None = None
        self._filling = False

    def __getstate__(self) -> dict[str, Any]:
        kept = {"_opened": None, "_said": None, "_ahead": None, "_filling": False}
        return {**self.__dict__, **kept}

    def _brought(self, part: FilePart) -> Path:
        """A file of the data set on this machine."""
        if self.cache is None:
            assert isinstance(self.objects, FolderObjects)
            return self.objects.folder / part.name
        return self.cache.required(part.name, part.bytes, partial(self._download, part))

    def _download(self, part: FilePart, path: Path) -> None:
        self.objects.download(part.name, path)
        if sha256(path) != part.sha256:
            path.unlink()
            raise _changed(self.objects, part.name)

    @property
    def _index(self) -> np.ndarray:
        return self._open()[0]

    def _open(self) -> tuple[np.ndarray, np.ndarray]:
        """The index and the names, mapped: one copy in memory for all processes of a machine."""
        if self._opened is None:
            # Plain arrays over the maps: an access to one element of a memmap is slow.
            index = np.load(self._index_path, mmap_mode="r").view(np.ndarray)
            if index.dtype != RECORD or len(index) != self.manifest.samples:
                raise _changed(self.objects, self.manifest.index.name)
            names = (
                np.memmap(self._names_path, np.uint8, "r")
                if self.manifest.names.bytes
                else np.empty(0, np.uint8)
            )
            self._opened = index, names.view(np.ndarray)
        return self._opened

    @property
    def classes(self) -> list[str] | None:
        return self._classes

    def __len__(self) -> int:
        return self.manifest.samples

    def read(self, index: int) -> Tensor:
        return decode(self.encoded(index), self.name(index))

    def encoded(self, index: int) -> bytes:
        """The picture file of a sample, as it was packed.

        Raises:
            UserError: if it is not what was packed.
            Unreachable: if the store does not answer.
        """
        data = self._ahead.take(index) if self._ahead is not None else None
        return self._fetch([index])[index] if data is None else data

    def label(self, index: int) -> int | None:
        return None if self._classes is None else int(self._index[index]["label"])

    def raw_name(self, index: int) -> bytes:
        """The name as the file system had it."""
        records, names = self._open()
        start = int(records[index - 1]["name_end"]) if index else 0
        return names[start : int(records[index]["name_end"])].tobytes()

    def name(self, index: int) -> str:
        return self.raw_name(index).decode("utf-8", "backslashreplace")

    @property
    def captioned(self) -> bool:
        """Whether there are captions."""
        return self._captions_path is not None

    def captions(self, index: int) -> Sequence[str]:
        """See scholarch.data.source.captions."""
        if self._said is None:
            import pyarrow  # type: ignore[import-untyped]

            # Mapped: one copy in memory for all processes of a machine.
            self._said = pyarrow.ipc.open_file(pyarrow.memory_map(str(self._captions_path))).read_all()
        found: list[str] = self._said["captions"][index].as_py()
        return found

    def fingerprint(self) -> str:
        if self.manifest.captions is None:
            return self.manifest.fingerprint
        parts = (self.manifest.fingerprint, self.manifest.captions.sha256)
        return listing_fingerprint((part.encode(), 0) for part in parts)

    def scanned(self, channels: int | None) -> ScanReport | None:
        """What was found when the pictures were packed."""
        return self.manifest.scanned(channels)

    @property
    def foresees(self) -> bool:
        """Whether what is read next is worth telling."""
        return self.cache is not None

    def expect(self, indices: np.ndarray, *, afresh: bool = False) -> None:
        """Begins to fetch what will be read next; see scholarch.data.source.expect."""
        if self.cache is None:
            return
        if self._process != os.getpid():  # threads do not survive a fork
            self._forget_process()
            self._process = os.getpid()
        if self._ahead is None:
            sizes = self._index["bytes"]
            self._ahead = ReadAhead(lambda index: int(sizes[index]), self._runs, self._fetch)
        self._ahead.expect(indices, afresh=afresh)
        if not self._filling:
            self._filling = True
            threading.Thread(target=self._fill, daemon=True).start()

    def _fill(self) -> None:
        assert self.cache is not None
        files = ((part.name, part.bytes, partial(self._download, part)) for part in self.manifest.shards)
        try:
            self.cache.fill(files)
        except (UserError, RunFailed, OSError):
            # A full disk, or a store that is away: reading says what matters.
            return

    def _runs(self, indices: Sequence[int]) -> list[list[int]]:
        """Numbers in runs of near neighbours within a shard."""
        found = np.unique(np.asarray(indices, dtype=np.int64))
        records = self._index[found]
        ends = records["offset"] + records["bytes"]
        apart = records["offset"][1:].astype(np.int64) - ends[:-1].astype(np.int64) > GAP_BYTES
        cuts = np.flatnonzero(apart | (records["shard"][1:] != records["shard"][:-1])) + 1
        return [run.tolist() for run in np.split(found, cuts)]

    def _fetch(self, run: Sequence[int]) -> dict[int, bytes]:
        """The files of samples that lie near one another in one shard."""
        records = self._index[list(run)]
        part = self.manifest.shards[int(records[0]["shard"])]
        for data in self._tries(
            part.name, int(records[0]["offset"]), int(records[-1]["offset"] + records[-1]["bytes"])
        ):
            origin, found = int(records[0]["offset"]), {}
            for index, record in zip(run, records, strict=True):
                start = int(record["offset"]) - origin
                found[index] = data[start : start + int(record["bytes"])]
                if zlib.crc32(found[index]) != record["checksum"]:
                    break
            else:
                return found
        raise _changed(self.objects, part.name, self.name(index))

    def _tries(self, shard: str, start: int, stop: int) -> Iterator[bytes]:
        """The range from the cache, then twice from the store: what was damaged on its way comes whole."""
        if self.cache is not None:
            try:
                with self.cache.path(shard).open("rb") as file:
                    yield os.pread(file.fileno(), stop - start, start)
                self.cache.drop(shard)  # damaged on this disk
            except FileNotFoundError:
                pass
        for _ in range(2):
            try:
                yield self.objects.read(shard, start, stop - start)
            except (FileNotFoundError, EOFError) as error:
                raise _changed(self.objects, shard) from error


def _check_sizes(objects: Objects, manifest: Manifest) -> None:
    sizes = {entry.name: entry.bytes for entry in objects.entries()}
    for part in (*manifest.parts, *manifest.shards):
        if sizes.get(part.name) != part.bytes:
            found = f"has {sizes[part.name]} bytes, not {part.bytes}" if part.name in sizes else "is missing"
            raise UserError(
                f"{part.name} {found}: it is not what was packed",
                where=objects.address,
                fix="restore it, or pack the pictures again; `scholarch pack --verify` lists all that is damaged",
            )


def _changed(objects: Objects, shard: str, sample: str = "") -> UserError:
    return UserError(
        f"is not what was packed{f': the checksum of {sample} differs' if sample else ''}",
        where=joined(objects.address, shard),
        fix=f"restore it, or pack again; `scholarch pack --verify {objects.address}` lists all that is damaged",
    )
