"""Recipes with the kinds of this package: what is asked for by name becomes checked options."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import cache
from typing import Any

from scholarch.config import load
from scholarch.config.scale import Scale
from scholarch.config.schema import Kinds, Recipe
from scholarch.config.students import for_student
from scholarch.data.options import ViewOptions
from scholarch.models import BACKBONES
from scholarch.models.heads import HeadOptions
from scholarch.objectives import MASKS, TERMS


@cache
def kinds() -> Kinds:
    """The option dataclasses of every kind of model, term and mask."""
    return Kinds(
        models={kind: options for kind, (options, _) in BACKBONES.items()},
        terms={kind: term.Options for kind, term in TERMS.items()},
        masks={kind: sampler.Options for kind, sampler in MASKS.items()},
        head=HeadOptions,
        view=ViewOptions,
    )


def load_recipe(name: str, overrides: Sequence[str] = (), scale: Scale = "full") -> Recipe:
    """A recipe of the package, or a YAML file, at a scale, with overrides `key.path=value`.

    Raises:
        UserError: with every mistake at once.
    """
    return load.load_recipe(name, overrides, kinds(), scale)


def recipe_from(data: Mapping[str, Any], where: str) -> Recipe:
    """A recipe from plain data, such as a run's recipe.yaml.

    Raises:
        UserError: with every mistake at once.
    """
    return load.validate(data, kinds(), where)


def student_recipe(recipe: Recipe, name: str) -> Recipe:
    """The whole recipe of one of a recipe's students."""
    return recipe_from(for_student(load.plain(recipe), name), where=f"students.{name}")
