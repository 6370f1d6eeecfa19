"""Vectors by number, read in pieces: what every algorithm of curation works on."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol, TypeVar

import numpy as np

Shared = TypeVar("Shared", bound=tuple[object, ...])
Item = TypeVar("Item")
Result = TypeVar("Result")


class Vectors(Protocol):
    """n vectors of d numbers, float32; picklable, so that it can be read where the work is done."""

    @property
    def shape(self) -> tuple[int, int]: ...

    def read(self, start: int, stop: int) -> np.ndarray:
        """Vectors numbered start..stop-1, float32 [stop - start, d]."""
        ...

    def take(self, numbers: np.ndarray) -> np.ndarray:
        """Vectors of these numbers, float32 [len(numbers), d]."""
        ...


class Mapper(Protocol):
    """Carries out a function on items, here or on other machines.

    The function and the items are picklable. Results come in the order of the items, so that what is
    made of them does not depend on who was quick. `shared` is handed to every call; each part of it is
    sent once.
    """

    def __call__(
        self, function: Callable[[Shared, Item], Result], shared: Shared, items: Iterable[Item]
    ) -> Iterator[Result]: ...


def in_process(
    function: Callable[[Shared, Item], Result], shared: Shared, items: Iterable[Item]
) -> Iterator[Result]:
    """The simplest Mapper: one item after the other, in this process."""
    for item in items:
        yield function(shared, item)


@dataclass(frozen=True)
class ArrayVectors:
    """Vectors in memory."""

    values: np.ndarray

    @property
    def shape(self) -> tuple[int, int]:
        return self.values.shape[0], self.values.shape[1]

    def read(self, start: int, stop: int) -> np.ndarray:
        return np.ascontiguousarray(self.values[start:stop], dtype=np.float32)

    def take(self, numbers: np.ndarray) -> np.ndarray:
        return np.ascontiguousarray(self.values[numbers], dtype=np.float32)


@dataclass(frozen=True)
class FileVectors:
    """Vectors in .npy files on this machine, one after the other; mapped, never held.

    Attributes:
        paths: of the files, each [n_i, d] of float32 or float16.
        ends: number of vectors in all files up to each.
        width: d.
    """

    paths: tuple[Path, ...]
    ends: tuple[int, ...]
    width: int

    @classmethod
    def of(cls, paths: Sequence[Path]) -> FileVectors:
        """From the files' own headers.

        Raises:
            ValueError: if their vectors differ in length, or there is no file.
        """
        shapes = [np.load(path, mmap_mode="r").shape for path in paths]
        widths = {shape[1] for shape in shapes}
        if len(widths) != 1:
            raise ValueError(f"vectors of {sorted(widths)} numbers cannot be taken together")
        return cls(tuple(paths), tuple(np.cumsum([shape[0] for shape in shapes]).tolist()), widths.pop())

    @property
    def shape(self) -> tuple[int, int]:
        return self.ends[-1], self.width

    def read(self, start: int, stop: int) -> np.ndarray:
        found = np.empty((stop - start, self.width), np.float32)
        for number, end in enumerate(self.ends):
            begin = self.ends[number - 1] if number else 0
            low, high = max(start, begin), min(stop, end)
            if low < high:
                mapped = np.load(self.paths[number], mmap_mode="r")
                found[low - start : high - start] = mapped[low - begin : high - begin]
        return found

    def take(self, numbers: np.ndarray) -> np.ndarray:
        found = np.empty((len(numbers), self.width), np.float32)
        owners = np.searchsorted(self.ends, numbers, side="right")
        for number in np.unique(owners).tolist():
            mine = np.flatnonzero(owners == number)
            mapped = np.load(self.paths[number], mmap_mode="r")
            inside = numbers[mine] - (self.ends[number - 1] if number else 0)
            order = np.argsort(inside, kind="stable")  # the disk is read in one direction
            found[mine[order]] = mapped[inside[order]]
        return found


@dataclass(frozen=True)
class Chosen:
    """Some of other vectors, in the order of `numbers`, int64."""

    vectors: Vectors
    numbers: np.ndarray

    @property
    def shape(self) -> tuple[int, int]:
        return len(self.numbers), self.vectors.shape[1]

    def read(self, start: int, stop: int) -> np.ndarray:
        return self.vectors.take(self.numbers[start:stop])

    def take(self, numbers: np.ndarray) -> np.ndarray:
        return self.vectors.take(self.numbers[numbers])


@dataclass(frozen=True)
class UnitVectors:
    """Other vectors, each of length 1."""

    vectors: Vectors

    @property
    def shape(self) -> tuple[int, int]:
        return self.vectors.shape

    def read(self, start: int, stop: int) -> np.ndarray:
        return normalised(self.vectors.read(start, stop))

    def take(self, numbers: np.ndarray) -> np.ndarray:
        return normalised(self.vectors.take(numbers))


def normalised(values: np.ndarray) -> np.ndarray:
    """Vectors [n, d] of length 1; zeros stay zeros."""
    lengths = np.sqrt(np.einsum("ij,ij->i", values, values))[:, None]
    lengths[lengths == 0] = 1
    found: np.ndarray = values / lengths
    return found


def spans(total: int, size: int) -> list[tuple[int, int]]:
    """0..total-1 cut into (start, stop) of `size`; a function of these two numbers alone."""
    return [(start, min(start + size, total)) for start in range(0, total, size)]
