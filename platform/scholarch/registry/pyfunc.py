"""A backbone as an MLflow pyfunc model: encoded pictures in, features out.

Input is a DataFrame with one column, `image`, of bytes: a whole PNG, JPEG, TIFF, ... file in each
row, of any size. Over HTTP (`mlflow models serve`) the same bytes come as base64:

    {"dataframe_split": {"columns": ["image"], "data": [["iVBORw0KGgo..."]]}}

Output is float32: [B, D], the CLS token after the final norm; with params={"return": "patches"}
[B, N, D], the patch tokens in row order. A model is loaded by this module from two plain files
(scholarch.registry.backbone), so loading it runs no pickle.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import torch

from scholarch.data.decode import decode, to_channels
from scholarch.data.views import EvaluationView
from scholarch.models.features import Views
from scholarch.registry.backbone import load_backbone

COLUMN = "image"
_AT_ONCE = 64


class Embedder:
    """What `mlflow.pyfunc.load_model` gives a `predict` to."""

    def __init__(self, folder: Path) -> None:
        self.device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
        backbone, preprocessing = load_backbone(folder)
        self.backbone = backbone.float().to(self.device)
        self.view = EvaluationView(preprocessing.size, preprocessing.mean, preprocessing.std)

    def predict(self, model_input: Any, params: dict[str, Any] | None = None) -> np.ndarray:
        """Features of the pictures in column `image`; see the module.

        Raises:
            BrokenPicture: with the row, for bytes that are no picture.
            ValueError: if `return` is neither "cls" nor "patches".
        """
        wanted = (params or {}).get("return", "cls")
        if wanted not in ("cls", "patches"):
            raise ValueError(f"return is 'cls' or 'patches', not {wanted!r}")
        files: list[bytes] = list(model_input[COLUMN])
        # Without rows one empty batch still gives an array of the right shape.
        parts = [
            self._features(files[i : i + _AT_ONCE], i, wanted) for i in range(0, max(len(files), 1), _AT_ONCE)
        ]
        return np.concatenate(parts)

    def _features(self, files: list[bytes], first: int, wanted: str) -> np.ndarray:
        size = self.view.size
        pictures = torch.empty(len(files), self.view.channels, size, size)
        for row, data in enumerate(files):
            name = f"row {first + row}"
            pictures[row] = self.view(to_channels(decode(data, name), self.view.channels, name))
        with torch.inference_mode():
            (features,) = self.backbone([Views(pictures.to(self.device))])
        found = features.cls if wanted == "cls" else features.patches
        return np.asarray(found.cpu().numpy())


def _load_pyfunc(path: str) -> Embedder:
    """MLflow's entry point: `path` is the folder that was saved with the model."""
    return Embedder(Path(path))
