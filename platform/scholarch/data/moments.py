"""Mean and std of pictures."""

from __future__ import annotations

import numpy as np
from torch import Tensor

SMALLEST_STD = 1 / 255
"""A channel that never changes would else divide by zero."""


def moments(picture: Tensor) -> tuple[np.ndarray, np.ndarray]:
    """E[x] and E[x^2] of each channel of a picture [C, H, W], for values in [0, 1]; float64."""
    values = picture.reshape(picture.shape[0], -1).numpy()
    if values.dtype != np.uint8:
        return values.mean(1, dtype=np.float64), np.square(values, dtype=np.float64).mean(1)
    # Exact and quick: 256 counts in place of all pixels in float64.
    counts = np.stack([np.bincount(channel, minlength=256) for channel in values]) / values.shape[1]
    levels = np.arange(256) / 255
    return counts @ levels, counts @ levels**2


def mean_and_std(first: np.ndarray, second: np.ndarray) -> tuple[tuple[float, ...], tuple[float, ...]]:
    """From E[x] and E[x^2] of each channel."""
    std = np.maximum(np.sqrt(np.maximum(second - first**2, 0)), SMALLEST_STD)
    return tuple(map(float, first)), tuple(map(float, std))
