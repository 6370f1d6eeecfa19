"""Resolves every `auto` of a recipe, once, from the data and the machine."""

from __future__ import annotations

import dataclasses
import math
import os
from typing import Any

import torch

from scholarch.config.schema import DataSection, Recipe, TeacherSection, settled
from scholarch.data.source import Source
from scholarch.data.statistics import ScanReport, scan
from scholarch.data.views import IMAGENET_MEAN, IMAGENET_STD
from scholarch.errors import UserError

_FOR_STATISTICS, _FOR_CHANNELS = 2048, 256
"""Pictures that are decoded before the run."""


def look_at(recipe: Recipe, source: Source) -> ScanReport:
    """The one look at the data before a run: as many pictures as the recipe leaves open.

    Raises:
        UserError: when none, of any data set, can be used.
    """
    data = recipe.data
    report = scan(
        source,
        channels=None if data.channels == "auto" else settled(data.channels),
        seed=recipe.seed,
        at_most=_FOR_STATISTICS if "auto" in (data.mean, data.std) else _FOR_CHANNELS,
    )
    report.require_good(data.where)
    return report


def resolve(recipe: Recipe, look: ScanReport, *, world_size: int, local_size: int) -> Recipe:
    """The recipe without any `auto`.

    Args:
        look: from `look_at`.

    Raises:
        UserError: when mean and std do not fit the pictures.
    """
    data = _data(recipe.data, look)
    training = recipe.training
    steps = training.steps
    changes: dict[str, Any] = {}
    if training.micro_batch == "auto":
        changes["micro_batch"] = math.ceil(training.global_batch / world_size)
    if training.precision == "auto":
        changes["precision"] = "bf16" if torch.cuda.is_available() else "fp32"
    if training.workers == "auto":
        changes["workers"] = _workers(local_size)
    if training.checkpoint_every == "auto":
        changes["checkpoint_every"] = max(steps // 5, 1) if steps < 5_000 else 1_000
    if training.log_every == "auto":
        changes["log_every"] = 1 if steps <= 2_000 else 10
    evaluation = recipe.evaluation
    measured: dict[str, Any] = {}
    if evaluation.every == "auto":
        measured["every"] = max(math.ceil(steps / 10), 1)
    if evaluation.size == "auto":
        measured["size"] = recipe.views["global"].size if "global" in recipe.views else _first_size(recipe)
    return recipe.model_copy(
        update={
            "data": data,
            "model": _with_channels(recipe.model, settled(data.channels)),
            "teachers": _teachers(recipe, settled(data.channels)),
            "training": training.model_copy(update=changes),
            "evaluation": evaluation.model_copy(update=measured),
            "registered_name": recipe.name.replace("/", "-")
            if recipe.registered_name == "auto"
            else recipe.registered_name,
        }
    )


def _first_size(recipe: Recipe) -> int:
    return int(next(iter(recipe.views.values())).size)


def _workers(local_size: int) -> int:
    """Loader processes beside each training process: what cores are left, at most 8."""
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    return max(min(cores // local_size - 1, 8), 0)


def _data(data: DataSection, look: ScanReport) -> DataSection:
    assert look.mean is not None
    assert look.std is not None
    values = {
        "mean": _statistic(data.mean, IMAGENET_MEAN, look.mean),
        "std": _statistic(data.std, IMAGENET_STD, look.std),
    }
    for name, each in values.items():
        if len(each) != look.wanted:
            raise UserError(
                f"{len(each)} values for pictures of {look.wanted} channels",
                where=f"data.{name}",
                fix=f"give {look.wanted} values, or auto",
            )
    return data.model_copy(update={"channels": look.wanted, **values})


def _statistic(
    asked: tuple[float, ...] | str, imagenet: tuple[float, ...], found: tuple[float, ...]
) -> tuple[float, ...]:
    if isinstance(asked, tuple):
        return asked
    return imagenet if asked == "imagenet" else found


def _teachers(recipe: Recipe, channels: int) -> dict[str, TeacherSection]:
    teachers = dict(recipe.teachers)
    for name, teacher in recipe.teachers.items():
        if teacher.model is None:
            continue
        if teacher.found and teacher.model.channels != channels:
            raise UserError(
                f"the teacher takes pictures of {teacher.model.channels} channels, and the data has {channels}",
                where=f"teachers.{name}",
                fix=f"set data.channels={teacher.model.channels}, or choose another teacher",
            )
        teachers[name] = teacher.model_copy(update={"model": _with_channels(teacher.model, channels)})
    return teachers


def _with_channels(model: Any, channels: int) -> Any:
    if model.kind == "aligned":
        return dataclasses.replace(model, vision=_with_channels(model.vision, channels))
    return dataclasses.replace(model, channels=channels)
