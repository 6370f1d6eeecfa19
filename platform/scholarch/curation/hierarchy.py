"""A tree of clusters: k-means on vectors, then on the centroids of the level below, and so on."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np

from scholarch.curation.kmeans import KMeansOptions, assign, kmeans, members
from scholarch.curation.vectors import ArrayVectors, Mapper, Vectors, in_process
from scholarch.draws import generator


@dataclass(frozen=True)
class Level:
    """One level of a tree.

    Attributes:
        centroids: float32 [k, d].
        clusters: int32 [n]: of each vector, or of each centroid of the level below, its cluster here.
        distances: float32 [n], squared L2 to the centroid.
    """

    centroids: np.ndarray
    clusters: np.ndarray
    distances: np.ndarray


class Tree:
    """Clusters of clusters, the finest level first.

    Args:
        levels: of each level the cluster of every point, or of every cluster of the level below.
        counts: number of clusters of each level; the last ones may be empty.

    Raises:
        ValueError: if a level has not as many points as the one below has clusters.
    """

    def __init__(self, levels: Sequence[np.ndarray], counts: Sequence[int]) -> None:
        self.levels, self.counts = tuple(levels), tuple(counts)
        for number in range(1, len(levels)):
            if len(levels[number]) != counts[number - 1]:
                raise ValueError(
                    f"level {number} has {len(levels[number])} points for {counts[number - 1]} clusters below it"
                )
        self._sorted = [members(*pair) for pair in zip(self.levels, self.counts, strict=True)]

    @property
    def depth(self) -> int:
        return len(self.levels)

    def children(self, level: int, cluster: int) -> np.ndarray:
        """Numbers of a cluster's points, or of its clusters one level below, ascending."""
        order, starts = self._sorted[level]
        return order[starts[cluster] : starts[cluster + 1]]

    def sizes(self, weights: np.ndarray) -> list[np.ndarray]:
        """What the points below each cluster add up to, by level; int64.

        Args:
            weights: int64 [n], of the points; ones for their number.
        """
        found = []
        for clusters, count in zip(self.levels, self.counts, strict=True):
            total = np.zeros(count, np.int64)
            np.add.at(total, clusters, weights)
            found.append(weights := total)
        return found


Saved = Callable[[int, int, np.ndarray], None]
"""Told after each round: level, round, centroids."""


def hierarchical_kmeans(
    vectors: Vectors,
    levels: Sequence[KMeansOptions],
    seed: int,
    mapper: Mapper = in_process,
    *,
    done: Sequence[Level] = (),
    begun: tuple[int, np.ndarray] | None = None,
    after_round: Saved | None = None,
    after_level: Callable[[int, Level], None] | None = None,
) -> list[Level]:
    """Levels from fine to coarse; the same for any mapper.

    Args:
        done: levels that are finished already.
        begun: of the level behind them, the last finished round and its centroids.
        after_round, after_level: told of what is finished, to be kept.

    Raises:
        ValueError: if a level has more clusters than points.
    """
    found = list(done)
    for number in range(len(found), len(levels)):
        below: Vectors = ArrayVectors(found[-1].centroids) if found else vectors

        def keep(turn: int, centroids: np.ndarray, level: int = number) -> None:
            if after_round is not None:
                after_round(level, turn, centroids)

        seed_of_level = int(generator(seed, "level", number).integers(1 << 62))
        centroids = kmeans(below, levels[number], seed_of_level, mapper, done=begun, after=keep)
        begun = None
        nearest = assign(below, centroids, mapper)
        found.append(Level(centroids, nearest.clusters, nearest.distances))
        if after_level is not None:
            after_level(number, found[-1])
    return found


def tree_of(levels: Sequence[Level]) -> Tree:
    """The tree of some levels."""
    return Tree([level.clusters for level in levels], [len(level.centroids) for level in levels])
