"""How evenly pictures are spread over classes or clusters."""

from __future__ import annotations

import math
from typing import NamedTuple

import numpy as np


class Balance(NamedTuple):
    """Of a distribution over k groups, in nats.

    Attributes:
        entropy: 0 to ln k.
        divergence: Kullback-Leibler, from the distribution to the uniform one: ln k - entropy.
        groups: k.
        empty: groups without any.
    """

    entropy: float
    divergence: float
    groups: int
    empty: int


def balance(counts: np.ndarray) -> Balance:
    """Of counts by group.

    Raises:
        ValueError: if there is nothing to count.
    """
    total = counts.sum()
    if total <= 0:
        raise ValueError("there is nothing to count")
    shares = counts[counts > 0] / total
    entropy = float(-(shares * np.log(shares)).sum()) + 0.0
    return Balance(entropy, math.log(len(counts)) - entropy, len(counts), int((counts == 0).sum()))
