"""Which kind of pictures an address holds."""

from __future__ import annotations

from pathlib import Path, PurePosixPath

from scholarch.data.decode import SUFFIXES
from scholarch.data.packing.archives import ParquetInput, TarInput
from scholarch.data.packing.coco import coco_input
from scholarch.data.packing.listing import FolderInput, Input, list_input, prefix_input
from scholarch.data.source import Labels
from scholarch.errors import UserError
from scholarch.storage.objects import Entry, Objects, is_s3, open_objects

_KINDS = (
    "a folder or s3:// prefix of pictures, .tar or .parquet files, a .txt file that lists pictures, "
    "or a captions file of COCO"
)


def open_input(address: str, labels: Labels = "auto", pictures: str = "") -> Input:
    """The pictures at an address, listed.

    Args:
        address: where they are, or a captions file of COCO.
        labels: whether folders name classes.
        pictures: where those are that a captions file names.

    Raises:
        UserError: if there are none, or of more than one kind.
        Unreachable: if the store does not answer.
    """
    path = Path(address).expanduser()
    if is_s3(address):
        objects: Objects = open_objects(address)
        objects.check()
        entries = list(objects.entries())
        if not entries:  # the address of one archive
            parent, _, name = address.rstrip("/").rpartition("/")
            objects = open_objects(parent)
            entry = objects.entry(name) if parent != "s3:/" else None
            entries = [entry] if entry else []
    elif path.is_file():
        if path.suffix.lower() in (".txt", ".tsv"):
            return list_input(path)
        if path.suffix.lower() == ".json":
            return coco_input(path, pictures)
        objects = open_objects(str(path.parent))
        entries = [Entry(path.name, path.stat().st_size)]
    else:
        archives = [found for kind in ("tar", "parquet") for found in path.rglob(f"*.{kind}")]
        if not archives:
            return FolderInput(path, labels)
        objects = open_objects(str(path))
        entries = list(objects.entries())
    return _of_objects(objects, entries, labels, address)


def _of_objects(objects: Objects, entries: list[Entry], labels: Labels, address: str) -> Input:
    kinds: dict[str, list[Entry]] = {}
    for entry in entries:
        suffix = PurePosixPath(entry.name).suffix.lower()
        kind = "picture" if suffix in SUFFIXES - {".npy"} else suffix
        if kind in ("picture", ".tar", ".parquet") and not PurePosixPath(entry.name).name.startswith("."):
            kinds.setdefault(kind, []).append(entry)
    if not kinds:
        raise UserError("there are no pictures here", where=address, fix=f"name {_KINDS}")
    if len(kinds) > 1:
        found = ", ".join(f"{len(entries)} x {kind}" for kind, entries in sorted(kinds.items()))
        raise UserError(f"holds {found}: one kind at a time", where=address, fix="name a folder below it")
    ((kind, entries),) = kinds.items()
    if kind == ".tar":
        return TarInput(objects, entries)
    if kind == ".parquet":
        return ParquetInput(objects, entries)
    return prefix_input(objects, entries, labels)
