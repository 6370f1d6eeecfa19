"""The real command under the real launcher: the curve on 1 and 3 workers, and through kills of workers.

The short version of benchmarks/elastic/invariance.py and kills.py.
"""

from __future__ import annotations

import re
import sys
from pathlib import Path

import pytest
from tiny_training import TINY

sys.path.append(str(Path(__file__).parents[3] / "benchmarks" / "elastic"))

import invariance
import kills
import nodes

pytestmark = [pytest.mark.gloo, pytest.mark.timeout(600)]
BATCH = 8
SMALL = [word for word in TINY if not word.startswith("training.steps")]
DOUBLE = (*SMALL, "training.precision=fp64")
STEPS = 20


@pytest.fixture(scope="module")
def alone(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, list[float]]:
    """Folder and losses of one worker that nobody touches, in fp64."""
    folder = tmp_path_factory.mktemp("alone")
    invariance.fixed(folder, "1", 1, STEPS, *DOUBLE)
    losses = [record["loss/total"] for record in nodes.records(folder / "1")]
    assert len(losses) == STEPS
    return folder, losses


def test_three_workers_with_accumulation_are_one(tmp_path: Path, alone: tuple[Path, list[float]]) -> None:
    """Losses as close as fp64 rounds, the same samples at the same places."""
    invariance.fixed(tmp_path, "3", 3, STEPS, *DOUBLE, "training.micro_batch=2")
    three = [record["loss/total"] for record in nodes.records(tmp_path / "3")]
    assert three == pytest.approx(alone[1], rel=1e-10)
    samples = invariance.samples(alone[0], "1", BATCH)
    assert sorted(samples) == list(range(STEPS))
    assert invariance.samples(tmp_path, "3", BATCH) == samples
    assert set().union(*invariance.worlds(tmp_path, "3").values()) == {3}


def test_killed_three_times_it_ends_bit_equal(tmp_path: Path) -> None:
    steps = 16
    untouched = kills.start(tmp_path / "untouched", tmp_path / "untouched.log", steps, 3, SMALL)
    process = None
    try:
        assert untouched.end(300) == 0, untouched.text
        process = kills.start(tmp_path / "killed", tmp_path / "killed.log", steps, 3, SMALL)
        kills.kill_at_random(process, tmp_path / "killed", steps, 3, seed=1)
        assert process.end(300) == 0, process.text
    finally:
        for one in (untouched, process):
            if one is not None:
                one.kill()
    assert process.text.count("ended with signal SIGKILL") == 3
    equal = kills.compare(tmp_path / "killed", tmp_path / "untouched")
    assert equal == {"checkpoint": True, "export": True, "losses": True}


def test_a_killed_node_costs_no_finished_step_while_the_other_one_lives(
    tmp_path: Path, alone: tuple[Path, list[float]]
) -> None:
    """Without a checkpoint: what is gone on with was in the memory of the node that is left."""
    run = tmp_path / "run"
    words = invariance.arguments(run, STEPS, *DOUBLE, "training.checkpoint_every=1000")
    store = nodes.Store(tmp_path / "store.log")
    options = ("--nodes", "1:2", "--rendezvous", f"localhost:{store.port}")
    both: list[nodes.Process] = []
    try:
        both += [nodes.node(tmp_path / f"node{number}.log", options, words) for number in range(2)]
        nodes.wait(lambda: nodes.step(run) >= 4, 200, "step 4")
        first, left = both if "2 processes" in both[0].text else both[::-1]
        assert "2 processes" in first.text, "only rank 0 speaks"
        first.kill()
        seen = nodes.step(run)
        assert left.end(200) == 0, left.text
    finally:
        for process in (*both, store):
            process.kill()
    found = re.search(r"step (\d+) was in the memory of the nodes", left.text)
    assert found, left.text
    # The copy of the last step may have been on its way.
    assert int(found[1]) >= seen - 1
    log = nodes.records(run)
    assert [record["step"] for record in log] == list(range(1, STEPS + 1))
    assert [record["loss/total"] for record in log] == pytest.approx(alone[1], rel=1e-6)
