"""Turns what `init_from` and frozen teachers name into what is here, and writes down what it was."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any

import numpy as np

from scholarch.cli.sources import Place, find_model
from scholarch.config.schema import DRAWN, FoundSection, Recipe, settled
from scholarch.errors import UserError
from scholarch.training.distributed import World

Places = Mapping[str, Place]
"""By key of the recipe's section: "init_from" or "teachers.NAME"."""


def settle(recipe: Recipe, saved: Recipe | None, world: World) -> tuple[Recipe, Places]:
    """The recipe with what its checkpoints were found to be; frozen teachers get model and heads from there.

    An alias moves and a run trains on: a run that goes on keeps to what it began with.

    Args:
        recipe: as it was asked for.
        saved: of the run that is gone on with.
        world: the first process of each node fetches, and tells the others of its node.

    Raises:
        UserError: if something is not there, or is not what the recipe says that it is.
    """
    recipe, before = _pinned(recipe, saved), {} if saved is None else _sections(saved)
    # What a run began from it has taken over long ago.
    wanted = {n: s for n, s in _sections(recipe).items() if n not in before or n != "init_from"}
    first = world.local_rank == 0
    mine = world.agree(
        lambda: {name: _found(name, section) for name, section in wanted.items()} if first else {}
    )
    everywhere = world.gather(mine)
    found = everywhere[world.rank - world.local_rank]
    for name, (_, digest) in found.items():
        if digest != everywhere[0][name][1]:
            raise UserError("is another one on this node than on the first", where=f"{name}.checkpoint")
    places = {name: place for name, (place, _) in found.items()}
    digests = {name: digest for name, (_, digest) in found.items()}
    return _written(recipe, places, digests), places


def local(recipe: Recipe, places: Places) -> Recipe:
    """The recipe with every checkpoint that was found named by its folder or file on this machine."""
    return _changed(recipe, {name: {"checkpoint": place.address} for name, place in places.items()})


def of_teachers(recipe: Recipe) -> tuple[Recipe, list[str]]:
    """The recipe with models and heads of the frozen teachers that are here, and the names of those that are not."""
    places, missing = {}, []
    for name, section in _sections(recipe).items():
        if name != "init_from":
            try:
                places[name] = find_model(section.checkpoint)
            except UserError:
                missing.append(name)
    return _written(recipe, places, {}), missing


def notes(asked: Recipe, recipe: Recipe, places: Places) -> list[str]:
    """What is worth knowing of the teachers that were found.

    Args:
        asked: before `settle`.
        recipe: resolved, without `auto`.
    """
    found = []
    for name, place in places.items():
        own = getattr(_sections(asked)[name], "model", None)
        if own is not None and place.options is not None and own != place.options:
            found.append(f"{name}.model is that of {place.name}, not what the recipe says")
        seen = place.preprocessing
        ours = settled(recipe.data.mean), settled(recipe.data.std)
        if name != "init_from" and seen and not _close((seen.mean, seen.std), ours):
            found.append(
                f"{name} was trained on pictures of mean {seen.mean}, std {seen.std}, and sees them normalised by "
                f"{ours[0]}, {ours[1]}: set data.mean and data.std to its own"
            )
    return found


def _close(theirs: Any, ours: Any) -> bool:
    shapes = [[len(part) for part in pair] for pair in (theirs, ours)]
    return shapes[0] == shapes[1] and bool(np.allclose(theirs, ours, atol=5e-3))


def _sections(recipe: Recipe) -> dict[str, Any]:
    """Those that name a checkpoint."""
    sections = {"init_from": recipe.init_from} | {f"teachers.{n}": t for n, t in recipe.teachers.items()}
    return {n: s for n, s in sections.items() if s is not None and s.checkpoint not in (None, DRAWN)}


def _pinned(recipe: Recipe, saved: Recipe | None) -> Recipe:
    if saved is None:
        return recipe
    before, now = _sections(saved), _sections(recipe)
    same = [n for n in now if n in before and now[n].checkpoint == before[n].checkpoint]
    return _changed(recipe, {name: {"found": before[name].found} for name in same})


def _found(name: str, section: Any) -> tuple[Place, str]:
    where = f"{name}.checkpoint"
    place = find_model(section.found.name if section.found else section.checkpoint, where)
    digest = place.sha256()
    if section.found and section.found.sha256 != digest:
        raise UserError(
            f"{place.name} has changed: its SHA-256 is {digest}, not {section.found.sha256}",
            where=where,
            fix="restore it, or begin a new run",
        )
    return place, digest


def _written(recipe: Recipe, places: Places, digests: Mapping[str, str]) -> Recipe:
    changes: dict[str, dict[str, Any]] = {}
    for name, place in places.items():
        changes[name] = (
            {"found": FoundSection(name=place.name, sha256=digests[name])} if name in digests else {}
        )
        if name != "init_from" and place.options is not None:
            changes[name]["model"] = place.options
            if place.heads is not None:
                changes[name]["heads"] = dict(place.heads)
    written = _changed(recipe, changes)
    return _locked(written, places["init_from"]) if "init_from" in places else written


def _locked(recipe: Recipe, place: Place) -> Recipe:
    """The recipe of an aligned model with the backbone that was found in it, and pictures as that saw them."""
    if recipe.model.kind != "aligned" or place.options is None or place.options.kind == "aligned":
        return recipe
    changes: dict[str, Any] = {"model": dataclasses.replace(recipe.model, vision=place.options)}
    if (init := recipe.init_from) and init.student == "student" and place.network.startswith("teachers."):
        changes["init_from"] = init.model_copy(update={"student": place.network.removeprefix("teachers.")})
    if seen := place.preprocessing:
        theirs = {"mean": seen.mean, "std": seen.std}
        left: dict[str, Any] = {
            key: value for key, value in theirs.items() if isinstance(getattr(recipe.data, key), str)
        }
        left["channels"] = place.options.channels
        changes["data"] = recipe.data.model_copy(update=left)
    return recipe.model_copy(update=changes)


def _changed(recipe: Recipe, changes: Mapping[str, Mapping[str, Any]]) -> Recipe:
    """A copy with some values of its sections replaced."""
    teachers = {n: t.model_copy(update=changes.get(f"teachers.{n}", {})) for n, t in recipe.teachers.items()}
    init = recipe.init_from and recipe.init_from.model_copy(update=changes.get("init_from", {}))
    return recipe.model_copy(update={"teachers": teachers, "init_from": init})
