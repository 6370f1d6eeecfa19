"""An aligned model as an MLflow pyfunc model: pictures and texts in, vectors of one space or classes out.

    model = mlflow.pyfunc.load_model("models:/NAME@ALIAS")
    model.predict(DataFrame({"image": files}), params={"task": "embed_image"})     # [n, E], length 1
    model.predict(DataFrame({"text": texts}), params={"task": "embed_text"})       # [n, E], length 1
    model.predict(DataFrame({"image": files}), params={"task": "classify", "classes": ["cat", "dog"]})  # [n, 2]

`files` are whole picture files (bytes). `classify` gives probabilities, with the learned temperature, over
`classes`, each named in all `templates`. Without a task, images are embedded if there is a column of them, or else
texts. `model.unwrap_python_model()` has the three tasks as methods. Loading it runs no pickle.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch

from scholarch.data.decode import decode, to_channels
from scholarch.data.views import EvaluationView
from scholarch.data.words import TEMPLATES, Words
from scholarch.models.alignment import image_embedding
from scholarch.models.features import Views
from scholarch.registry.backbone import load_backbone

IMAGE, TEXT = "image", "text"
TASKS = ("auto", "embed_image", "embed_text", "classify")
_AT_ONCE = 64


class TextModel:
    """What `mlflow.pyfunc.load_model` gives a `predict` to."""

    def __init__(self, folder: Path) -> None:
        self.device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
        backbone, preprocessing = load_backbone(folder)
        self.words = Words(backbone.float().to(self.device))
        self.view = EvaluationView(preprocessing.size, preprocessing.mean, preprocessing.std)

    @torch.inference_mode()
    def embed_image(self, files: Sequence[bytes]) -> np.ndarray:
        """[n, E] float32, of length 1.

        Raises:
            BrokenPicture: with the row, for bytes that are no picture.
        """
        joint = self.words.backbone.options.joint
        found = [torch.empty(0, joint)]
        for start in range(0, len(files), _AT_ONCE):
            part = files[start : start + _AT_ONCE]
            pictures = torch.empty(len(part), self.view.channels, self.view.size, self.view.size)
            for row, data in enumerate(part):
                name = f"row {start + row}"
                pictures[row] = self.view(to_channels(decode(data, name), self.view.channels, name))
            (features,) = self.words.backbone([Views(pictures.to(self.device))])
            found.append(image_embedding(features.cls, features.patches).cpu())
        return np.asarray(torch.cat(found).numpy())

    def embed_text(self, texts: Sequence[str]) -> np.ndarray:
        """[n, E] float32, of length 1."""
        return np.asarray(self.words.texts(texts).cpu().numpy())

    @torch.inference_mode()
    def classify(
        self, files: Sequence[bytes], classes: Sequence[str], templates: Sequence[str] = TEMPLATES
    ) -> np.ndarray:
        """[n, classes] float32 probabilities.

        Raises:
            BrokenPicture: with the row, for bytes that are no picture.
            UserError: if there is no class, or a template has no place for its name.
        """
        named = self.words.classes(classes, templates).cpu()
        logits = self.words.scale * torch.from_numpy(self.embed_image(files)) @ named.T
        return np.asarray(logits.softmax(dim=1).numpy())

    def predict(self, model_input: Any, params: dict[str, Any] | None = None) -> np.ndarray:
        """See the module.

        Raises:
            ValueError: if there is no such task, or not the column or the classes that it needs.
        """
        given = params or {}
        task = str(given.get("task", "auto"))
        if task == "auto":
            task = "embed_image" if IMAGE in model_input else "embed_text"
        if task not in TASKS:
            raise ValueError(f"task is one of {', '.join(TASKS)}, not {task!r}")
        column = TEXT if task == "embed_text" else IMAGE
        if column not in model_input:
            raise ValueError(f"{task} needs a column `{column}`")
        values = list(model_input[column])
        if task == "embed_text":
            return self.embed_text([str(text) for text in values])
        if task == "embed_image":
            return self.embed_image(values)
        classes = [str(name) for name in given.get("classes", ()) if str(name)]
        if not classes:
            raise ValueError("classify needs `classes`, such as ['cat', 'dog']")
        templates = [str(text) for text in given.get("templates", ()) if str(text)] or TEMPLATES
        return self.classify(values, classes, templates)


def _load_pyfunc(path: str) -> TextModel:
    """MLflow's entry point: `path` is the folder that was saved with the model."""
    return TextModel(Path(path))
