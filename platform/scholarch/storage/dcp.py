"""DCP's files in a folder or in S3, hashed while they are written.

To a folder DCP writes by itself; to S3 through s3torchconnector, with the address and the keys of
`scholarch.storage.s3`. Imports of both are lazy.
"""

from __future__ import annotations

import hashlib
import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

from scholarch.storage.objects import Objects, is_s3

if TYPE_CHECKING:
    from torch.distributed.checkpoint.filesystem import FileSystemReader, FileSystemWriter

PIECE_BYTES = 16 << 20


@dataclass(frozen=True)
class Content:
    """What is in a file.

    Attributes:
        bytes: its size.
        sha256: hexadecimal.
    """

    bytes: int
    sha256: str


def content_of(objects: Objects, name: str) -> Content | None:
    """Reads an object piece by piece; None if there is none.

    Raises:
        Unreachable: if the store does not answer.
    """
    entry = objects.entry(name)
    if entry is None:
        return None
    digest = hashlib.sha256()
    for start in range(0, entry.bytes, PIECE_BYTES):
        digest.update(objects.read(name, start, min(PIECE_BYTES, entry.bytes - start)))
    return Content(entry.bytes, digest.hexdigest())


class _HashingStream:
    """A stream to write to, in one go from its start."""

    def __init__(self, stream: Any) -> None:
        self._stream, self._digest, self._bytes = stream, hashlib.sha256(), 0

    def write(self, data: bytes | memoryview) -> int:
        self._digest.update(data)
        self._bytes += len(data)
        self._stream.write(data)
        return len(data)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._stream, name)

    def content(self) -> Content:
        return Content(self._bytes, self._digest.hexdigest())


class _Recording:
    """A file system of DCP that keeps what was written through it, by the files' last names."""

    def __init__(self, inner: Any) -> None:
        self._inner = inner
        self.written: dict[str, Content] = {}

    @contextmanager
    def create_stream(self, path: Any, mode: str) -> Iterator[Any]:
        with self._inner.create_stream(path, mode) as stream:
            if mode != "wb":
                yield stream
                return
            hashing = _HashingStream(stream)
            yield hashing
        self.written[_last_name(path)] = hashing.content()

    def rename(self, path: Any, new_path: Any) -> None:
        self._inner.rename(path, new_path)
        self.written[_last_name(new_path)] = self.written.pop(_last_name(path))

    def __getattr__(self, name: str) -> Any:
        return getattr(self._inner, name)


def writer(address: str) -> tuple[FileSystemWriter, dict[str, Content]]:
    """DCP's writer into a folder or under an S3 prefix, and what this process writes through it, by name."""
    if is_s3(address):
        from s3torchconnector.dcp import S3StorageWriter

        made: Any = S3StorageWriter(_region(), address)
        made.fs = _s3_file_system()
    else:
        from torch.distributed.checkpoint.filesystem import FileSystemWriter

        made = FileSystemWriter(Path(address))
    made.fs = _Recording(made.fs)
    return made, made.fs.written


def reader(address: str) -> FileSystemReader:
    """DCP's reader of a folder or an S3 prefix."""
    if is_s3(address):
        from s3torchconnector import S3ReaderConstructor
        from s3torchconnector.dcp import S3StorageReader

        ranges: Any = S3ReaderConstructor.dcp_optimized()
        made: Any = S3StorageReader(_region(), address, reader_constructor=ranges)
        made.fs = _s3_file_system(ranges)
    else:
        from torch.distributed.checkpoint.filesystem import FileSystemReader

        made = FileSystemReader(Path(address))
    found: FileSystemReader = made
    return found


def _last_name(path: Any) -> str:
    return str(os.fspath(path)).rpartition("/")[2]


def _region() -> str:
    return os.environ.get("AWS_REGION") or os.environ.get("AWS_DEFAULT_REGION") or "us-east-1"


def _s3_file_system(reader_constructor: Any = None) -> Any:
    from s3torchconnector.dcp import S3FileSystem

    from scholarch.storage.s3 import endpoint

    client = _s3_client(endpoint(), _region())
    return S3FileSystem(_region(), s3_client=client, reader_constructor=reader_constructor)


@lru_cache(maxsize=4)
def _s3_client(url: str, region: str) -> Any:
    from s3torchconnector import S3ClientConfig

    # S3FileSystem takes a client, and only a client takes an endpoint.
    from s3torchconnector._s3client import S3Client

    # MinIO and most other stores answer to path style alone; few tries here, since a whole save is
    # tried again by the one who asked for it.
    amazon = url.endswith(".amazonaws.com")
    config = S3ClientConfig(force_path_style=not amazon, max_attempts=3)
    return S3Client(region, endpoint=None if amazon else url, s3client_config=config)
