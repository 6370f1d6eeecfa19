"""Rules that hold between the fields of a section: once for the API server, once for Python."""

from __future__ import annotations

from collections.abc import Callable, Hashable, Iterable
from dataclasses import dataclass
from typing import Any

_SUFFIXES = {"": 1, "k": 10**3, "M": 10**6, "G": 10**9, "T": 10**12}
_SUFFIXES |= {"Ki": 2**10, "Mi": 2**20, "Gi": 2**30, "Ti": 2**40}


@dataclass(frozen=True)
class Rule:
    """A rule of a section.

    Attributes:
        cel: in the Common Expression Language, for the API server; `self` is the section.
        message: what is wrong and what to change.
        holds: the same in Python.
    """

    cel: str
    message: str
    holds: Callable[[Any], bool]


def bytes_of(quantity: str) -> float:
    """Bytes of a Kubernetes quantity such as `16Gi`."""
    number = quantity.rstrip("kKMGTi")
    return float(number) * _SUFFIXES[quantity[len(number) :]]


def unique(values: Iterable[Hashable]) -> bool:
    """Whether no value is there twice."""
    found = list(values)
    return len(found) == len(set(found))
