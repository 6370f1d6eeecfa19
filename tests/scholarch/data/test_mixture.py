"""Mixtures: shares, passes, jumps and homogeneous steps, against a simulator that walks step by step."""

import random
from collections import Counter
from fractions import Fraction

import numpy as np
import pytest
from scholarch.data.allocation import MIXED_CYCLE, Allocation
from scholarch.data.builtin import DigitsSource, PhotosSource
from scholarch.data.mixture import MixedStream, Mixture, Part, stream_of
from scholarch.data.source import BrokenPicture
from scholarch.data.stream import Permutation, SampleStream

PARTS = (("a", 7), ("b", 50), ("c", 1), ("d", 23))
WEIGHTS, ALONE = (3.0, 1.0, 0.5, 0.0), (0.0, 0.1, 0.0, 0.125)
BATCH, SEED = 6, 4


def stream(seed: int = SEED) -> MixedStream:
    return MixedStream(PARTS, WEIGHTS, ALONE, BATCH, seed)


def at(order: Permutation, place: int) -> int:
    return int(order(np.array([place]))[0])


def walked(steps: int) -> list[list[tuple[str, int]]]:
    """(data set, sample) by position, from counters that go up sample by sample."""
    cycle = 40  # 0.1 and 0.125 are 4 and 5 of 40 steps
    kinds = ["b"] * 4 + ["d"] * 5 + [""] * 31
    total = sum(map(Fraction, WEIGHTS))
    taken: Counter[str] = Counter()
    mixed = 0
    batches = []
    for step in range(steps):
        kind = kinds[at(Permutation(cycle, SEED, "mixture", "steps", step // cycle), step % cycle)]
        owners = [kind] * BATCH
        if not kind:
            number, place = divmod(mixed, MIXED_CYCLE)
            turn = at(Permutation(MIXED_CYCLE, SEED, "mixture", "samples", number), place)
            mixed += 1
            owners, border, summed = [], 0, Fraction(0)
            for (name, _), weight in zip(PARTS, WEIGHTS, strict=True):
                summed += Fraction(weight)
                whole = round(MIXED_CYCLE * BATCH * summed / total)
                next_border = whole // MIXED_CYCLE + (turn < whole % MIXED_CYCLE)
                owners += [name] * (next_border - border)
                border = next_border
        in_order = []
        for owner in owners:
            size = dict(PARTS)[owner]
            number, place = divmod(taken[owner], size)
            order = Permutation(size, SEED, "pass", number, "of", owner)
            in_order.append((owner, at(order, place)))
            taken[owner] += 1
        arrangement = Permutation(BATCH, SEED, "step", step, "mixture")(np.arange(BATCH))
        batches.append([in_order[turn] for turn in arrangement])
    return batches


def named(mixed: MixedStream, ids: np.ndarray) -> list[tuple[str, int]]:
    located = [mixed.located(i) for i in ids.tolist()]
    return [(PARTS[number][0], sample) for number, sample in located]


def test_equals_the_slow_walk() -> None:
    mixed = stream()
    expected = walked(130)
    steps = list(range(130))
    random.Random(0).shuffle(steps)  # any step at once, in any order
    assert all(named(mixed, mixed.batch(step)) == expected[step] for step in steps)
    assert mixed.samples == 81


def test_any_part_of_any_step_is_the_same_as_from_the_whole() -> None:
    mixed = stream()
    for step in (0, 3, 10**9, 10**12):
        whole = mixed.batch(step)
        assert whole.shape == (BATCH,)
        for first, last in ((0, 3), (2, 6), (4, 4)):
            np.testing.assert_array_equal(mixed.ids(step, first, last), whole[first:last])


def test_every_pass_of_every_data_set_shows_each_sample_once() -> None:
    mixed = stream()
    seen: dict[str, list[int]] = {name: [] for name, _ in PARTS}
    for step in range(300):
        # Within a step a data set's samples stand in drawn order, which a pass of its own forgives.
        for name, sample in sorted(named(mixed, mixed.batch(step))):
            seen[name].append(sample)
    taken = Allocation(WEIGHTS, ALONE, BATCH, SEED).given(300)
    assert [len(seen[name]) for name, _ in PARTS] == taken.tolist()
    for name, size in PARTS:
        passes, rest = divmod(len(seen[name]), size)
        counts = Counter(seen[name])
        assert set(counts) == set(range(size))
        assert passes >= 1
        assert {counts[i] for i in range(size)} <= {passes, passes + 1}
        assert sum(counts[i] == passes + 1 for i in range(size)) == rest


def test_a_far_pass_shows_each_sample_once() -> None:
    mixed, start = stream(), 10**9
    allocation = Allocation(WEIGHTS, ALONE, BATCH, SEED)
    skip = -int(allocation.given(start)[1]) % 50
    ids = [sample for step in range(start, start + 150) for n, sample in pass_order(mixed, step) if n == "b"]
    assert sorted(ids[skip : skip + 50]) == list(range(50))


def pass_order(mixed: MixedStream, step: int) -> list[tuple[str, int]]:
    """A step's samples in the order of their passes."""
    turns = Permutation(BATCH, SEED, "step", step, "mixture")(np.arange(BATCH))
    found = named(mixed, mixed.batch(step))
    return [found[i] for i in np.argsort(turns)]


@pytest.mark.parametrize("batch", [1, 6, 64])
@pytest.mark.parametrize("weights", [(1.0, 1.0), (3.0, 1.0, 0.5), (0.1, 0.2, 0.3, 1e-4), (1.0, 1e6)])
def test_shares_are_exact_in_every_cycle_and_every_step(weights: tuple[float, ...], batch: int) -> None:
    allocation = Allocation(weights, [0.0] * len(weights), batch, 1)
    expected = np.array(weights) / sum(weights)
    for cycle in (0, 1, 10**6):
        start = cycle * MIXED_CYCLE
        given = np.stack([allocation.given(start + step) for step in range(MIXED_CYCLE + 1)])
        assert (np.abs(given[-1] - given[0] - MIXED_CYCLE * batch * expected) <= 1).all()
        steps = np.diff(given, axis=0)
        assert (steps.sum(1) == batch).all()
        assert (steps >= 0).all()
        assert (np.abs(steps - batch * expected) < 1 + 1 / MIXED_CYCLE).all()


def test_homogeneous_steps_are_exactly_their_share_of_every_cycle() -> None:
    allocation = Allocation((1.0, 1.0, 0.0), (0.1, 0.0, 0.05), 8, 3)
    for cycle in (0, 7, 10**8):
        steps = np.diff([allocation.given(20 * cycle + i) for i in range(21)], axis=0)
        alone = [int(np.argmax(step)) for step in steps if step.max() == 8]
        assert sorted(alone) == [0, 0, 2]
    places = {
        tuple(np.flatnonzero(np.diff([allocation.given(20 * c + i)[2] for i in range(21)])).tolist())
        for c in range(40)
    }
    assert len(places) > 10  # drawn, not fixed


def test_all_steps_may_be_homogeneous() -> None:
    allocation = Allocation((0.0, 0.0), (0.75, 0.25), 5, 0)
    steps = np.diff([allocation.given(i) for i in range(41)], axis=0)
    assert sorted(map(tuple, steps.tolist())) == [(0, 5)] * 10 + [(5, 0)] * 30


def test_the_seed_changes_the_order() -> None:
    assert [stream(0).batch(s).tolist() for s in range(4)] != [stream(1).batch(s).tolist() for s in range(4)]


@pytest.mark.parametrize(
    ("weights", "alone", "message"),
    [
        ((1.0, -1.0), (0.0, 0.0), "cannot be -1"),
        ((1.0, float("nan")), (0.0, 0.0), "cannot be nan"),
        ((1.0, 0.0), (0.0, 0.0), "needs a weight or a homogeneous share"),
        ((0.0, 0.0), (0.1, 0.1), "mixed steps need a data set with a weight"),
        ((1.0, 1.0), (0.6, 0.5), "add up to 1.1"),
        ((1.0, 0.0), (0.0, 1.0), "leave none for weights"),
        ((1.0, 1.0), (0.0, 0.3333), "in thousandths"),
    ],
)
def test_shares_that_do_not_fit(weights: tuple[float, ...], alone: tuple[float, ...], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        Allocation(weights, alone, 4, 0)


def mixture() -> Mixture:
    return Mixture([Part("photos", PhotosSource(), 1.0), Part("digits", DigitsSource(), 3.0, 0.2)])


def test_a_mixture_is_a_source() -> None:
    source = mixture()
    assert [part.name for part in source.parts] == ["digits", "photos"]
    assert len(source) == 1799
    assert (source.name(3), source.name(1798)) == ("digits/digits/0003", "photos/photos/flower.jpg")
    assert source.read(1797).equal(PhotosSource().read(0))
    assert (source.classes, source.label(0)) == (None, None)
    assert source.shares == pytest.approx([0.2 + 0.8 * 0.75, 0.8 * 0.25])
    assert source.fingerprint() == mixture().fingerprint() != DigitsSource().fingerprint()


def test_broken_pictures_are_named_with_their_data_set() -> None:
    class Broken(PhotosSource):
        def read(self, index: int) -> None:
            raise BrokenPicture(self.name(index), "torn")

    with pytest.raises(BrokenPicture, match=r"web/photos/china\.jpg.*torn"):
        Mixture([Part("web", Broken())]).read(0)


def test_stands_in_from_the_same_data_set() -> None:
    mixed = stream()
    assert list(mixed.ring(3)) == [3, 4, 5, 6, 0, 1, 2]
    assert list(mixed.ring(57)) == [57]
    assert list(mixed.ring(80)) == [80, *range(58, 80)]
    assert list(SampleStream(3, 1, 0).ring(1)) == [1, 2, 0]


def test_one_data_set_keeps_its_plain_stream() -> None:
    assert stream_of(DigitsSource(), 4, 1) == SampleStream(1797, 4, 1)
    assert isinstance(stream_of(mixture(), 4, 1), MixedStream)


def test_the_order_of_one_data_set_never_changes() -> None:
    # Runs that exist depend on it.
    assert SampleStream(1797, 4, 0).batch(0).tolist() == [1392, 295, 423, 1194]
    assert SampleStream(11, 8, 2).batch(5).tolist() == [3, 6, 7, 2, 1, 0, 6, 9]
