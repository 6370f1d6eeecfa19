"""Reading ahead, with a store that is a function."""

from __future__ import annotations

import threading
from collections.abc import Sequence

import numpy as np
import pytest
from scholarch.data.ahead import ReadAhead

SIZE = 1000


class Store:
    """Samples of SIZE bytes; knows what was fetched."""

    def __init__(self) -> None:
        self.fetched: list[int] = []
        self.lock = threading.Lock()

    def fetch(self, run: Sequence[int]) -> dict[int, bytes]:
        with self.lock:
            self.fetched.extend(run)
        return {index: content(index) for index in run}

    def reader(self, bound: int) -> ReadAhead:
        return ReadAhead(lambda _: SIZE, lambda portion: [list(portion)], self.fetch, bound, threads=2)


def content(index: int) -> bytes:
    return index.to_bytes(4, "little") * (SIZE // 4)


@pytest.mark.timeout(30)
@pytest.mark.parametrize("bound", [SIZE // 2, 2 * SIZE, 7 * SIZE, 10_000 * SIZE])
def test_all_comes_though_more_is_expected_at_once_than_may_be_held(bound: int) -> None:
    store = Store()
    ahead, order = store.reader(bound), np.random.default_rng(0).permutation(500)
    ahead.expect(order)
    for index in order.tolist():
        assert ahead.take(index) == content(index)
    assert sorted(store.fetched) == list(range(500)), "each is fetched once"


@pytest.mark.timeout(30)
def test_no_more_is_fetched_than_may_be_held() -> None:
    store = Store()
    ahead = store.reader(20 * SIZE)
    ahead.expect(np.arange(500))
    assert ahead.take(0) == content(0)
    for index in range(1, 100):
        assert ahead.take(index) == content(index)
        with store.lock:
            assert len(store.fetched) - index <= 21  # and the one that was just taken


@pytest.mark.timeout(30)
def test_what_is_taken_before_its_turn_is_not_fetched_again() -> None:
    """Several threads that take may overtake one another where samples are large against the bound."""
    store = Store()
    ahead = store.reader(2 * SIZE)
    ahead.expect(np.arange(100))
    assert ahead.take(50) is None, "it was not on its way"
    for index in (*range(50), *range(51, 100)):
        assert ahead.take(index) == content(index)
    assert sorted(store.fetched) == [*range(50), *range(51, 100)]


@pytest.mark.timeout(30)
def test_what_fails_is_raised_where_it_is_taken_and_the_others_come() -> None:
    def fetch(run: Sequence[int]) -> dict[int, bytes]:
        if 3 in run:
            raise EOFError("the shard ends")
        return {index: content(index) for index in run}

    ahead = ReadAhead(lambda _: SIZE, lambda portion: [[index] for index in portion], fetch, 4 * SIZE)
    ahead.expect(np.arange(10))
    for index in range(10):
        if index == 3:
            with pytest.raises(EOFError, match="the shard ends"):
                ahead.take(index)
        else:
            assert ahead.take(index) == content(index)


@pytest.mark.timeout(30)
def test_afresh_is_instead_of_what_was_expected() -> None:
    store = Store()
    ahead = store.reader(4 * SIZE)
    ahead.expect(np.arange(100))
    ahead.expect(np.arange(200, 220), afresh=True)
    assert ahead.take(99) is None
    for index in range(200, 220):
        assert ahead.take(index) == content(index)
