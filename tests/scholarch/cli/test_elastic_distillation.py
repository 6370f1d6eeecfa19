"""Several students under the real launcher, through the loss of a node and its return.

The short version of benchmarks/distillation_elastic.py.
"""

from __future__ import annotations

import sys
from itertools import groupby
from pathlib import Path

import pytest

sys.path.append(str(Path(__file__).parents[3] / "benchmarks"))

import distillation_elastic as elastic

STEPS, MORE = 100, 4
"""Of the schedule; and after the last change, when the run is stopped: how far it got depends on the machine."""


@pytest.mark.gloo
@pytest.mark.timeout(1200)
def test_students_keep_their_curves_when_a_node_is_lost_and_comes_back(tmp_path: Path) -> None:
    run, plans = elastic.loses_one(tmp_path, STEPS, "fp64", MORE)
    processes = [sum(groups.values()) for groups in plans]
    assert [count for count, _ in groupby(processes)] == [elastic.NODES, elastic.NODES - 1, elastic.NODES]
    assert all(set(groups) == set(elastic.STUDENTS) for groups in plans)
    # Groups of other sizes add up in another order, and in fp64 that is all that differs.
    other = elastic.untouched(tmp_path, STEPS, "fp64", until=len(elastic.curve(run, "vit")))
    assert max(elastic.compared(run, other).values()) < 1e-6
