"""The path of a mistake as the user wrote it, and the keys that are known there."""

from __future__ import annotations

import dataclasses
import types
import typing
from typing import Any, Union

from pydantic import BaseModel


def known_keys(schema: Any, location: tuple[Any, ...]) -> tuple[str, list[str]]:
    """Follows pydantic's `location` of a mistake through the types.

    pydantic names the tried member of a union between the keys; the path leaves it out.

    Returns:
        the dotted path in the recipe, and the keys known beside its last part.
    """
    path: list[str] = []
    known: list[str] = []
    here = schema
    for part in location:
        here = _plain(here)
        if _is_union(here):
            here = _member(here, part)
            continue
        fields = _fields(here)
        known = list(fields)
        path.append(str(part))
        here = fields[part] if part in fields else _item(here)
    return ".".join(path), known


def _plain(annotation: Any) -> Any:
    """Without Annotated and Optional, which leave no trace in a location."""
    if typing.get_origin(annotation) is typing.Annotated:
        return _plain(typing.get_args(annotation)[0])
    if _is_union(annotation):
        rest = [option for option in typing.get_args(annotation) if option is not type(None)]
        if len(rest) == 1:
            return _plain(rest[0])
    return annotation


def _is_union(annotation: Any) -> bool:
    return typing.get_origin(annotation) in (Union, types.UnionType)


def _member(union: Any, tag: Any) -> Any:
    for option in typing.get_args(union):
        if getattr(_plain(option), "kind", None) == tag:
            return option
    return Any


def _fields(owner: Any) -> dict[str, Any]:
    if isinstance(owner, type) and issubclass(owner, BaseModel):
        return {info.alias or name: info.annotation for name, info in owner.model_fields.items()}
    if dataclasses.is_dataclass(owner):
        hints = typing.get_type_hints(owner, include_extras=True)
        return {field.name: hints[field.name] for field in dataclasses.fields(owner)}
    return {}


def _item(container: Any) -> Any:
    """Type of what a mapping or a list holds."""
    arguments = typing.get_args(container)
    if typing.get_origin(container) is dict:
        return arguments[1]
    return arguments[0] if arguments else Any
