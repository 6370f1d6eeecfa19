"""What a run tells the outside while it trains: the console, metrics.jsonl, MLflow, the report."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Literal, Protocol

Outcome = Literal["done", "interrupted", "failed"]


class Observer(Protocol):
    """Told on rank 0 only; must not stop or slow the run."""

    def recorded(self, record: Mapping[str, float]) -> None:
        """A line of metrics.jsonl: "step" (finished steps), "time", and values by slash-separated names."""

    def warned(self, message: str) -> None:
        """Something a person should know, in plain words."""
