"""k-means that gives the same result for the same seed, however many workers carry it out.

Hierarchical k-means with resampling: Vo et al., "Automatic Data Curation for Self-Supervised Learning:
A Clustering-Based Approach" (2024), sections 3.2 and 3.3; reference.md section 8.3. Points are cut into blocks whose
borders depend on the data's size alone; each block's sums are made in float64 by one thread, and blocks
are added in their order.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

import numpy as np
import torch
from torch import Tensor

from scholarch.curation.vectors import ArrayVectors, Mapper, Vectors, in_process, spans
from scholarch.draws import generator

BLOCK_POINTS = 1 << 16
"""Points of a block, at least: a block is what one worker does at a time."""
PIECE = (1 << 10, 1 << 12)
"""Points and centroids that a CPU compares at once: what fits into its cache is twice as fast."""
PIECE_ON_GPU = (1 << 14, 1 << 14)
_NEAR = 1e-4
"""Squared distances below this share of the squared norms are worked out again without cancellation."""

Rounds = Callable[[int, np.ndarray], None]
"""Told after each round: its number from 0, and the centroids."""


@dataclass(frozen=True, kw_only=True)
class KMeansOptions:
    """One level of k-means.

    Attributes:
        clusters: k.
        iterations: of Lloyd's algorithm in each round.
        rounds: further rounds on points resampled from each cluster, after the first one on all points.
        sample: points that each cluster gives to a further round; at most 1 leaves the rounds out.
        choose: the points `closest` to the centroid, or `random` ones.
        seeding_points: k-means++ looks at so many points for each centroid, drawn at random; None: at all.
    """

    clusters: int
    iterations: int = 50  # reference.md section 8.3
    rounds: int = 10
    sample: int = 10
    choose: Literal["closest", "random"] = "closest"
    seeding_points: int | None = None

    def __post_init__(self) -> None:
        if self.clusters < 1 or self.iterations < 0 or self.rounds < 0 or self.sample < 0:
            raise ValueError("clusters must be at least 1; iterations, rounds and sample at least 0")
        if self.seeding_points is not None and self.seeding_points < 1:
            raise ValueError(f"seeding_points must be at least 1, not {self.seeding_points}")


@dataclass(frozen=True)
class Assignment:
    """Which centroid each point is nearest to.

    Attributes:
        clusters: int32 [n].
        distances: squared L2, float32 [n].
    """

    clusters: np.ndarray
    distances: np.ndarray

    @property
    def inertia(self) -> float:
        """Sum of squared distances."""
        return float(self.distances.sum(dtype=np.float64))


def _device() -> torch.device:
    return torch.device("cuda" if torch.cuda.is_available() else "cpu")


def nearest(points: np.ndarray, centroids: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Number of the nearest centroid, the lowest one among equals, and the squared distance to it.

    Args:
        points: float32 [m, d].
        centroids: float32 [k, d].
    """
    device = _device()
    rows, columns = PIECE if device.type == "cpu" else PIECE_ON_GPU
    targets = torch.from_numpy(centroids).to(device)
    norms = targets.square().sum(1)
    clusters = np.empty(len(points), np.int32)
    distances = np.empty(len(points), np.float32)
    for start, stop in spans(len(points), rows):
        piece = torch.from_numpy(points[start:stop]).to(device)
        least = torch.full((stop - start,), torch.inf, device=device)
        numbers = torch.zeros(stop - start, dtype=torch.int64, device=device)
        for first, last in spans(len(centroids), columns):
            found, places = _lowest(torch.addmm(norms[first:last], piece, targets[first:last].T, alpha=-2))
            nearer = found < least
            least, numbers = torch.where(nearer, found, least), torch.where(nearer, places + first, numbers)
        clusters[start:stop] = numbers.cpu().numpy()
        distances[start:stop] = (least + piece.square().sum(1)).clamp_(min=0).cpu().numpy()
    return clusters, distances


def _lowest(values: Tensor) -> tuple[Tensor, Tensor]:
    """The lowest value of each row, and the first place where it is."""
    if values.device.type != "cpu":
        lowest, places = values.min(1)
        return lowest, places
    places = torch.from_numpy(values.numpy().argmin(1))  # ten times as fast as torch's on a CPU
    return values.gather(1, places[:, None])[:, 0], places


def squared_distances(points: Tensor, targets: Tensor, norms: Tensor | None = None) -> Tensor:
    """Squared L2 [m, t], float32; exactly 0 between equal vectors.

    Args:
        norms: squared ones of the points [m], where they are known.
    """
    norms = points.square().sum(1) if norms is None else norms
    scale = norms[:, None] + targets.square().sum(1)
    found = torch.addmm(scale, points, targets.T, alpha=-2)
    rows, columns = torch.nonzero(found <= _NEAR * scale, as_tuple=True)
    for start, stop in spans(len(rows), 1 << 16):
        r, c = rows[start:stop], columns[start:stop]
        found[r, c] = (points[r] - targets[c]).square().sum(1)
    return found


def _assign_block(shared: tuple[Vectors, np.ndarray], span: tuple[int, int]) -> tuple[np.ndarray, np.ndarray]:
    vectors, centroids = shared
    return nearest(vectors.read(*span), centroids)


def _sum_block(
    shared: tuple[Vectors, np.ndarray], span: tuple[int, int]
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Clusters that have points in the block, sums of these points in float64, and their counts."""
    vectors, centroids = shared
    points = vectors.read(*span)
    clusters, _ = nearest(points, centroids)
    present, owners, counts = np.unique(clusters, return_inverse=True, return_counts=True)
    sums = torch.zeros(len(present), points.shape[1], dtype=torch.float64)
    for start, stop in spans(len(points), PIECE[0]):  # so that only a little is held in float64
        part = torch.from_numpy(points[start:stop]).double()
        sums.index_add_(0, torch.from_numpy(owners[start:stop]), part)
    return present, sums.numpy(), counts


def block_spans(points: int, clusters: int) -> list[tuple[int, int]]:
    """Blocks of about 65,536 points; larger ones where there are more clusters, whose sums travel."""
    return spans(points, max(BLOCK_POINTS, clusters))


def assign(vectors: Vectors, centroids: np.ndarray, mapper: Mapper = in_process) -> Assignment:
    """The nearest centroid of every point."""
    blocks = block_spans(vectors.shape[0], len(centroids))
    found = list(mapper(_assign_block, (vectors, centroids), blocks))
    return Assignment(np.concatenate([c for c, _ in found]), np.concatenate([d for _, d in found]))


def lloyd_step(vectors: Vectors, centroids: np.ndarray, mapper: Mapper = in_process) -> np.ndarray:
    """Mean of the points of each centroid, float32 [k, d]; a centroid without points stays where it is."""
    sums, counts = np.zeros(centroids.shape), np.zeros(len(centroids), np.int64)
    blocks = block_spans(vectors.shape[0], len(centroids))
    for present, part, number in mapper(_sum_block, (vectors, centroids), blocks):
        sums[present] += part
        counts[present] += number
    filled = counts > 0
    moved = centroids.copy()
    moved[filled] = sums[filled] / counts[filled, None]
    return moved


def lloyd(
    vectors: Vectors, centroids: np.ndarray, iterations: int, mapper: Mapper = in_process
) -> np.ndarray:
    """At most `iterations` of Lloyd's algorithm; ends when nothing moves any more."""
    for _ in range(iterations):
        moved = lloyd_step(vectors, centroids, mapper)
        if np.array_equal(moved, centroids):
            break
        centroids = moved
    return centroids


def trials_of(clusters: int) -> int:
    """Draws of k-means++ for each centroid (Arthur and Vassilvitskii 2007, section 6)."""
    return 2 + math.floor(math.log(clusters))


def seed_centroids(
    vectors: Vectors, clusters: int, rng: np.random.Generator, points: int | None = None
) -> np.ndarray:
    """Greedy k-means++: of `trials_of` draws the best is kept.

    Where fewer different points than clusters are left, the rest are drawn evenly among the points.

    Args:
        points: look at so many for each centroid, drawn at random; None: at all.

    Raises:
        ValueError: if there are fewer points than clusters.
    """
    total = vectors.shape[0]
    if clusters > total:
        raise ValueError(f"{total:,} points cannot have {clusters:,} clusters")
    if points is not None and points * clusters < total:
        chosen = np.sort(rng.choice(total, points * clusters, replace=False))
        values = vectors.take(chosen)
    else:
        values = vectors.read(0, total)
    trials = trials_of(clusters)
    held = torch.from_numpy(values).to(_device())
    norms = held.square().sum(1)
    picked = [int(rng.integers(len(values)))]
    least = squared_distances(held, held[picked], norms)[:, 0]
    while len(picked) < clusters:
        reached = least.double().cumsum(0)
        if reached[-1] <= 0:  # every point is a centroid already
            rest = np.setdiff1d(np.arange(len(values)), picked)
            picked += rng.permutation(rest)[: clusters - len(picked)].tolist()
            break
        heights = torch.from_numpy(rng.random(trials)).to(held.device) * reached[-1]
        drawn = torch.searchsorted(reached, heights, right=True)
        drawn = drawn.clamp(max=int(torch.nonzero(least)[-1]))
        left = torch.minimum(least[:, None], squared_distances(held, held[drawn], norms))
        best = int(left.sum(0, dtype=torch.float64).argmin())
        picked.append(int(drawn[best]))
        least = left[:, best].contiguous()
    return values[picked]


def members(clusters: np.ndarray, count: int) -> tuple[np.ndarray, np.ndarray]:
    """Points sorted by cluster, and where each cluster begins.

    Returns:
        order: int64 [n], ascending within a cluster.
        starts: int64 [count + 1].
    """
    order = np.argsort(clusters, kind="stable")
    return order, np.concatenate([[0], np.cumsum(np.bincount(clusters, minlength=count))])


def resample(
    found: Assignment, count: int, sample: int, choose: Literal["closest", "random"], rng: np.random.Generator
) -> np.ndarray:
    """Numbers of at most `sample` points of each cluster, ascending."""
    ranks = found.distances if choose == "closest" else rng.random(len(found.clusters))
    order = np.lexsort((ranks, found.clusters))
    sizes = np.bincount(found.clusters, minlength=count)
    place = np.arange(len(order)) - np.repeat(np.cumsum(sizes) - sizes, sizes)
    return np.sort(order[place < sample])


def kmeans(
    vectors: Vectors,
    options: KMeansOptions,
    seed: int,
    mapper: Mapper = in_process,
    *,
    done: tuple[int, np.ndarray] | None = None,
    after: Rounds | None = None,
) -> np.ndarray:
    """Centroids, float32 [k, d].

    Args:
        seed: of all draws of this level.
        done: go on behind this round, which gave these centroids.
        after: told of each finished round.

    Raises:
        ValueError: if there are fewer points than clusters.
    """
    rounds = options.rounds if options.sample > 1 else 0
    first, centroids = (0, np.empty(0)) if done is None else (done[0] + 1, done[1])
    for number in range(first, rounds + 1):
        rng = generator(seed, "k-means", number)
        points = vectors
        if number:
            found = assign(vectors, centroids, mapper)
            chosen = resample(found, len(centroids), options.sample, options.choose, rng)
            if len(chosen) < options.clusters:  # too few clusters have points
                break
            points = ArrayVectors(vectors.take(chosen))
        start = seed_centroids(points, options.clusters, rng, options.seeding_points)
        centroids = lloyd(points, start, options.iterations, mapper)
        if after is not None:
            after(number, centroids)
    return centroids
