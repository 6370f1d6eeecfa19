"""What clustering takes: memory, disk, traffic and time, counted from the algorithm, with rates that were measured."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

from scholarch.curation.kmeans import PIECE, KMeansOptions, block_spans, trials_of
from scholarch.curation.workers import IN_FLIGHT

# Of one core of an AMD EPYC virtual machine, by benchmarks/kmeans.py; others: benchmarks/results/kmeans.md.
OPERATIONS_A_SECOND = 5.2e10
"""Floating-point operations of distances to centroids, float32."""
BYTES_A_SECOND = 4.1e8
"""Of vectors, as float32, that are read, made of length 1 and added in float64."""
SEEDING_OPERATIONS_A_SECOND = 9.1e9
"""Floating-point operations of k-means++, which compares to a few points at a time."""
PROCESS_BYTES = 512 << 20
"""Of a process that has done nothing yet: Python, torch, Ray."""
_FLOAT, _DOUBLE, _INT = 4, 8, 8


class Estimate(NamedTuple):
    """Of the step cluster.

    Attributes:
        operations: floating-point ones of distances, by all workers.
        read: bytes of vectors, as float32, that all workers read.
        seeding: floating-point operations of k-means++, by the process that leads.
        disk: bytes of all vectors, in the store and on each machine.
        leader: bytes of memory of the process that leads.
        worker: bytes of memory of one worker.
        traffic: bytes between workers and the process that leads, at most.
    """

    operations: int
    read: int
    seeding: int
    disk: int
    leader: int
    worker: int
    traffic: int

    def seconds(self, cores: int) -> float:
        """By so many workers of one core each."""
        work = self.operations / OPERATIONS_A_SECOND + self.read / BYTES_A_SECOND
        return work / cores + self.seeding_seconds

    @property
    def seeding_seconds(self) -> float:
        """In one process, while workers wait."""
        return self.seeding / SEEDING_OPERATIONS_A_SECOND


def estimate(
    pictures: int, width: int, levels: Sequence[KMeansOptions], cores: int, stored: str = "float32"
) -> Estimate:
    """Of clustering `pictures` vectors of `width` numbers; iterations are counted as if none ended early.

    Args:
        levels: the finest first.
        cores: workers of one core each.
        stored: float32 or float16, on disk.

    Raises:
        ValueError: if a level has more clusters than points.
    """
    compared = read = seeding = traffic = leader = worker = 0
    points = pictures
    for level in levels:
        clusters = level.clusters
        if clusters > points:
            raise ValueError(f"{points:,} points cannot have {clusters:,} clusters")
        more = level.rounds if level.sample > 1 else 0
        # Each further round assigns all points to choose its own; so does the end of the level.
        assigned = (1 + more) * points
        for turn in range(1 + more):
            passed = min(points, clusters * level.sample) if turn else points
            assigned += level.iterations * passed
            spans = block_spans(passed, clusters)
            sums = sum(min(clusters, stop - start) for start, stop in spans) * (width * _DOUBLE + 2 * _INT)
            traffic += level.iterations * (sums + cores * clusters * width * _FLOAT)
            seeds = min(passed, clusters * (level.seeding_points or passed))
            seeding += 2 * seeds * clusters * trials_of(clusters) * width
            leader = max(leader, seeds * (width + 4 * trials_of(clusters)) * _FLOAT)
            block = spans[0][1]
            worker = max(worker, block * (3 * width * _FLOAT + 2 * _INT))
        compared += assigned * clusters
        read += assigned * width * _FLOAT
        traffic += (1 + more) * (points * 2 * _FLOAT + cores * clusters * width * _FLOAT)
        # Centroids before and after, their sums, sums of blocks that came early, and what is known of each point.
        waiting = IN_FLIGHT * cores * clusters * (width * _DOUBLE + 2 * _INT)
        held = clusters * width * (2 * _FLOAT + _DOUBLE) + waiting + points * (2 * _FLOAT + 2 * _INT)
        leader = max(leader, held)
        worker = max(worker, PIECE[0] * PIECE[1] * _FLOAT + clusters * width * (_FLOAT + _DOUBLE))
        points = clusters
    numbers = 2 if stored == "float16" else _FLOAT
    return Estimate(
        2 * compared * width,
        read,
        seeding,
        pictures * width * numbers,
        leader + PROCESS_BYTES,
        worker + PROCESS_BYTES,
        traffic,
    )
