"""Which fault strikes when: drawn from a seed, so that a schedule can be run again."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal, get_args

import numpy as np

Kind = Literal[
    "kill a worker",
    "stop a worker",
    "lose node 0",
    "lose a node",
    "drain",
    "store down",
    "store slow",
    "answers cut",
    "disk full",
    "kill in a save",
    "a node joins",
    "a node leaves",
]
Phase = Literal["staging", "shards", "before the manifest", "after the manifest", "retention"]

KINDS: tuple[Kind, ...] = get_args(Kind)
PHASES: tuple[Phase, ...] = get_args(Phase)


@dataclass(frozen=True)
class Fault:
    """One blow.

    Attributes:
        kind: what happens.
        step: it happens once this many steps are finished.
        delay: seconds after that, so that it falls anywhere within a step or a save.
        seconds: how long what has a length lasts.
        phase: of a save, for `kill in a save`.
    """

    kind: Kind
    step: int
    delay: float
    seconds: float
    phase: Phase

    def __str__(self) -> str:
        where = f" ({self.phase})" if self.kind == "kill in a save" else ""
        return f"{self.kind}{where} at {self.step}"


def draw(seed: int, steps: int) -> list[Fault]:
    """Two to three faults between the first step and the last but some; each kind comes first in turn."""
    random = np.random.default_rng([seed, 0xFA17])
    count = int(random.integers(2, 4))
    kinds = [KINDS[seed % len(KINDS)], *random.choice(np.array(KINDS), count - 1)]
    at = np.sort(random.choice(np.arange(2, steps - 6), count, replace=False))
    return [
        Fault(
            kind=str(kind),  # type: ignore[arg-type]
            step=int(step),
            delay=float(random.uniform(0, 0.5)),
            seconds=float(random.uniform(3, 20)),
            phase=PHASES[int(random.integers(len(PHASES)))],
        )
        for kind, step in zip(random.permutation(np.array(kinds)), at, strict=True)
    ]
