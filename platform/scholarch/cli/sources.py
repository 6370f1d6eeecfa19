"""What a person names as MODEL: a run, an exported backbone, a registered version, or released weights."""

from __future__ import annotations

import tempfile
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import cast

from torch import Tensor

from scholarch.config.load import parse_yaml
from scholarch.config.schema import Recipe, settled
from scholarch.errors import UserError
from scholarch.models import BackboneOptions
from scholarch.registry.backbone import OPTIONS_NAME, Preprocessing, load_backbone
from scholarch.storage.mirror import copied
from scholarch.storage.objects import is_s3, joined, open_objects
from scholarch.training.checkpoint import Checkpoint, newest_whole, teacher_weights
from scholarch.training.initial import STAGES, WEIGHTS, fetched
from scholarch.training.recipe import recipe_from

EXPORT = "export"
RECIPE = "recipe.yaml"
SIDE_IN_PATCHES = 16
"""Of the pictures that released weights of patch 14 and 16 were trained on: 224 and 256 pixels."""


@dataclass(frozen=True)
class Model:
    """A backbone with what it needs to be used elsewhere.

    Attributes:
        options: of the backbone.
        weights: whole tensors by name.
        preprocessing: what pictures need.
        data: the source that the run evaluates, where known.
        origin: where it came from, in words.
    """

    options: BackboneOptions
    weights: Mapping[str, Tensor]
    preprocessing: Preprocessing
    data: str | None
    origin: str


def exported_teacher(recipe: Recipe) -> str:
    """Name of the teacher whose backbone a run gives away: the first moving average."""
    return next((n for n, t in recipe.teachers.items() if t.weights == "ema"), next(iter(recipe.teachers)))


def preprocessing_of(recipe: Recipe) -> Preprocessing:
    """What a resolved recipe says of pictures."""
    data = recipe.data
    return Preprocessing(size=settled(recipe.evaluation.size), mean=settled(data.mean), std=settled(data.std))


@dataclass(frozen=True)
class OpenRun:
    """A run's newest whole checkpoint.

    Attributes:
        recipe: the run's, resolved.
        model: the backbone that it gives away.
        step: finished steps.
    """

    recipe: Recipe
    model: Model
    step: int


def open_run(run: str | Path) -> OpenRun:
    """Reads a run's recipe and newest whole checkpoint.

    Args:
        run: its folder or `s3://` address.

    Raises:
        UserError: if it is no run, or has no whole checkpoint.
    """
    recipe, address = recipe_of(run)
    checkpoint = newest_whole(joined(address, "checkpoints"))
    if checkpoint is None:
        raise UserError(
            "has no whole checkpoint yet", where=address, fix="let it train on, or name another run"
        )
    return opened_at(recipe, checkpoint)


def recipe_of(run: str | Path) -> tuple[Recipe, str]:
    """A run's recipe and address; of a run of several stages, those of the last one that has begun.

    Raises:
        UserError: if it is no run.
    """
    objects = open_objects(str(run))
    objects.check()
    begun = [name for name in objects.children(STAGES) if objects.entry(f"{STAGES}/{name}/{RECIPE}")]
    address = joined(objects.address, STAGES, begun[-1]) if begun else objects.address
    try:
        text = open_objects(address).read(RECIPE).decode()
    except FileNotFoundError:
        what = "holds no run and no exported backbone" if objects.children() else "does not exist"
        raise UserError(
            what, where=str(run), fix="name a run's folder, an export folder, or models:/NAME@ALIAS"
        ) from None
    return recipe_from(parse_yaml(text), where=joined(address, RECIPE)), address


def opened_at(recipe: Recipe, checkpoint: Checkpoint) -> OpenRun:
    """The backbone that a run gives away, as it was at a checkpoint.

    Raises:
        UserError: if the checkpoint is damaged or does not fit the recipe.
    """
    weights = teacher_weights(checkpoint, recipe, exported_teacher(recipe))
    origin = f"{checkpoint.address.split('/')[-3]}, step {checkpoint.step}"
    model = Model(
        recipe.model, weights, preprocessing_of(recipe), recipe.data.labelled_source or None, origin
    )
    return OpenRun(recipe, model, checkpoint.step)


def open_model(name: str) -> Model:
    """The backbone that `name` stands for.

    Args:
        name: a run (its newest whole checkpoint), a folder with an exported backbone or a file of
            released weights under its own name, each on this machine or under `s3://`, or an address
            of the registry such as `models:/demo-digits@candidate`.

    Raises:
        UserError: if there is no such thing, or it is damaged.
    """
    if name.startswith("models:/"):
        from scholarch.registry.models import download

        return _exported(download(name), name)
    if is_s3(name) and name.endswith(WEIGHTS):
        return _released(fetched(name, "MODEL"))
    if Path(name).is_file():
        return _released(Path(name))
    if open_objects(name).entry(OPTIONS_NAME):
        with tempfile.TemporaryDirectory(prefix="scholarch-") as folder:
            return _exported(copied(name, Path(folder)) if is_s3(name) else Path(name), name)
    return open_run(name).model


def _released(path: Path) -> Model:
    """A file of released weights, whose name tells the architecture."""
    from scholarch.models import build_backbone
    from scholarch.models.released import RELEASED, released_by_file
    from scholarch.models.weights import import_backbone
    from scholarch.training.initial import read_weights

    name = path.stem if path.stem in RELEASED else released_by_file(path.name)
    if name is None:
        raise UserError(
            "cannot tell the architecture from this file's name",
            where=str(path),
            fix=f"keep the released name, or call it after what it is: {', '.join(RELEASED)}",
        )
    entry = RELEASED[name]
    backbone = build_backbone(entry.options)
    import_backbone(backbone, read_weights(path), where=str(path))
    size = SIDE_IN_PATCHES * backbone.patch if backbone.patch in (14, 16) else 224
    preprocessing = Preprocessing(size=size, mean=entry.mean, std=entry.std)
    return Model(entry.options, backbone.state_dict(), preprocessing, None, path.name)


def _exported(folder: Path, name: str) -> Model:
    backbone, preprocessing = load_backbone(folder)
    return Model(cast(BackboneOptions, backbone.options), backbone.state_dict(), preprocessing, None, name)
