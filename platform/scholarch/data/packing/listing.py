"""Pictures that are to be packed: what is there, and how to read it."""

from __future__ import annotations

import io
import json
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Any, Protocol

from scholarch.data.folder import FolderSource, labels_by_folders
from scholarch.data.source import BrokenPicture, Labels, listing_fingerprint
from scholarch.errors import UserError
from scholarch.storage.objects import Entry, FolderObjects, Objects, is_s3, open_objects

_THREADS = 16
"""Requests in flight of one process that reads single pictures from S3."""

File = tuple[bytes, bytes | BrokenPicture]
"""A picture's name, and its file or why there is none."""


@dataclass(frozen=True)
class Listing:
    """What is to be packed, in the order of the sample numbers.

    Attributes:
        names: unique; of pictures in Parquet without the ending, which only their content tells.
        sizes: of the files in bytes; of pictures in Parquet the mean of their row group.
        labels: of each; None without.
        classes: names in order of their label.
        captions: of each, at least one; None without.
    """

    names: list[bytes]
    sizes: list[int]
    labels: list[int] | None
    classes: list[str] | None
    captions: list[list[str]] | None = None

    def fingerprint(self) -> str:
        """Digest of names, sizes, labels and captions."""
        listed = list(zip(self.names, self.sizes, strict=True))
        labelled = [(repr(self.labels).encode(), 0), (repr(self.classes).encode(), 0)]
        said = [] if self.captions is None else [(json.dumps(c).encode(), 0) for c in self.captions]
        return listing_fingerprint(listed + labelled + said)


class Input(Protocol):
    """Pictures of one kind of place; picklable."""

    @property
    def listing(self) -> Listing: ...

    def read(self, start: int, stop: int) -> Iterator[File]:
        """The pictures numbered start..stop-1, in order."""
        ...


class FolderInput:
    """Pictures below a folder, numbered as `data=FOLDER` numbers them."""

    def __init__(self, folder: Path, labels: Labels) -> None:
        self.source = source = FolderSource(folder, labels)
        numbers = range(len(source))
        marks = [source.label(i) for i in numbers]
        found = [mark for mark in marks if mark is not None]
        self.listing = Listing(
            [source.raw_name(i) for i in numbers], source.sizes.tolist(), found or None, source.classes
        )

    def read(self, start: int, stop: int) -> Iterator[File]:
        for index in range(start, stop):
            try:
                yield self.source.raw_name(index), self.source.encoded(index)
            except BrokenPicture as broken:
                yield self.source.raw_name(index), broken


class ObjectsInput:
    """Pictures that are objects of their own, each under some address.

    Args:
        places: of each picture, the objects and the name there.
    """

    def __init__(self, listing: Listing, places: Sequence[tuple[Objects, str]]) -> None:
        self.listing, self.places = listing, places

    def read(self, start: int, stop: int) -> Iterator[File]:
        with ThreadPoolExecutor(_THREADS) as pool:
            for first in range(start, stop, 4 * _THREADS):
                yield from pool.map(self._one, range(first, min(first + 4 * _THREADS, stop)))

    def _one(self, index: int) -> File:
        objects, name = self.places[index]
        raw = self.listing.names[index]
        try:
            return raw, objects.read(name)
        except (OSError, ValueError) as error:
            reason = "there is no such file" if isinstance(error, FileNotFoundError) else str(error)
            return raw, BrokenPicture(raw.decode("utf-8", "backslashreplace"), reason)


def prefix_input(objects: Objects, entries: Sequence[Entry], labels: Labels) -> ObjectsInput:
    """Picture objects under a prefix, numbered as those of a folder are."""
    entries = sorted(entries, key=lambda entry: entry.name.encode())
    names = [entry.name.encode() for entry in entries]
    classes, marks = labels_by_folders(objects.address, names, labels)
    listing = Listing(
        names, [entry.bytes for entry in entries], None if marks is None else marks.tolist(), classes
    )
    return ObjectsInput(listing, [(objects, entry.name) for entry in entries])


def list_input(path: Path) -> ObjectsInput:
    """A text file with one path or s3:// address on each line, and a label behind a tab if there are any.

    Paths count from the file's folder. Pictures are numbered in the order of the lines.

    Raises:
        UserError: if it is empty, names a picture twice, or labels some lines only.
    """
    rows = [line.split("\t") for line in path.read_text().splitlines() if line.strip()]
    if not rows:
        raise UserError("lists nothing", where=str(path), fix="write one path or s3:// address on each line")
    roots: dict[str, Objects] = {}
    places: list[tuple[Objects, str]] = []
    for row in rows:
        root, name = _split(row[0].strip(), path.parent)
        places.append((roots.setdefault(root, open_objects(root)), name))
    names = [_within(row[0].strip()).encode() for row in rows]
    labels, classes = numbered_labels([row[1].strip() if len(row) > 1 else None for row in rows], str(path))
    # Sizes would take a request for each key; equal ones make shards of equal counts.
    sizes = [_size(objects, name) for objects, name in places]
    return ObjectsInput(Listing(unique(names, str(path)), sizes, labels, classes), places)


_UNKNOWN_BYTES = 100_000


def _within(address: str) -> str:
    """A path as a name that stays within whatever it is unpacked to."""
    path = PurePosixPath(address.removeprefix("s3://"))
    return "/".join(part for part in path.parts if part not in ("/", "..", "."))


def _split(address: str, folder: Path) -> tuple[str, str]:
    if is_s3(address):
        bucket, _, key = address.removeprefix("s3://").partition("/")
        return f"s3://{bucket}", key
    found = (folder / Path(address).expanduser()).absolute()
    return str(found.parent), found.name


def _size(objects: Objects, name: str) -> int:
    if not isinstance(objects, FolderObjects):
        return _UNKNOWN_BYTES
    entry = objects.entry(name)
    return entry.bytes if entry else 0


def unique(names: list[bytes], where: str) -> list[bytes]:
    """`names`, if no name comes twice."""
    seen: set[bytes] = set()
    for name in names:
        if name in seen:
            raise UserError(
                f"{name.decode(errors='backslashreplace')} is there twice", where=where, fix="keep one"
            )
        seen.add(name)
    return names


def numbered_labels(
    values: Sequence[str | int | None], where: str
) -> tuple[list[int] | None, list[str] | None]:
    """Labels and classes from what stands beside each picture: numbers as they are, words sorted."""
    missing = sum(value is None for value in values)
    if missing == len(values):
        return None, None
    if missing:
        raise UserError(
            f"{missing} of {len(values)} pictures have no label",
            where=where,
            fix="label all of them, or none",
        )
    words = [str(value) for value in values]
    if all(word.isdecimal() for word in words):
        numbers = [int(word) for word in words]
        return numbers, [str(number) for number in range(max(numbers) + 1)]
    classes = sorted(set(words))
    number = {word: i for i, word in enumerate(classes)}
    return [number[word] for word in words], classes


def all_or_none(captions: list[list[str]], where: str) -> list[list[str]] | None:
    """`captions`, if every picture has some; None if no picture has.

    Raises:
        UserError: if only some have.
    """
    missing = sum(not said for said in captions)
    if missing == len(captions):
        return None
    if missing:
        raise UserError(
            f"{missing} of {len(captions)} pictures have no caption",
            where=where,
            fix="give every picture one, or none",
        )
    return captions


class Ranges(io.RawIOBase):
    """An object as a file that can be read and sought in."""

    def __init__(self, objects: Objects, name: str, size: int) -> None:
        self.objects, self.object, self.size, self.place = objects, name, size, 0

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def seek(self, offset: int, whence: int = io.SEEK_SET) -> int:
        self.place = offset + (0, self.place, self.size)[whence]
        return self.place

    def tell(self) -> int:
        return self.place

    def readinto(self, buffer: Any) -> int:
        length = max(min(len(buffer), self.size - self.place), 0)
        buffer[:length] = self.objects.read(self.object, self.place, length)
        self.place += length
        return length


def open_ranges(objects: Objects, name: str, size: int, buffer: int = 1 << 20) -> io.BufferedReader:
    """An object as a buffered file."""
    return io.BufferedReader(Ranges(objects, name, size), buffer)
