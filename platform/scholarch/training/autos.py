"""Resolves every `auto` of a recipe, once, from the data and the machine."""

from __future__ import annotations

import dataclasses
import math
import os
from typing import Any

import torch

from scholarch.config.schema import DataSection, Recipe, TeacherSection, settled
from scholarch.data.source import Source
from scholarch.data.statistics import scan
from scholarch.data.views import IMAGENET_MEAN, IMAGENET_STD
from scholarch.errors import UserError


def resolve(recipe: Recipe, source: Source, *, world_size: int, local_size: int) -> Recipe:
    """The recipe without any `auto`.

    Raises:
        UserError: when the data cannot be read or does not fit.
    """
    data = _data(recipe, source)
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


def _data(recipe: Recipe, source: Source) -> DataSection:
    data = recipe.data
    channels = 0 if data.channels == "auto" else settled(data.channels)
    if not channels:
        look = scan(source, seed=recipe.seed, at_most=256)
        look.require_good(f"data={data.source}")
        # Grey pictures among coloured ones are made coloured, never the other way round.
        channels = max(look.channels)
    mean, std = data.mean, data.std
    if "auto" in (mean, std):
        report = scan(source, channels=channels, seed=recipe.seed)
        report.require_good(f"data={data.source}")
        assert report.mean is not None
        assert report.std is not None
        mean = report.mean if mean == "auto" else mean
        std = report.std if std == "auto" else std
    if mean == "imagenet":
        mean = IMAGENET_MEAN
    if std == "imagenet":
        std = IMAGENET_STD
    for name, values in (("mean", mean), ("std", std)):
        if len(values) != channels:
            raise UserError(
                f"{len(values)} values for pictures of {channels} channels",
                where=f"data.{name}",
                fix=f"give {channels} values, or auto",
            )
    return data.model_copy(update={"channels": channels, "mean": mean, "std": std})


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
    return dataclasses.replace(model, channels=channels)
