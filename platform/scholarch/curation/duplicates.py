"""Near-duplicates: a graph of similar pictures, its connected components, and what stays of each.

Oquab et al., "DINOv2" (2023), appendix A.3; reference.md section 8.1.
"""

from __future__ import annotations

from dataclasses import dataclass
from itertools import pairwise

import numpy as np
from torch import Tensor
from torch.nn import functional

from scholarch.curation.neighbours import Neighbours

_PLAIN_BITS = 6
"""A hash with fewer bits set, or unset, is of a nearly plain picture and says nothing."""

_SAME = 1e-4
"""A smaller difference is rounding."""


@dataclass(frozen=True)
class Pairs:
    """Pairs of pictures: first < second, sorted, each once.

    Attributes:
        first, second: int64 [p].
        similarities: float32 [p].
    """

    first: np.ndarray
    second: np.ndarray
    similarities: np.ndarray

    def above(self, threshold: float) -> Pairs:
        """Those that are more similar than the threshold."""
        chosen = self.similarities > threshold
        return Pairs(self.first[chosen], self.second[chosen], self.similarities[chosen])


def pairs_of(found: Neighbours, at_least: float) -> Pairs:
    """All pairs of pictures and their neighbours with at least this similarity."""
    rows, columns = np.nonzero((found.similarities >= at_least) & (found.numbers >= 0))
    others = found.numbers[rows, columns]
    low, high = np.minimum(rows, others), np.maximum(rows, others)
    order = np.lexsort((high, low))
    low, high, near = low[order], high[order], found.similarities[rows, columns][order]
    new = np.ones(len(low), bool)
    new[1:] = (low[1:] != low[:-1]) | (high[1:] != high[:-1])
    return Pairs(low[new], high[new], near[new])


def components(first: np.ndarray, second: np.ndarray, total: int) -> np.ndarray:
    """The connected component of each of `total` pictures: the lowest number in it, int64."""
    from scipy.sparse import coo_matrix
    from scipy.sparse.csgraph import connected_components

    edges = coo_matrix((np.ones(len(first), bool), (first, second)), shape=(total, total))
    _, labels = connected_components(edges, directed=False)
    lowest = np.full(total, total, np.int64)
    np.minimum.at(lowest, labels, np.arange(total))
    found: np.ndarray = lowest[labels]
    return found


def kept_of(component: np.ndarray, sizes: np.ndarray | None = None) -> np.ndarray:
    """Which pictures stay, bool [n]: of each component the one of most bytes, the lowest number among equals.

    Args:
        sizes: of the files; None: the lowest number of each component stays.
    """
    ranks = np.zeros(len(component)) if sizes is None else -np.asarray(sizes, dtype=np.float64)
    order = np.lexsort((np.arange(len(component)), ranks, component))
    firsts = np.ones(len(order), bool)
    firsts[1:] = component[order][1:] != component[order][:-1]
    kept = np.zeros(len(component), bool)
    kept[order[firsts]] = True
    return kept


def seen_in_evaluation(pairs: Pairs, to_references: Neighbours, threshold: float, total: int) -> np.ndarray:
    """Pictures to drop, bool [n]: each component in which any picture is too similar to an evaluated one.

    Args:
        pairs: of the pool.
        to_references: of each picture of the pool, among the evaluated ones.
        threshold: cosine that is exceeded, for both kinds of pairs.
    """
    near = pairs.above(threshold)
    component = components(near.first, near.second, total)
    matched = (to_references.similarities > threshold).any(axis=1)
    hit = np.zeros(total, bool)
    hit[component[matched]] = True
    dropped: np.ndarray = hit[component]
    return dropped


def difference_hashes(pictures: Tensor) -> np.ndarray:
    """64 bits of each picture, uint64 [b]: whether each of 8 x 8 places is darker than the next one to the right.

    Args:
        pictures: [b, C, H, W], brighter is more in each channel; made 9 x 8 pixels by averaging.
    """
    small = functional.interpolate(pictures.mean(1, keepdim=True), (8, 9), mode="area")[:, 0]
    bits = (small[:, :, 1:] - small[:, :, :-1] > _SAME).flatten(1).cpu().numpy()
    return np.packbits(bits, axis=1).view(">u8")[:, 0].astype(np.uint64)


def same_hash(hashes: np.ndarray, bits: int) -> Pairs:
    """Pairs of pictures whose hashes differ in at most `bits` bits; plain pictures belong to no pair.

    Of pictures with one hash each is paired with the first. Similarity is the share of equal bits.

    Args:
        hashes: uint64 [n].
        bits: 0 to 7. Hashes that differ in so few are equal in one of `bits + 1` pieces, which is how they are found.
    """
    ones = np.bitwise_count(hashes)
    telling = np.flatnonzero((ones >= _PLAIN_BITS) & (ones <= 64 - _PLAIN_BITS))
    values, firsts, inverse = np.unique(hashes[telling], return_index=True, return_inverse=True)
    heads = telling[firsts]  # the lowest number of each value, as np.unique gives the first
    own = heads[inverse] != telling
    found = [np.stack([heads[inverse][own], telling[own], np.zeros(own.sum(), np.int64)])]
    borders = np.linspace(0, 64, bits + 2).astype(int)
    for low, high in pairwise(borders) if bits else ():
        piece = (values >> np.uint64(low)) & np.uint64((1 << int(high - low)) - 1)
        order = np.argsort(piece, kind="stable")
        for step in range(1, len(order)):  # neighbours at a distance in the sorted list
            same = piece[order[:-step]] == piece[order[step:]]
            if not same.any():
                break
            one, other = order[:-step][same], order[step:][same]
            apart = np.bitwise_count(values[one] ^ values[other]).astype(np.int64)
            near = apart <= bits
            found.append(np.stack([heads[one[near]], heads[other[near]], apart[near]]))
    joined = np.concatenate(found, axis=1)
    low_high = np.unique(np.concatenate([np.sort(joined[:2], axis=0), joined[2:]]), axis=1)
    return Pairs(low_high[0], low_high[1], (1 - low_high[2] / 64).astype(np.float32))
