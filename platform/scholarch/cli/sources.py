"""What a person names as MODEL: a run, an exported backbone, a registered version, or released weights."""

from __future__ import annotations

import hashlib
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
from scholarch.storage.mirror import copied, copies
from scholarch.storage.objects import is_s3, joined, open_objects
from scholarch.training.checkpoint import MANIFEST, Checkpoint, backbone_weights
from scholarch.training.initial import STAGES, WEIGHTS, find, read_weights
from scholarch.training.recipe import recipe_from

EXPORT = "export"
RECIPE = "recipe.yaml"
VOCABULARY = "vocabulary.txt"
"""The merges by which a run makes tokens of captions."""
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
        address: of a checkpoint, or a file of weights on this machine.
        name: what it is: a version's address, an export, a checkpoint's folder or a file.
        origin: the same in words.
        options: of the backbone; None: it does not tell.
        heads: of a run's networks by name; None: it does not tell, or has none.
        preprocessing: what pictures need, where known.
        data: a run's data source, where known.
        network: of a run's checkpoint, the one that it gives away.
    """

    address: str
    name: str
    origin: str
    options: BackboneOptions | None = None
    heads: Mapping[str, HeadOptions] | None = None
    preprocessing: Preprocessing | None = None
    data: str | None = None
    network: str = ""

    def sha256(self) -> str:
        """Of the file, or of the checkpoint's manifest, which holds those of its files."""
        if self.network:
            return hashlib.sha256(open_objects(self.address).read(MANIFEST)).hexdigest()
        return sha256(Path(self.address))


def exported_network(recipe: Recipe) -> str:
    """Where in a learner the backbone is that a run gives away: the first moving average, or the student."""
    ema = next((name for name, teacher in recipe.teachers.items() if teacher.weights == "ema"), None)
    return "student" if ema is None else f"teachers.{ema}"


def preprocessing_of(recipe: Recipe, merges: str = "") -> Preprocessing:
    """What a resolved recipe says of pictures; and of captions the merges that its run makes tokens by."""
    data = recipe.data
    return Preprocessing(
        size=settled(recipe.evaluation.size),
        mean=settled(data.mean),
        std=settled(data.std),
        merges=merges,
    )


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
    """Reads a run's recipe and newest whole checkpoint; of several stages, the last one's that has any.

    Args:
        run: its folder or `s3://` address.

    Raises:
        UserError: if it is no run, or has no whole checkpoint.
    """
    found = find(str(run), "")
    if not isinstance(found, Checkpoint):
        raise UserError("holds no run", where=str(run), fix="name a run's folder")
    return opened_at(found)


def opened_at(checkpoint: Checkpoint) -> OpenRun:
    """The backbone that a run gives away, as it was at a checkpoint.

    Raises:
        UserError: if the checkpoint is damaged, or stands in no run.
    """
    recipe = _recipe_of(checkpoint)
    if recipe is None:
        raise UserError("holds no run", where=_run_of(checkpoint), fix="name a run's folder")
    return OpenRun(recipe, opened(_checkpoint(checkpoint)), checkpoint.step)


def run_address(run: str | Path) -> str:
    """Address of a run; of one of several stages, that of the last one that has begun.

    Raises:
        UserError: if it is no run.
    """
    objects = open_objects(str(run))
    objects.check()
    begun = [name for name in objects.children(STAGES) if objects.entry(f"{STAGES}/{name}/{RECIPE}")]
    address = joined(objects.address, STAGES, begun[-1]) if begun else objects.address
    if open_objects(address).entry(RECIPE) is None:
        what = "holds no run and no exported backbone" if objects.children() else "does not exist"
        raise UserError(what, where=str(run), fix="name a run's folder or s3:// address")
    return address


def find_model(name: str, where: str = "") -> Place:
    """The model that `name` stands for.

    Args:
        name: a run (its newest whole checkpoint) or one of its checkpoints, a folder with an exported
            backbone, or a file of weights, which tells its architecture if it has its released name; each
            on this machine or under `s3://`; or an address of the registry such as
            `models:/demo-digits@candidate`.
        where: the argument or key that it stands in, for the message.

    Raises:
        UserError: if there is no such thing, or it is damaged.
    """
    if name.startswith("models:/"):
        from scholarch.registry.models import download

        return _export(*download(name))
    if not (is_s3(name) and name.endswith(WEIGHTS)) and open_objects(name).entry(OPTIONS_NAME):
        folder = Path(name)
        if is_s3(name):
            kept = copies() / hashlib.sha256(name.encode()).hexdigest()[:12]
            kept.mkdir(exist_ok=True)
            folder = copied(name, kept)
        return _export(folder, name)
    found = find(name, where)
    return _file(found) if isinstance(found, Path) else _checkpoint(found)


def open_model(name: str) -> Model:
    """The backbone that `name` stands for, as `find_model` has it.

    Raises:
        UserError: if there is no such thing, or it is damaged.
    """
    return opened(find_model(name))


def opened(place: Place) -> Model:
    """The backbone of a model that was found.

    Raises:
        UserError: if its architecture cannot be told, or it is damaged.
    """
    if place.options is None or place.preprocessing is None:
        named = f"keep the released name, or call it after what it is: {', '.join(RELEASED)}"
        raise UserError(
            "cannot tell the architecture: there is no recipe.yaml beside this checkpoint"
            if place.network
            else "cannot tell the architecture from this file's name",
            where=place.address,
            fix="name a run's folder" if place.network else named,
        )
    weights: Mapping[str, Tensor]
    if place.network:
        weights = backbone_weights(Checkpoint(place.address, 0), place.options, place.network)
    else:
        backbone = build_backbone(place.options)
        import_backbone(backbone, read_weights(Path(place.address)), where=place.address)
        weights = backbone.state_dict()
    return Model(place.options, weights, place.preprocessing, place.data, place.origin)


def _run_of(checkpoint: Checkpoint) -> str:
    if is_s3(checkpoint.address):
        return checkpoint.address.rsplit("/", 2)[0]
    return str(Path(checkpoint.address).parent.parent)


def _recipe_of(checkpoint: Checkpoint) -> Recipe | None:
    try:
        text = open_objects(_run_of(checkpoint)).read(RECIPE).decode()
    except FileNotFoundError:
        return None
    return recipe_from(parse_yaml(text), where=joined(_run_of(checkpoint), RECIPE))


def _merges(checkpoint: Checkpoint) -> str:
    where = joined(_run_of(checkpoint), VOCABULARY)
    try:
        return open_objects(_run_of(checkpoint)).read(VOCABULARY).decode()
    except FileNotFoundError:
        raise UserError("is missing: tokens cannot be made without it", where=where) from None


def _checkpoint(found: Checkpoint) -> Place:
    recipe, run = _recipe_of(found), _run_of(found)
    origin = f"{run.rpartition('/')[2]}, step {found.step}"
    if recipe is None:
        return Place(found.address, found.address, origin, network="student")
    return Place(
        found.address,
        found.address,
        origin,
        options=recipe.model,
        heads=recipe.heads,
        preprocessing=preprocessing_of(recipe, _merges(found) if recipe.captions else ""),
        data=recipe.data.labelled_source or None,
        network=exported_network(recipe),
    )


def _file(path: Path) -> Place:
    name = path.stem if path.stem in RELEASED else released_by_file(path.name)
    if name is None:
        return Place(str(path), str(path), path.name)
    entry = RELEASED[name]
    return Place(
        str(path), str(path), path.name, options=entry.options, preprocessing=_released_preprocessing(entry)
    )


def _released_preprocessing(entry: Released) -> Preprocessing:
    patch = entry.options.patch
    size = SIDE_IN_PATCHES * patch if patch in (14, 16) else 224
    return Preprocessing(size=size, mean=entry.mean, std=entry.std)


def _export(folder: Path, name: str) -> Place:
    options, preprocessing = describe(folder)
    return Place(str(folder / WEIGHTS_NAME), name, name, options=options, preprocessing=preprocessing)
