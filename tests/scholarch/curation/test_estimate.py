"""The plan of a curation against what the algorithm does: counted while it runs, and by hand."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from typing import Any

import numpy as np
import pytest
from scholarch.curation import kmeans as module
from scholarch.curation.estimate import (
    BYTES_A_SECOND,
    OPERATIONS_A_SECOND,
    SEEDING_OPERATIONS_A_SECOND,
    estimate,
)
from scholarch.curation.hierarchy import hierarchical_kmeans
from scholarch.curation.kmeans import KMeansOptions
from scholarch.curation.vectors import ArrayVectors

WIDTH = 6


class Counting:
    """A mapper that counts what goes through it."""

    def __init__(self) -> None:
        self.operations = self.points = self.traffic = 0

    def __call__(self, function: Callable[..., Any], shared: Any, items: Iterable[Any]) -> Iterator[Any]:
        vectors, centroids = shared
        self.traffic += centroids.nbytes
        for start, stop in items:
            found = function(shared, (start, stop))
            self.points += stop - start
            self.operations += 2 * (stop - start) * len(centroids) * vectors.shape[1]
            self.traffic += sum(part.nbytes for part in found)
            yield found


def test_operations_and_traffic_are_those_of_a_run(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "BLOCK_POINTS", 100)
    points = np.random.default_rng(0).normal(size=(900, WIDTH)).astype(np.float32)
    levels = [
        KMeansOptions(clusters=20, iterations=3, rounds=2, sample=12),
        KMeansOptions(clusters=5, iterations=1, rounds=0),
    ]
    counting = Counting()
    hierarchical_kmeans(ArrayVectors(points), levels, 0, counting)
    told = estimate(900, WIDTH, levels, 1)
    # A cluster with fewer points than `sample` gives fewer: the plan counts all.
    assert counting.operations == pytest.approx(told.operations, rel=0.05)
    assert counting.operations <= told.operations
    assert 4 * WIDTH * counting.points == pytest.approx(told.read, rel=0.05)
    assert counting.traffic == pytest.approx(told.traffic, rel=0.1)
    assert counting.traffic <= told.traffic


def test_seeding_compares_so_many(monkeypatch: pytest.MonkeyPatch) -> None:
    compared = []
    plain = module.squared_distances

    def counting(points: Any, targets: Any, norms: Any) -> Any:
        compared.append(2 * points.shape[0] * targets.shape[0] * points.shape[1])
        return plain(points, targets, norms)

    monkeypatch.setattr(module, "squared_distances", counting)
    points = np.random.default_rng(0).normal(size=(500, WIDTH)).astype(np.float32)
    level = KMeansOptions(clusters=30, iterations=0, rounds=0, seeding_points=8)
    hierarchical_kmeans(ArrayVectors(points), [level], 0)
    # The first centroid is drawn, not chosen.
    assert sum(compared[1:]) == pytest.approx(estimate(500, WIDTH, [level], 1).seeding * 29 / 30)


def test_one_level_by_hand() -> None:
    level = KMeansOptions(clusters=1000, iterations=9, rounds=0, seeding_points=10)
    told = estimate(1_000_000, 100, [level], 4)
    assert told.disk == 400_000_000
    assert estimate(1_000_000, 100, [level], 4, "float16").disk == 200_000_000
    passes = 10  # nine iterations, and the assignment
    each = 2 * 1000 * 100 / OPERATIONS_A_SECOND + 400 / BYTES_A_SECOND
    seeding = 2 * 10_000 * 1000 * 8 * 100 / SEEDING_OPERATIONS_A_SECOND
    assert told.seconds(4) == pytest.approx(passes * 1_000_000 * each / 4 + seeding)
    blocks = 16
    sums = blocks * 1000 * (100 * 8 + 16)
    assert told.traffic == 9 * (sums + 4 * 1000 * 100 * 4) + 1_000_000 * 8 + 4 * 1000 * 100 * 4


def test_twice_the_pictures_take_twice_as_much() -> None:
    level = KMeansOptions(clusters=500, rounds=0, seeding_points=16)
    one, two = (estimate(count << 20, 64, [level], 2) for count in (1, 2))
    assert two.operations == 2 * one.operations
    assert two.disk == 2 * one.disk
    assert two.worker == one.worker
    assert two.leader - one.leader == 24 << 20


def test_more_clusters_than_points() -> None:
    with pytest.raises(ValueError, match="5 points cannot have 6 clusters"):
        estimate(5, 64, [KMeansOptions(clusters=6)], 2)
