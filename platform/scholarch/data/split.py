"""Parts of a source: any selection, and a held-out share of each class."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import replace

import numpy as np
from torch import Tensor

from scholarch.data.source import Source, captions, expect, foresees, has_captions, listing_fingerprint
from scholarch.data.statistics import ScanReport, already_scanned
from scholarch.errors import UserError


class Subset:
    """The pictures of `source` at `indices`, numbered from 0, with the labels they had."""

    def __init__(self, source: Source, indices: np.ndarray) -> None:
        self.source, self.indices = source, np.asarray(indices, dtype=np.int64)

    @property
    def classes(self) -> list[str] | None:
        return self.source.classes

    def __len__(self) -> int:
        return len(self.indices)

    def read(self, index: int) -> Tensor:
        return self.source.read(int(self.indices[index]))

    def label(self, index: int) -> int | None:
        return self.source.label(int(self.indices[index]))

    def name(self, index: int) -> str:
        return self.source.name(int(self.indices[index]))

    @property
    def foresees(self) -> bool:
        """Whether what is read next is worth telling."""
        return foresees(self.source)

    def expect(self, indices: np.ndarray, *, afresh: bool = False) -> None:
        """Tells the source what will be read next; see scholarch.data.source.expect."""
        expect(self.source, self.indices[indices], afresh=afresh)

    @property
    def captioned(self) -> bool:
        """Whether there are captions."""
        return has_captions(self.source)

    def captions(self, index: int) -> Sequence[str]:
        """See scholarch.data.source.captions."""
        return captions(self.source, int(self.indices[index]))

    def scanned(self, channels: int | None) -> ScanReport | None:
        """What the source knows of its pictures, which is near enough for a part of them."""
        known = already_scanned(self.source, channels)
        return None if known is None else replace(known, pictures=len(self), checked=len(self))

    def fingerprint(self) -> str:
        return listing_fingerprint(
            [(self.source.fingerprint().encode(), len(self)), (self.indices.tobytes(), 0)]
        )


def holdout(source: Source, share: float, seed: int) -> tuple[np.ndarray, np.ndarray]:
    """Splits a labelled source: `share` of each class is held out.

    A picture's turn depends on its name and the seed, so pictures added to other classes change
    nothing, and pictures added to its own class change as little as the share allows. A class
    with two pictures or more gives at least one to each side.

    Args:
        share: in (0, 1).

    Returns:
        (train indices, held-out indices), int64, each sorted.

    Raises:
        UserError: if the source has no labels.
    """
    if not 0 < share < 1:
        raise ValueError(f"the held-out share must lie between 0 and 1, not {share}; 0.2 is usual")
    if source.classes is None:
        raise UserError(
            "a held-out split needs labels, and this data has none", where="data", fix="set labels=folders"
        )
    labels = np.array([source.label(i) for i in range(len(source))], dtype=np.int64)
    turns = np.array([_turn(seed, source.name(i)) for i in range(len(source))], dtype=np.uint64)
    held = np.zeros(len(source), dtype=bool)
    for label in np.unique(labels):
        members = np.flatnonzero(labels == label)
        count = round(share * len(members))
        if len(members) >= 2:
            count = min(max(count, 1), len(members) - 1)
        held[members[np.argsort(turns[members], kind="stable")[:count]]] = True
    return np.flatnonzero(~held), np.flatnonzero(held)


def _turn(seed: int, name: str) -> int:
    return int.from_bytes(hashlib.blake2b(f"{seed}:{name}".encode(), digest_size=8).digest(), "little")
