"""The real command under the real launcher: the curve on 1 and 3 workers, and through kills of workers.

The short version of benchmarks/elastic/invariance.py and kills.py.
"""

from __future__ import annotations

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


def test_three_workers_with_accumulation_are_one(tmp_path: Path) -> None:
    """12 steps: losses as close as fp64 rounds, the same samples at the same places."""
    overrides = (*SMALL, "training.precision=fp64")
    invariance.fixed(tmp_path, "1", 1, 12, *overrides)
    invariance.fixed(tmp_path, "3", 3, 12, *overrides, "training.micro_batch=2")
    one, three = ([r["loss/total"] for r in nodes.records(tmp_path / name)] for name in ("1", "3"))
    assert len(one) == 12
    assert three == pytest.approx(one, rel=1e-10)
    samples = invariance.samples(tmp_path, "1", BATCH)
    assert sorted(samples) == list(range(12))
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
