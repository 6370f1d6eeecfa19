"""Real pictures that need no download: what scikit-learn ships.

The files are read where scikit-learn keeps them, because importing it takes seconds.
"""

from __future__ import annotations

from importlib.util import find_spec
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from scholarch.data.decode import decode
from scholarch.data.source import Labels, listing_fingerprint
from scholarch.errors import UserError


def _folder() -> Path:
    spec = find_spec("sklearn")
    if spec is None or spec.origin is None:
        raise UserError(
            "digits and photos come with scikit-learn, which is not installed",
            where="data",
            fix="pip install scikit-learn, or name a folder of pictures",
        )
    return Path(spec.origin).parent / "datasets"


class DigitsSource:
    """scikit-learn's 1,797 handwritten digits, 1 x 8 x 8, labelled 0 to 9."""

    def __init__(self, labels: Labels = "auto") -> None:
        rows = np.loadtxt(_folder() / "data" / "digits.csv.gz", delimiter=",")  # 64 pixels and the digit
        # Ink is 0..16 in the file; spread over the whole range of a byte.
        self._images = torch.from_numpy(np.round(rows[:, :64] * (255 / 16)).astype(np.uint8)).view(
            -1, 1, 8, 8
        )
        self._digits = None if labels == "none" else rows[:, 64].astype(np.int64)

    @property
    def classes(self) -> list[str] | None:
        return None if self._digits is None else [str(digit) for digit in range(10)]

    def __len__(self) -> int:
        return len(self._images)

    def read(self, index: int) -> Tensor:
        return self._images[index].clone()

    def label(self, index: int) -> int | None:
        return None if self._digits is None else int(self._digits[index])

    def name(self, index: int) -> str:
        return f"digits/{index:04d}"

    def fingerprint(self) -> str:
        return listing_fingerprint([(self._images.numpy().tobytes(), len(self))])


class PhotosSource:
    """scikit-learn's two photographs, 3 x 427 x 640: a temple and a flower. No labels."""

    NAMES = ("china.jpg", "flower.jpg")

    def __init__(self, labels: Labels = "auto") -> None:
        if labels == "folders":
            raise UserError("photos have no labels", where="data", fix="set labels=none")
        self._files = [(_folder() / "images" / name).read_bytes() for name in self.NAMES]

    @property
    def classes(self) -> list[str] | None:
        return None

    def __len__(self) -> int:
        return len(self._files)

    def read(self, index: int) -> Tensor:
        return decode(self._files[index], self.name(index))

    def label(self, index: int) -> int | None:  # noqa: ARG002
        return None

    def name(self, index: int) -> str:
        return f"photos/{self.NAMES[index]}"

    def fingerprint(self) -> str:
        return listing_fingerprint((file, len(file)) for file in self._files)
