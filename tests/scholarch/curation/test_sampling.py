"""Water-filling and the descent of a tree, against pouring one by one."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence

import numpy as np
import pytest
from scholarch.curation.hierarchy import Level, Tree, hierarchical_kmeans, tree_of
from scholarch.curation.kmeans import KMeansOptions
from scholarch.curation.sampling import allocate, draw, sample, sample_by_source
from scholarch.curation.vectors import ArrayVectors


def poured(sizes: Sequence[int], target: int) -> list[int]:
    """Whole rounds of one for each that has more, until a round no longer fits: the level, sorted."""
    given = [0] * len(sizes)
    while True:
        open_ones = [i for i, size in enumerate(sizes) if given[i] < size]
        if not open_ones or len(open_ones) > target - sum(given):
            return given
        for i in open_ones:
            given[i] += 1


def test_the_published_values() -> None:
    rng = np.random.default_rng(0)
    assert allocate(np.array([1, 5, 9]), 9, rng).tolist() == [1, 4, 4]
    seen = {tuple(allocate(np.array([1, 5, 9]), 10, rng).tolist()) for _ in range(40)}
    assert seen == {(1, 5, 4), (1, 4, 5)}


def test_allocation_is_that_of_pouring() -> None:
    rng = np.random.default_rng(0)
    for _ in range(300):
        sizes = rng.integers(0, 12, rng.integers(1, 9))
        target = int(rng.integers(0, 60))
        found = allocate(sizes, target, rng)
        level = np.array(poured(sizes.tolist(), target))
        assert found.sum() == min(target, sizes.sum())
        assert (found <= sizes).all()
        assert set((found - level).tolist()) <= {0, 1}


@pytest.mark.parametrize("sizes", [[], [0, 0], [3]])
def test_allocation_of_little(sizes: list[int]) -> None:
    assert allocate(np.array(sizes, np.int64), 2, np.random.default_rng(0)).sum() == min(2, sum(sizes))


def test_drawing_more_than_there_is() -> None:
    counts = Counter(draw(np.array([4, 6, 9]), 8, np.random.default_rng(0)).tolist())
    assert sorted(counts.values()) == [2, 3, 3]
    closest = draw(np.array([4, 6, 9]), 4, np.random.default_rng(0), np.array([0.5, 0.1, 0.9]))
    assert Counter(closest.tolist()) == {4: 1, 6: 2, 9: 1}


def long_tailed() -> Tree:
    """Leaves of 64, 16, 4, 1, 0, 8, 2 and 5 pictures, in two branches and an empty one."""
    leaves = np.repeat([0, 1, 2, 3, 5, 6, 7], [64, 16, 4, 1, 8, 2, 5])
    return Tree([leaves, np.array([0, 0, 0, 0, 0, 1, 1, 1])], [8, 3])


def test_descent_is_exact_and_balanced() -> None:
    tree = long_tailed()
    for target in (1, 2, 7, 30, 99, 100):
        chosen = sample(tree, target, 0)
        assert len(chosen) == len(set(chosen.tolist())) == target
    branches = Counter(tree.levels[1][tree.levels[0][sample(tree, 30, 0)]].tolist())
    assert branches == {0: 15, 1: 15}
    leaves = Counter(tree.levels[0][sample(tree, 30, 0)].tolist())
    assert (leaves[3], leaves[2], leaves[5], leaves[6], leaves[7]) == (1, 4, 8, 2, 5)
    assert leaves[0] == leaves[1] == 5
    flat = Counter(tree.levels[0][sample(tree, 30, 0, by="leaves")].tolist())
    assert sorted(flat[i] for i in (0, 1, 5)) in ([6, 6, 6],)
    assert (flat[2], flat[3], flat[6], flat[7]) == (4, 1, 2, 5)


def test_a_target_larger_than_the_pool() -> None:
    tree = long_tailed()
    assert sample(tree, 500, 0).tolist() == list(range(100))
    assert np.bincount(sample(tree, 500, 0, copies=2)).tolist() == [2] * 100
    again = sample(tree, 500, 0, copies=None)
    assert len(again) == 500
    assert Counter(tree.levels[1][tree.levels[0][again]].tolist()) == {0: 250, 1: 250}
    assert len(sample(tree, 300, 0, by="pictures", copies=None)) == 300


def test_quotas_of_sources() -> None:
    tree, sources = long_tailed(), np.arange(100) % 2
    chosen = sample_by_source(tree, {0: 12, 1: 30}, sources, 5)
    assert Counter(sources[chosen].tolist()) == {0: 12, 1: 30}
    assert len(set(chosen.tolist())) == 42
    eligible = np.arange(100) < 10
    assert sample(tree, 50, 0, eligible=eligible).tolist() == list(range(10))


def test_the_closest_are_taken() -> None:
    tree = long_tailed()
    distances = np.random.default_rng(0).random(100)
    chosen = sample(tree, 30, 0, distances=distances)
    first = [i for i in chosen.tolist() if tree.levels[0][i] == 0]
    assert sorted(first) == sorted(np.argsort(distances[:64])[:5].tolist())


def test_seeds() -> None:
    tree = long_tailed()
    assert sample(tree, 30, 0).tolist() == sample(tree, 30, 0).tolist() != sample(tree, 30, 1).tolist()
    with pytest.raises(ValueError, match="at least 1"):
        sample(tree, 0, 0)


LEVELS = (
    KMeansOptions(clusters=40, iterations=8, rounds=0),
    KMeansOptions(clusters=12, iterations=8, rounds=2, sample=2),
    KMeansOptions(clusters=3, iterations=8, rounds=1, sample=2, choose="random"),
)


def test_a_tree_and_its_sizes() -> None:
    points = np.random.default_rng(0).normal(size=(600, 4)).astype(np.float32)
    tree = tree_of(hierarchical_kmeans(ArrayVectors(points), LEVELS, 0))
    assert [len(level) for level in tree.levels] == [600, 40, 12]
    sizes = tree.sizes(np.ones(600, np.int64))
    owners = tree.levels[2][tree.levels[1][tree.levels[0]]]  # of each point at the top
    assert [size.sum() for size in sizes] == [600] * 3
    assert sizes[2].tolist() == np.bincount(owners, minlength=3).tolist()
    assert len(sample(tree, 90, 0)) == 90


def test_a_tree_that_was_interrupted_is_the_same() -> None:
    points = ArrayVectors(np.random.default_rng(1).normal(size=(600, 4)).astype(np.float32))
    rounds: list[tuple[int, int, np.ndarray]] = []
    levels: list[Level] = []
    whole = hierarchical_kmeans(
        points,
        LEVELS,
        5,
        after_round=lambda *told: rounds.append(told),
        after_level=lambda _, level: levels.append(level),
    )
    assert [(level, turn) for level, turn, _ in rounds] == [(0, 0), (1, 0), (1, 1), (1, 2), (2, 0), (2, 1)]
    for place, (level, turn, centroids) in enumerate(rounds):
        again = hierarchical_kmeans(points, LEVELS, 5, done=levels[:level], begun=(turn, centroids))
        for one, other in zip(again, whole, strict=True):
            np.testing.assert_array_equal(one.centroids, other.centroids, err_msg=str(place))
            np.testing.assert_array_equal(one.clusters, other.clusters)


def test_levels_that_do_not_fit() -> None:
    with pytest.raises(ValueError, match="level 1 has 2 points for 3 clusters"):
        Tree([np.array([0, 1, 2]), np.array([0, 0])], [3, 1])
