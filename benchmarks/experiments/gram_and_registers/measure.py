"""What is measured of a frozen backbone: dense features (reference.md 9.11) and norms of tokens (9.9).

Legend: n scenes, h x w patches, N = h * w, D width.
"""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from scenes import CLASSES, GRID, SIDE, Scenes
from scholarch.data.views import WholeView
from scholarch.evaluation.artefacts import neighbour_cosine
from scholarch.evaluation.segmentation import mean_iou
from scholarch.evaluation.stability import gram
from scholarch.models.features import Backbone, Views
from scholarch.models.vit import VisionTransformer
from scholarch.objectives.monitors import cls_patch_cosine, usual_norms
from sklearn.exceptions import ConvergenceWarning
from sklearn.linear_model import LogisticRegression
from sklearn.preprocessing import StandardScaler
from torch import Tensor
from torch.nn import functional as F
from torchmetrics.functional.classification import multiclass_confusion_matrix

LARGEST = 0.02
"""Share of tokens that is looked at as the largest; the paper's outliers are 2.37 % of them."""
PUBLISHED_THRESHOLD = 150.0
EVERY = 3
"""Of the patches of the probe's training scenes, one in so many is taken."""


@dataclass(frozen=True)
class Tokens:
    """What a backbone makes of scenes.

    Attributes:
        cls: [n, D], after the final norm.
        patches: [n, N, D], after the final norm.
        norms: [n, N], of patches before the final norm.
        embedded: [n, N, D], what the patch embedding gives.
        by_layer: norms [n, N] after each block.
        others: mean norms before the final norm, of CLS and then of each register.
        corners: [2, n, D], CLS of the upper left and of the lower right three quarters of each side.
    """

    cls: Tensor
    patches: Tensor
    norms: np.ndarray
    embedded: Tensor
    by_layer: Sequence[np.ndarray]
    others: Sequence[float]
    corners: Tensor


@dataclass(frozen=True)
class Probes:
    """Scenes that no run trains on: the probes' own training scenes, and those they are tested on."""

    train: Scenes
    test: Scenes


@torch.inference_mode()
def see(backbone: Backbone, scenes: Scenes, mean: Sequence[float], std: Sequence[float]) -> Tokens:
    """Tokens of whole scenes by a backbone in evaluation mode."""
    assert isinstance(backbone, VisionTransformer)
    view = WholeView(SIDE, backbone.patch, mean, std)
    images = torch.stack([view(torch.from_numpy(image).permute(2, 0, 1)) for image in scenes.images])
    cls, patches, embedded, lengths, others, corners = [], [], [], [], [], []
    part_of_side = 3 * GRID // 4 * backbone.patch
    for part in torch.split(images, 64):
        layers = backbone.intermediate_layers(part, len(backbone.blocks), norm=False)
        last = backbone.norm(layers[-1].prenorm)
        cls.append(last[:, 0])
        patches.append(last[:, 1 + backbone.registers :])
        embedded.append(backbone.patch_embed(part).flatten(1, 2))
        lengths.append(torch.stack([layer.patches.norm(dim=-1) for layer in layers]))
        others.append(layers[-1].prenorm[:, : 1 + backbone.registers].norm(dim=-1))
        cuts = [part[..., :part_of_side, :part_of_side], part[..., -part_of_side:, -part_of_side:]]
        corners.append(torch.stack([features.cls for features in backbone([Views(cut) for cut in cuts])]))
    by_layer = torch.cat(lengths, dim=1).numpy()  # [layers, n, N]
    return Tokens(
        cls=torch.cat(cls),
        patches=torch.cat(patches),
        norms=by_layer[-1],
        embedded=torch.cat(embedded),
        by_layer=list(by_layer),
        others=torch.cat(others).mean(0).tolist(),
        corners=torch.cat(corners, dim=1),
    )


def dense(train: Tokens, test: Tokens, probes: Probes) -> dict[str, float]:
    """Cosines, and linear probes of patches (their class) and of CLS (the large digit), and scenes known again.

    `dense_miou` is over temple, flower and digit; `dense_miou_12` tells the ten digits apart too.
    """
    unit = F.normalize(test.patches, dim=-1)
    large = _predict(train.cls, probes.train.large, test.cls)
    figures = {
        "cls_patch_cosine": float(cls_patch_cosine(test.cls, test.patches)),
        "patch_patch_cosine": float((unit @ unit.transpose(1, 2)).mean()),
        "cls_accuracy": float((large == probes.test.large).mean()),
        "cls_found_again": found_again(test.corners),
    }
    features = [tokens.patches.flatten(0, 1) for tokens in (train, test)]
    for name, classes in (("dense_miou", 3), ("dense_miou_12", len(CLASSES))):
        labels, truth = (np.minimum(s.patches.ravel(), classes - 1) for s in (probes.train, probes.test))
        found = _predict(features[0][::EVERY], labels[::EVERY], features[1])
        table = multiclass_confusion_matrix(torch.from_numpy(found), torch.from_numpy(truth), classes)
        figures[name] = mean_iou(table)
        figures[name.replace("miou", "accuracy")] = float((found == truth).mean())
    return figures


def found_again(corners: Tensor) -> float:
    """Share of scenes whose one corner [2, n, D] is nearest, by cosine, to their own other corner."""
    first, second = F.normalize(corners, dim=-1)
    return float(((first @ second.T).argmax(1) == torch.arange(len(first))).float().mean())


def gram_difference(tokens: Tokens, reference: Tokens) -> float:
    """Mean squared difference of cosines between patches, picture by picture (reference.md 3.7)."""
    pairs = zip(tokens.patches, reference.patches, strict=True)
    return float(np.mean([float((gram(ours) - gram(theirs)).square().mean()) for ours, theirs in pairs]))


def norms(train: Tokens, test: Tokens, probes: Probes) -> dict[str, float | list[float]]:
    """Statistics of patch norms before the final norm, and what the largest are like (reference.md 9.9)."""
    flat = test.norms.ravel()
    high = usual_norms(flat)[1]
    border = float(np.quantile(flat, 1 - LARGEST))
    chosen = test.norms > border  # [n, N]
    near = np.stack([neighbour_cosine(embedded, (GRID, GRID)) for embedded in test.embedded])  # [n, N]
    background = probes.test.patches.reshape(chosen.shape) < 2
    return {
        "median": float(np.median(flat)),
        "quantile_99": float(np.quantile(flat, 0.99)),
        "largest": float(flat.max()),
        "largest_over_median": float(flat.max() / np.median(flat)),
        "outliers_6_deviations": float((flat > high).mean()),
        "outliers_above_150": float((flat > PUBLISHED_THRESHOLD).mean()),
        "largest_over_median_by_layer": [float(layer.max() / np.median(layer)) for layer in test.by_layer],
        "cls_over_median": test.others[0] / float(np.median(flat)),
        "registers_over_median": [norm / float(np.median(flat)) for norm in test.others[1:]],
        "neighbour_cosine_largest": float(near[chosen].mean()),
        "neighbour_cosine_rest": float(near[~chosen].mean()),
        "background_largest": float(background[chosen].mean()),
        "background_rest": float(background[~chosen].mean()),
        **_one_token(train, test, probes),
    }


def _one_token(train: Tokens, test: Tokens, probes: Probes) -> dict[str, float]:
    """Accuracy for the large digit from one background token of a scene: the largest, or any (9.9 d)."""
    rows = {}
    for name, tokens, scenes in (("train", train, probes.train), ("test", test, probes.test)):
        background = scenes.patches.reshape(tokens.norms.shape) < 2
        largest = np.where(background, tokens.norms, -np.inf).argmax(1)
        draws = np.random.default_rng(0).random(tokens.norms.shape)
        usual = np.where(background, draws, -1.0).argmax(1)
        everyone = torch.arange(len(tokens.patches))
        rows[name] = [tokens.patches[everyone, torch.from_numpy(chosen)] for chosen in (largest, usual)]
    accuracies = [
        float((_predict(a, probes.train.large, b) == probes.test.large).mean())
        for a, b in zip(rows["train"], rows["test"], strict=True)
    ]
    return {"global_from_largest": accuracies[0], "global_from_any": accuracies[1]}


def _predict(train: Tensor, labels: np.ndarray, test: Tensor) -> np.ndarray:
    """Classes of `test` by logistic regression on standardised features, strength of the penalty not tuned."""
    scaler = StandardScaler().fit(train.numpy())
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", category=ConvergenceWarning)
        model = LogisticRegression(C=1.0, max_iter=150).fit(scaler.transform(train.numpy()), labels)
    return np.asarray(model.predict(scaler.transform(test.numpy())))
