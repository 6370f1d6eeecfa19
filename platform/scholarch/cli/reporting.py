"""What of a run goes into its report."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import torch

from scholarch import __version__
from scholarch.cli.plan import Plan
from scholarch.cli.sources import Model
from scholarch.config.schedule import Schedule
from scholarch.config.schema import Recipe, settled
from scholarch.data.decode import to_channels
from scholarch.data.evaluation import evaluation_batches
from scholarch.data.source import BrokenPicture
from scholarch.data.views import EvaluationView
from scholarch.models.features import Backbone
from scholarch.registry.backbone import assemble
from scholarch.report import inspection
from scholarch.report.look import FixedPictures, look_at
from scholarch.report.page import Content, Report, Section, write_report
from scholarch.report.pictures import Crops
from scholarch.storage.records import Record
from scholarch.training.assemble import build_dataset
from scholarch.training.health import warnings

SHOWN_CROPS = 6
SHOWN_PICTURES = 6
TRIES = 20
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
    backbone = assemble(model.options, model.weights).float()
    seen = inspected(plan, backbone)
    content = Content(
        title=plan.run.name,
        subtitle=f"{recipe.name}: {recipe.about}" if recipe.about else recipe.name,
        state=state,
        facts=[*plan.preflight.rows, *(seen.facts if seen else ()), ("scholarch", __version__)],
        records=records,
        step=finished,
        steps=recipe.training.steps,
        schedules=schedule_values(recipe),
        crops=crops_of(plan),
        fixed=fixed_pictures(plan, backbone),
        inspected=seen.sections if seen else (),
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


def shown_size(plan: Plan) -> int:
    """Pixels of the pictures that are shown: as many patches as one of the usual size has with patches of 16."""
    patch: int = plan.recipe.model.patch
    return max(settled(plan.recipe.evaluation.size), min(PIXELS, 14 * patch)) // patch * patch


class Inspected(NamedTuple):
    """What the report shows of one picture."""

    sections: list[Section]
    facts: list[tuple[str, str]]


def inspected(plan: Plan, backbone: Backbone) -> Inspected | None:
    """The first picture that can be read, a held-out one where there are any, as `scholarch inspect` has it."""
    source, data = plan.split.held or plan.split.train, plan.recipe.data
    mean, std = settled(data.mean), settled(data.std)
    for index in range(min(len(source), TRIES)):
        try:
            picture = to_channels(source.read(index), len(mean), source.name(index))
        except BrokenPicture:
            continue
        sizes = inspection.default_sizes(backbone.patch, shown_size(plan))
        found = inspection.inspect_picture(backbone, picture, sizes=sizes, mean=mean, std=std)
        rows = [("Picture inspected", source.name(index)), *inspection.facts(found)]
        return Inspected(inspection.sections(found, mean, std), rows)
    return None


def fixed_pictures(plan: Plan, backbone: Backbone) -> FixedPictures | None:
    """A few pictures, the held-out ones where there are any, and what the backbone makes of them."""
    recipe = plan.recipe
    view = EvaluationView(shown_size(plan), settled(recipe.data.mean), settled(recipe.data.std))
    source = plan.split.held or plan.split.train
    indices = np.linspace(0, len(source) - 1, min(SHOWN_PICTURES, len(source))).astype(np.int64)
    images = [
        batch.pictures for batch in evaluation_batches(source, indices, view, batch_size=SHOWN_PICTURES)
    ]
    pictures = torch.cat(images)
    return look_at(backbone, pictures) if len(pictures) else None
