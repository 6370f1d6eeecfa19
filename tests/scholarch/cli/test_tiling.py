"""Which costs a job's first plan is made from."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from scholarch.cli import main
from scholarch.cli.tiling import planning
from scholarch.distillation.measured import Measured, hardware_name
from scholarch.storage.objects import open_objects
from scholarch.training.recipe import load_recipe

CPU = torch.device("cpu")
WORLD: Any = SimpleNamespace(
    first=True, size=4, device=CPU, from_first=lambda value: value, agree=lambda work: work()
)
STEEP = {"vit": {64: 3.0}, "convnext": {64: 1.0}}
"""Seconds by pictures: the other way round than operations have it."""


def sizes(own: Path, other: str = "") -> dict[str, int]:
    recipe = load_recipe("demo/distill", ["teachers.teacher.checkpoint=drawn"])
    found = planning(recipe, list(recipe.students), (str(own), other), WORLD, last=False)
    return dict(found.tiling().sizes)


def test_the_steps_of_another_run_plan_a_new_one(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    own, warm_up, elsewhere = (tmp_path / name for name in ("own", "warm-up", "elsewhere"))
    measured = Measured(hardware_name(CPU), together=False, teacher={16: 0.1}, students=STEEP)
    measured.write(open_objects(str(warm_up)))
    replace(measured, hardware="another").write(open_objects(str(elsewhere)))
    counted = {"vit": 1, "convnext": 3}
    assert sizes(own) == counted
    assert sizes(own, str(warm_up)) == {"vit": 3, "convnext": 1}
    assert sizes(own, str(elsewhere)) == counted
    assert "measured on another" in capsys.readouterr().err
    # What a run has measured itself counts before that of others.
    even = {"vit": {64: 1.0}, "convnext": {64: 1.0}}
    replace(measured, students=even).write(open_objects(str(own)))
    assert sizes(own, str(warm_up)) == {"vit": 2, "convnext": 2}


def test_a_run_that_has_measured_nothing_is_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    words = ["--recipe", "dinov2/distill", "--scale", "tiny"]
    assert main(["distill", *words, "--costs", "nowhere", "students.one={}"]) == 2
    assert "--costs nowhere" in capsys.readouterr().err
