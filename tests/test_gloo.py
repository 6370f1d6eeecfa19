import pytest
import torch
import torch.distributed as dist
from gloo import run_ranks
from torch.distributed import ProcessGroup


def _sum_of_ranks(group: ProcessGroup, extra: int) -> float:
    x = torch.tensor(float(dist.get_rank(group) + extra))
    dist.all_reduce(x, group=group)
    return x.item()


def _fails_on_rank_one(group: ProcessGroup) -> None:
    if dist.get_rank(group) == 1:
        raise ValueError("as intended")


@pytest.mark.gloo
def test_ranks_talk_to_each_other() -> None:
    assert run_ranks(3, _sum_of_ranks, 10) == [33.0, 33.0, 33.0]


@pytest.mark.gloo
def test_a_failing_rank_is_named_with_its_traceback() -> None:
    with pytest.raises(AssertionError, match=r"(?s)rank 1 failed.*as intended"):
        run_ranks(2, _fails_on_rank_one)
