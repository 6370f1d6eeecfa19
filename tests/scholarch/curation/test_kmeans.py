"""k-means against slow loops in float64 and scikit-learn, and inputs without a nice answer."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from scholarch.curation import kmeans as module
from scholarch.curation.kmeans import (
    Assignment,
    KMeansOptions,
    assign,
    block_spans,
    kmeans,
    lloyd,
    lloyd_step,
    nearest,
    resample,
    seed_centroids,
    squared_distances,
)
from scholarch.curation.vectors import ArrayVectors, FileVectors


def blobs(points: int, centres: int, width: int = 5, apart: float = 50.0, seed: int = 0) -> np.ndarray:
    rng = np.random.default_rng(seed)
    middle = rng.normal(size=(centres, width)) * apart
    return (middle[np.arange(points) % centres] + rng.normal(size=(points, width))).astype(np.float32)


def slow_nearest(points: np.ndarray, centroids: np.ndarray) -> tuple[list[int], list[float]]:
    clusters, distances = [], []
    for point in points.astype(np.float64):
        apart = [float(((point - c) ** 2).sum()) for c in centroids.astype(np.float64)]
        clusters.append(apart.index(min(apart)))
        distances.append(min(apart))
    return clusters, distances


def slow_step(points: np.ndarray, centroids: np.ndarray) -> np.ndarray:
    owners, _ = slow_nearest(points, centroids)
    moved = centroids.astype(np.float64)
    for number in range(len(centroids)):
        mine = [p for p, owner in zip(points.astype(np.float64), owners, strict=True) if owner == number]
        if mine:
            moved[number] = sum(mine) / len(mine)
    return moved


def slow_seeds(points: np.ndarray, clusters: int, rng: np.random.Generator) -> np.ndarray:
    """Arthur and Vassilvitskii 2007, with 2 + ln k trials of each centroid, one number after the other."""
    values = points.astype(np.float64)
    picked = [int(rng.integers(len(values)))]
    while len(picked) < clusters:
        least = [min(float(((p - values[q]) ** 2).sum()) for q in picked) for p in values]
        found: list[tuple[float, int]] = []
        for height in rng.random(2 + int(np.log(clusters))) * sum(least):
            drawn, reached = -1, 0.0
            while reached <= height:
                drawn += 1
                reached += least[drawn]
            pairs = zip(values, least, strict=True)
            left = sum(min(before, float(((p - values[drawn]) ** 2).sum())) for p, before in pairs)
            found.append((left, drawn))
        picked.append(min(found)[1])
    return points[picked]


def backwards(function: Callable[..., Any], shared: Any, items: Iterable[Any]) -> Iterator[Any]:
    """A mapper whose last item is done first."""
    done = {number: function(shared, item) for number, item in reversed(list(enumerate(items)))}
    yield from (done[number] for number in sorted(done))


def test_nearest_and_step_are_those_of_a_slow_loop() -> None:
    points, centroids = blobs(300, 7), blobs(6, 6, seed=1)
    clusters, distances = nearest(points, centroids)
    wanted, apart = slow_nearest(points, centroids)
    assert clusters.tolist() == wanted
    np.testing.assert_allclose(distances, apart, rtol=1e-4)
    step = lloyd_step(ArrayVectors(points), centroids)
    np.testing.assert_allclose(step, slow_step(points, centroids), rtol=1e-6)


def test_of_equal_centroids_the_first_is_nearest() -> None:
    points = blobs(20, 2)
    assert nearest(points, np.repeat(points[:1], 3, axis=0))[0].tolist() == [0] * 20


def test_squared_distances_are_exact_where_numbers_cancel() -> None:
    far = torch.tensor([[1000.0, 1.0], [1000.0, 1.001], [1000.0, 1.0]])
    found = squared_distances(far, far)
    assert found[0, 2] == 0
    assert found[1, 1] == 0
    assert found[0, 1].item() == pytest.approx(1e-6, rel=1e-3)


def test_lloyd_ends_where_scikit_learn_does() -> None:
    from sklearn.cluster import KMeans

    points = blobs(500, 6, apart=2.0)
    start = points[:8].copy()
    found = lloyd(ArrayVectors(points), start, 100)
    peer = KMeans(8, init=start.astype(np.float64), n_init=1, max_iter=100, tol=0, algorithm="lloyd")
    peer.fit(points.astype(np.float64))
    np.testing.assert_allclose(found, peer.cluster_centers_, atol=1e-3)
    assert assign(ArrayVectors(points), found).inertia == pytest.approx(peer.inertia_, rel=1e-4)


def test_blocks_and_their_order_change_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "BLOCK_POINTS", 64)
    points = ArrayVectors(blobs(1000, 9, apart=3.0))
    assert len(block_spans(1000, 9)) == 16
    options = KMeansOptions(clusters=9, iterations=20, rounds=2, sample=4)
    np.testing.assert_array_equal(kmeans(points, options, 3), kmeans(points, options, 3, backwards))


def test_a_centroid_without_points_stays() -> None:
    points, lost = blobs(40, 2), np.full((1, 5), 1e4, np.float32)
    moved = lloyd(ArrayVectors(points), np.concatenate([points[:2], lost]), 10)
    np.testing.assert_array_equal(moved[2:], lost)


def test_seeding_is_that_of_a_slow_loop() -> None:
    points = blobs(60, 8, apart=2.0)
    for seed in range(3):
        found = seed_centroids(ArrayVectors(points), 9, np.random.default_rng(seed))
        np.testing.assert_array_equal(found, slow_seeds(points, 9, np.random.default_rng(seed)))


def test_seeding_finds_every_blob() -> None:
    points = blobs(900, 30)
    for seed in range(5):
        picked = seed_centroids(ArrayVectors(points), 30, np.random.default_rng(seed))
        owners = {int(np.abs(points - c).sum(1).argmin()) % 30 for c in picked}
        assert len(owners) == 30


def test_seeding_takes_each_different_point_before_any_again() -> None:
    points = np.repeat(blobs(6, 6), 50, axis=0)
    picked = seed_centroids(ArrayVectors(points), 10, np.random.default_rng(0))
    assert len(picked) == 10
    assert len(np.unique(picked, axis=0)) == 6


def test_seeding_on_a_part_of_the_points() -> None:
    points = blobs(10_000, 5)
    picked = seed_centroids(ArrayVectors(points), 5, np.random.default_rng(0), points=40)
    assert len(np.unique(nearest(points, picked)[0])) == 5


@pytest.mark.parametrize("clusters", [1, 4])
def test_all_points_equal(clusters: int) -> None:
    points = np.ones((30, 3), np.float32)
    found = kmeans(ArrayVectors(points), KMeansOptions(clusters=clusters), 0)
    np.testing.assert_array_equal(found, np.ones((clusters, 3), np.float32))
    assert assign(ArrayVectors(points), found).inertia == 0


def test_one_cluster_is_the_mean() -> None:
    points = blobs(100, 5)
    found = kmeans(ArrayVectors(points), KMeansOptions(clusters=1, rounds=0), 0)
    np.testing.assert_allclose(found[0], points.astype(np.float64).mean(0), rtol=1e-6)


def test_as_many_clusters_as_points() -> None:
    points = blobs(25, 25)
    found = kmeans(ArrayVectors(points), KMeansOptions(clusters=25, rounds=0), 0)
    assert sorted(map(tuple, found)) == sorted(map(tuple, points))


def test_more_clusters_than_points() -> None:
    with pytest.raises(ValueError, match="5 points cannot have 6 clusters"):
        kmeans(ArrayVectors(blobs(5, 5)), KMeansOptions(clusters=6), 0)


@pytest.mark.parametrize("choose", ["closest", "random"])
def test_resample_takes_some_of_each_cluster(choose: Any) -> None:
    rng = np.random.default_rng(0)
    found = Assignment(rng.integers(0, 5, 200).astype(np.int32), rng.random(200, dtype=np.float32))
    found.clusters[found.clusters == 3] = 2  # one is empty
    found.clusters[:2] = 3  # and then has two points only
    chosen = resample(found, 5, 6, choose, np.random.default_rng(1))
    assert np.bincount(found.clusters[chosen], minlength=5).tolist() == [6, 6, 6, 2, 6]
    if choose == "closest":
        wanted = []
        for cluster in range(5):
            mine = [
                (d, i) for i, (c, d) in enumerate(zip(*vars(found).values(), strict=True)) if c == cluster
            ]
            wanted += [i for _, i in sorted(mine)[:6]]
        assert chosen.tolist() == sorted(wanted)


def test_rounds_flatten_a_long_tail() -> None:
    """What the rounds are for: centroids leave the crowded place for the rare ones."""
    rng = np.random.default_rng(0)
    crowd, rare = rng.normal(size=(4000, 2)), rng.normal(size=(400, 2)) * 12
    points = ArrayVectors(np.concatenate([crowd, rare]).astype(np.float32))

    def crowded(rounds: int) -> int:
        options = KMeansOptions(clusters=40, iterations=20, rounds=rounds, sample=5)
        return int((np.linalg.norm(kmeans(points, options, 0), axis=1) < 3).sum())

    assert crowded(4) < crowded(0)


def test_goes_on_behind_a_round() -> None:
    points = ArrayVectors(blobs(400, 12, apart=2.0))
    options = KMeansOptions(clusters=12, iterations=8, rounds=3, sample=6)
    kept: list[tuple[int, np.ndarray]] = []
    whole = kmeans(points, options, 7, after=lambda number, found: kept.append((number, found)))
    assert [number for number, _ in kept] == [0, 1, 2, 3]
    np.testing.assert_array_equal(kmeans(points, options, 7, done=kept[1]), whole)
    np.testing.assert_array_equal(kmeans(points, options, 7, done=kept[3]), whole)


def test_vectors_of_several_files(tmp_path: Path) -> None:
    values = blobs(50, 3)
    paths = [tmp_path / f"{number}.npy" for number in range(3)]
    for path, part in zip(paths, np.split(values, [20, 21]), strict=True):
        np.save(path, part)
    found = FileVectors.of(paths)
    assert found.shape == (50, 5)
    np.testing.assert_array_equal(found.read(15, 40), values[15:40])
    numbers = np.array([49, 0, 20, 3, 20])
    np.testing.assert_array_equal(found.take(numbers), values[numbers])
    np.save(tmp_path / "other.npy", values[:, :2])
    with pytest.raises(ValueError, match=r"\[2, 5\]"):
        FileVectors.of([*paths, tmp_path / "other.npy"])
