"""Semantic segmentation from frozen patches: a linear head, and nearest patches (reference.md section 9.4).

Legend: H x W pixels, C classes, N patches.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F
from torchmetrics.functional.classification import multiclass_confusion_matrix

from scholarch.data.annotated.face import IGNORED
from scholarch.evaluation.dense import (
    HeadOptions,
    Patches,
    colours,
    patch_shares,
    picture_of,
    test_samples,
    to_pixels,
    trained_head,
    training_patches,
)
from scholarch.evaluation.face import Evaluation, Given, Needs, Outcome, Tiles, means

SHOWN = 4
NEEDS = Needs(known=frozenset({"mask"}), outputs=frozenset({"patches"}), view="whole")


@dataclass(frozen=True, kw_only=True)
class SegmentationOptions(HeadOptions):
    """Options of linear segmentation: those of its head, and `data`, the suite's name for the data."""

    kind: Literal["segmentation"] = "segmentation"
    data: str = ""


class Segmentation(Evaluation):
    """A linear head that is trained to give each patch the shares of classes among its pixels."""

    Options = SegmentationOptions

    def needs(self) -> Needs:
        return NEEDS

    def run(self, given: Given) -> Outcome:
        classes = len(given.data["test"].names["mask"])
        patches = labelled_patches(given, classes, self.options.most)
        head = trained_head(patches, classes, self.options, _cross_entropy)
        return segmented(given, classes, head)


def _cross_entropy(logits: Tensor, shares: Tensor, step: int) -> Tensor:  # noqa: ARG001
    """Over all pixels of the patches: those left out have no share, and count in the denominator (9.4)."""
    return F.cross_entropy(logits, shares)


@dataclass(frozen=True, kw_only=True)
class KnnDenseOptions:
    """Options of k-NN segmentation.

    Attributes:
        data: name of the suite's data; empty: its first.
        neighbours: k of the vote.
        temperature: a neighbour's vote is exp(cosine / temperature).
        most: training patches that are searched, over all samples.
    """

    kind: Literal["knn_dense"] = "knn_dense"
    data: str = ""
    neighbours: int = 30
    temperature: float = 0.07
    most: int = 100_000

    def __post_init__(self) -> None:
        if min(self.neighbours, self.temperature, self.most) <= 0:
            raise ValueError("neighbours, temperature and most must be above 0")


class KnnDense(Evaluation):
    """The nearest training patches by cosine vote with the shares of classes among their pixels."""

    Options = KnnDenseOptions

    def needs(self) -> Needs:
        return NEEDS

    def run(self, given: Given) -> Outcome:
        options: KnnDenseOptions = self.options
        classes = len(given.data["test"].names["mask"])
        patches = labelled_patches(given, classes, options.most)
        keys = F.normalize(patches.values, dim=-1)
        k = min(options.neighbours, len(keys))

        def scores(values: Tensor) -> Tensor:
            cosine, index = (F.normalize(values, dim=-1) @ keys.T).topk(k, dim=1)
            votes = (cosine / options.temperature).softmax(dim=1)
            return torch.einsum("nk,nkc->nc", votes, patches.targets[index])

        return segmented(given, classes, scores)


def labelled_patches(given: Given, classes: int, most: int) -> Patches:
    """Training patches with shares of classes [m, C]; those without a labelled pixel are left out."""

    def target(mask: np.ndarray, grid: tuple[int, int]) -> tuple[Tensor, Tensor]:
        shares = patch_shares(mask, grid, classes)
        return shares, shares.sum(1) > 0

    return training_patches(given, "mask", target, most)


def segmented(given: Given, classes: int, scores: Callable[[Tensor], Tensor]) -> Outcome:
    """Metrics of `scores`, from patches [N, D] to [N, C], brought to the pixels of each mask.

    `miou` is the mean over classes that occur of intersection over union, counted over all pixels of all
    pictures; `picture_miou` is the same of each picture, and its mean.
    """
    data, total = given.data["test"], torch.zeros(classes, classes, dtype=torch.int64)
    of_pictures, of_pixels = list[float](), list[float]()
    rows: list[list[np.ndarray]] = []
    for index, patches, grid in test_samples(given):
        mask = torch.from_numpy(data.annotation(index, "mask"))
        found = to_pixels(scores(patches), grid, (mask.shape[0], mask.shape[1])).argmax(0)
        table = multiclass_confusion_matrix(found, mask, num_classes=classes, ignore_index=IGNORED)
        total += table
        of_pictures.append(mean_iou(table))
        of_pixels.append(float(table.diagonal().sum() / table.sum().clamp(min=1)))
        if len(rows) < SHOWN:
            rows.append([picture_of(data, index), colours(mask.numpy() + 1), colours(found.numpy() + 1)])
    metrics, samples = means(
        {"picture_miou": np.array(of_pictures), "picture_accuracy": np.array(of_pixels)},
        miou=mean_iou(total),
        accuracy=float(total.diagonal().sum() / total.sum().clamp(min=1)),
    )
    tiles = Tiles(rows, ("picture", "labels", "found"))
    return Outcome(metrics=metrics, samples=samples, pictures={"maps": tiles})


def mean_iou(table: Tensor) -> float:
    """Mean of intersection over union, of a table of counts [C, C], over the classes that occur in it."""
    hits = table.diagonal().double()
    union = table.sum(0) + table.sum(1) - hits
    there = union > 0
    return float((hits[there] / union[there]).mean()) if there.any() else float("nan")
