"""A folder of pictures: nested, in any common format, labelled by folders or not at all."""

from __future__ import annotations

import difflib
import os
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import numpy as np
from torch import Tensor

from scholarch.data.decode import SUFFIXES, decode
from scholarch.data.source import BrokenPicture, Labels, listing_fingerprint
from scholarch.errors import UserError

_SPLITS = frozenset({"train", "training", "val", "valid", "validation", "test", "testing"})


class FolderSource:
    """Pictures below a folder, sorted by name so that no file system's order shows.

    Hidden files and folders are left out. Linked folders are followed, each target once.

    Attributes:
        sizes: of the files in bytes, -1 where unknown, [n] int64.

    Args:
        root: the folder.
        labels: see `scholarch.data.source.Labels`. Folders named train, val and the like are taken
            for splits, not for classes, when `auto` decides.

    Raises:
        UserError: if the folder is missing, unreadable or holds no picture, or if `folders` is asked
            for and the pictures are not in at least two folders.
    """

    def __init__(self, root: Path, labels: Labels = "auto") -> None:
        self.root = root
        entries, others = _list(root)
        if not entries:
            raise _no_pictures(root, others)
        # One blob of names: a list of a million strings would be copied slowly to every worker.
        self._names = b"".join(name for name, _ in entries)
        self._ends = np.cumsum([len(name) for name, _ in entries], dtype=np.int64)
        self.sizes = np.array([size for _, size in entries], dtype=np.int64)
        self._fingerprint = listing_fingerprint(entries)
        self._classes, self._labels = labels_by_folders(str(root), [name for name, _ in entries], labels)

    @property
    def classes(self) -> list[str] | None:
        return self._classes

    def __len__(self) -> int:
        return len(self._ends)

    def raw_name(self, index: int) -> bytes:
        """The name below the root as the file system has it."""
        start = int(self._ends[index - 1]) if index else 0
        return self._names[start : int(self._ends[index])]

    def read(self, index: int) -> Tensor:
        return decode(self.encoded(index), self.name(index))

    def encoded(self, index: int) -> bytes:
        """The picture file.

        Raises:
            BrokenPicture: if it cannot be read.
        """
        path = self.root / os.fsdecode(self.raw_name(index))
        try:
            return path.read_bytes()
        except OSError as error:
            raise BrokenPicture(self.name(index), error.strerror or str(error)) from error

    def label(self, index: int) -> int | None:
        return None if self._labels is None else int(self._labels[index])

    def name(self, index: int) -> str:
        return self.raw_name(index).decode("utf-8", "backslashreplace")

    def fingerprint(self) -> str:
        return self._fingerprint


def _list(root: Path) -> tuple[list[tuple[bytes, int]], Counter[str]]:
    """(name below root, size in bytes) of each picture, sorted; and other files' endings, counted."""
    try:
        if not root.is_dir():
            raise _no_folder(root)
    except OSError as error:
        raise _unreadable(root, error) from error
    entries: list[tuple[bytes, int]] = []
    others: Counter[str] = Counter()
    seen = {_identity(root)}
    folders, links = [""], list[str]()
    while folders or links:
        if not folders:  # links come last, so that a folder keeps its own name
            link = links.pop()
            if (target := _identity(root / link)) in seen:
                continue
            seen.add(target)
            folders.append(link)
        below = folders.pop()
        for entry in _scan(root / below):
            name = f"{below}/{entry.name}" if below else entry.name
            if entry.is_dir(follow_symlinks=False):
                folders.append(name)
                seen.add(_identity(root / name))
            elif _leads_to_folder(entry):
                links.append(name)
            elif (suffix := Path(entry.name).suffix.lower()) in SUFFIXES:
                entries.append((os.fsencode(name), _size(entry)))
            else:
                others[suffix or "no ending"] += 1
    return sorted(entries), others


def _scan(folder: Path) -> Iterator[os.DirEntry[str]]:
    try:
        with os.scandir(folder) as found:
            visible = [entry for entry in found if not entry.name.startswith(".")]
    except OSError as error:
        raise _unreadable(folder, error) from error
    return iter(sorted(visible, key=lambda entry: entry.name, reverse=True))


def _unreadable(folder: Path, error: OSError) -> UserError:
    return UserError(
        f"the folder cannot be read: {error.strerror}", where=str(folder), fix="check its permissions"
    )


def _leads_to_folder(entry: os.DirEntry[str]) -> bool:
    try:
        return entry.is_dir()
    except OSError:  # a link in a circle, or to where we may not look
        return False


def _identity(folder: Path) -> tuple[int, int]:
    status = folder.stat()
    return status.st_dev, status.st_ino


def _size(entry: os.DirEntry[str]) -> int:
    try:
        return entry.stat().st_size
    except OSError:  # a link to nothing: found broken when it is read
        return -1


def _no_folder(root: Path) -> UserError:
    if root.exists():
        return UserError(
            "this is a file; pictures are read from a folder", where=str(root), fix=f"data={root.parent}"
        )
    missing = root.absolute()
    while not missing.parent.is_dir():
        missing = missing.parent
    beside = [entry.name for entry in missing.parent.iterdir() if entry.is_dir()]
    near = difflib.get_close_matches(missing.name, beside, n=1, cutoff=0.5)
    fix = (
        f"did you mean {missing.parent / near[0]}?"
        if near
        else f"{missing.parent} exists; check what follows"
    )
    return UserError("there is no such folder", where=str(root), fix=fix)


def _no_pictures(root: Path, others: Counter[str]) -> UserError:
    known = ", ".join(sorted(suffix[1:] for suffix in SUFFIXES))
    if not others:
        return UserError("the folder is empty", where=str(root), fix=f"put pictures there ({known})")
    found = ", ".join(f"{count} x {suffix}" for suffix, count in others.most_common(4))
    return UserError(
        f"the folder holds no pictures, only {found}", where=str(root), fix=f"pictures end in {known}"
    )


def labels_by_folders(
    root: str, names: list[bytes], labels: Labels
) -> tuple[list[str] | None, np.ndarray | None]:
    """Classes and the label of each name, or None and None; see scholarch.data.source.Labels."""
    if labels == "none":
        return None, None
    firsts = [name.split(b"/", 1)[0] if b"/" in name else b"" for name in names]
    folders = sorted(set(firsts))
    readable = [folder.decode("utf-8", "backslashreplace") for folder in folders]
    fine = b"" not in folders and len(folders) >= 2
    if labels == "auto" and (not fine or {name.lower() for name in readable} <= _SPLITS):
        return None, None
    if not fine:
        loose = names[firsts.index(b"")].decode("utf-8", "backslashreplace") if b"" in folders else ""
        found = (
            f"{firsts.count(b'')} lie beside them, such as {loose}"
            if loose
            else f"there is one: {readable[0]}"
        )
        raise UserError(
            f"labels=folders wants every picture in one of at least two folders, but {found}",
            where=root,
            fix="sort the pictures into one folder for each class, or set labels=none",
        )
    number = {folder: i for i, folder in enumerate(folders)}
    return readable, np.array([number[first] for first in firsts], dtype=np.int32)
