"""Stages that follow one another, each a run of its own in `<run>/stages/<number>-<recipe>`."""

from __future__ import annotations

import gc
import json
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from scholarch.cli.plan import CHAIN, Chain, Request, new_run
from scholarch.cli.session import Session
from scholarch.cli.sources import EXPORT, RECIPE
from scholarch.config.load import parse_yaml
from scholarch.config.scale import Scale
from scholarch.config.schema import Recipe
from scholarch.errors import EXIT_DONE, UserError
from scholarch.storage.objects import joined
from scholarch.training.checkpoint import committed
from scholarch.training.distributed import World
from scholarch.training.initial import STAGES
from scholarch.training.preflight import check_views
from scholarch.training.recipe import load_recipe, recipe_from


def is_chain(run: Path | None) -> bool:
    """Whether a folder holds a run of several stages."""
    return run is not None and (run / CHAIN).is_file()


def run_stages(recipes: Sequence[str], request: Request, world: World) -> int:
    """Carries out the stages that are not done yet; gives the exit code of the last one it ran.

    Args:
        recipes: one for each stage; none: those that the run began with.
        request: what else was asked for; its overrides are for every stage.

    Raises:
        UserError: before anything is written, if recipes do not form a chain.
    """
    again = request.resume or request.restarted
    chain = world.from_first(world.agree(lambda: _chain(recipes, request, again)))
    asked = world.agree(lambda: _check(chain))
    # Of a run in S3 each process has a folder of its own; only a new name comes from the first.
    run = request.run or world.from_first(new_run(asked[-1]))
    names = [f"{number}-{name_of(r).replace('/', '-')}" for number, r in enumerate(chain.recipes, 1)]
    folders = [run / STAGES / name for name in names]
    addresses = [joined(request.address or str(run), STAGES, name) for name in names]
    code = EXIT_DONE
    for number, folder in enumerate(folders):
        state = world.from_first(_state(folder, addresses[number]) if again else "new")
        if state == "done":
            continue
        overrides = chain.overrides
        if number:
            overrides = (*overrides, *_from(addresses[number - 1], asked[number], chain.scale))
        stage = replace(
            request,
            recipe=chain.recipes[number] if state == "new" else None,
            overrides=overrides if state == "new" else request.overrides,
            run=folder,
            address=addresses[number],
            resume=state == "begun" and not request.restarted,
            scale=chain.scale,
            chain=chain,
            parent=folders[0] if number else None,
        )
        code = Session(stage, world).run()
        if code != EXIT_DONE:
            break
        gc.collect()  # a trainer's hooks hold it in circles, and with it the weights of the stage before
    return code


def name_of(recipe: str) -> str:
    """A recipe's name, or the stem of its file."""
    return Path(recipe).stem if recipe.endswith((".yaml", ".yml")) else recipe


def _chain(recipes: Sequence[str], request: Request, again: bool) -> Chain:
    given = Chain(tuple(recipes), request.overrides, request.scale)
    if not is_chain(request.run):
        if request.run is not None and (request.run / RECIPE).exists():
            raise UserError(
                "this folder already holds a run of one stage",
                where=request.address,
                fix="name another folder",
            )
        if not recipes or (request.resume and not request.restarted):
            raise UserError(
                "there is no run of several stages to resume",
                where=request.address or "--resume",
                fix="name the run's folder with --run; leave --resume out to begin a new one",
            )
        return given
    assert request.run is not None
    if not again:
        raise UserError(
            "this folder already holds a run",
            where=request.address,
            fix="add --resume to go on with it, or name another folder with --run",
        )
    data: dict[str, Any] = json.loads((request.run / CHAIN).read_text())
    scale: Scale = data["scale"]
    saved = Chain(tuple(data["recipes"]), tuple(data["overrides"]), scale)
    if recipes and given.recipes != saved.recipes:
        raise UserError(
            f"the run began with the stages {', '.join(saved.recipes)}",
            where="--recipe",
            fix="resume without --recipe, or begin a new run",
        )
    # Overrides of a resume are laid over those that the run began with.
    return replace(
        saved, overrides=(*saved.overrides, *(o for o in given.overrides if o not in saved.overrides))
    )


def _check(chain: Chain) -> list[Recipe]:
    """Every stage's recipe must be one, and each but the first must begin from the one before."""
    found = []
    for number, name in enumerate(chain.recipes):
        recipe = load_recipe(name, chain.overrides, chain.scale)
        check_views(recipe)
        if number and (recipe.init_from is None or recipe.init_from.stage is None):
            raise UserError(
                f"{name} begins from no stage before it",
                where="--recipe",
                fix="add `init_from: {stage: previous}` to the recipe, or train it by itself",
            )
        found.append(recipe)
    return found


def _from(previous: str, recipe: Recipe, scale: Scale) -> list[str]:
    overrides = [f"init_from.checkpoint={json.dumps(previous)}"]
    if scale == "tiny" and recipe.init_from is not None and recipe.init_from.goes_on:
        # Every stage is shrunk to the same few steps: there would be none left to go on with.
        overrides.append("init_from.continue=false")
    return overrides


def _state(folder: Path, address: str) -> str:
    """`new`, `begun` or `done`."""
    if not (folder / RECIPE).is_file():
        return "new"
    recipe = recipe_from(parse_yaml((folder / RECIPE).read_text()), where=str(folder / RECIPE))
    saved = committed(joined(address, "checkpoints"))
    finished = bool(saved) and saved[-1].step >= recipe.training.steps
    return "done" if finished and (folder / EXPORT).is_dir() else "begun"
