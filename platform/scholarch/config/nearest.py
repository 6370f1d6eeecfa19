"""What somebody meant who wrote a key that does not exist."""

from __future__ import annotations

import difflib
import re
from collections.abc import Sequence

_CUTOFF = 0.5
_WORD = re.compile(r"[A-Z]?[a-z]+|\d+")


def nearest_keys(name: str, known: Sequence[str]) -> list[str]:
    """The known key that is spelled most alike; failing that, all that share a word (`batch_size`: `global_batch`)."""
    if near := difflib.get_close_matches(name, known, n=1, cutoff=_CUTOFF):
        return near
    return [key for key in known if _words(name) & _words(key)]


def _words(key: str) -> set[str]:
    """Of snake_case and of camelCase."""
    return {word.lower() for word in _WORD.findall(key)}
