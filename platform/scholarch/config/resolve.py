"""Walks a recipe: resolves schedules, flattens it, compares and merges two."""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Mapping
from typing import Any, TypeVar

from pydantic import BaseModel

from scholarch.config.schedule import Schedule
from scholarch.errors import UserError

T = TypeVar("T")

MAY_CHANGE = (
    "training.micro_batch",
    "training.workers",
    "data.features",
    "training.compile",
    "training.activation_checkpointing",
    "training.checkpoint_every",
    "training.keep_checkpoints",
    "training.replicate_every",
    "training.log_every",
    "evaluation.",
    "about",
    "groups",
    "registered_name",
)
"""Keys that change how a run is carried out, not what it computes; a resume may change them."""


def map_schedules(value: T, total: int, path: str = "") -> T:
    """A copy of `value` with every Schedule in it resolved for `total` steps."""
    resolved: Any = value
    if isinstance(value, Schedule):
        try:
            resolved = value.resolve(total)
        except ValueError as error:
            raise UserError(str(error), where=path) from None
    elif isinstance(value, BaseModel):
        names = type(value).model_fields
        resolved = value.model_copy(
            update={n: map_schedules(getattr(value, n), total, f"{path}.{n}".strip(".")) for n in names}
        )
    elif dataclasses.is_dataclass(value) and not isinstance(value, type):
        changes = {
            f.name: map_schedules(getattr(value, f.name), total, f"{path}.{f.name}".strip("."))
            for f in dataclasses.fields(value)
        }
        resolved = dataclasses.replace(value, **changes)
    elif isinstance(value, dict):
        resolved = {k: map_schedules(v, total, f"{path}.{k}".strip(".")) for k, v in value.items()}
    return resolved  # type: ignore[no-any-return]


def flatten(data: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """Nested mappings as {"a.b.c": value}; lists stay values."""
    flat: dict[str, Any] = {}
    for key, value in data.items():
        if isinstance(value, Mapping) and value:
            flat |= flatten(value, f"{prefix}{key}.")
        else:
            flat[f"{prefix}{key}"] = value
    return flat


def differences(before: Mapping[str, Any], after: Mapping[str, Any]) -> dict[str, tuple[Any, Any]]:
    """Keys whose values differ, with both values (None where absent)."""
    a, b = flatten(before), flatten(after)
    return {key: (a.get(key), b.get(key)) for key in sorted({*a, *b}) if a.get(key) != b.get(key)}


def may_change(key: str) -> bool:
    """Whether a run may be resumed with another value of `key`."""
    return key.startswith(MAY_CHANGE) or re.fullmatch(r"teachers\.\w+\.sharded", key) is not None


def merge(base: Mapping[str, Any], change: Mapping[str, Any]) -> dict[str, Any]:
    """`base` with `change` laid over it: mappings are merged, null removes a key, the rest replaces.

    So does a `model` of another kind, to which the options of the one before mean nothing.
    """
    merged = dict(base)
    for key, value in change.items():
        if value is None:
            merged.pop(key, None)
        elif key == "model" and _other_kind(merged.get(key), value):
            merged[key] = merge({}, value)
        elif isinstance(value, Mapping) and isinstance(merged.get(key), Mapping):
            merged[key] = merge(merged[key], value)
        else:
            merged[key] = value
    return merged


def _other_kind(base: Any, change: Any) -> bool:
    if not isinstance(base, Mapping) or not isinstance(change, Mapping):
        return False
    return "kind" in change and change["kind"] != base.get("kind", "vit")
