"""Pictures of a pool that are like those of curated sets, in DINOv2's two forms.

Oquab et al., "DINOv2" (2023), section 3 and appendix A.4; reference.md section 8.1.
"""

from __future__ import annotations

from typing import Literal

import numpy as np

from scholarch.curation.kmeans import members
from scholarch.curation.neighbours import Neighbours
from scholarch.curation.sampling import allocate
from scholarch.draws import generator

Collisions = Literal["share", "next"]
"""A picture that is near several queries: it counts for each of them, or the others take their next one."""


def by_sample(
    found: Neighbours,
    each: int,
    *,
    collisions: Collisions = "share",
    sources: np.ndarray | None = None,
    cap: int | None = None,
) -> np.ndarray:
    """Numbers of the pictures that are nearest to the queries, ascending, each once.

    Args:
        found: neighbours of each query; with collisions `next`, more than `each` of them are of use.
        each: pictures that a query asks for.
        sources: the set that each query is of, int [q]; None: one.
        cap: pictures for each set at most, the most similar ones.
    """
    queries, width = found.numbers.shape
    owner = np.zeros(queries, np.int64) if sources is None else np.asarray(sources, np.int64)
    usable = width if collisions == "next" else min(each, width)
    numbers, near = found.numbers[:, :usable].ravel(), found.similarities[:, :usable].ravel()
    asked = np.repeat(np.arange(queries), usable)
    order = np.lexsort((asked, numbers, -near))
    order = order[numbers[order] >= 0]
    taken: set[int] = set()
    by_source: dict[int, set[int]] = {}
    given = np.zeros(queries, np.int64)
    for place in order.tolist():
        query, number = int(asked[place]), int(numbers[place])
        mine = by_source.setdefault(int(owner[query]), set())
        if given[query] >= each or (collisions == "next" and number in taken):
            continue
        if number not in mine and cap is not None and len(mine) >= cap:
            continue
        given[query] += 1
        mine.add(number)
        taken.add(number)
    return np.array(sorted(taken), dtype=np.int64)


def by_cluster(
    pool: np.ndarray,
    queries: np.ndarray,
    clusters: int,
    each: int,
    seed: int,
    *,
    more_than: int = 3,
    sources: np.ndarray | None = None,
    cap: int | None = None,
) -> np.ndarray:
    """Numbers of pictures drawn from each cluster that holds enough queries of a set, ascending, each once.

    Args:
        pool: cluster of each picture, int [n].
        queries: cluster of each query, int [q].
        each: pictures drawn from a cluster, or all that it has.
        more_than: a cluster counts for a set when it holds more of its queries than this.
        sources: the set that each query is of, int [q]; None: one.
        cap: pictures for each set at most, spread over its clusters as evenly as it goes.
    """
    owner = np.zeros(len(queries), np.int64) if sources is None else np.asarray(sources, np.int64)
    order, starts = members(pool, clusters)
    found = [np.empty(0, np.int64)]
    for source in np.unique(owner).tolist():
        chosen = np.flatnonzero(np.bincount(queries[owner == source], minlength=clusters) > more_than)
        shares = np.minimum(np.diff(starts)[chosen], each)
        if cap is not None:
            shares = allocate(shares, cap, generator(seed, "retrieve", source))
        for cluster, share in zip(chosen.tolist(), shares.tolist(), strict=True):
            inside = order[starts[cluster] : starts[cluster + 1]]
            # One order of a cluster for all sets, so that what they ask of it overlaps.
            found.append(generator(seed, "retrieve", "cluster", cluster).permutation(inside)[:share])
    return np.unique(np.concatenate(found))
