"""What a run still owes its tracking server; filled by the trainer's thread, emptied by another."""

from __future__ import annotations

import threading
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import yaml

from scholarch.registry.redaction import flatten, redact

KEY_LENGTH = 250  # MLflow's limits (mlflow/utils/validation.py)
_PARAM_LENGTH = 6000
Status = Literal["FINISHED", "KILLED", "FAILED"]


@dataclass(frozen=True, kw_only=True)
class Data:
    """A data set as a run's input.

    Attributes:
        name: such as `digits`, or the folder's name.
        source: address or path; `builtin:NAME` for pictures that come with a package.
        fingerprint: what identifies its content, as text; MLflow shows the first 36 characters.
        counts: numbers worth knowing, such as pictures, broken files, labels.
        context: what the run did with it.
    """

    name: str
    source: str
    fingerprint: str
    counts: dict[str, int | float]
    context: str = "pretraining"


@dataclass
class Outbox:
    """Pending items by kind. An item with the same name replaces the one that waits."""

    params: dict[str, str] = field(default_factory=dict)
    tags: dict[str, str] = field(default_factory=dict)
    texts: dict[str, str] = field(default_factory=dict)
    files: dict[str, Path] = field(default_factory=dict)
    data: list[Data] = field(default_factory=list)
    status: Status | None = None
    lock: threading.Lock = field(default_factory=threading.Lock)

    @property
    def empty(self) -> bool:
        with self.lock:
            return not (self.params or self.tags or self.texts or self.files or self.data or self.status)

    def recipe(self, resolved: Mapping[str, Any]) -> None:
        """The resolved recipe as parameters and as `recipe.yaml`; without secrets."""
        plain = redact(resolved)
        with self.lock:
            self.params |= {
                key[:KEY_LENGTH]: cut(value, _PARAM_LENGTH) for key, value in flatten(plain).items()
            }
            self.texts["recipe.yaml"] = yaml.safe_dump(plain, sort_keys=False, allow_unicode=True)

    def summary(self) -> list[str]:
        """What waits, in words, such as `3 files`."""
        with self.lock:
            counts = {
                "parameters": len(self.params),
                "tags": len(self.tags),
                "files": len(self.files) + len(self.texts),
                "data sets": len(self.data),
            }
            words = [f"{count} {name}" for name, count in counts.items() if count]
            return [*words, f"its end status ({self.status})"] if self.status else words


def cut(text: str, length: int) -> str:
    """`text` with no more characters than this."""
    return text if len(text) <= length else text[: length - 1] + "…"
