"""What a run will do, decided and checked by all processes before anything is written."""

from __future__ import annotations

import json
import os
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from scholarch.cli.pretrain import DEFAULT_RECIPE
from scholarch.cli.sources import RECIPE
from scholarch.config.load import overridden, parse_yaml, plain
from scholarch.config.resolve import differences, may_change
from scholarch.config.scale import Scale
from scholarch.config.schema import Recipe
from scholarch.data.catalog import open_source
from scholarch.data.source import Source
from scholarch.data.split import Subset, holdout
from scholarch.data.statistics import ScanReport, scan
from scholarch.errors import UserError
from scholarch.storage.objects import joined
from scholarch.training import autos
from scholarch.training.checkpoint import Checkpoint, committed, newest_whole
from scholarch.training.distributed import World
from scholarch.training.preflight import Preflight, check, check_beginning
from scholarch.training.recipe import load_recipe, recipe_from

STATE = "run.json"
CHAIN = "stages.json"


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
    before_commit: Callable[[], object] = lambda: None


@dataclass(frozen=True)
class Split:
    """The data of a run.

    Attributes:
        train: what the model learns from.
        held: labelled pictures kept apart for evaluation; None without labels.
    """

    train: Source
    held: Source | None


@dataclass(frozen=True)
class Plan:
    """A checked run.

    Attributes:
        recipe: resolved, without `auto`.
        split: the data.
        run: folder of its small files.
        address: where it is, for people; the folder itself, or under `s3://`.
        start: the checkpoint to go on from; None: from the beginning.
        preflight: the table and the layout.
    """

    recipe: Recipe
    split: Split
    run: Path
    address: str
    start: Checkpoint | None
    preflight: Preflight

    @property
    def checkpoints(self) -> str:
        """Address of its checkpoints."""
        return joined(self.address, "checkpoints")


def split_of(recipe: Recipe) -> Split:
    """Opens the recipe's data and keeps the labelled share apart.

    Raises:
        UserError: when there is no such data.
    """
    source = open_source(recipe.data.source, recipe.data.labels)
    if source.classes is None or recipe.data.holdout == 0:
        return Split(source, None)
    train, held = holdout(source, recipe.data.holdout, recipe.seed)
    return Split(Subset(source, train), Subset(source, held))


def make_plan(request: Request, world: World) -> Plan:
    """Decides and checks; nothing is written.

    Raises:
        UserError: on all processes, whichever of them met the mistake.
    """
    # A node that joined later was not started again, but takes part in a run that was.
    request = replace(request, restarted=any(world.gather(request.restarted)))
    asked = world.agree(lambda: _asked_recipe(request))
    split = world.agree(lambda: split_of(asked))
    run = world.from_first(request.run or new_run(asked))
    address = request.address or str(run)
    found = world.agree(lambda: _resolve_on_first(asked, split, world))
    data, look = world.from_first(found)
    recipe = recipe_from(data, where=f"recipe {asked.name}")
    world.agree(lambda: _same_data(split, world.from_first(split.train.fingerprint())))
    start = world.from_first(world.agree(lambda: _start(request, run, address, data, split, world)))
    world.agree(lambda: check_beginning(recipe, start is None))
    preflight = world.agree(lambda: check(recipe, split.train, look, world, run, address))
    return Plan(recipe, split, run, address, start, preflight)


def _asked_recipe(request: Request) -> Recipe:
    if request.run is not None and (request.resume or request.restarted):
        saved = request.run / RECIPE
        if request.recipe is None and saved.is_file():
            data = overridden(parse_yaml(saved.read_text()), request.overrides)
            return recipe_from(data, where=str(saved))
    recipe = load_recipe(request.recipe or DEFAULT_RECIPE, request.overrides, request.scale)
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
    resolved = autos.resolve(recipe, split.train, world_size=world.size, local_size=world.local_size)
    channels = resolved.data.channels
    look = scan(split.train, channels=channels if isinstance(channels, int) else None, at_most=256)
    look.require_good(f"data={recipe.data.source}")
    return plain(resolved), look


def _same_data(split: Split, first: str) -> None:
    if split.train.fingerprint() != first:
        raise UserError(
            "this process sees other pictures than the first one",
            where="data",
            fix="give all nodes the same folder or a shared file system",
        )


def _start(
    request: Request, run: Path, address: str, data: Mapping[str, Any], split: Split, world: World
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
    state = json.loads((run / STATE).read_text())
    before = state["data_set"]
    if before["fingerprint"] != split.train.fingerprint():
        raise UserError(
            f"the data has changed since the run began ({before['counts']['pictures']} pictures then, "
            f"{len(split.train)} now)",
            where=f"data={data['data']['source']}",
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
