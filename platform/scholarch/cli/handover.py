"""What a run leaves behind: the exported backbone, its version in the registry, the report."""

from __future__ import annotations

import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from scholarch import __version__
from scholarch.cli.sources import Model, exported_network, preprocessing_of
from scholarch.config.schema import Recipe
from scholarch.errors import UserError
from scholarch.registry.backbone import save_backbone
from scholarch.registry.card import Card
from scholarch.registry.models import Registered, Trained, register_backbone
from scholarch.registry.outbox import Data
from scholarch.registry.timm_export import TIMM_NAME, write_timm
from scholarch.storage.local import check_writable
from scholarch.storage.records import Record
from scholarch.training.learner import Learner
from scholarch.training.networks import Network, whole_state


def trained_model(recipe: Recipe, learner: Learner, origin: str, merges: str = "") -> Model:
    """The backbone that a run gives away; all ranks take part, and all get it.

    Args:
        recipe, learner: of the run.
        origin: in words.
        merges: by which tokens are made, where the run reads captions.
    """
    network = learner.get_submodule(exported_network(recipe))
    assert isinstance(network, Network)
    return Model(
        recipe.model,
        whole_state(network.backbone),
        preprocessing_of(recipe, merges),
        recipe.data.labelled_source or None,
        origin,
    )


def write_export(model: Model, folder: Path) -> None:
    """Writes a backbone as safetensors with its options, and as a checkpoint for timm.

    The folder exists whole or not at all: it is filled under another name and renamed.
    """
    partial = folder.with_name(f".{folder.name}.partial")
    shutil.rmtree(partial, ignore_errors=True)
    partial.mkdir(parents=True)
    save_backbone(partial, model.options, model.weights, model.preprocessing)
    write_timm(partial, model.options, model.weights, model.preprocessing)
    if folder.is_dir():
        shutil.rmtree(folder)
    partial.rename(folder)


def export_to(model: Model, folder: Path) -> str:
    """Writes a backbone into a new or empty folder; gives what to type to load it.

    Raises:
        UserError: if the folder is not empty or cannot be written to.
    """
    check_writable(folder)
    if folder.is_dir() and any(folder.iterdir()):
        raise UserError("is not empty", where=str(folder), fix="name a new folder with --to")
    write_export(model, folder)
    return how_to_load(folder)


def how_to_load(folder: Path) -> str:
    """What to type to use an export."""
    lines = [
        f"exported to {folder}",
        "  from pathlib import Path",
        "  from scholarch.registry.backbone import load_backbone",
        f"  backbone, preprocessing = load_backbone(Path({str(folder)!r}))",
    ]
    if (folder / TIMM_NAME).is_file():
        lines.append(f"or without scholarch, by timm: {folder / TIMM_NAME}")
    return "\n".join(lines)


def register(
    run: Path, recipe: Recipe, model: Model, data: Sequence[Data], step: int, last: Record
) -> Registered:
    """Registers a run's backbone with its card; safe to repeat.

    Raises:
        RunFailed: if MLflow cannot be reached.
    """
    evaluations = {name: value for name, value in last.items() if name.startswith("evaluation/")}
    card = Card(
        recipe=recipe.name,
        summary=recipe.about,
        data=data,
        evaluations=evaluations,
        facts={
            "Steps": f"{step:,} of {recipe.training.steps:,}",
            "Pictures seen": f"{step * recipe.training.global_batch:,}",
            "Code": f"scholarch {__version__}",
        },
    )
    fingerprints = ",".join(one.fingerprint for one in data)
    tags = {
        "recipe": recipe.name,
        "data": ",".join(one.source for one in data),
        "data_fingerprint": fingerprints,
        "code_version": __version__,
    }
    frozen = sorted({teacher.found.name for teacher in recipe.teachers.values() if teacher.found})
    if frozen:
        tags["parent_teacher"] = ",".join(frozen)
    if recipe.model.kind == "aligned" and recipe.init_from and recipe.init_from.found:
        tags["parent"] = recipe.init_from.found.name  # the locked backbone's version
    trained = Trained(
        options=model.options,
        weights=model.weights,
        preprocessing=model.preprocessing,
        step=step,
        card=card,
        tags=tags,
    )
    name: Any = recipe.registered_name
    return register_backbone(run, name, trained)
