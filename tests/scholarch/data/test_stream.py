"""The stream: exact permutations, no bias, the same samples however the batch is shared."""

import itertools

import numpy as np
import pytest
from scholarch.data.stream import Permutation, SampleStream, rank_positions
from scipy.stats import chi2

SIZES = [1, 2, 3, 4, 5, 6, 7, 8, 9, 15, 16, 17, 31, 33, 63, 65, 100, 1023, 1025, 1797, 65535, 65537, 10**6]


@pytest.mark.parametrize("size", SIZES)
def test_is_a_permutation(size: int) -> None:
    order = Permutation(size, 0, "pass", 1)(np.arange(size))
    assert order.dtype == np.int64
    np.testing.assert_array_equal(np.sort(order), np.arange(size))


def test_huge_sizes_take_no_memory() -> None:
    places = np.array([0, 1, 10**9, 3 * 10**12, 2**62 - 1])
    for size in (2**62, 3 * 10**12 + 1):
        inside = places[places < size]
        order = Permutation(size, 0)(inside)
        assert len(set(order.tolist())) == len(inside)
        assert (order >= 0).all()
        assert (order < size).all()


def test_keys_give_different_orders() -> None:
    orders = [tuple(Permutation(50, seed, "pass", n)(np.arange(50))) for seed in (0, 1) for n in range(3)]
    assert len(set(orders)) == 6


@pytest.mark.parametrize("size", [3, 4, 5])
def test_every_order_is_as_likely(size: int) -> None:
    counts = dict.fromkeys(itertools.permutations(range(size)), 0)
    total = 60 * len(counts)
    for seed in range(total):
        counts[tuple(Permutation(size, seed)(np.arange(size)).tolist())] += 1
    statistic = sum((count - 60) ** 2 / 60 for count in counts.values())
    assert statistic < chi2.ppf(0.9999, len(counts) - 1)


@pytest.mark.parametrize("size", [10, 64, 97])
def test_places_and_neighbours_are_uniform(size: int) -> None:
    draws = 3000
    orders = np.stack([Permutation(size, seed)(np.arange(size)) for seed in range(draws)])
    for place in (0, size // 2, size - 1):
        counts = np.bincount(orders[:, place], minlength=size)
        assert ((counts - draws / size) ** 2 / (draws / size)).sum() < chi2.ppf(0.9999, size - 1)
    # The step from one place to the next is uniform over the other size - 1 elements.
    steps = np.bincount((orders[:, 1] - orders[:, 0]) % size, minlength=size)[1:]
    assert ((steps - draws / (size - 1)) ** 2 / (draws / (size - 1))).sum() < chi2.ppf(0.9999, size - 2)


@pytest.mark.parametrize(("samples", "batch"), [(10, 4), (3, 8), (1, 5), (7, 7), (64, 1)])
def test_every_pass_shows_each_sample_once(samples: int, batch: int) -> None:
    stream = SampleStream(samples, batch, 5)
    steps = -(-3 * samples // batch)
    ids = np.concatenate([stream.batch(step) for step in range(steps)])
    passes = [tuple(ids[n * samples : (n + 1) * samples]) for n in range(3)]
    for order in passes:
        assert sorted(order) == list(range(samples))
    if samples > 5:
        assert len(set(passes)) == 3


def test_any_part_of_any_step_is_the_same_as_from_the_whole() -> None:
    stream = SampleStream(11, 8, 2)
    for step in (0, 1, 5, 10**12):
        whole = stream.batch(step)
        assert whole.shape == (8,)
        for first, last in ((0, 3), (2, 7), (4, 4)):
            np.testing.assert_array_equal(stream.ids(step, first, last), whole[first:last])


def test_impossible_streams_are_refused() -> None:
    for samples, batch in ((0, 4), (4, 0)):
        with pytest.raises(ValueError, match="positive"):
            SampleStream(samples, batch, 0)


@pytest.mark.parametrize("world", [1, 2, 3, 4, 7])
@pytest.mark.parametrize("micro_batches", [1, 2, 4])
def test_shares_follow_the_rule_and_cover_the_batch(world: int, micro_batches: int) -> None:
    size = 12 // micro_batches
    shares = [rank_positions(12, micro_batches, rank, world) for rank in range(world)]
    for m in range(micro_batches):
        for rank in range(world):
            expected = [
                m * size + i for i in range(size) if size * rank // world <= i < size * (rank + 1) // world
            ]
            assert shares[rank][m].tolist() == expected
        assert np.concatenate([share[m] for share in shares]).tolist() == list(
            range(m * size, (m + 1) * size)
        )


def test_micro_batches_must_divide() -> None:
    with pytest.raises(ValueError, match="5 micro-batches do not divide a global batch of 12"):
        rank_positions(12, 5, 0, 1)
