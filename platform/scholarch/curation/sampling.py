"""Balanced sampling from a tree of clusters: every branch gives the same, as far as it can.

Vo et al. (2024), section 3.4 and reference.md section 8.4: the target is spread over the clusters of the
top level like water, each share over the clusters below, down to the pictures.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Literal

import numpy as np

from scholarch.curation.hierarchy import Tree
from scholarch.draws import generator

By = Literal["tree", "leaves", "pictures"]
"""Balanced over the whole tree, over the clusters of its finest level alone, or drawn from all pictures."""


def allocate(sizes: np.ndarray, target: int, rng: np.random.Generator) -> np.ndarray:
    """Shares of a target: min(size, level), with the level as high as the target allows.

    What the last step of the level would exceed goes, one each, to clusters drawn among those that have more.

    Args:
        sizes: the most that each can give, int64 [k], at least 0.
        target: what is asked for, at least 0.

    Returns:
        int64 [k]; the sum is the target, or that of all sizes if it is less.
    """
    sizes = np.asarray(sizes, dtype=np.int64)
    given: np.ndarray = sizes.copy()
    if sizes.sum() <= target:
        return given
    low, high = 0, int(sizes.max())  # the level is at least low and below high
    while high - low > 1:
        middle = (low + high) // 2
        if np.minimum(sizes, middle).sum() <= target:
            low = middle
        else:
            high = middle
    given = np.minimum(sizes, low)
    more = np.flatnonzero(sizes > low)
    given[rng.choice(more, target - int(given.sum()), replace=False)] += 1
    return given


def draw(
    pool: np.ndarray, target: int, rng: np.random.Generator, ranks: np.ndarray | None = None
) -> np.ndarray:
    """`target` of the pool: every one as often as all others, but for the rest, which is drawn.

    Args:
        pool: int64 [n].
        ranks: [n]; the lowest ones make the rest, in place of a draw.
    """
    if not len(pool):
        return np.empty(0, np.int64)
    times, rest = divmod(target, len(pool))
    chosen = rng.permutation(len(pool))[:rest] if ranks is None else np.argsort(ranks, kind="stable")[:rest]
    return np.concatenate([np.tile(pool, times), pool[chosen]])


def sample(
    tree: Tree,
    target: int,
    seed: int,
    *,
    by: By = "tree",
    copies: int | None = 1,
    eligible: np.ndarray | None = None,
    distances: np.ndarray | None = None,
) -> np.ndarray:
    """Numbers of exactly `target` pictures, or of all that there are, ascending.

    Args:
        by: what is balanced.
        copies: how often a picture may come; 1: without replacement, None: as often as it takes.
        eligible: bool [n]: pictures that may be chosen; None: all.
        distances: of each picture to its centroid: the closest are taken; None: they are drawn.

    Raises:
        ValueError: if the target or `copies` is negative or 0.
    """
    if target < 1 or (copies is not None and copies < 1):
        raise ValueError("target and copies must be at least 1")
    allowed = np.ones(len(tree.levels[0]), bool) if eligible is None else np.asarray(eligible, bool)

    def most(sizes: np.ndarray) -> np.ndarray:
        """What clusters can give."""
        found: np.ndarray = np.where(sizes > 0, target, 0) if copies is None else sizes * copies
        return found

    if by == "pictures":
        pool = np.flatnonzero(allowed)
        count = min(target, int(most(np.array([len(pool)]))[0]))
        return np.sort(draw(pool, count, generator(seed, "sample", "pictures")))
    sizes = tree.sizes(allowed.astype(np.int64))
    top = tree.depth - 1 if by == "tree" else 0
    shares = allocate(most(sizes[top]), target, generator(seed, "sample", "top"))
    for level in range(top, 0, -1):
        below = np.zeros(tree.counts[level - 1], np.int64)
        for cluster in np.flatnonzero(shares).tolist():
            children = tree.children(level, cluster)
            rng = generator(seed, "sample", level, cluster)
            below[children] = allocate(most(sizes[level - 1][children]), int(shares[cluster]), rng)
        shares = below
    found = [np.empty(0, np.int64)]
    for cluster in np.flatnonzero(shares).tolist():
        pool = tree.children(0, cluster)
        pool = pool[allowed[pool]]
        ranks = None if distances is None else distances[pool]
        found.append(draw(pool, int(shares[cluster]), generator(seed, "sample", 0, cluster), ranks))
    return np.sort(np.concatenate(found))


def sample_by_source(
    tree: Tree,
    quotas: Mapping[int, int],
    sources: np.ndarray,
    seed: int,
    *,
    by: By = "tree",
    copies: int | None = 1,
    eligible: np.ndarray | None = None,
    distances: np.ndarray | None = None,
) -> np.ndarray:
    """As `sample`, with a target of its own for each source.

    Args:
        quotas: target by number of a source.
        sources: int [n], source of each picture.
    """
    allowed = np.ones(len(sources), bool) if eligible is None else eligible
    parts = [
        sample(
            tree,
            target,
            int(generator(seed, "source", source).integers(1 << 62)),
            by=by,
            copies=copies,
            eligible=allowed & (sources == source),
            distances=distances,
        )
        for source, target in sorted(quotas.items())
    ]
    return np.sort(np.concatenate([np.empty(0, np.int64), *parts]))
