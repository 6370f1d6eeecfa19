"""Real pictures that need no download: what scikit-learn ships."""

from __future__ import annotations

import functools

import numpy as np
import torch
from torch import Tensor

from scholarch.data.source import BrokenPicture, Labels, listing_fingerprint
from scholarch.errors import UserError


@functools.cache
def _digits() -> tuple[np.ndarray, np.ndarray]:
    from sklearn.datasets import load_digits

    bunch = load_digits()
    # Ink is 0..16 in the files; spread over the whole range of a byte.
    return np.round(bunch.images * (255 / 16)).astype(np.uint8), bunch.target.astype(np.int64)


@functools.cache
def _photos() -> list[np.ndarray]:
    from sklearn.datasets import load_sample_images

    return list(load_sample_images().images)


class DigitsSource:
    """scikit-learn's 1,797 handwritten digits, 1 x 8 x 8, labelled 0 to 9."""

    def __init__(self, labels: Labels = "auto") -> None:
        self._labelled = labels != "none"

    @property
    def classes(self) -> list[str] | None:
        return [str(digit) for digit in range(10)] if self._labelled else None

    def __len__(self) -> int:
        return len(_digits()[0])

    def read(self, index: int) -> Tensor:
        return torch.from_numpy(_digits()[0][index].copy()).unsqueeze(0)

    def label(self, index: int) -> int | None:
        return int(_digits()[1][index]) if self._labelled else None

    def name(self, index: int) -> str:
        return f"digits/{index:04d}"

    def fingerprint(self) -> str:
        return listing_fingerprint((image.tobytes(), image.size) for image in _digits()[0])


class PhotosSource:
    """scikit-learn's two photographs, 3 x 427 x 640: a temple and a flower. No labels."""

    def __init__(self, labels: Labels = "auto") -> None:
        if labels == "folders":
            raise UserError("photos have no labels", where="data", fix="set labels=none")

    @property
    def classes(self) -> list[str] | None:
        return None

    def __len__(self) -> int:
        return 2

    def read(self, index: int) -> Tensor:
        try:
            return torch.from_numpy(_photos()[index].copy()).permute(2, 0, 1)
        except OSError as error:
            raise BrokenPicture(self.name(index), str(error)) from error

    def label(self, index: int) -> int | None:  # noqa: ARG002
        return None

    def name(self, index: int) -> str:
        return ("photos/china", "photos/flower")[index]

    def fingerprint(self) -> str:
        return listing_fingerprint((image.tobytes(), image.size) for image in _photos())
