"""How processes and the teacher's work are shared out."""

from __future__ import annotations

import pytest
from scholarch.distillation.groups import Tiling, apportion, edges, even, tile
from scholarch.errors import UserError


@pytest.mark.parametrize(
    ("total", "weights", "least", "expected"),
    [
        (10, [1, 1, 2], 0, [3, 2, 5]),  # 2.5, 2.5, 5: the first of equal remainders
        (296, [12, 16, 47, 163], 1, [15, 20, 58, 203]),  # reference.md 6.1
        (5, [1, 1, 100], 1, [1, 1, 3]),
        (3, [1, 1, 1], 1, [1, 1, 1]),
        (4, [0, 1], 0, [0, 4]),
    ],
)
def test_shares_are_whole_and_add_up(
    total: int, weights: list[float], least: int, expected: list[int]
) -> None:
    assert apportion(total, weights, least) == expected


def test_groups_tile_the_processes() -> None:
    found = tile(["a", "b", "c"], {"a": 1, "b": 2, "c": 1}, 8, 10)
    assert found.sizes == {"a": 2, "b": 4, "c": 2}
    assert [found.student(rank) for rank in range(8)] == [*"aabbbbcc"]
    assert list(found.ranks("c")) == [6, 7]
    assert found.teacher == [0, 1, 2, 3, 5, 6, 7, 8, 10]
    assert edges([0, 3, 2]) == [0, 0, 3, 5]
    assert even(2, 3) == [0, 0, 1, 2]
    assert Tiling({"a": 1, "b": 2}, [0, 0, 0, 4]).world_size == 3


def test_fewer_processes_than_students_is_a_mistake() -> None:
    with pytest.raises(UserError, match="3 students need as many processes, and there are 2"):
        tile(["a", "b", "c"], dict.fromkeys("abc", 1.0), 2, 10)
