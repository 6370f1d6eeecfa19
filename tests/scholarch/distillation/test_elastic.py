"""A job of two students on three nodes that loses one and gets it back, under the real launcher.

The short version of benchmarks/distillation_elastic.py, which has four.
"""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

sys.path.append(str(Path(__file__).parents[3] / "benchmarks"))

import distillation_elastic


@pytest.mark.gloo
@pytest.mark.timeout(600)
def test_groups_follow_the_nodes_and_curves_do_not(tmp_path: Path) -> None:
    steps = 60
    other = distillation_elastic.untouched(tmp_path, steps, "fp64")
    run, plans = distillation_elastic.loses_one(tmp_path, steps, "fp64", 3)
    assert {sum(plan.values()) for plan in plans} == {2, 3}
    assert max(distillation_elastic.compared(run, other, steps).values()) < 1e-10
