"""Random draws as a pure function of a key, so that any rank can repeat any draw of any step.

Every draw is named by (seed, purpose, ...), for example (seed, step, position, "crop"): nothing is
consumed in sequence, so the world size, the loader's workers and a restart change no draw.
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass

import numpy as np
import torch

Key = int | str


def _digest(seed: int, key: tuple[Key, ...], size: int) -> bytes:
    # The type is part of the text, so that 1 and "1" are different keys.
    text = "\x1f".join(f"{type(part).__name__}:{part}" for part in (seed, *key))
    return hashlib.blake2b(text.encode(), digest_size=size).digest()


def generator(seed: int, *key: Key) -> np.random.Generator:
    """A counter-based (Philox) generator that depends on `seed` and `key` alone."""
    digest = np.frombuffer(_digest(seed, key, 16), dtype=np.uint64)
    return np.random.Generator(np.random.Philox(key=digest))


def torch_generator(seed: int, *key: Key) -> torch.Generator:
    """The same for torch's own samplers, on the CPU."""
    digest = int.from_bytes(_digest(seed, key, 8), "little") & (2**63 - 1)
    return torch.Generator().manual_seed(digest)


@dataclass(frozen=True)
class Draws:
    """The draws of one training step, shared by all ranks.

    Attributes:
        seed: the run's seed.
        step: the step, from 0.
    """

    seed: int
    step: int

    def uniform(self, low: float, high: float, size: int, *key: Key) -> np.ndarray:
        """`size` numbers from U(low, high), float64."""
        return generator(self.seed, "step", self.step, *key).uniform(low, high, size)

    def subset(self, total: int, keep: int, *key: Key) -> torch.Tensor:
        """A sorted int64 tensor of `keep` distinct indices below `total`."""
        chosen = generator(self.seed, "step", self.step, *key).permutation(total)[:keep]
        return torch.from_numpy(np.sort(chosen))
