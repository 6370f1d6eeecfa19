"""The students of a recipe: what each changes, and the whole recipe of one."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from scholarch.config.resolve import flatten

OF_ALL_STUDENTS = (
    *("data", "seed", "students", "groups", "name"),
    *("training.global_batch", "training.steps", "training.precision"),
)
"""Keys that the students of a recipe share, since they share its stream and its teacher."""


def not_of_one(changes: Mapping[str, Any]) -> list[str]:
    """What is wrong with a student's changes as such, a line for each key."""
    return [
        f"{key}: is of all students together; change it in the recipe itself"
        for key in flatten(changes)
        if key.partition(".")[0] in OF_ALL_STUDENTS or key in OF_ALL_STUDENTS
    ]


def for_student(data: Mapping[str, Any], name: str) -> dict[str, Any]:
    """The recipe of one of the `students`, as plain data: the recipe with its changes laid over it."""
    base = {key: value for key, value in data.items() if key not in ("students", "groups")}
    changes = data["students"][name]
    whole = {**merge(base, changes), "name": f"{data.get('name', '')}-{name}"}
    registered = data.get("registered_name", "auto")
    if registered != "auto" and "registered_name" not in changes:
        whole["registered_name"] = f"{registered}-{name}"
    return whole


def merge(base: Mapping[str, Any], change: Mapping[str, Any]) -> dict[str, Any]:
    """`base` with `change` laid over it: mappings are merged, null removes a key, the rest replaces.

    So does a `model` of another kind, to which the options of the one before mean nothing.
    """
    merged = dict(base)
    for key, value in change.items():
        if value is None:
            merged.pop(key, None)
        elif key == "model" and _other_kind(merged.get(key), value):
            merged[key] = value
        elif isinstance(value, Mapping) and isinstance(merged.get(key), Mapping):
            merged[key] = merge(merged[key], value)
        else:
            merged[key] = value
    return merged


def _other_kind(base: Any, change: Any) -> bool:
    if not isinstance(base, Mapping) or not isinstance(change, Mapping):
        return False
    return "kind" in change and change["kind"] != base.get("kind", "vit")
