import pytest
from scholarch.data.stream import rank_positions
from scholarch.errors import UserError
from scholarch.training.layout import Layout, plan_layout, whole_layout


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


@pytest.mark.parametrize("ranks", [1, 2, 3, 4])
def test_grains_are_whole_on_one_rank(ranks: int) -> None:
    layout = whole_layout(64, ranks, 16, [8])
    assert layout.largest_share(ranks) == 16
    bounds = [bound for rank in range(ranks) for bound in layout.bounds(rank, ranks)]
    assert sorted(bounds) == [(0, 16), (16, 32), (32, 48), (48, 64)]
    for rank in range(ranks):
        positions = rank_positions(64, layout.micro_batches, rank, ranks, whole=True)
        assert [(int(p[0]), int(p[-1]) + 1) for p in positions] == layout.bounds(rank, ranks)
        assert all(len(p) == 16 for p in positions)


@pytest.mark.parametrize(
    ("batch", "ranks", "grain", "groups", "message"),
    [
        (64, 1, 24, [], "grains of 24 samples do not divide a global batch of 64"),
        (64, 1, 8, [16], "into whole groups of 16"),
        (64, 5, 16, [], "5 processes cannot share 4 grains of 16 samples"),
    ],
)
def test_grains_that_do_not_fit_are_refused(
    batch: int, ranks: int, grain: int, groups: list[int], message: str
) -> None:
    with pytest.raises(UserError, match=message):
        whole_layout(batch, ranks, grain, groups)


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
