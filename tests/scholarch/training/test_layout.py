import pytest
from scholarch.data.stream import rank_positions
from scholarch.errors import UserError
from scholarch.training.layout import Layout, plan_layout


@pytest.mark.parametrize(
    ("batch", "ranks", "at_most", "groups", "micro_batches"),
    [
        (64, 1, None, [], 1),
        (64, 2, 16, [], 2),
        (64, 1, 16, [], 4),
        (64, 3, 16, [], 2),
        (64, 1, 15, [], 8),
        (48, 1, 20, [16], 3),
        (64, 2, 32, [64], 1),
        (60, 1, 16, [], 4),
    ],
)
def test_fewest_micro_batches_that_fit(
    batch: int, ranks: int, at_most: int | None, groups: list[int], micro_batches: int
) -> None:
    layout = plan_layout(batch, ranks, at_most, groups)
    assert layout.micro_batches == micro_batches
    shares = [len(share) for r in range(ranks) for share in rank_positions(batch, micro_batches, r, ranks)]
    assert max(shares) <= (at_most or batch)
    assert sum(shares) == batch


def test_bounds_cut_the_global_batch() -> None:
    assert Layout(12, 3).bounds(0, 1) == [(0, 4), (4, 8), (8, 12)]


@pytest.mark.parametrize(
    ("batch", "ranks", "at_most", "groups", "message"),
    [
        (2, 3, None, [], "3 processes cannot share a global batch of 2"),
        (64, 1, 8, [16], "keep groups of 16 samples together"),
    ],
)
def test_what_cannot_be_cut_is_refused(
    batch: int, ranks: int, at_most: int | None, groups: list[int], message: str
) -> None:
    with pytest.raises(UserError, match=message):
        plan_layout(batch, ranks, at_most, groups)
