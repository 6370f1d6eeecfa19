import pytest
import torch
from gloo import run_ranks
from scholarch import collectives
from torch import Tensor
from torch.distributed import ProcessGroup

COUNTS = [2, 0, 3]


def _rows(rank: int, dtype: torch.dtype = torch.float64) -> Tensor:
    start = sum(COUNTS[:rank])
    return (torch.arange(start, start + COUNTS[rank], dtype=dtype)[:, None] * 10) + torch.arange(
        2, dtype=dtype
    )


def _gather(group: ProcessGroup, known: bool, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
    rank = collectives.rank(group)
    x = _rows(rank, dtype).requires_grad_()
    gathered = collectives.gather_rows(x, group, COUNTS if known else None)
    (gathered * (rank + 1)).sum().backward()
    assert x.grad is not None
    return gathered.detach(), x.grad


@pytest.mark.gloo
@pytest.mark.parametrize(
    ("known", "dtype"), [(True, torch.float64), (False, torch.float64), (True, torch.bfloat16)]
)
def test_gather_rows_with_uneven_and_empty_shares(known: bool, dtype: torch.dtype) -> None:
    expected = torch.cat([_rows(rank, dtype) for rank in range(3)])
    for rank, (gathered, gradient) in enumerate(run_ranks(3, _gather, known, dtype)):
        assert torch.equal(gathered, expected)
        # Rank r's loss weighs every row by r + 1: 1 + 2 + 3 comes back.
        assert torch.equal(gradient, torch.full((COUNTS[rank], 2), 6, dtype=dtype))


def _wrong_counts(group: ProcessGroup) -> None:
    with pytest.raises(ValueError, match="has 1 rows, not the 2"):
        collectives.gather_rows(torch.zeros(1, 2), group, [2, 2])


@pytest.mark.gloo
def test_gather_rows_refuses_counts_that_are_not_its_rows() -> None:
    run_ranks(2, _wrong_counts)


def _reduce(group: ProcessGroup) -> tuple[Tensor, Tensor, list[int], Tensor]:
    rank = collectives.rank(group)
    x = torch.tensor([rank, -rank], dtype=torch.float32)
    total, largest = collectives.all_reduce_sum(x, group), collectives.all_reduce_max(x, group)
    return total, largest, collectives.row_counts(torch.zeros(COUNTS[rank], 2), group), x


@pytest.mark.gloo
def test_reductions_leave_their_input_alone() -> None:
    for rank, (total, largest, counts, x) in enumerate(run_ranks(3, _reduce)):
        assert total.tolist() == [3, -3]
        assert largest.tolist() == [2, 0]
        assert counts == COUNTS
        assert x.tolist() == [rank, -rank]


def test_one_process_needs_no_group() -> None:
    x = torch.ones(2, requires_grad=True)
    assert collectives.gather_rows(x, None) is x
    assert collectives.all_reduce_sum(x, None).tolist() == [1, 1]
    assert collectives.row_counts(x, None) == [2]
    assert (collectives.rank(None), collectives.world_size(None)) == (0, 1)


def test_upcast_keeps_float64() -> None:
    assert collectives.upcast(torch.ones(1, dtype=torch.bfloat16)).dtype == torch.float32
    assert collectives.upcast(torch.ones(1, dtype=torch.float64)).dtype == torch.float64
