"""What evaluations of class labels have in common.

Legend: n samples, C classes, D width.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F
from torchmetrics.functional.classification import multiclass_accuracy, multiclass_confusion_matrix

from scholarch.data.annotated.face import SplitName
from scholarch.draws import generator
from scholarch.errors import UserError
from scholarch.evaluation.face import Confusion, Given, Outcome, means

SHOWN_CLASSES = 40
"""A table of more classes cannot be read, and is not drawn."""


@dataclass(frozen=True)
class Labelled:
    """Rows [n, D] of one kind, with their classes [n] int64."""

    values: Tensor
    labels: Tensor

    def at(self, rows: np.ndarray) -> Labelled:
        """Some of them."""
        chosen = torch.from_numpy(rows)
        return Labelled(self.values[chosen], self.labels[chosen])


def pooled(given: Given, split: SplitName, pooling: str = "cls", size: float = 1.0) -> Labelled:
    """A split's features by name of the pooling; training samples stand in the order of their names.

    Args:
        pooling: `cls`; `cls+mean`: CLS and the mean patch, 2D wide; `cls4` and `cls4+mean`: CLS of the last
            four blocks in a row (reference.md section 9.2).
    """
    seen = given.features(split, size)
    base, _, mean = pooling.partition("+")
    values = seen.stacked("cls") if base == "cls" else seen.stacked("cls_last").flatten(1)
    if mean:
        values = torch.cat([values, seen.stacked("mean_patch")], dim=1)
    found = Labelled(values, torch.from_numpy(given.labels(split, size)))
    return found.at(given.by_name("train")) if split == "train" else found


def unit(rows: Labelled) -> Labelled:
    """L2-normalised."""
    return Labelled(F.normalize(rows.values, dim=-1), rows.labels)


def classes_of(*splits: Labelled) -> int:
    """Number of classes, at least 2."""
    return max(2, int(torch.cat([split.labels for split in splits]).max()) + 1)


def held_out(labels: Tensor, share: float, seed: int) -> tuple[np.ndarray, np.ndarray]:
    """Rows to learn from and rows to choose by: a share of each class, at least one where it has two.

    Raises:
        UserError: if nothing would be held out.
    """
    numbers = labels.numpy()
    held = np.zeros(len(numbers), dtype=bool)
    for label in np.unique(numbers):
        rows = np.flatnonzero(numbers == label)
        count = min(max(round(share * len(rows)), 1), len(rows) - 1)
        held[generator(seed, "held out", int(label)).permutation(rows)[:count]] = True
    if not held.any():
        raise UserError(
            "every class has one training sample: there is none to choose the best head by",
            where="data",
            fix="use data with more samples, or evaluate with knn",
        )
    return np.flatnonzero(~held), np.flatnonzero(held)


def found_classes(predicted: Tensor, labels: Tensor, names: list[str] | None, **metrics: float) -> Outcome:
    """Accuracies and the confusion of predicted classes [n]."""
    classes = max(2, int(torch.cat([predicted, labels]).max()) + 1, len(names or ()))
    per_class = multiclass_accuracy(predicted, labels, num_classes=classes, average=None)
    seen = torch.bincount(labels, minlength=classes) > 0
    values, samples = means(
        {"top1": (predicted == labels).numpy()},
        mean_class_accuracy=float(per_class[seen].mean()),
        **metrics,
    )
    pictures = {}
    if classes <= SHOWN_CLASSES:
        counts = multiclass_confusion_matrix(predicted, labels, num_classes=classes).numpy()
        pictures["confusion"] = Confusion(counts, names or [str(number) for number in range(classes)])
    return Outcome(metrics=values, samples=samples, pictures=pictures)
