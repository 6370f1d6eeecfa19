"""The students of a recipe: what each changes, and the whole recipe of one."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from scholarch.config.resolve import flatten, merge

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
