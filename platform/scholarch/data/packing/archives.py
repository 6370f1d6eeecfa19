"""Pictures inside archives: tar files as WebDataset has them, and Parquet with image bytes."""

from __future__ import annotations

import json
import tarfile
from collections.abc import Iterator, Sequence
from pathlib import PurePosixPath
from typing import Any

from scholarch.data.decode import SUFFIXES
from scholarch.data.packing.listing import (
    File,
    Listing,
    all_or_none,
    numbered_labels,
    open_ranges,
    unique,
)
from scholarch.data.source import BrokenPicture
from scholarch.errors import UserError
from scholarch.storage.objects import Entry, Objects, joined

_AT_ONCE = 16 << 20
"""Bytes of an archive that are read by one request."""


class TarInput:
    """Picture files of tar archives, archive after archive in order of their names.

    `KEY.cls` beside `KEY.jpg` is its label, a number or a word, and each line of `KEY.txt` a caption. Names
    are those of the members, below the archive's name where two archives hold the same one.
    """

    def __init__(self, objects: Objects, archives: Sequence[Entry]) -> None:
        self.objects, self.archives = objects, sorted(archives)
        names: list[bytes] = []
        labels: list[str | None] = []
        self.places: list[tuple[int, int, int]] = []  # archive, offset, bytes
        stems: list[str] = []
        captions: list[list[str]] = []
        for number, archive in enumerate(self.archives):
            pictures, marks, said = _members(objects, archive)
            for name, offset, size in pictures:
                names.append(name.encode("utf-8", "surrogateescape"))
                labels.append(marks.get(_key(name)))
                captions.append(said.get(_key(name), []))
                self.places.append((number, offset, size))
                stems.append(archive.name.removesuffix(".tar"))
        if not names:
            raise UserError("the archives hold no pictures", where=objects.address, fix="name others")
        if len(set(names)) < len(names):
            names = [f"{stem}/".encode() + name for stem, name in zip(stems, names, strict=True)]
        numbers, classes = numbered_labels(labels, objects.address)
        sizes = [size for _, _, size in self.places]
        self.listing = Listing(
            unique(names, objects.address), sizes, numbers, classes, all_or_none(captions, objects.address)
        )

    def read(self, start: int, stop: int) -> Iterator[File]:
        while start < stop:
            end = self._run(start, stop)
            archive, origin, _ = self.places[start]
            _, offset, size = self.places[end - 1]
            data = self.objects.read(self.archives[archive].name, origin, offset + size - origin)
            for index in range(start, end):
                _, offset, size = self.places[index]
                yield self.listing.names[index], data[offset - origin : offset - origin + size]
            start = end

    def _run(self, start: int, stop: int) -> int:
        """The end of the samples from `start` on that one request brings."""
        archive, origin, _ = self.places[start]
        end = start + 1
        while end < stop and self.places[end][0] == archive and self.places[end][1] - origin < _AT_ONCE:
            end += 1
        return end


def _key(name: str) -> str:
    path = PurePosixPath(name)
    return str(path.with_name(path.name.partition(".")[0] or path.name))


def _members(
    objects: Objects, archive: Entry
) -> tuple[list[tuple[str, int, int]], dict[str, str], dict[str, list[str]]]:
    """(name, offset, bytes) of the pictures of an archive, and labels and captions by key."""
    pictures, labels, captions = [], {}, {}
    try:
        with tarfile.open(fileobj=open_ranges(objects, archive.name, archive.bytes), mode="r:") as opened:
            for member in opened:
                suffix = PurePosixPath(member.name).suffix.lower()
                if not member.isfile() or PurePosixPath(member.name).name.startswith("."):
                    continue
                if suffix in SUFFIXES:
                    pictures.append((member.name, member.offset_data, member.size))
                elif suffix == ".cls" and (content := opened.extractfile(member)) is not None:
                    labels[_key(member.name)] = content.read().decode().strip()
                elif suffix == ".txt" and (content := opened.extractfile(member)) is not None:
                    lines = content.read().decode("utf-8", "replace").splitlines()
                    captions[_key(member.name)] = [line.strip() for line in lines if line.strip()]
    except tarfile.TarError as error:
        raise UserError(
            f"is no whole, uncompressed tar archive: {error}",
            where=joined(objects.address, archive.name),
            fix="unpack it, or leave it out",
        ) from error
    return pictures, labels, captions


class ParquetInput:
    """Rows with the bytes of a picture file, as data sets on the Hugging Face hub have them.

    Pictures are called FILE/ROW with the ending that fits their content. A column of strings, or of lists
    of strings, called caption, captions or text holds captions.
    """

    def __init__(self, objects: Objects, files: Sequence[Entry]) -> None:
        self.objects, self.files = objects, sorted(files)
        self.groups: list[tuple[int, int, int]] = []  # file, row group, number of its first picture
        names: list[bytes] = []
        sizes: list[int] = []
        labels: list[str | int | None] = []
        captions: list[list[str]] = []
        classes: list[str] | None = None
        self.column = ""
        for number, file in enumerate(self.files):
            with self._opened(number) as opened:
                self.column = _picture_column(opened.schema_arrow, joined(objects.address, file.name))
                classes = _class_names(opened.schema_arrow) or classes
                rows = opened.metadata.num_rows
                names += [f"{file.name.removesuffix('.parquet')}/{row:08d}".encode() for row in range(rows)]
                first = len(sizes)
                for group in range(opened.metadata.num_row_groups):
                    found = opened.metadata.row_group(group)
                    self.groups.append((number, group, first))
                    sizes += [found.total_byte_size // max(found.num_rows, 1)] * found.num_rows
                    first += found.num_rows
                labelled = "label" in opened.schema_arrow.names
                labels += opened.read(["label"])["label"].to_pylist() if labelled else [None] * rows
                said = next((c for c in _CAPTIONS if c in opened.schema_arrow.names), None)
                captions += (
                    [_texts(value) for value in opened.read([said])[said].to_pylist()]
                    if said
                    else [[]] * rows
                )
        numbers, found_classes = numbered_labels(labels, objects.address)
        self.listing = Listing(
            names,
            sizes,
            numbers,
            (classes if numbers else None) or found_classes,
            all_or_none(captions, objects.address),
        )

    def _opened(self, number: int) -> Any:
        from pyarrow.parquet import ParquetFile  # type: ignore[import-untyped]

        file = self.files[number]
        return ParquetFile(open_ranges(self.objects, file.name, file.bytes))

    def read(self, start: int, stop: int) -> Iterator[File]:
        for place, (number, group, first) in enumerate(self.groups):
            last = self.groups[place + 1][2] if place + 1 < len(self.groups) else len(self.listing.names)
            if last <= start or first >= stop:
                continue
            with self._opened(number) as opened:
                column = opened.read_row_group(group, [self.column])[self.column]
            for index in range(max(start, first), min(stop, last)):
                value = column[index - first].as_py()
                data = value["bytes"] if isinstance(value, dict) else value
                name = self.listing.names[index]
                if not data:
                    yield name, BrokenPicture(name.decode(), "the row holds no picture")
                else:
                    yield name + ending(data).encode(), data


_CAPTIONS = ("captions", "caption", "text")


def _texts(value: Any) -> list[str]:
    values = value if isinstance(value, list) else [value]
    return [text for text in values if isinstance(text, str) and text.strip()]


def _picture_column(schema: Any, where: str) -> str:
    import pyarrow  # type: ignore[import-untyped]

    def holds_bytes(kind: Any) -> bool:
        if pyarrow.types.is_struct(kind):
            return any(part.name == "bytes" and holds_bytes(part.type) for part in kind)
        return bool(pyarrow.types.is_binary(kind) or pyarrow.types.is_large_binary(kind))

    found = [field.name for field in schema if holds_bytes(field.type)]
    if "image" in found:
        return "image"
    if len(found) != 1:
        raise UserError(
            f"has {len(found)} columns of bytes ({', '.join(found) or 'none'}), and none is called image",
            where=where,
            fix="call the pictures' column image",
        )
    return str(found[0])


def _class_names(schema: Any) -> list[str] | None:
    """Names of the classes where the Hugging Face hub's metadata have them."""
    try:
        told = json.loads((schema.metadata or {})[b"huggingface"])
        return list(told["info"]["features"]["label"]["names"])
    except (KeyError, TypeError, ValueError):
        return None


_BEGINNINGS = (
    (b"\xff\xd8\xff", ".jpg"),
    (b"\x89PNG", ".png"),
    (b"GIF8", ".gif"),
    (b"BM", ".bmp"),
    (b"II*\0", ".tif"),
    (b"MM\0*", ".tif"),
)


def ending(data: bytes) -> str:
    """The usual ending of a picture file, told by its content."""
    if data[:4] == b"RIFF" and data[8:12] == b"WEBP":
        return ".webp"
    if data[4:12] in (b"ftypavif", b"ftypavis"):
        return ".avif"
    return next((name for begin, name in _BEGINNINGS if data.startswith(begin)), ".jpg")
