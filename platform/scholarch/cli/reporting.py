"""What of a run goes into its report."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch

from scholarch import __version__
from scholarch.cli.plan import Plan
from scholarch.cli.sources import Model
from scholarch.config.schedule import Schedule
from scholarch.config.schema import Recipe, settled
from scholarch.data.evaluation import evaluation_batches
from scholarch.data.views import EvaluationView
from scholarch.registry.backbone import assemble
from scholarch.report.look import FixedPictures, look_at
from scholarch.report.page import Content, Report, write_report
from scholarch.report.pictures import Crops
from scholarch.storage.records import Record
from scholarch.training.assemble import build_dataset
from scholarch.training.health import warnings

SHOWN_CROPS = 6
SHOWN_PICTURES = 6
PIXELS = 224
"""Fixed pictures are shown at about this side: more patches than a small crop has."""


def report(
    plan: Plan,
    model: Model,
    records: Sequence[Record],
    finished: int,
    state: str,
    next_commands: Sequence[tuple[str, str]],
) -> Report:
    """Writes `<run>/report/`."""
    recipe = plan.recipe
    mean, std = settled(recipe.data.mean), settled(recipe.data.std)
    content = Content(
        title=plan.run.name,
        subtitle=f"{recipe.name}: {recipe.about}" if recipe.about else recipe.name,
        state=state,
        facts=[*plan.preflight.rows, ("scholarch", __version__)],
        records=records,
        step=finished,
        steps=recipe.training.steps,
        schedules=schedule_values(recipe),
        crops=crops_of(plan),
        fixed=fixed_pictures(plan, model),
        mean=mean,
        std=std,
        warnings=list(warnings(records[-1]).values()) if records else [],
        next_commands=next_commands,
    )
    return write_report(plan.run / "report", content)


def schedule_values(recipe: Recipe) -> dict[str, Sequence[float]]:
    """Value at each step of every schedule that changes."""
    found: dict[str, Schedule] = {
        "lr": recipe.optimizer.lr,
        "weight_decay": recipe.optimizer.weight_decay,
    }
    found |= {f"momentum/{n}": t.momentum for n, t in recipe.teachers.items() if t.weights == "ema"}
    for name, term in recipe.terms.items():
        found |= {f"{name}/{key}": value for key, value in vars(term).items() if isinstance(value, Schedule)}
    steps = recipe.training.steps
    values = {name: [schedule(step) for step in range(steps)] for name, schedule in found.items()}
    return {name: series for name, series in values.items() if min(series) != max(series)}


def crops_of(plan: Plan) -> list[Crops]:
    """The first samples of the first step as the network sees them."""
    dataset = build_dataset(plan.recipe, plan.split.train)
    count = min(SHOWN_CROPS, plan.recipe.training.global_batch)
    batch = dataset[(0, np.arange(count, dtype=np.int64))]
    patch = plan.recipe.model.patch
    return [Crops(name, images, batch.masks.get(name), patch) for name, images in batch.views.items()]


def fixed_pictures(plan: Plan, model: Model) -> FixedPictures | None:
    """A few pictures, the held-out ones where there are any, and what the backbone makes of them."""
    recipe = plan.recipe
    patch = recipe.model.patch
    # As many patches as a picture of the usual size has with patches of 16 pixels.
    size = max(settled(recipe.evaluation.size), min(PIXELS, 14 * patch)) // patch * patch
    view = EvaluationView(size, settled(recipe.data.mean), settled(recipe.data.std))
    source = plan.split.held or plan.split.train
    indices = np.linspace(0, len(source) - 1, min(SHOWN_PICTURES, len(source))).astype(np.int64)
    images = [
        batch.pictures for batch in evaluation_batches(source, indices, view, batch_size=SHOWN_PICTURES)
    ]
    pictures = torch.cat(images)
    return look_at(assemble(model.options, model.weights).float(), pictures) if len(pictures) else None
