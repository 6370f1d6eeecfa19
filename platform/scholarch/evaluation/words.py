"""What an aligned model's words are worth: zero-shot classes, retrieval, segmentation (reference.md section 7).

Legend: n samples, c classes, m captions, E joint width.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F
from torchmetrics.functional.classification import multiclass_confusion_matrix

from scholarch.data.annotated.face import IGNORED
from scholarch.data.words import TEMPLATES, Words, patch_cosines
from scholarch.evaluation.dense import colours, picture_of
from scholarch.evaluation.face import (
    Confusion,
    Evaluation,
    Given,
    Needs,
    Outcome,
    Output,
    Tiles,
    ViewName,
    means,
)
from scholarch.evaluation.segmentation import mean_iou
from scholarch.models.features import Views

SHOWN = 6
"""Pictures of a segmentation."""


def _pictures(given: Given) -> Tensor:
    """[n, E], of the test samples that could be read."""
    seen = given.features("test")
    return F.normalize(torch.cat([seen.stacked("cls"), seen.stacked("mean_patch")], dim=1).float(), dim=1)


@dataclass(frozen=True, kw_only=True)
class ZeroShotOptions:
    """Options of zero-shot classification.

    Attributes:
        data: name of the suite's data; empty: its first.
        templates: sentences that a class is named in, with {} for its name.
        view: `whole` pictures, or the central square.
    """

    kind: Literal["zero_shot"] = "zero_shot"
    data: str = ""
    templates: tuple[str, ...] = TEMPLATES
    view: ViewName = "crop"


class ZeroShot(Evaluation):
    """The class whose name is nearest: `top1`, `top5`, and `chance`, what one in so many would be."""

    Options = ZeroShotOptions
    options: ZeroShotOptions

    def needs(self) -> Needs:
        outputs = frozenset[Output]({"cls", "mean_patch"})
        return Needs(known=frozenset({"class"}), outputs=outputs, splits=("test",), view=self.options.view)

    def run(self, given: Given) -> Outcome:
        names = list(given.data["test"].names["class"])
        named = Words(given.backbone).classes(names, self.options.templates).cpu()
        cosines = _pictures(given) @ named.T
        labels = torch.from_numpy(given.labels("test"))
        order = cosines.argsort(dim=1, descending=True, stable=True)
        samples = {
            f"top{k}": (order[:, :k] == labels[:, None]).any(dim=1).numpy() for k in (1, 5) if k < len(names)
        }
        metrics, kept = means(samples, chance=1 / len(names))
        counts = np.zeros((len(names), len(names)), dtype=np.int64)
        np.add.at(counts, (labels.numpy(), order[:, 0].numpy()), 1)
        return Outcome(metrics=metrics, samples=kept, pictures={"confusion": Confusion(counts, names)})


@dataclass(frozen=True, kw_only=True)
class TextRetrievalOptions:
    """Options of retrieval between pictures and captions.

    Attributes:
        data: as in zero-shot classification.
        at: ranks that recall is told at.
        captions: of each picture, at most, its first ones; 0: all.
        view: `whole` pictures, or the central square.
    """

    kind: Literal["text_retrieval"] = "text_retrieval"
    data: str = ""
    at: tuple[int, ...] = (1, 5, 10)
    captions: int = 0
    view: ViewName = "crop"

    def __post_init__(self) -> None:
        if not self.at or min(self.at) < 1 or self.captions < 0:
            raise ValueError("at must be 1 or more, and captions 0 or more")


class TextRetrieval(Evaluation):
    """Recall both ways: one of its own captions among a picture's nearest, its picture among a caption's.

    `text_to_picture/rK` counts, for each picture, the share of its captions that find it.
    """

    Options = TextRetrievalOptions
    options: TextRetrievalOptions

    def needs(self) -> Needs:
        outputs = frozenset[Output]({"cls", "mean_patch"})
        return Needs(known=frozenset({"captions"}), outputs=outputs, splits=("test",), view=self.options.view)

    def run(self, given: Given) -> Outcome:
        data, most = given.data["test"], self.options.captions or None
        said = [list(data.annotation(int(i), "captions"))[:most] for i in given.features("test").samples]
        owners = torch.from_numpy(np.repeat(np.arange(len(said)), [len(texts) for texts in said]))
        pictures = _pictures(given)
        texts = Words(given.backbone).texts([text for own in said for text in own]).cpu()
        to_text, to_picture = recalls(pictures, texts, owners, self.options.at)
        samples = {f"picture_to_text/r{k}": found for k, found in to_text.items()}
        samples |= {f"text_to_picture/r{k}": found for k, found in to_picture.items()}
        metrics, kept = means(samples)
        return Outcome(metrics=metrics, samples=kept)


def recalls(
    pictures: Tensor, texts: Tensor, owners: Tensor, at: Sequence[int]
) -> tuple[dict[int, np.ndarray], dict[int, np.ndarray]]:
    """Of each picture, whether a caption of its own is among the first, and how many of its captions find it.

    A tie counts against the one that is sought.

    Args:
        pictures: [n, E].
        texts: [m, E].
        owners: [m] int64, number of the picture of each caption.
        at: ranks.

    Returns:
        by rank [n], picture to text and text to picture.
    """
    cosines = pictures @ texts.T  # [n, m]
    own = torch.arange(len(pictures))[:, None] == owners[None]
    best = torch.where(own, cosines, -torch.inf).amax(dim=1)
    before = (torch.where(own, -torch.inf, cosines) >= best[:, None]).sum(dim=1)
    found = cosines[owners, torch.arange(len(texts))]
    ahead = (cosines >= found[None]).sum(dim=0) - 1
    counts = torch.bincount(owners, minlength=len(pictures)).clamp(min=1)
    to_text = {k: (before < k).double().numpy() for k in at}
    to_picture = {
        k: (torch.zeros(len(pictures)).double().index_add(0, owners, (ahead < k).double()) / counts).numpy()
        for k in at
    }
    return to_text, to_picture


@dataclass(frozen=True, kw_only=True)
class TextSegmentationOptions:
    """Options of segmentation by words (reference.md section 7).

    Attributes:
        data: as there.
        templates: as in zero-shot classification.
        short: pixels of the shorter side, to which pictures are resized.
        window: pixels of the side of a window that slides over a picture.
        stride: pixels between windows.
    """

    kind: Literal["text_segmentation"] = "text_segmentation"
    data: str = ""
    templates: tuple[str, ...] = TEMPLATES
    short: int = 512
    window: int = 384
    stride: int = 192

    def __post_init__(self) -> None:
        if min(self.short, self.window, self.stride) < 1:
            raise ValueError("short, window and stride must be positive")


class TextSegmentation(Evaluation):
    """Each pixel's class by its patches' cosines with the names: `miou` over all pictures, `picture_miou`."""

    Options = TextSegmentationOptions
    options: TextSegmentationOptions

    def needs(self) -> Needs:
        return Needs(known=frozenset({"mask"}), outputs=frozenset({"cls"}), splits=("test",), view="whole")

    def run(self, given: Given) -> Outcome:
        data, options = given.data["test"], self.options
        names = list(data.names["mask"])
        words = Words(given.backbone)
        named = words.classes(names, options.templates)
        view, total = (
            given.views("whole", options.short),
            torch.zeros(len(names), len(names), dtype=torch.int64),
        )
        each = list[float]()
        rows: list[list[np.ndarray]] = []
        for index in given.features("test").samples.tolist():
            mask = torch.from_numpy(np.asarray(data.annotation(index, "mask")))
            shares = by_windows(words, view(data.read(index)), named, options)
            large = F.interpolate(shares[None], mask.shape, mode="bilinear", align_corners=False)[0]
            found = large.argmax(dim=0).cpu()
            table = multiclass_confusion_matrix(found, mask, num_classes=len(names), ignore_index=IGNORED)
            total += table
            each.append(mean_iou(table))
            if len(rows) < SHOWN:
                rows.append([picture_of(data, index), colours(mask.numpy() + 1), colours(found.numpy() + 1)])
        metrics, samples = means({"picture_miou": np.array(each)}, miou=mean_iou(total))
        tiles = Tiles(rows, ("picture", "labels", "found"))
        return Outcome(metrics=metrics, samples=samples, pictures={"maps": tiles})


@torch.no_grad()
def by_windows(words: Words, picture: Tensor, named: Tensor, options: TextSegmentationOptions) -> Tensor:
    """[c, H, W] shares of each class: softmax of cosines, without a temperature as in the source.

    Args:
        words: the model.
        picture: [C, H, W], normalised, sides multiples of the patch.
        named: [c, E].
        options: of the windows; one that is larger than the picture takes all of it.
    """
    patch, device = words.backbone.patch, words.backbone.logit_scale.device
    height, width = picture.shape[1:]
    shares = torch.zeros(len(named), height, width, device=device)
    counts = torch.zeros(height, width, device=device)
    side, stride = (max(length // patch, 1) * patch for length in (options.window, options.stride))
    for top, bottom in windows(height, side, stride):
        for left, right in windows(width, side, stride):
            part = picture[None, :, top:bottom, left:right].to(device)
            (features,) = words.backbone([Views(part)])
            grid = (bottom - top) // patch, (right - left) // patch
            cosines = patch_cosines(features.patches[0], named).T.reshape(1, len(named), *grid)
            large = F.interpolate(cosines, part.shape[2:], mode="bilinear", align_corners=False)[0]
            shares[:, top:bottom, left:right] += large.softmax(dim=0)
            counts[top:bottom, left:right] += 1
    return shares / counts


def windows(length: int, side: int, stride: int) -> list[tuple[int, int]]:
    """Starts and ends that cover a length; the last one ends where the length does."""
    side = min(side, length)
    starts = [*range(0, length - side, stride), length - side]
    return [(start, start + side) for start in starts]
