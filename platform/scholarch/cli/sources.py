"""What a person names as MODEL: a run, an exported backbone, a registered version, or released weights."""

from __future__ import annotations

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
from scholarch.training.checkpoint import newest_whole, teacher_weights
from scholarch.training.initial import STAGES
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


def open_run(folder: Path) -> OpenRun:
    """Reads a run's recipe and newest whole checkpoint.

    Raises:
        UserError: if it is no run, or has no whole checkpoint.
    """
    # Of a run of several stages, the last one that has begun.
    folder = max((path.parent for path in folder.glob(f"{STAGES}/*/{RECIPE}")), default=folder)
    if not (folder / RECIPE).is_file():
        what = "holds no run and no exported backbone" if folder.is_dir() else "does not exist"
        raise UserError(
            what, where=str(folder), fix="name a run's folder, an export folder, or models:/NAME@ALIAS"
        )
    recipe = recipe_from(parse_yaml((folder / RECIPE).read_text()), where=str(folder / RECIPE))
    checkpoint = newest_whole(folder / "checkpoints")
    if checkpoint is None:
        raise UserError(
            "has no whole checkpoint yet", where=str(folder), fix="let it train on, or name another run"
        )
    weights = teacher_weights(checkpoint, recipe, exported_teacher(recipe))
    origin = f"{folder.name}, step {checkpoint.step}"
    model = Model(
        recipe.model, weights, preprocessing_of(recipe), recipe.data.labelled_source or None, origin
    )
    return OpenRun(recipe, model, checkpoint.step)


def open_model(name: str) -> Model:
    """The backbone that `name` stands for.

    Args:
        name: a run's folder (its newest whole checkpoint), a folder with an exported backbone, an
            address of the registry such as `models:/demo-digits@candidate`, or a file of released
            weights under its own name.

    Raises:
        UserError: if there is no such thing, or it is damaged.
    """
    if name.startswith("models:/"):
        from scholarch.registry.models import download

        return _exported(download(name), name)
    folder = Path(name)
    if folder.is_file():
        return _released(folder)
    if (folder / OPTIONS_NAME).is_file():
        return _exported(folder, name)
    return open_run(folder).model


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
