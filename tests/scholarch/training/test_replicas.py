"""What nodes keep in memory of the newest steps, and the checkpoint that is made of it when nodes are lost."""

from __future__ import annotations

import io
import os
import shutil
from contextlib import redirect_stderr
from dataclasses import replace
from pathlib import Path

import pytest
from gloo import run_ranks
from scholarch.storage.records import Record
from scholarch.training.checkpoint import committed, newest_whole
from scholarch.training.distributed import World
from scholarch.training.memory import FOLDER, memory
from scholarch.training.replicas import place_of
from scholarch.training.rescue import Held, choose, rescue
from tiny_training import Kept, gloo_world, tiny_recipe, tiny_trainer
from torch.distributed import ProcessGroup

SHORT = ("training.workers=0", "training.checkpoint_every=2", "training.precision=fp64")
STEPS = 6
NODES, ON_A_NODE = 2, 2
Losses = dict[int, float]


def on_nodes(group: ProcessGroup, folder: Path, size: int) -> World:
    """The world of ranks of which each `size` are on one node, with its own memory."""
    world = gloo_world(group)
    os.environ[FOLDER] = str(folder / f"node{world.rank // size}")
    return replace(world, local_rank=world.rank % size, local_size=size)


def trained(group: ProcessGroup, folder: Path, *overrides: str) -> Losses:
    world, kept = on_nodes(group, folder, ON_A_NODE), Kept()
    trainer, _ = tiny_trainer(world, folder / "run", tiny_recipe(*SHORT, *overrides), kept)
    trainer.replicas.records = lambda: list(kept.records)
    trainer.run(trainer.begin())
    return {int(r["step"]): r["loss/total"] for r in kept.records if "loss/total" in r}


def gone_on(group: ProcessGroup, folder: Path) -> tuple[Losses, list[list[Record]]]:
    """One node's two ranks go on; losses, and the records that the log may have lacked."""
    world, kept, lacked = on_nodes(group, folder, ON_A_NODE), Kept(), []
    run = folder / "run"
    newest = committed(run)[-1].step
    found = rescue(str(run), newest, world, lambda _, records: lacked.append(records))
    trainer, _ = tiny_trainer(world, run, tiny_recipe(*SHORT), kept)
    start = found or newest_whole(run)
    assert start is not None
    assert start.damage() == ""
    trainer.run(trainer.resume(start))
    return {int(r["step"]): r["loss/total"] for r in kept.records if "loss/total" in r}, lacked


@pytest.fixture(scope="module")
def both(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Losses]:
    """Two nodes of two ranks, six steps; of the checkpoints that of step 2 is left."""
    folder = tmp_path_factory.mktemp("both")
    losses = run_ranks(NODES * ON_A_NODE, trained, folder)[0]
    for checkpoint in committed(folder / "run")[1:]:
        shutil.rmtree(checkpoint.address)
    return folder, losses


def copied(both: tuple[Path, Losses], target: Path) -> Path:
    """The same with other addresses: the run's name is that of its replicas."""
    before, now = place_of_run(both[0], 0), place_of_run(target, 0)
    shutil.copytree(both[0], target, dirs_exist_ok=True)
    for node in range(NODES):
        (target / f"node{node}" / before.name).rename(target / f"node{node}" / now.name)
    return target


def place_of_run(folder: Path, node: int) -> Path:
    os.environ[FOLDER] = str(folder / f"node{node}")
    try:
        found = place_of(str(folder / "run"))
    finally:
        del os.environ[FOLDER]
    assert found is not None
    return found


@pytest.mark.gloo
@pytest.mark.parametrize("lost", range(NODES))
def test_a_lost_node_costs_no_step(both: tuple[Path, Losses], tmp_path: Path, lost: int) -> None:
    """Its neighbour has its parts, the records of its first rank among them."""
    folder = copied(both, tmp_path)
    left = NODES - 1 - lost
    shutil.rmtree(folder / f"node{lost}")
    (folder / f"node{left}").rename(folder / "node")
    (folder / "node").rename(folder / "node0")
    losses, lacked = run_ranks(ON_A_NODE, gone_on, folder)[0]
    assert list(losses) == [STEPS]
    assert losses[STEPS] == pytest.approx(both[1][STEPS], rel=1e-12)
    ((records,),) = [lacked]
    assert [r["loss/total"] for r in records if "loss/total" in r] == [both[1][s] for s in range(1, STEPS)]


@pytest.mark.gloo
def test_a_step_of_which_a_part_is_lost_is_none(both: tuple[Path, Losses], tmp_path: Path) -> None:
    folder = copied(both, tmp_path)
    shutil.rmtree(folder / "node1")
    for part in (folder / "node0").glob("*/*/rank-00003/step-000000005"):
        shutil.rmtree(part)
    losses, _ = run_ranks(ON_A_NODE, gone_on, folder)[0]
    assert list(losses) == [5, 6]


@pytest.mark.gloo
def test_without_anything_in_memory_it_goes_on_from_the_last_commit(
    both: tuple[Path, Losses], tmp_path: Path
) -> None:
    folder = copied(both, tmp_path)
    shutil.rmtree(folder / "node0")
    shutil.rmtree(folder / "node1")
    losses, lacked = run_ranks(ON_A_NODE, gone_on, folder)[0]
    assert (list(losses), lacked) == ([3, 4, 5, 6], [])


@pytest.mark.gloo
def test_memory_that_is_too_small_ends_it_and_not_the_run(tmp_path: Path) -> None:
    def cramped(group: ProcessGroup, folder: Path) -> tuple[int, str]:
        world = on_nodes(group, folder, 1)
        if world.rank == 1:
            shutil.disk_usage = lambda _: shutil._ntuple_diskusage(9, 8, 1)  # type: ignore[attr-defined,assignment]
        trainer, _ = tiny_trainer(world, folder / "run", tiny_recipe(*SHORT))
        told = io.StringIO()
        with redirect_stderr(told):
            finished = trainer.run(trainer.begin())[1]
        assert told.getvalue().count("no longer kept in memory") == int(world.first)
        return finished, trainer.replicas.trouble

    for finished, trouble in run_ranks(2, cramped, tmp_path):
        assert finished == STEPS
        assert "0 MiB, and" in trouble
        assert "are needed" in trouble
    assert not list(tmp_path.glob("node*/*/*/rank-*"))


def test_none_are_kept_where_the_recipe_says_so(tmp_path: Path) -> None:
    run_ranks(2, trained, tmp_path, "training.replicate_every=0")
    assert not (tmp_path / "node0").exists()


def test_the_newest_whole_step_is_chosen() -> None:
    def held(step: int, world: str, *ranks: int) -> list[Held]:
        return [Held(step, world, rank) for rank in ranks]

    two, old = "2-aa", "3-bb"
    found = choose([held(7, two, 0, 1) + held(8, two, 0), held(7, two, 1)], 5)
    assert found is not None
    assert (found.step, found.holders) == (7, (0, 0))
    found = choose([held(8, two, 0), held(8, two, 1)], 7)
    assert found is not None
    assert found.holders == (0, 1)
    assert choose([held(8, two, 0, 1)], 8) is None, "it is committed"
    assert choose([held(9, old, 0, 2)], 5) is None
    assert choose([], -1) is None
    # Parts of two worlds at one step are of two states.
    assert choose([held(9, "2-aa", 0), held(9, "2-bb", 1)], 5) is None


def test_a_launchers_folder_goes_with_it() -> None:
    with memory():
        folder = Path(os.environ[FOLDER])
        assert folder.stat().st_mode & 0o777 == 0o700
        left = folder.with_name(f"{folder.name.rpartition('-')[0]}-{2**22 + 1}")  # more than a process has
        left.mkdir()
    assert not folder.exists()
    assert FOLDER not in os.environ
    with memory():
        assert not left.exists()
