"""What a run will do, decided and checked by all processes before anything is written."""

from __future__ import annotations

import json
import os
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from scholarch.cli import origins
from scholarch.cli.pretrain import DEFAULT_RECIPE
from scholarch.cli.sources import RECIPE, VOCABULARY
from scholarch.config.load import overridden, parse_yaml, plain
from scholarch.config.resolve import differences, may_change
from scholarch.config.scale import Scale
from scholarch.config.schema import Recipe
from scholarch.data.catalog import BUILTIN, open_source
from scholarch.data.mixture import Mixture, Part
from scholarch.data.source import Source, captions, has_captions
from scholarch.data.split import Subset, holdout
from scholarch.data.statistics import ScanReport
from scholarch.data.tokenizer import Tokenizer
from scholarch.errors import UserError
from scholarch.registry.outbox import Data
from scholarch.storage.objects import joined
from scholarch.training import autos
from scholarch.training.checkpoint import Checkpoint, committed, newest_whole
from scholarch.training.distributed import World
from scholarch.training.preflight import Preflight, check, check_beginning
from scholarch.training.recipe import load_recipe, recipe_from, student_recipe

STATE = "run.json"
LEARNED_FROM = 200_000
"""Captions that merges are learned from, at most."""
CHAIN = "stages.json"
STUDENTS = "students"
"""Folder of a run of several students; each in it is a run of its own."""
LOCK_SECONDS = 60.0
"""For which a restarted process waits for the one before it to let go of the run."""


@dataclass(frozen=True)
class Chain:
    """Stages of one run.

    Attributes:
        recipes: of the stages, in order.
        overrides: `key.path=value`, for each of them.
        scale: of all.
    """

    recipes: tuple[str, ...]
    overrides: tuple[str, ...]
    scale: Scale


@dataclass(frozen=True)
class Request:
    """What was asked for on the command line.

    Attributes:
        recipe: name or file; None: the run's own on resume, else the default.
        overrides: `key.path=value`.
        address: where the run is, as it was named: a folder or under `s3://`; "": a new one is named.
        run: folder of its small files, from `remote.at_hand`; None: the address is of a new one.
        resume: go on from the newest checkpoint.
        restarted: an elastic launcher started this process again: resume if there is a checkpoint.
        scale: `tiny` shrinks the recipe (scholarch.config.scale).
        chain: the stages that this one belongs to.
        parent: folder of the first stage, whose MLflow run this one is nested in.
        student: the one of the recipe's students that this is about; "": it has none.
        before_commit: called on rank 0 before a checkpoint exists.
    """

    recipe: str | None
    overrides: tuple[str, ...]
    address: str
    resume: bool
    run: Path | None = None
    restarted: bool = False
    scale: Scale = "full"
    chain: Chain | None = None
    parent: Path | None = None
    student: str = ""
    before_commit: Callable[[], object] = lambda: None


@dataclass(frozen=True)
class Split:
    """The data of a run.

    Attributes:
        train: what the model learns from.
        labelled: the part of it that is labelled and evaluated; None without labels.
        held: pictures of the same classes kept apart for evaluation; None without labels.
        evaluated: in a mixture, the name of the data set that these are of.
    """

    train: Source
    labelled: Source | None = None
    held: Source | None = None
    evaluated: str | None = None


@dataclass(frozen=True)
class Plan:
    """A checked run.

    Attributes:
        recipe: resolved, without `auto`.
        split: the data.
        data: the same as MLflow and the model card name it.
        run: folder of its small files.
        address: where it is, for people; the folder itself, or under `s3://`.
        start: the checkpoint to go on from; None: from the beginning.
        preflight: the table and the layout.
        local: the recipe, its checkpoints named by their folders and files on this machine.
        tokenizer: of captions; None: the recipe reads none.
    """

    recipe: Recipe
    split: Split
    data: tuple[Data, ...]
    run: Path
    address: str
    start: Checkpoint | None
    preflight: Preflight
    local: Recipe
    tokenizer: Tokenizer | None = None

    @property
    def checkpoints(self) -> str:
        """Address of its checkpoints."""
        return joined(self.address, "checkpoints")


def split_of(recipe: Recipe) -> Split:
    """Opens the recipe's data and keeps the labelled share apart.

    Raises:
        UserError: when there is no such data, or shares of data sets do not fit together.
    """
    data = recipe.data
    if data.sources is None:
        return _kept_apart(open_source(data.source, data.labels), recipe)
    opened = {name: open_source(part.source, part.labels) for name, part in sorted(data.sources.items())}
    labelled = [name for name, source in opened.items() if source.classes is not None]
    evaluated = data.evaluated or next(iter(labelled), None)
    if evaluated is not None and evaluated not in labelled:
        raise UserError(
            f"{evaluated} has no labels",
            where="data.evaluated",
            fix=f"one of {', '.join(labelled) or 'none'}",
        )
    split = _kept_apart(opened[evaluated], recipe) if evaluated is not None else None
    if split is not None and evaluated is not None:
        opened[evaluated] = split.train
    parts = [Part(name, opened[name], part.weight, part.homogeneous) for name, part in data.sources.items()]
    try:
        mixture = Mixture(parts)
    except ValueError as error:
        raise UserError(
            str(error), where="data.sources", fix="see docs/recipes.md, Several data sets"
        ) from None
    return replace(split or Split(mixture), train=mixture, evaluated=evaluated)


def _kept_apart(source: Source, recipe: Recipe) -> Split:
    if source.classes is None or recipe.data.holdout == 0:
        return Split(source)
    train, held = holdout(source, recipe.data.holdout, recipe.seed)
    kept = Subset(source, train)
    return Split(kept, kept, Subset(source, held))


def data_of(recipe: Recipe, split: Split) -> tuple[Data, ...]:
    """The run's data sets as MLflow and the model card name them."""
    held = len(split.held or ())
    section = recipe.data
    if section.sources is None:
        name = section.source.rstrip("/").rpartition("/")[2]
        return (_data_of(name, section.source, split.train, {"held_out": held}),)
    assert isinstance(split.train, Mixture)
    found = []
    for part, share in zip(split.train.parts, split.train.shares, strict=True):
        counts = {"held_out": held if part.name == split.evaluated else 0, "share": round(share, 6)}
        found.append(_data_of(part.name, section.sources[part.name].source, part.source, counts))
    return tuple(found)


def _data_of(name: str, address: str, source: Source, counts: Mapping[str, int | float]) -> Data:
    return Data(
        name=name,
        source=f"builtin:{address}" if address in BUILTIN else address,
        fingerprint=source.fingerprint(),
        counts={"pictures": len(source), **counts},
    )


def make_plan(request: Request, world: World) -> Plan:
    """Decides and checks; nothing is written.

    Raises:
        UserError: on all processes, whichever of them met the mistake.
    """
    # A node that joined later was not started again, but takes part in a run that was.
    request = replace(request, restarted=any(world.gather(request.restarted)))
    asked = world.agree(lambda: _asked_recipe(request))
    split = world.agree(lambda: split_of(asked))
    section = asked.data.model_copy(update={"evaluated": split.evaluated})
    asked = asked.model_copy(update={"data": section})
    data_sets = world.agree(lambda: data_of(asked, split))
    run = world.from_first(request.run or new_run(asked))
    address = request.address or str(run)
    saved = world.from_first(world.agree(lambda: _saved(request, run) if world.first else None))
    settled, places = origins.settle(asked, recipe_from(saved, where=str(run)) if saved else None, world)
    found = world.agree(lambda: _resolve_on_first(settled, split, world))
    data, look = world.from_first(found)
    recipe = recipe_from(data, where=f"recipe {asked.name}")
    world.agree(lambda: _same_data(data_sets, world.from_first(data_sets)))
    start = world.from_first(world.agree(lambda: _start(request, run, address, data, data_sets, world)))
    here = origins.local(recipe, places)
    merges = world.from_first(world.agree(lambda: _merges(recipe, split.train, run) if world.first else None))
    preflight = world.agree(lambda: check(recipe, split.train, look, world, run, address))
    world.agree(lambda: check_beginning(here, start is None))
    told = [*preflight.warnings, *origins.notes(asked, recipe, places)]
    preflight = replace(preflight, warnings=told)
    tokenizer = None if merges is None else Tokenizer.parse(merges, recipe.model.text.vocabulary, VOCABULARY)
    return Plan(recipe, split, data_sets, run, address, start, preflight, here, tokenizer)


def _merges(recipe: Recipe, train: Source, run: Path) -> str | None:
    """The text of the merges: the run's own, a file's, or what the training captions give."""
    if recipe.captions is None:
        return None
    if not has_captions(train):
        raise UserError(
            "these pictures have no captions",
            where=recipe.data.where,
            fix="pack them with their captions (docs/data.md), or try data=shapes",
        )
    asked, vocabulary = recipe.captions.merges, recipe.model.text.vocabulary
    if (run / VOCABULARY).is_file():
        found = Tokenizer.read(run / VOCABULARY, vocabulary, str(run / VOCABULARY))
    elif not asked:
        raise UserError(
            "how are captions cut into tokens?",
            where="captions.merges",
            fix="name a file of byte-pair merges, such as CLIP's bpe_simple_vocab_16e6.txt.gz, or `learned`",
        )
    elif asked == "learned":
        chosen = range(0, len(train), -(-len(train) // LEARNED_FROM))
        found = Tokenizer.learned((text for i in chosen for text in captions(train, i)), vocabulary)
    else:
        found = Tokenizer.read(Path(asked).expanduser(), vocabulary, f"captions.merges={asked}")
    return found.text()


def _saved(request: Request, run: Path) -> Any:
    """The recipe of the run that is gone on with, as plain data."""
    path = run / RECIPE
    return parse_yaml(path.read_text()) if (request.resume or request.restarted) and path.is_file() else None


def _asked_recipe(request: Request) -> Recipe:
    if request.run is not None and (request.resume or request.restarted):
        saved = request.run / RECIPE
        if request.recipe is None and saved.is_file():
            data = overridden(parse_yaml(saved.read_text()), request.overrides)
            return recipe_from(data, where=str(saved))
    recipe = load_recipe(request.recipe or DEFAULT_RECIPE, request.overrides, request.scale)
    if request.student:
        recipe = student_recipe(recipe, request.student)
    elif recipe.students:
        raise UserError(
            f"the recipe has the students {', '.join(recipe.students)}",
            where=recipe.name,
            fix="train them with scholarch distill; or take one recipe for one model",
        )
    if request.scale == "tiny" and recipe.init_from is not None and recipe.init_from.checkpoint is None:
        # A later stage that is tried out by itself: there is no tiny run of the stage before it.
        return recipe.model_copy(update={"init_from": None})
    return recipe


def new_run(recipe: Recipe) -> Path:
    """A folder's name for a run that was given none."""
    # The launcher's time, so that a worker that it starts again finds the run.
    started = os.environ.get("SCHOLARCH_STARTED") or time.strftime("%Y%m%d-%H%M%S")
    return Path("runs") / f"{recipe.name.replace('/', '-')}-{started}"


def _resolve_on_first(recipe: Recipe, split: Split, world: World) -> tuple[dict[str, Any], ScanReport] | None:
    if not world.first:
        return None
    look = autos.look_at(recipe, split.train)
    resolved = autos.resolve(recipe, look, world_size=world.size, local_size=world.local_size)
    return plain(resolved), look


def _same_data(here: Sequence[Data], first: Sequence[Data]) -> None:
    for mine, other in zip(here, first, strict=True):
        if mine.fingerprint != other.fingerprint:
            raise UserError(
                f"this process sees other pictures in {mine.name} than the first one",
                where="data",
                fix="give all nodes the same folder or a shared file system",
            )


def _start(
    request: Request,
    run: Path,
    address: str,
    data: Mapping[str, Any],
    data_sets: Sequence[Data],
    world: World,
) -> Checkpoint | None:
    """Where to go on from; refuses to mix two runs in one folder."""
    if not world.first:
        return None
    folder = joined(address, "checkpoints")
    if not (request.resume or request.restarted):
        if committed(folder) or (run / RECIPE).exists():
            raise UserError(
                "this folder already holds a run",
                where=address,
                fix="add --resume to go on with it, or name another folder with --run",
            )
        return None
    if not (run / RECIPE).is_file():
        if request.restarted:
            return None
        raise UserError(
            "there is no run to resume",
            where=request.address or "--resume",
            fix="name the run's folder with --run; leave --resume out to begin a new one",
        )
    saved = recipe_from(parse_yaml((run / RECIPE).read_text()), where=str(run / RECIPE))
    refuse_changes(plain(saved), data, run)
    for before, now in zip(json.loads((run / STATE).read_text())["data_sets"], data_sets, strict=True):
        if before["fingerprint"] != now.fingerprint:
            raise UserError(
                f"the data has changed since the run began ({before['counts']['pictures']} pictures then, "
                f"{now.counts['pictures']} now)",
                where=f"data={now.source}",
                fix="restore the data, or begin a new run",
            )
    return newest_whole(folder)


def refuse_changes(saved: Mapping[str, Any], now: Mapping[str, Any], run: Path) -> None:
    """Compares the recipe of a run with the one it is to be resumed with.

    Raises:
        UserError: listing the keys that differ and may not.
    """
    lines = [
        f"  - {key}: {before!r} -> {after!r}"
        for key, (before, after) in differences(saved, now).items()
        if not may_change(key)
    ]
    if lines:
        raise UserError(
            "the recipe differs from the one the run began with\n" + "\n".join(lines),
            where=str(run / RECIPE),
            fix="resume without these changes, or begin a new run with them",
        )
