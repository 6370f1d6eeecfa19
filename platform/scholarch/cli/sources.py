"""What a person names as MODEL: a run, an exported backbone, a registered version, or released weights."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from torch import Tensor

from scholarch.config.load import parse_yaml
from scholarch.config.schema import Recipe, settled
from scholarch.errors import UserError
from scholarch.models import BackboneOptions, build_backbone
from scholarch.models.heads import HeadOptions
from scholarch.models.released import RELEASED, Released, released_by_file
from scholarch.models.weights import import_backbone
from scholarch.registry.backbone import OPTIONS_NAME, WEIGHTS_NAME, Preprocessing, describe
from scholarch.storage.local import sha256
from scholarch.training.checkpoint import MANIFEST, Checkpoint, backbone_weights
from scholarch.training.initial import find, read_weights
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


@dataclass(frozen=True)
class Place:
    """A model that was found; its weights are not read yet.

    Attributes:
        path: a checkpoint's folder, or a file of weights.
        name: what it is: a version's address, an export, a checkpoint's folder or a file.
        origin: the same in words.
        options: of the backbone; None: it does not tell.
        heads: of a run's networks by name; None: it does not tell, or has none.
        preprocessing: what pictures need, where known.
        data: a run's data source, where known.
        network: of a run's checkpoint, the one that it gives away.
    """

    path: Path
    name: str
    origin: str
    options: BackboneOptions | None = None
    heads: Mapping[str, HeadOptions] | None = None
    preprocessing: Preprocessing | None = None
    data: str | None = None
    network: str = ""

    def sha256(self) -> str:
        """Of the file, or of the checkpoint's manifest, which holds those of its files."""
        return sha256(self.path / MANIFEST if self.path.is_dir() else self.path)


def exported_network(recipe: Recipe) -> str:
    """Where in a learner the backbone is that a run gives away: the first moving average, or the student."""
    ema = next((name for name, teacher in recipe.teachers.items() if teacher.weights == "ema"), None)
    return "student" if ema is None else f"teachers.{ema}"


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
    """Reads a run's recipe and newest whole checkpoint; of several stages, the last one that has any.

    Raises:
        UserError: if it is no run, or has no whole checkpoint.
    """
    found = find(str(folder), "")
    recipe = _recipe_of(found) if isinstance(found, Checkpoint) else None
    if not isinstance(found, Checkpoint) or recipe is None:
        raise UserError("holds no run", where=str(folder), fix="name a run's folder")
    return OpenRun(recipe, _opened(_checkpoint(found)), found.step)


def find_model(name: str, where: str = "") -> Place:
    """The model that `name` stands for.

    Args:
        name: a run's folder (its newest whole checkpoint) or one of its checkpoints, a folder with an
            exported backbone, an address of the registry such as `models:/demo-digits@candidate`, or a
            file of weights, which tells its architecture if it has its released name.
        where: the argument or key that it stands in, for the message.

    Raises:
        UserError: if there is no such thing, or it is damaged.
    """
    if name.startswith("models:/"):
        from scholarch.registry.models import download

        return _export(*download(name))
    if (Path(name) / OPTIONS_NAME).is_file():
        return _export(Path(name), name)
    found = find(name, where)
    return _file(found) if isinstance(found, Path) else _checkpoint(found)


def open_model(name: str) -> Model:
    """The backbone that `name` stands for, as `find_model` has it.

    Raises:
        UserError: if there is no such thing, or it is damaged.
    """
    return _opened(find_model(name))


def _opened(place: Place) -> Model:
    if place.options is None or place.preprocessing is None:
        named = f"keep the released name, or call it after what it is: {', '.join(RELEASED)}"
        raise UserError(
            "cannot tell the architecture: there is no recipe.yaml beside this checkpoint"
            if place.network
            else "cannot tell the architecture from this file's name",
            where=str(place.path),
            fix="name a run's folder" if place.network else named,
        )
    weights: Mapping[str, Tensor]
    if place.network:
        weights = backbone_weights(Checkpoint(place.path, 0), place.options, place.network)
    else:
        backbone = build_backbone(place.options)
        import_backbone(backbone, read_weights(place.path), where=str(place.path))
        weights = backbone.state_dict()
    return Model(place.options, weights, place.preprocessing, place.data, place.origin)


def _recipe_of(checkpoint: Checkpoint) -> Recipe | None:
    path = checkpoint.path.parent.parent / RECIPE
    return recipe_from(parse_yaml(path.read_text()), where=str(path)) if path.is_file() else None


def _checkpoint(found: Checkpoint) -> Place:
    recipe, run = _recipe_of(found), found.path.parent.parent
    origin = f"{run.name}, step {found.step}"
    if recipe is None:
        return Place(found.path, str(found.path), origin, network="student")
    return Place(
        found.path,
        str(found.path),
        origin,
        options=recipe.model,
        heads=recipe.heads,
        preprocessing=preprocessing_of(recipe),
        data=recipe.data.labelled_source or None,
        network=exported_network(recipe),
    )


def _file(path: Path) -> Place:
    name = path.stem if path.stem in RELEASED else released_by_file(path.name)
    if name is None:
        return Place(path, str(path), path.name)
    entry = RELEASED[name]
    return Place(
        path, str(path), path.name, options=entry.options, preprocessing=_released_preprocessing(entry)
    )


def _released_preprocessing(entry: Released) -> Preprocessing:
    patch = entry.options.patch
    size = SIDE_IN_PATCHES * patch if patch in (14, 16) else 224
    return Preprocessing(size=size, mean=entry.mean, std=entry.std)


def _export(folder: Path, name: str) -> Place:
    options, preprocessing = describe(folder)
    return Place(folder / WEIGHTS_NAME, name, name, options=options, preprocessing=preprocessing)
