"""One job of three students is three runs of one student on the same stream."""

from __future__ import annotations

import signal
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import pytest
from distilling import curve, distance, job_data, job_recipe, resolved, student_state, trainer_of
from gloo import run_ranks
from scholarch.data.catalog import open_source
from scholarch.errors import RunFailed
from scholarch.training.assemble import build_trainer
from scholarch.training.learner import StepValues
from scholarch.training.preflight import check_batch
from tiny_training import Kept, gloo_world
from torch import Tensor
from torch.distributed import ProcessGroup

Result = tuple[str, list[float], dict[str, Tensor]]


def together(
    group: ProcessGroup,
    data: Mapping[str, Any],
    sizes: Mapping[str, int],
    teacher: Sequence[int],
    folder: Path,
) -> Result:
    trainer, exchange, kept, name = trainer_of(group, data, sizes, teacher, folder)
    trainer.run(trainer.begin())
    exchange.close()
    return name, curve(kept.records), student_state(trainer)


def alone(group: ProcessGroup, data: Mapping[str, Any], name: str, folder: Path) -> Result:
    world, kept = gloo_world(group), Kept()
    own = resolved(job_recipe(data), name, world.size)
    trainer = build_trainer(own, open_source("digits"), check_batch(own, world.size), world, folder, [kept])
    trainer.run(trainer.begin())
    return name, curve(kept.records), student_state(trainer)


def compare(
    data: Mapping[str, Any],
    sizes: Mapping[str, int],
    teacher: Sequence[int],
    folder: Path,
    tolerance: float,
    *,
    alike: bool,
) -> None:
    """Against runs of one student on as many processes (`alike`), where sums round alike; or on one process."""
    results = run_ranks(sum(sizes.values()), together, data, sizes, teacher, folder)
    first: dict[str, Any] = {}
    for result in results:
        first.setdefault(result[0], result)
    assert set(first) == set(sizes)
    for name, size in sizes.items():
        world = size if alike else 1
        _, losses, state = run_ranks(world, alone, data, name, folder / f"alone-{name}")[0]
        assert len(losses) == job_recipe(data).training.steps
        assert first[name][1] == pytest.approx(losses, rel=tolerance)
        assert distance(first[name][2], state) < tolerance


SIZES = {"small": 1, "middle": 2, "large": 1}
PARTS = [0, 1, 6, 6, 10]
"""4 ranks, a batch of 10, parts of the teacher of 1, 5, 0 and 4, and one student in two micro-batches."""


@pytest.mark.gloo
@pytest.mark.timeout(600)
def test_three_students_are_three_runs(tmp_path: Path) -> None:
    # A middle student of lr 2e-3 from the first step on enlarges rounding a thousandfold, in fp64 too.
    data = job_data("training.steps=50", "optimizer.lr=5e-4", "students.middle.optimizer.lr=2e-4")
    compare(data, SIZES, PARTS, tmp_path, 1e-5, alike=True)


@pytest.mark.gloo
def test_three_students_are_three_runs_of_one_process(tmp_path: Path) -> None:
    """In fp64: two processes round otherwise than one."""
    data = job_data("training.steps=8", "training.precision=fp64")
    compare(data, SIZES, PARTS, tmp_path, 1e-9, alike=False)


MIXED: Mapping[str, Any] = {
    "vit": {},
    "own_masks": {"model": {"embed_dim": 16}, "masks": {"global": {"share": 1.0}}},
    "convnext": {
        "model": {"kind": "convnext", "depths": [1, 1, 1, 1], "widths": [8, 16, 24, 32], "channels": 1},
        "views": {"global": {"size": 64, "teacher_size": 8}, "local": {"size": 32}},
    },
}


@pytest.mark.gloo
def test_a_convnext_beside_vision_transformers_with_masks_of_their_own(tmp_path: Path) -> None:
    """Crops of 64 pixels beside those of 8 that the teacher sees too; each process holds the teacher whole."""
    small = ("views.global.size=8", "views.local.size=4", "teachers.teacher.sharded=none")
    data = job_data(*small, "training.precision=fp64", "training.steps=4", students=MIXED)
    compare(data, dict.fromkeys(MIXED, 1), [0, 2, 10, 10], tmp_path, 1e-9, alike=True)


def one_fails(group: ProcessGroup, data: Mapping[str, Any], folder: Path) -> tuple[str, list[float], str]:
    trainer, exchange, kept, name = trainer_of(group, data, {"breaks": 1, "lasts": 1}, [0, 5, 10], folder)
    told = ""
    try:
        trainer.run(trainer.begin())
    except RunFailed as failure:
        told = str(failure)
    exchange.serve()
    exchange.close()
    return name, curve(kept.records), told


def one_is_stopped(group: ProcessGroup, data: Mapping[str, Any], folder: Path) -> tuple[str, int]:
    trainer, exchange, _, name = trainer_of(group, data, {"breaks": 1, "lasts": 1}, [0, 5, 10], folder)

    def stop_at_three(finished: int, values: StepValues) -> dict[str, float]:  # noqa: ARG001 - a Probe
        if finished == 3 and name == "breaks":
            exchange.stop(signal.SIGTERM, None)
        return {}

    trainer.probes.append(stop_at_three)
    outcome, finished = trainer.run(trainer.begin())
    exchange.serve()
    exchange.close()
    return outcome, finished


TWO: Mapping[str, Any] = {
    "breaks": {"optimizer": {"lr": 1e30, "clip": None}},
    "lasts": {"model": {"embed_dim": 16}},
}


@pytest.mark.gloo
def test_a_student_that_fails_goes_on_with_the_teachers_work(tmp_path: Path) -> None:
    data = job_data("training.steps=6", students=TWO)
    (_, broken, told), (_, losses, nothing) = run_ranks(2, one_fails, data, tmp_path)
    assert "is not finite" in told
    assert nothing == ""
    assert len(broken) < 6
    assert losses == pytest.approx(run_ranks(1, alone, data, "lasts", tmp_path / "alone")[0][1], rel=1e-6)


@pytest.mark.gloo
def test_a_stop_at_one_process_ends_all_after_the_same_step(tmp_path: Path) -> None:
    data = job_data("training.steps=9", "evaluation.every=1", students={**TWO, "breaks": {}})
    ends = run_ranks(2, one_is_stopped, data, tmp_path)
    assert [outcome for outcome, _ in ends] == ["interrupted"] * 2
    assert ends[0][1] == ends[1][1] < 9


def one_plans_anew(group: ProcessGroup, data: Mapping[str, Any], folder: Path) -> tuple[str, int, list[Any]]:
    trainer, exchange, _, _ = trainer_of(group, data, {"breaks": 1, "lasts": 1}, [0, 3, 10], folder)
    told: list[Any] = []
    exchange.replanned = lambda seen: not told.append(list(seen))  # type: ignore[func-returns-value]
    outcome, finished = trainer.run(trainer.begin())
    exchange.serve()
    exchange.close()
    return outcome, finished, told


@pytest.mark.gloo
def test_another_plan_ends_all_at_a_checkpoint(tmp_path: Path) -> None:
    """Asked at every second step, and heard once there are three measurements beyond the warm-up of two."""
    data = job_data("training.steps=12", "training.checkpoint_every=2", students={**TWO, "breaks": {}})
    ends = run_ranks(2, one_plans_anew, data, tmp_path)
    assert [outcome for outcome, _, _ in ends] == ["interrupted"] * 2
    assert ends[0][1] == ends[1][1] == 6
    assert ends[0][2] == ends[1][2], "decided by the same numbers"
    ((first, second),) = ends[0][2]
    assert (first.student, first.own, first.part) == ("breaks", 10, 3)
    assert (second.student, second.own, second.part) == ("lasts", 10, 7)
    assert min(first.student_seconds, second.teacher_seconds) > 0
