"""Rows: the embedded pictures of some data sets, one after the other, as all steps number them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from scholarch.curation.embedding import StoredVectors
from scholarch.curation.recipe import SetSection
from scholarch.curation.stages import Stage
from scholarch.data.source import Source
from scholarch.storage.objects import Objects


@dataclass(frozen=True)
class DataSet:
    """A data set of the recipe, opened."""

    name: str
    section: SetSection
    source: Source


@dataclass(frozen=True)
class Rows:
    """Embedded pictures.

    Attributes:
        sets: in the order of their rows.
        vectors: of each row.
        owners: number of each row's data set, int16.
        numbers: of each row within its data set, int64.
        bytes: of the files, int64.
        labels: int32, -1 without.
        hashes: uint64.
        keys: of the stages, by name of the data set.
    """

    sets: tuple[DataSet, ...]
    vectors: StoredVectors
    owners: np.ndarray
    numbers: np.ndarray
    bytes: np.ndarray
    labels: np.ndarray
    hashes: np.ndarray
    keys: Mapping[str, str]

    def __len__(self) -> int:
        return len(self.numbers)

    @classmethod
    def of(cls, run: Objects, sets: Sequence[DataSet], stages: Sequence[Stage]) -> Rows:
        """Of finished stages, one for each data set."""
        parts = [StoredVectors.of(run, [stage]) for stage in stages]
        columns = [part.columns() for part in parts]
        counts = [len(found["number"]) for found in columns]
        joined = {name: np.concatenate([found[name] for found in columns]) for name in columns[0]}
        return cls(
            sets=tuple(sets),
            vectors=StoredVectors.of(run, stages),
            owners=np.repeat(np.arange(len(sets), dtype=np.int16), counts),
            numbers=joined["number"],
            bytes=joined["bytes"],
            labels=joined["label"],
            hashes=joined["hash"],
            keys={one.name: stage.key for one, stage in zip(sets, stages, strict=True)},
        )

    def classes(self) -> np.ndarray | None:
        """One number for each class of each data set; None unless all have labels."""
        if (self.labels < 0).any():
            return None
        widths = np.cumsum([0, *(len(one.source.classes or ()) for one in self.sets)])
        found: np.ndarray = self.labels + widths[self.owners]
        return found
