"""Several data sets as one: a source that joins them, and the stream that draws from them by their shares."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import chain

import numpy as np
from torch import Tensor

from scholarch.data.allocation import Allocation, check_shares
from scholarch.data.source import (
    BrokenPicture,
    Source,
    captions,
    expect,
    foresees,
    has_captions,
    listing_fingerprint,
)
from scholarch.data.stream import Permutation, SampleStream, Stream, in_passes


@dataclass(frozen=True)
class Part:
    """A data set of a mixture.

    Attributes:
        name: within the mixture.
        source: its pictures.
        weight: share of mixed batches, relative to the other data sets'.
        homogeneous: share of all steps that take every sample from it, in thousandths.
    """

    name: str
    source: Source
    weight: float = 1.0
    homogeneous: float = 0.0


class Mixture:
    """Data sets one after the other, in order of their names, as one source without labels.

    Raises:
        ValueError: if the shares do not fit together.
    """

    def __init__(self, parts: Iterable[Part]) -> None:
        self.parts = tuple(sorted(parts, key=lambda part: part.name))
        check_shares([p.weight for p in self.parts], [p.homogeneous for p in self.parts])
        self._ends = np.cumsum([len(part.source) for part in self.parts], dtype=np.int64)

    @property
    def classes(self) -> list[str] | None:
        return None

    @property
    def starts(self) -> list[int]:
        """Number of each data set's first picture."""
        return [0, *self._ends[:-1].tolist()]

    @property
    def shares(self) -> list[float]:
        """Expected share of each data set in all samples; they add up to 1."""
        total = sum(part.weight for part in self.parts) or 1.0
        mixed = 1 - sum(part.homogeneous for part in self.parts)
        return [part.homogeneous + mixed * part.weight / total for part in self.parts]

    def __len__(self) -> int:
        return int(self._ends[-1])

    def _place(self, index: int) -> tuple[Part, int]:
        number = int(np.searchsorted(self._ends, index, side="right"))
        return self.parts[number], index - self.starts[number]

    def read(self, index: int) -> Tensor:
        part, within = self._place(index)
        try:
            return part.source.read(within)
        except BrokenPicture as broken:
            raise BrokenPicture(f"{part.name}/{broken.name}", broken.why) from broken

    def label(self, index: int) -> int | None:  # noqa: ARG002
        return None

    def name(self, index: int) -> str:
        part, within = self._place(index)
        return f"{part.name}/{part.source.name(within)}"

    @property
    def foresees(self) -> bool:
        """Whether what is read next is worth telling."""
        return any(foresees(part.source) for part in self.parts)

    def expect(self, indices: np.ndarray, *, afresh: bool = False) -> None:
        """Tells each data set what will be read next; see scholarch.data.source.expect."""
        owners = np.searchsorted(self._ends, indices, side="right")
        for number, (part, start) in enumerate(zip(self.parts, self.starts, strict=True)):
            expect(part.source, indices[owners == number] - start, afresh=afresh)

    @property
    def captioned(self) -> bool:
        """Whether every data set has captions."""
        return all(has_captions(part.source) for part in self.parts)

    def captions(self, index: int) -> Sequence[str]:
        """See scholarch.data.source.captions."""
        part, within = self._place(index)
        return captions(part.source, within)

    def fingerprint(self) -> str:
        return listing_fingerprint(
            (f"{part.name}:{part.source.fingerprint()}".encode(), len(part.source)) for part in self.parts
        )


class MixedStream:
    """Samples of several data sets, in shares that `Allocation` gives, by position of a step.

    Every data set has passes of its own: the samples that it gives to a step go on where those before
    the step ended, and no sample of it comes twice in a pass. Where they stand in the batch is drawn
    for each step, so that no process and no group of a term gets one data set alone.

    Args:
        parts: (name, number of samples) in order of the joined numbers.
        weights, homogeneous: of the parts.
        global_batch: samples of one step over all ranks.
        seed: the run's.
    """

    def __init__(
        self,
        parts: Sequence[tuple[str, int]],
        weights: Sequence[float],
        homogeneous: Sequence[float],
        global_batch: int,
        seed: int,
    ) -> None:
        self.global_batch, self.seed = global_batch, seed
        self._parts = tuple(parts)
        self._starts = np.cumsum([0, *(samples for _, samples in parts)], dtype=np.int64)
        self._allocation = Allocation(weights, homogeneous, global_batch, seed)

    @property
    def samples(self) -> int:
        return int(self._starts[-1])

    def located(self, sample: int) -> tuple[int, int]:
        """Number of the data set of a sample, and the sample's number within it."""
        part = int(np.searchsorted(self._starts, sample, side="right")) - 1
        return part, sample - int(self._starts[part])

    def batch(self, step: int) -> np.ndarray:
        """Sample ids of the step, int64 [global_batch], by position."""
        return self.ids(step, 0, self.global_batch)

    def ids(self, step: int, first: int, last: int) -> np.ndarray:
        """Sample ids at positions first..last-1 of the step, int64."""
        given, after = self._allocation.given(step), self._allocation.given(step + 1)
        borders = np.cumsum(after - given)
        order = Permutation(self.global_batch, self.seed, "step", step, "mixture")
        turns = order(np.arange(first, last))  # in the batch sorted by data set
        owners = np.searchsorted(borders, turns, side="right")
        ids = np.empty(last - first, dtype=np.int64)
        for number in np.unique(owners).tolist():
            name, samples = self._parts[number]
            mine = owners == number
            places = given[number] + turns[mine] - (borders[number - 1] if number else 0)
            ids[mine] = self._starts[number] + in_passes(places, samples, self.seed, "of", name)
        return ids

    def ring(self, sample: int) -> Iterator[int]:
        """Ids of the sample's data set, from `sample` on."""
        part, _ = self.located(sample)
        return chain(range(sample, int(self._starts[part + 1])), range(int(self._starts[part]), sample))


def stream_of(source: Source, global_batch: int, seed: int) -> Stream:
    """The stream over a source: mixed where it joins several data sets."""
    if not isinstance(source, Mixture):
        return SampleStream(len(source), global_batch, seed)
    return MixedStream(
        [(part.name, len(part.source)) for part in source.parts],
        [part.weight for part in source.parts],
        [part.homogeneous for part in source.parts],
        global_batch,
        seed,
    )
