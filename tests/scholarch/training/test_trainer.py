import math
import re
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed as dist
from gloo import run_ranks
from scholarch.config.resolve import map_schedules
from scholarch.errors import RunFailed
from scholarch.training.checkpoint import committed
from scholarch.training.learner import StepValues
from scholarch.training.trainer import Speed, Trainer
from tiny_training import Kept, gloo_world, tiny_recipe, tiny_trainer
from torch.distributed import ProcessGroup

SHORT = ("training.workers=0", "training.checkpoint_every=2")


def weights(trainer: Trainer) -> dict[str, torch.Tensor]:
    return {name: p.full_tensor().clone() for name, p in trainer.learner.student.named_parameters()}


def poison(trainer: Trainer, step: int, part: str) -> dict[str, torch.Tensor]:
    """Makes one part of the loss NaN at a step; gives the weights as they were before that step."""
    honest, kept = trainer.learner.accumulate, {}

    def accumulate(*arguments: Any, **named: Any) -> StepValues:
        values = honest(*arguments, **named)
        if arguments[-1] == step:
            kept.update(weights(trainer))
            if dist.get_rank() == 1:
                values.parts[part] = values.parts[part] * math.nan
        return values

    trainer.learner.accumulate = accumulate  # type: ignore[method-assign]
    return kept


def meets_nan(group: ProcessGroup, folder: Path) -> tuple[str, bool]:
    trainer, _ = tiny_trainer(gloo_world(group), folder, tiny_recipe(*SHORT))
    before = poison(trainer, 3, "ibot")
    try:
        trainer.run()
    except RunFailed as error:
        after = weights(trainer)
        return str(error), all(torch.equal(after[name], before[name]) for name in before)
    return "", False


@pytest.mark.gloo
def test_a_loss_that_is_not_finite_stops_all_ranks_before_the_step(tmp_path: Path) -> None:
    for message, unmoved in run_ranks(2, meets_nan, tmp_path):
        assert message.startswith("step 3: the loss term ibot is not finite (nan) on rank 1;")
        assert unmoved
    assert [checkpoint.step for checkpoint in committed(tmp_path)] == [2]


def meets_infinite_gradient(group: ProcessGroup, folder: Path) -> str:
    trainer, _ = tiny_trainer(gloo_world(group), folder, tiny_recipe(*SHORT))
    honest = trainer.learner.accumulate

    def accumulate(*arguments: Any, **named: Any) -> StepValues:
        values = honest(*arguments, **named)
        weight = next(trainer.learner.student.heads["dino"].parameters())
        assert weight.grad is not None
        weight.grad = weight.grad * math.inf
        return values

    trainer.learner.accumulate = accumulate  # type: ignore[method-assign]
    with pytest.raises(RunFailed) as caught:
        trainer.run()
    return str(caught.value)


def test_a_gradient_that_is_not_finite_names_the_part(tmp_path: Path) -> None:
    (message,) = run_ranks(1, meets_infinite_gradient, tmp_path)
    assert re.match(r"step 0: the gradient of heads\.dino is not finite", message)


def is_stopped_on_rank_one(group: ProcessGroup, folder: Path) -> tuple[str, int]:
    trainer, _ = tiny_trainer(gloo_world(group), folder, tiny_recipe(*SHORT))
    honest = trainer.learner.accumulate

    def accumulate(*arguments: Any, **named: Any) -> StepValues:
        trainer.stop.asked = dist.get_rank() == 1 and arguments[-1] == 2
        return honest(*arguments, **named)

    trainer.learner.accumulate = accumulate  # type: ignore[method-assign]
    return trainer.run()


@pytest.mark.gloo
def test_a_stop_asked_of_one_rank_stops_all_at_the_same_step(tmp_path: Path) -> None:
    assert run_ranks(2, is_stopped_on_rank_one, tmp_path) == [("interrupted", 3)] * 2
    assert [checkpoint.step for checkpoint in committed(tmp_path)] == [2, 3]


def losses_with(group: ProcessGroup, folder: Path, overrides: tuple[str, ...]) -> list[float]:
    kept = Kept()
    trainer, _ = tiny_trainer(
        gloo_world(group), folder, tiny_recipe(*SHORT, "training.precision=fp64", *overrides), kept
    )
    trainer.run()
    return [record["loss/total"] for record in kept.records if "loss/total" in record]


@pytest.mark.parametrize(
    "overrides",
    [
        ("training.activation_checkpointing=selective",),
        ("training.activation_checkpointing=full",),
        ("training.micro_batch=4",),
        ("training.workers=1",),
    ],
)
def test_how_it_is_carried_out_changes_nothing(tmp_path: Path, overrides: tuple[str, ...]) -> None:
    plain = run_ranks(1, losses_with, tmp_path / "a", ())[0]
    other = run_ranks(1, losses_with, tmp_path / "b", overrides)[0]
    assert len(plain) == 6
    assert other == pytest.approx(plain, rel=1e-12)


def test_probes_come_first_every_so_often_and_last(tmp_path: Path) -> None:
    def probed(group: ProcessGroup) -> tuple[list[int], list[int]]:
        kept, seen = Kept(), []
        trainer, _ = tiny_trainer(
            gloo_world(group), tmp_path, tiny_recipe(*SHORT, "evaluation.every=4"), kept
        )

        def probe(finished: int, _values: StepValues) -> dict[str, float]:
            seen.append(finished)
            return {"evaluation/seen": 1.0}

        trainer.probes.append(probe)
        trainer.run()
        return seen, [int(r["step"]) for r in kept.records if "evaluation/seen" in r]

    assert run_ranks(1, probed) == [([0, 4, 6], [0, 4, 6])]


def test_speed_is_over_the_last_steps() -> None:
    speed = Speed(images=10)
    assert speed.metrics(5) == {}
    speed.took(2.0, 0.5, torch.tensor([1.0, 2.0]))
    speed.took(3.0, 0.5, torch.tensor([4.0, 1.0]))
    assert speed.metrics(4) == {
        "images_per_second": 4.0,
        "data_wait": 0.2,
        "eta_seconds": 10.0,
        "slowest_rank": 0.0,
    }


def test_schedules_in_a_recipe_are_resolved_everywhere() -> None:
    recipe = tiny_recipe("terms.dino.local_weight=[{shape: linear, steps: 0.5, start: 1, end: 0.5}]")
    assert recipe.terms["dino"].local_weight.segments[0].steps == 3
    assert map_schedules(recipe, 6) == recipe
