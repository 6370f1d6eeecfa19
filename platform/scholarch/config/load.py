"""Finds a recipe, merges `extends` and overrides, validates it, and says every mistake in plain words."""

from __future__ import annotations

import difflib
import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from importlib import resources
from pathlib import Path
from typing import Any, TypeVar

import yaml
from pydantic import BaseModel, ValidationError

from scholarch.config.names import known_keys
from scholarch.config.nearest import nearest_keys
from scholarch.config.resolve import merge
from scholarch.config.scale import Scale, tiny
from scholarch.config.schema import Kinds, Recipe, recipe_type, written_out
from scholarch.config.students import for_student, not_of_one
from scholarch.errors import UserError

RECIPES = resources.files("scholarch.config") / "recipes"


class _Loader(yaml.SafeLoader):
    """YAML 1.1 takes 1e-4 for a string; people mean a number."""


_Loader.add_implicit_resolver(
    "tag:yaml.org,2002:float",
    re.compile(r"^[-+]?(\d[\d_]*)(\.[\d_]*)?([eE][-+]?\d+)$"),
    list("-+0123456789"),
)


def parse_yaml(text: str) -> Any:
    """YAML with numbers such as 1e-4 read as numbers.

    Raises:
        yaml.YAMLError: if it is no YAML.
    """
    return yaml.load(text, Loader=_Loader)


def recipe_names() -> list[str]:
    """Names of the recipes that come with the package, sorted."""
    root = Path(str(RECIPES))
    return sorted(path.relative_to(root).with_suffix("").as_posix() for path in root.rglob("*.yaml"))


@dataclass(frozen=True)
class _Found:
    name: str
    text: str


def _find(name: str) -> _Found:
    if name.endswith((".yaml", ".yml")):
        path = Path(name)
        if not path.is_file():
            raise UserError(
                f"no recipe file {name}", fix="give a YAML file, or a name of `scholarch recipes`"
            )
        return _Found(path.stem, path.read_text())
    if name in recipe_names():
        return _Found(name, (Path(str(RECIPES)) / f"{name}.yaml").read_text())
    near = difflib.get_close_matches(name, recipe_names(), n=1, cutoff=0.4)
    hint = f"did you mean {near[0]}? " if near else ""
    raise UserError(f"unknown recipe {name!r}", fix=f"{hint}`scholarch recipes` lists all")


def read_recipe(name: str, seen: tuple[str, ...] = ()) -> dict[str, Any]:
    """A recipe as plain data, with what it `extends` merged in, not yet validated.

    Args:
        name: name of a recipe of the package, or the path of a YAML file.

    Raises:
        UserError: unknown name, no mapping, or recipes that extend one another in a circle.
    """
    found = _find(name)
    try:
        data = parse_yaml(found.text)
    except yaml.YAMLError as error:
        raise UserError(f"this is not YAML: {error}", where=name, fix="mend the file") from None
    if not isinstance(data, dict):
        raise UserError(
            "a recipe is a mapping of sections",
            where=name,
            fix="start from `scholarch recipes show demo/digits`",
        )
    base = data.pop("extends", None)
    if base is not None:
        if base in (*seen, name):
            raise UserError(
                f"recipes extend one another in a circle: {' -> '.join((*seen, name, base))}", where=name
            )
        data = merge(read_recipe(base, (*seen, name)), data)
    return {**data, "name": found.name}


_PATH = re.compile(r"data(\.source|\.sources\.\w+\.source)?")


def parse_override(text: str) -> dict[str, Any]:
    """`a.b=value` as {a: {b: value}}, the value read as YAML.

    Raises:
        UserError: if it is not of that form.
    """
    key, equals, value = text.partition("=")
    if not equals or not re.fullmatch(r"\w+(\.\w+)*", key):
        raise UserError(f"{text!r} is no override", fix="write key.path=value, such as training.steps=500")
    try:
        # A path may hold characters that YAML reads as something else.
        nested: Any = value if _PATH.fullmatch(key) else parse_yaml(value)
    except yaml.YAMLError:
        nested = value
    first, *rest = key.split(".")
    for part in reversed(rest):
        nested = {part: nested}
    return {first: nested}


def overridden(data: Mapping[str, Any], overrides: Sequence[str]) -> dict[str, Any]:
    """`data` with overrides laid over it in order.

    `data=PATH` replaces the whole section, whose other values describe the pictures that were named
    there; in a recipe that names none, it names them. `data.sources.NAME.source=PATH` does the same to
    one source, and adds a data set to several.

    Raises:
        UserError: if one is not of the form key.path=value.
    """
    result = dict(data)
    for text in overrides:
        change = parse_override(text)
        asked = change.get("data")
        if isinstance(asked, (str, Mapping)):
            result["data"] = _with_data(result.get("data", {}), asked)
        else:
            result = merge(result, change)
    return result


def _with_data(section: Any, asked: str | Mapping[str, Any]) -> dict[str, Any]:
    section = section if isinstance(section, Mapping) else {"source": section}
    one, several = bool(section.get("source")), bool(section.get("sources"))
    if isinstance(asked, str):
        return {**({} if one or several else section), "source": asked}
    return merge({} if one and asked.get("sources") else section, asked)


def load_recipe(name: str, overrides: Sequence[str], kinds: Kinds, scale: Scale = "full") -> Recipe:
    """The recipe `name` at a scale, with `overrides`, validated, its schedules resolved to steps.

    Raises:
        UserError: with every mistake at once.
    """
    data = read_recipe(name)
    if scale == "tiny":
        validate(data, kinds, where=f"recipe {name}")  # so that mistakes are told of what was written
        data = tiny(data)
    return validate(overridden(data, overrides), kinds, where=f"recipe {name}")


def validate(data: Mapping[str, Any], kinds: Kinds, where: str) -> Recipe:
    """Checks plain data against the schema and resolves its schedules.

    Raises:
        UserError: with every mistake at once.
    """
    schema = recipe_type(kinds)
    recipe, lines = _checked(schema, written_out(data))
    for name in recipe.students if recipe is not None else ():
        whole = written_out(for_student(data, name))
        found = [*not_of_one(data["students"][name]), *_checked(schema, whole)[1]]
        lines += [f"students.{name}.{line}" for line in found]
    if recipe is None or lines:
        raise _mistakes(lines, where)
    return resolve_schedules(recipe)


S = TypeVar("S", bound=BaseModel)


def validated(schema: type[S], data: Mapping[str, Any], where: str) -> S:
    """Plain data as an instance of a strict schema.

    Raises:
        UserError: with every mistake at once, in the user's words.
    """
    found, lines = _checked(schema, data)
    if found is None:
        raise _mistakes(lines, where)
    return found


def _checked(schema: type[S], data: Mapping[str, Any]) -> tuple[S | None, list[str]]:
    """The instance, or every mistake in plain words."""
    try:
        # JSON mode: strict about numbers and strings, but a list may stand for a tuple.
        return schema.model_validate_json(json.dumps(data)), []
    except ValidationError as error:
        return None, _in_plain_words(schema, error)
    except TypeError as error:
        return None, [str(error)]


def _mistakes(lines: Sequence[str], where: str) -> UserError:
    count = "1 mistake" if len(lines) == 1 else f"{len(lines)} mistakes"
    return UserError(f"{count}\n" + "\n".join(f"  - {line}" for line in lines), where=where)


def _in_plain_words(schema: type[BaseModel], error: ValidationError) -> list[str]:
    """One line for each key; what the members of a union say of it is joined by "or"."""
    by_path: dict[str, list[str]] = {}
    for problem in error.errors():
        path, known = known_keys(schema, problem["loc"])
        message = _message(path, known, dict(problem))
        if message not in by_path.setdefault(path, []):
            by_path[path].append(message)
    return [
        f"{path}: {' or '.join(words)}" if path else " or ".join(words) for path, words in by_path.items()
    ]


def _message(path: str, known: Sequence[str], problem: Mapping[str, Any]) -> str:
    kind = problem["type"]
    if kind in ("extra_forbidden", "unexpected_keyword_argument"):
        near = " or ".join(f"`{key}`" for key in nearest_keys(path.rpartition(".")[2], known))
        return f"unknown key; did you mean {near}?" if near else f"unknown key; known: {', '.join(known)}"
    if kind.startswith("missing"):
        return "missing"
    if kind == "union_tag_invalid":
        return f"no such kind: {problem['ctx']['tag']!r}; there are: {problem['ctx']['expected_tags']}"
    message = str(problem["msg"]).removeprefix("Value error, ")
    given = problem.get("input")
    shown = f" (given: {given!r})" if isinstance(given, (str, int, float, bool)) else ""
    return message[:1].lower() + message[1:] + shown


def resolve_schedules(recipe: Recipe) -> Recipe:
    """The recipe with every schedule in steps of this run.

    Raises:
        UserError: naming the key of a schedule that does not fit the run.
    """
    from scholarch.config.resolve import map_schedules

    return map_schedules(recipe, recipe.training.steps)


def plain(recipe: Recipe) -> dict[str, Any]:
    """The recipe as plain data that `validate` takes back unchanged."""
    data: dict[str, Any] = json.loads(recipe.model_dump_json())
    return data


def to_yaml(recipe: Recipe) -> str:
    """The recipe as YAML, whole and in the schema's order."""
    return yaml.safe_dump(plain(recipe), sort_keys=False, allow_unicode=True, width=100)
