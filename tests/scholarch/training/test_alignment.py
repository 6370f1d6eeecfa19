"""Text alignment by the one trainer: the same curve on any number of processes, and what moves and what does not."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import pytest
import torch
from gloo import run_ranks
from scholarch.config.schema import Recipe
from scholarch.models.alignment import AlignedBackbone
from scholarch.training.checkpoint import newest_whole
from scholarch.training.learner import StepValues
from scholarch.training.networks import Execution, build_network, materialise, whole_state
from scholarch.training.optimizer import Optimizer
from scholarch.training.recipe import load_recipe
from tiny_training import gloo_world, tiny_trainer, train
from torch.distributed import ProcessGroup


def tiny(*overrides: str) -> Recipe:
    small = (
        "training.steps=8",
        "training.precision=fp64",
        "evaluation.every=8",
        "model.head.stochastic_depth=0.5",
    )
    return load_recipe("dinov3/text", ("data=shapes", *small, *overrides), "tiny")


def run(
    group: ProcessGroup, folder: Path, overrides: tuple[str, ...]
) -> tuple[list[float], dict[str, torch.Tensor]]:
    records = train(gloo_world(group), folder, (), tiny(*overrides))
    trainer, _ = tiny_trainer(gloo_world(group), folder, tiny(*overrides))
    found = newest_whole(folder)
    assert found is not None
    trainer.resume(found)
    losses = [record["loss/total"] for record in records if "loss/total" in record]
    return losses, whole_state(trainer.learner.student)


@pytest.mark.gloo
def test_one_and_two_and_three_processes_give_the_same_curve(tmp_path: Path) -> None:
    one, state = run_ranks(1, run, tmp_path / "1", ())[0]
    assert len(one) == 8
    assert all(math.isfinite(value) for value in one)
    for world in (2, 3):
        more, other = run_ranks(world, run, tmp_path / str(world), ())[0]
        assert more == pytest.approx(one, rel=1e-6)
        for name, tensor in state.items():
            torch.testing.assert_close(other[name], tensor, rtol=1e-4, atol=1e-7)


@pytest.mark.gloo
def test_the_backbone_stays_and_all_else_moves(tmp_path: Path) -> None:
    """After one step every trained tensor differs from its first value, and no locked one does."""

    def moved(group: ProcessGroup, folder: Path) -> dict[str, bool]:
        trainer, _ = tiny_trainer(gloo_world(group), folder, tiny("optimizer.lr=1e-2", "training.steps=2"))
        before = whole_state(trainer.learner.student)
        trainer.run()
        after = whole_state(trainer.learner.student)
        return {name: not torch.equal(tensor, after[name]) for name, tensor in before.items()}

    for name, differs in run_ranks(2, moved, tmp_path)[0].items():
        locked = name.startswith("backbone.visual_model.backbone.")
        unused = name.endswith("positional_embedding")  # moves where captions are, which is checked below
        assert differs != locked or unused, name


@pytest.mark.gloo
def test_stopped_and_resumed_is_the_same_to_the_bit(tmp_path: Path) -> None:
    def whole(group: ProcessGroup, folder: Path, stop: int | None) -> dict[str, torch.Tensor]:
        recipe = tiny("training.precision=fp32", "training.checkpoint_every=8", "training.steps=5")
        trainer, _ = tiny_trainer(gloo_world(group), folder, recipe)
        honest = trainer.learner.accumulate

        def accumulate(*arguments: Any, **named: Any) -> StepValues:
            trainer.stop.asked = arguments[-1] == stop
            return honest(*arguments, **named)

        trainer.learner.accumulate = accumulate  # type: ignore[method-assign]
        outcome, finished = trainer.run(trainer.begin())
        if stop is not None:
            assert (outcome, finished) == ("interrupted", stop + 1)
            trainer, _ = tiny_trainer(gloo_world(group), folder, recipe)
            found = newest_whole(folder)
            assert found is not None
            assert trainer.run(trainer.resume(found)) == ("done", 5)
        return whole_state(trainer.learner.student)

    plain = run_ranks(2, whole, tmp_path / "plain", None)[0]
    resumed = run_ranks(2, whole, tmp_path / "stopped", 1)[0]
    for name, tensor in plain.items():
        assert torch.equal(resumed[name], tensor), name


def test_groups_and_bounds() -> None:
    """Weight decay stands on matrices alone (reference.md 7), and the temperature is set back to its bounds."""
    recipe = tiny("optimizer.lr=1.0", "optimizer.weight_decay=0.5")
    network = build_network(recipe.model, {})
    materialise(network, Execution(device=torch.device("cpu"), precision="fp64"), 0, trained=True)
    backbone = network.backbone
    assert isinstance(backbone, AlignedBackbone)
    optimizer = Optimizer(network, recipe.optimizer, global_batch=8, total_steps=8)
    decays = {
        id(p): group.weight_decay
        for group, section in zip(optimizer.groups, optimizer.adamw.param_groups, strict=True)
        for p in section["params"]
    }
    for name, parameter in network.named_parameters():
        if name.startswith("backbone.visual_model.backbone."):
            assert id(parameter) not in decays
            continue
        assert decays[id(parameter)] == (0.0 if parameter.dim() < 2 else 1.0), name
    backbone.logit_scale.grad = torch.tensor([-1.0], dtype=torch.float64)
    for step, least in ((0, 3.6), (1, math.log(100))):
        optimizer.step(step)
        assert least <= backbone.logit_scale.item() <= math.log(100)
        backbone.logit_scale.grad = torch.tensor([-1.0], dtype=torch.float64)
