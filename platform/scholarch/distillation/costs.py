"""What a step of each network costs on a process, counted from shapes."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence

import torch
from torch.utils.flop_counter import FlopCounterMode

from scholarch.config.schema import Recipe
from scholarch.data.options import ViewOptions
from scholarch.distillation.planner import Cost, Costs
from scholarch.distillation.together import frozen
from scholarch.models.features import Views
from scholarch.training.assemble import build_networks, build_terms, view_sets
from scholarch.training.networks import Network

SUSTAINED = 4e14
"""Operations a second that counted costs stand for: two fifths of an H100's peak in bf16."""
BACKWARD = 2
"""The backward pass in forward passes; with full activation checkpointing there is another forward pass."""


def counted(recipes: Mapping[str, Recipe], sustained: float = SUSTAINED) -> Costs:
    """Costs in proportion to the backbones' matrix products, on the meta device: nothing is allocated.

    Small networks reach less of a GPU than large ones, and heads are left out: measured costs are better.
    """
    students: dict[str, Cost] = {}
    teacher = Cost(0.0, 0.0)
    for name, recipe in recipes.items():
        student, teachers = build_networks(recipe, build_terms(recipe))
        views = _largest(recipe)
        passes = 1 + BACKWARD + (recipe.training.activation_checkpointing == "full")
        students[name] = Cost(0.0, passes * operations(student, views, views) / sustained)
        if not teacher.per_picture:
            seen = {view: options.as_teachers_see() for view, options in views.items()}
            work = sum(operations(teachers[one], seen, recipe.teachers[one].sees) for one in frozen(recipe))
            teacher = Cost(0.0, work / sustained)
    source = f"counted operations, at {sustained / 1e12:.0f} TFLOP/s"
    return Costs(teacher, students, together(list(recipes.values())), source)


def together(recipes: Sequence[Recipe]) -> bool:
    """Whether all processes hold a teacher together."""
    recipe = recipes[0]
    return any(recipe.teachers[name].sharded == "all" for name in frozen(recipe))


def operations(network: Network, views: Mapping[str, ViewOptions], names: Collection[str]) -> float:
    """Of a backbone's forward pass on all crops of one sample, two for each multiplication and addition."""
    backbone = network.backbone.eval()
    shown = [
        Views(
            torch.empty(view.crops, backbone.channels, view.size, view.size, device="meta"),
            name=name,
            local=name == "local",
        )
        for name, view in views.items()
        if name in names
    ]
    with FlopCounterMode(display=False) as counter, torch.no_grad(), torch.device("meta"):
        backbone(shown, None)
    return float(counter.get_total_flops())


def _largest(recipe: Recipe) -> dict[str, ViewOptions]:
    return max(
        (views for _, views in view_sets(recipe)), key=lambda v: sum(o.crops * o.size**2 for o in v.values())
    )
