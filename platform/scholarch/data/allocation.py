"""How many samples each data set of a mixture gives to a step, and has given before it.

Steps come in two cycles of fixed length, so that both numbers take the same time at any step.

Which steps are homogeneous: with shares in thousandths, 1,000 / gcd steps form a cycle in which each
data set has exactly its share of homogeneous steps, and mixed batches have the rest; a keyed
permutation of the cycle says which. These are the probabilities of reference.md section 5.4, mode 0,
without its chance that a run has more or fewer of them.

What a mixed step holds: let W_i be the sum of the first i weights over the sum of all. The first i
data sets give round(1024 G W_i) samples to 1,024 mixed steps of G: q_i = that // 1,024 to each step
and one more to those whose number under a keyed permutation of the cycle is below that % 1,024. A data
set gives what lies between two such borders. Each is off by half a sample at most over a cycle, so a
cycle holds a data set's share within one sample; and since all borders of a step move by the same
number, a step holds its 1,024th part of that, rounded up or down.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from fractions import Fraction
from functools import lru_cache

import numpy as np

from scholarch.data.stream import Permutation

THOUSAND = 1_000
MIXED_CYCLE = 1_024


class Allocation:
    """The samples of a mixture's steps by data set; a function of the arguments alone.

    Args:
        weights: relative shares in mixed batches, at least 0.
        homogeneous: shares, in thousandths, of steps that a data set fills alone.
        global_batch: samples of a step.
        seed: the run's.

    Raises:
        ValueError: if shares do not fit, or a data set would never be seen.
    """

    def __init__(
        self, weights: Sequence[float], homogeneous: Sequence[float], global_batch: int, seed: int
    ) -> None:
        check_shares(weights, homogeneous)
        self.global_batch, self.seed = global_batch, seed
        alone = [_thousandths(share) for share in homogeneous]
        unit = math.gcd(THOUSAND, *alone)
        self._alone = np.array([share // unit for share in alone])
        self._cycle = THOUSAND // unit
        self._borders = tuple(np.cumsum(self._alone).tolist())
        total = sum(map(Fraction, weights)) or Fraction(1)
        shares = [sum(map(Fraction, weights[: i + 1]), Fraction(0)) / total for i in range(len(weights))]
        self._totals = np.array([round(MIXED_CYCLE * global_batch * share) for share in shares])

    def given(self, step: int) -> np.ndarray:
        """Samples that each data set has given before `step`, int64 [data sets]."""
        cycle, place = divmod(step, self._cycle)
        kinds = _kinds(self._cycle, self._borders, self.seed, cycle)[:place]
        seen = np.bincount(kinds, minlength=len(self._alone) + 1)
        alone = cycle * self._alone + seen[:-1]
        mixed = cycle * (self._cycle - int(self._alone.sum())) + int(seen[-1])
        cycle, place = divmod(mixed, MIXED_CYCLE)
        each, more = np.divmod(self._totals, MIXED_CYCLE)
        turns = _turns(self.seed, cycle)[:place]
        below = cycle * self._totals + place * each + (turns[:, None] < more).sum(0)
        given: np.ndarray = self.global_batch * alone + np.diff(below, prepend=0)
        return given


def check_shares(weights: Sequence[float], homogeneous: Sequence[float]) -> None:
    """Raises ValueError, in words for the user, if the shares of a mixture do not fit together."""
    for share in (*weights, *homogeneous):
        if not (math.isfinite(share) and share >= 0):
            raise ValueError(f"weights and homogeneous shares cannot be {share}")
    total = sum(_thousandths(share) for share in homogeneous)
    if total > THOUSAND:
        raise ValueError(f"homogeneous shares add up to {total / THOUSAND}, more than all steps")
    if total == THOUSAND and any(weights):
        raise ValueError("homogeneous steps are all steps, and leave none for weights; set these to 0")
    if total < THOUSAND and not any(weights):
        raise ValueError("mixed steps need a data set with a weight above 0")
    if any(weight + share == 0 for weight, share in zip(weights, homogeneous, strict=True)):
        raise ValueError("a data set needs a weight or a homogeneous share above 0")


def _thousandths(share: float) -> int:
    exact = Fraction(repr(share)) * THOUSAND
    if exact.denominator != 1:
        raise ValueError(f"homogeneous shares are in thousandths, such as 0.125, not {share}")
    return exact.numerator


@lru_cache(maxsize=4)
def _kinds(cycle_length: int, borders: tuple[int, ...], seed: int, cycle: int) -> np.ndarray:
    """For each step of a cycle the data set that fills it, or their number for a mixed step."""
    order = Permutation(cycle_length, seed, "mixture", "steps", cycle)(np.arange(cycle_length))
    return np.searchsorted(np.array(borders), order, side="right")


@lru_cache(maxsize=4)
def _turns(seed: int, cycle: int) -> np.ndarray:
    return Permutation(MIXED_CYCLE, seed, "mixture", "samples", cycle)(np.arange(MIXED_CYCLE))
