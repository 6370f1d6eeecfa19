"""What worker processes must be able to import by name."""

from __future__ import annotations

import os
import signal

import numpy as np
import torch
from scholarch import draws


def draw_mask(step: int, row: int, rows: int, grid: tuple[int, int]) -> np.ndarray:
    """A mask that tells what it was called with."""
    return draws.generator(0, "mask", step, row, rows).random(grid[0] * grid[1]) < 0.3


class Deadly:
    """A source whose reader is killed, as the kernel does when memory runs out."""

    classes: list[str] | None = None

    def __len__(self) -> int:
        return 4

    def read(self, index: int) -> torch.Tensor:  # noqa: ARG002
        os.kill(os.getpid(), signal.SIGKILL)
        raise AssertionError

    def label(self, index: int) -> int | None:  # noqa: ARG002
        return None

    def name(self, index: int) -> str:
        return str(index)

    def fingerprint(self) -> str:
        return ""
