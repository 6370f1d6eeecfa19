"""The sample stream: which sample stands at which place of which step.

A pure function of (number of samples, global batch, seed, step): no state but the step, no memory
that grows with the data, and nothing that depends on how many processes there are.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import chain
from typing import Protocol

import numpy as np

from scholarch import draws

_ROUNDS = 12


class Permutation:
    """A random permutation of 0..size-1, computed place by place in constant memory.

    A Feistel network over the grid Z_a x Z_b with a * b >= size (generalised Feistel cipher of Black
    and Rogaway, "Ciphers with Arbitrary Finite Domains", 2002): each round adds a keyed hash of one
    half to the other, modulo that half's size, which can be undone and so is a permutation. What
    falls beyond `size` walks on until it falls inside.

    Args:
        size: from 1 to 2^62.
        seed, key: what the permutation depends on.
    """

    def __init__(self, size: int, seed: int, *key: draws.Key) -> None:
        if not 1 <= size <= 2**62:
            raise ValueError(f"a permutation needs 1 to 2^62 elements, not {size}")
        self.size = size
        self._high = math.isqrt(size - 1) + 1
        self._low = -(-size // self._high)
        keys = draws.generator(seed, *key, "permutation").integers(0, 2**64, _ROUNDS, dtype=np.uint64)
        self._keys = [np.uint64(k) for k in keys]

    def __call__(self, places: np.ndarray) -> np.ndarray:
        """Elements at `places`, int64 of the same shape; places lie in 0..size-1."""
        result = self._walk(np.asarray(places).astype(np.uint64))
        while (outside := result >= self.size).any():
            result[outside] = self._walk(result[outside])
        return result.astype(np.int64)

    def _walk(self, places: np.ndarray) -> np.ndarray:
        high, low = np.divmod(places, np.uint64(self._low))
        for number, key in enumerate(self._keys):
            if number % 2 == 0:
                high = (high + _hash(low ^ key, self._high)) % np.uint64(self._high)
            else:
                low = (low + _hash(high ^ key, self._low)) % np.uint64(self._low)
        walked: np.ndarray = high * np.uint64(self._low) + low
        return walked


def _hash(x: np.ndarray, below: int) -> np.ndarray:
    """Stafford's 13th variant of the 64-bit finaliser of MurmurHash3, taken to 0..below-1."""
    x = (x ^ (x >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    x = (x ^ (x >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    scaled: np.ndarray = ((x ^ (x >> np.uint64(31))) >> np.uint64(32)) * np.uint64(below) >> np.uint64(32)
    return scaled


class Stream(Protocol):
    """Which sample stands at which place of which step; samples are numbered as the source numbers them."""

    @property
    def samples(self) -> int: ...

    @property
    def global_batch(self) -> int: ...

    @property
    def seed(self) -> int: ...

    def batch(self, step: int) -> np.ndarray:
        """Sample ids of the step, int64 [global_batch], by position."""
        ...

    def ids(self, step: int, first: int, last: int) -> np.ndarray:
        """Sample ids at positions first..last-1 of the step, int64."""
        ...

    def ring(self, sample: int) -> Iterator[int]:
        """Ids of the samples of one data set, each once, from `sample` on: what may stand in for it."""
        ...


def in_passes(places: np.ndarray, samples: int, seed: int, *key: draws.Key) -> np.ndarray:
    """Samples at `places`, int64 of any order, of endless passes over 0..samples-1, each shuffled anew."""
    numbers, within = np.divmod(places, samples)
    ids = np.empty_like(places)
    for number in np.unique(numbers).tolist():
        chosen = numbers == number
        ids[chosen] = Permutation(samples, seed, "pass", number, *key)(within[chosen])
    return ids


@dataclass(frozen=True)
class SampleStream:
    """Samples in passes over the data, each pass in an order of its own.

    Place q = step * global_batch + position of the stream lies in pass q // samples; no sample
    comes twice in a pass, and a step may straddle passes.

    Attributes:
        samples: number of samples, at least 1.
        global_batch: samples of one step over all ranks.
        seed: the run's seed.
    """

    samples: int
    global_batch: int
    seed: int

    def __post_init__(self) -> None:
        if self.samples < 1 or self.global_batch < 1:
            raise ValueError(
                f"samples and global_batch must be positive, not {self.samples}, {self.global_batch}"
            )

    def batch(self, step: int) -> np.ndarray:
        """Sample ids of the step, int64 [global_batch], by position."""
        return self.ids(step, 0, self.global_batch)

    def ids(self, step: int, first: int, last: int) -> np.ndarray:
        """Sample ids at positions first..last-1 of the step, int64."""
        places = step * self.global_batch + np.arange(first, last, dtype=np.int64)
        return in_passes(places, self.samples, self.seed)

    def ring(self, sample: int) -> Iterator[int]:
        """All ids, from `sample` on."""
        return chain(range(sample, self.samples), range(sample))


def rank_positions(
    global_batch: int, micro_batches: int, rank: int, world: int, *, whole: bool = False
) -> list[np.ndarray]:
    """Positions of the global batch that a rank holds, int64, one array for each micro-batch.

    Micro-batch m of A holds the m-th of A equal runs of positions; rank r of W holds, of its M
    positions, those from floor(M r / W) to floor(M (r + 1) / W). Shares may be uneven or empty.
    `whole`: rank r holds all of the micro-batches r, r + W, r + 2 W, ... and nothing of the others.

    Raises:
        ValueError: if the micro-batches do not divide the global batch.
    """
    if global_batch % micro_batches:
        raise ValueError(f"{micro_batches} micro-batches do not divide a global batch of {global_batch}")
    size = global_batch // micro_batches
    if whole:
        return [
            np.arange(m * size, (m + 1) * size, dtype=np.int64) for m in range(rank, micro_batches, world)
        ]
    first, last = size * rank // world, size * (rank + 1) // world
    return [np.arange(first, last, dtype=np.int64) + m * size for m in range(micro_batches)]
