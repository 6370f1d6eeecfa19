"""High-resolution adaptation: sizes of crops drawn for each step, with a Gram teacher on its own crops."""

from collections.abc import Sequence
from pathlib import Path

import pytest
import torch
from gloo import run_ranks
from scholarch.errors import UserError
from scholarch.training.preflight import check_views
from tiny_training import gloo_world, tiny_recipe, train
from torch.distributed import ProcessGroup

HIGHRES = (
    "training.precision=fp64",
    "training.workers=0",
    "evaluation.every=1000",
    "views.global.distortions=none",
    "views.gram={like: global, size: 24, distortions: none}",
    "teachers.gram={weights: snapshot, of: ema, sees: [gram]}",
    "terms.gram={teacher: gram}",
    (
        "resolutions=[{ratio: 0.3, sizes: {global: 16, local: 8, gram: 24}},"
        " {ratio: 0.7, sizes: {global: 24, local: 12, gram: 36}}]"
    ),
)


def on_rank(group: ProcessGroup, folder: Path, overrides: Sequence[str]) -> list[float]:
    records = train(gloo_world(group), folder, (*HIGHRES, *overrides))
    return [r["loss/total"] + r["loss/gram"] for r in records if "loss/total" in r]


@pytest.mark.gloo
def test_same_on_any_number_of_processes(tmp_path: Path) -> None:
    one = run_ranks(1, on_rank, tmp_path / "1", ())[0]
    two = run_ranks(2, on_rank, tmp_path / "2", ("training.micro_batch=2",))[0]
    assert len(one) == 6
    torch.testing.assert_close(torch.tensor(two), torch.tensor(one), rtol=1e-8, atol=0)


@pytest.mark.parametrize(
    ("sizes", "message"),
    [
        ("{global: 18}", r"resolutions\.0\.sizes\.global: crops of 18 pixels"),
        ("{globl: 16}", "no view 'globl'"),
        ("{local: 2}", "does not fit crops of 2"),
    ],
)
def test_sizes_that_cannot_be_are_refused(sizes: str, message: str) -> None:
    with pytest.raises(UserError, match=message):
        check_views(tiny_recipe(f"resolutions=[{{ratio: 1.0, sizes: {sizes}}}]", "views.local.blur_kernel=5"))
