"""Files of a data set by name: in a folder, under a prefix of S3, or packed into shards."""

from __future__ import annotations

import io
from collections.abc import Iterable, Sequence
from typing import Protocol

import numpy as np
from PIL import Image
from torch import Tensor

from scholarch.data.decode import SUFFIXES, decode
from scholarch.data.index import INDEX, MANIFEST
from scholarch.data.shards import ShardSource
from scholarch.data.source import BrokenPicture, listing_fingerprint
from scholarch.errors import UserError
from scholarch.storage.objects import Objects, open_objects


class Files(Protocol):
    """Files that exist, listed once."""

    @property
    def address(self) -> str: ...

    @property
    def sizes(self) -> dict[str, int]:
        """Bytes by name, in the order of the names."""
        ...

    def read(self, name: str) -> bytes:
        """Its content.

        Raises:
            FileNotFoundError: if it does not exist.
        """
        ...


class PlainFiles:
    """Files of a folder or an S3 prefix."""

    def __init__(self, objects: Objects) -> None:
        self.objects = objects
        self.sizes = {entry.name: entry.bytes for entry in objects.entries()}

    @property
    def address(self) -> str:
        return self.objects.address

    def read(self, name: str) -> bytes:
        return self.objects.read(name)


class PackedFiles:
    """Pictures that `scholarch pack` put into shards; other files are not in them."""

    def __init__(self, source: ShardSource) -> None:
        self.source = source
        self._number = {source.name(index): index for index in range(len(source))}
        self.sizes = dict.fromkeys(sorted(self._number), 0)

    @property
    def address(self) -> str:
        return self.source.objects.address

    def read(self, name: str) -> bytes:
        if name not in self._number:
            raise FileNotFoundError(name)
        return self.source.encoded(self._number[name])


def open_files(address: str, *wanted: str) -> Files:
    """The files of a data set.

    Args:
        address: a folder or s3://BUCKET/PREFIX, with files as they were published, or packed.
        wanted: folders or files of the layout, one of which must be there.

    Raises:
        UserError: if nothing is named, or it does not hold them.
        Unreachable: if the store does not answer.
    """
    if not address:
        raise UserError(
            "this data is yours to bring",
            where="data.NAME.address",
            fix="data.NAME.address=FOLDER or s3://BUCKET/PREFIX",
        )
    objects = open_objects(address)
    objects.check()
    packed = all(objects.entry(name) for name in (MANIFEST, INDEX))
    files: Files = PackedFiles(ShardSource(objects, "none")) if packed else PlainFiles(objects)
    for name in wanted:
        if not any(one == name or one.startswith(f"{name}/") for one in files.sizes):
            raise UserError(
                f"{name} is not in it",
                where=address,
                fix="name the folder that has it; docs/evaluation.md shows each layout",
            )
    return files


class NamedPictures:
    """Pictures of a data set by name: a Source.

    Args:
        files: where they are.
        names: which, in order.
        boxes: left, top, right, bottom that some are cut to, by number.
    """

    def __init__(
        self, files: Files, names: Sequence[str], boxes: dict[int, tuple[int, int, int, int]] | None = None
    ) -> None:
        self.files, self.names, self.boxes = files, list(names), boxes or {}

    @property
    def classes(self) -> list[str] | None:
        return None

    def __len__(self) -> int:
        return len(self.names)

    def read(self, index: int) -> Tensor:
        picture = decode(content(self.files, self.names[index]), self.names[index])
        if index not in self.boxes:
            return picture
        left, top, right, bottom = self.boxes[index]
        return picture[:, max(top, 0) : bottom, max(left, 0) : right]

    def label(self, index: int) -> int | None:  # noqa: ARG002
        return None

    def name(self, index: int) -> str:
        return self.names[index]

    def fingerprint(self) -> str:
        return fingerprint_of(self.files, self.names)


def content(files: Files, name: str) -> bytes:
    """A file's content; raises BrokenPicture if it is not there."""
    try:
        return files.read(name)
    except FileNotFoundError:
        raise BrokenPicture(name, "there is no such file") from None


def fingerprint_of(files: Files, names: Iterable[str]) -> str:
    """Digest of names and sizes; of packed files their names and what was packed."""
    packed = files.source.fingerprint() if isinstance(files, PackedFiles) else ""
    entries = [(name.encode(), files.sizes.get(name, -1)) for name in names]
    return listing_fingerprint([*entries, (packed.encode(), 0)])


def numbers(files: Files, name: str) -> np.ndarray:
    """[H, W] int64, the values of a picture of one channel or of a palette's entries.

    Raises:
        BrokenPicture: if there is none, or it is no such picture.
    """
    data = content(files, name)
    try:
        with Image.open(io.BytesIO(data)) as picture:
            found = np.asarray(picture)
    except Exception as error:  # decoders raise whatever they like on broken input
        raise BrokenPicture(name, str(error).split("\n")[0] or type(error).__name__) from error
    if found.ndim != 2:
        raise BrokenPicture(name, f"has {found.shape[-1]} channels; numbers of classes or objects have one")
    return found.astype(np.int64)


def lines(files: Files, name: str) -> list[str]:
    """Lines of a list that are not empty.

    Raises:
        UserError: if there is no such list.
    """
    try:
        text = files.read(name).decode()
    except FileNotFoundError:
        raise UserError(f"{name} is missing", where=files.address, fix="bring the whole data set") from None
    return [line.strip() for line in text.splitlines() if line.strip()]


def pictures_below(files: Files, folder: str) -> list[str]:
    """Names of the pictures below a folder, sorted."""
    return [n for n in files.sizes if n.startswith(f"{folder}/") and n[n.rfind(".") :].lower() in SUFFIXES]
