"""The chart of one run: its values are the spec, and their schema is the model's."""

from __future__ import annotations

from typing import Any

import pytest
import yaml
from rendering import RUN, helm, rendered
from scholarch.config.training_run import TrainingRunSpec
from scholarch_operator import values

EXAMPLE: dict[str, Any] = yaml.safe_load((RUN / "ci/digits.yaml").read_text())


def test_schema_in_the_chart_is_the_generated_one() -> None:
    assert (RUN / "values.schema.json").read_text() == values.schema(), "make crds"


def test_values_are_the_spec() -> None:
    (run,) = rendered(RUN, EXAMPLE, release="mine")
    assert (run["kind"], run["metadata"]["name"]) == ("TrainingRun", "mine")
    assert run["spec"] == EXAMPLE
    assert TrainingRunSpec.parse(run["spec"]).nodes.max == 2


def test_lint() -> None:
    done = helm("lint", "--strict", str(RUN), values=EXAMPLE)
    assert done.returncode == 0, done.stdout


@pytest.mark.parametrize(
    ("change", "says"),
    [
        ({"image": None}, "image"),
        ({"nodes": {"min": 0}}, "min"),
        ({"nodes": {"minimum": 1}}, "minimum"),
        ({"stages": "demo/digits"}, "stages"),
        ({"resources": {"cpu": 1.5}}, "cpu"),
        ({"graceSeconds": 5}, "graceSeconds"),
        ({"overrides": ["training.steps"]}, "overrides"),
        ({"gang": {"backend": "slurm"}}, "backend"),
    ],
)
def test_wrong_values_are_refused(change: dict[str, Any], says: str) -> None:
    given = {key: value for key, value in {**EXAMPLE, **change}.items() if value is not None}
    done = helm("template", "mine", str(RUN), "--kube-version", "1.34.0", values=given)
    assert done.returncode != 0
    assert says in done.stderr
