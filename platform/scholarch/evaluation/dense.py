"""What evaluations of patches have in common: labels of patches, maps of pixels, heads trained on patches.

A head is trained on the frozen features that all evaluations share, patch by patch, without augmentation;
the published protocols train on distorted crops, for which every batch would go through the backbone again.

Legend: n samples, h x w patches, N = h * w, H x W pixels, C classes, D width.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from scholarch.data.annotated.face import IGNORED, Annotated, Kind
from scholarch.draws import generator, torch_generator
from scholarch.evaluation.face import Given


def patch_shares(mask: np.ndarray, grid: tuple[int, int], classes: int) -> Tensor:
    """[N, C]: of each patch the share of its pixels that are of each class; pixels left out count for none.

    Pixels are those of the mask, cut into cells as nearly equal as they can be.
    """
    hot = np.zeros((classes, *mask.shape), dtype=np.float32)
    known = (mask != IGNORED) & (mask >= 0) & (mask < classes)
    rows, columns = np.nonzero(known)
    hot[mask[rows, columns], rows, columns] = 1
    return F.adaptive_avg_pool2d(torch.from_numpy(hot), grid).flatten(1).T.contiguous()


def patch_means(values: np.ndarray, grid: tuple[int, int]) -> tuple[Tensor, Tensor]:
    """[N] mean of the positive values in each patch (0 where there is none), and [N] whether there is one."""
    known = torch.from_numpy((values > 0).astype(np.float32))[None]
    total = F.adaptive_avg_pool2d(torch.from_numpy(values.astype(np.float32))[None] * known, grid)
    share = F.adaptive_avg_pool2d(known, grid)
    means = torch.where(share > 0, total / share.clamp(min=1e-12), 0.0)
    return means.flatten(), (share > 0).flatten()


def to_pixels(scores: Tensor, grid: tuple[int, int], shape: tuple[int, int]) -> Tensor:
    """[C, H, W] of scores of patches [N, C], bilinear between their centres."""
    maps = scores.T.reshape(1, -1, *grid)
    return F.interpolate(maps, size=shape, mode="bilinear", align_corners=False)[0]


@dataclass(frozen=True)
class Patches:
    """Patches of the training split that have a target.

    Attributes:
        values: [m, D].
        targets: [m, ...].
    """

    values: Tensor
    targets: Tensor


def training_patches(
    given: Given,
    kind: Kind,
    target: Callable[[np.ndarray, tuple[int, int]], tuple[Tensor, Tensor]],
    most: int,
) -> Patches:
    """Patches of training samples in the order of their names, of each sample as many as fit.

    Args:
        kind: of annotation.
        target: from it and the grid to targets [N, ...] and whether each patch has one [N].
        most: patches in all; of each sample an equal share, drawn.
    """
    seen, data = given.features("train"), given.data["train"]
    each = max(most // max(len(seen), 1), 1)
    values, targets = [], []
    for row in given.by_name("train"):
        index = int(seen.samples[row])
        of_patches, there = target(data.annotation(index, kind), grid_of(seen.grids[row]))
        chosen = np.flatnonzero(there.numpy())
        if len(chosen) > each:
            chosen = np.sort(generator(0, "patches", data.name(index)).permutation(chosen)[:each])
        picked = torch.from_numpy(chosen)
        values.append(seen.one("patches", int(row))[picked])
        targets.append(of_patches[picked])
    return Patches(torch.cat(values), torch.cat(targets))


def grid_of(row: np.ndarray) -> tuple[int, int]:
    """(h, w)."""
    return int(row[0]), int(row[1])


def test_samples(given: Given) -> Iterator[tuple[int, Tensor, tuple[int, int]]]:
    """Number, patches [N, D] and grid of each test sample, in order."""
    seen = given.features("test")
    for row, index in enumerate(seen.samples):
        yield int(index), seen.one("patches", row), grid_of(seen.grids[row])


@dataclass(frozen=True, kw_only=True)
class HeadOptions:
    """How a linear head on patches is trained.

    Attributes:
        rate: peak learning rate of AdamW; it rises over a tenth of the steps and falls along a cosine.
        weight_decay: of the weight matrix.
        steps: of training.
        batch: patches of a step.
        most: patches that are kept for training, over all samples.
        seed: of batches and first weights.
    """

    rate: float = 1e-3
    weight_decay: float = 1e-3
    steps: int = 4_000
    batch: int = 8_192
    most: int = 1_000_000
    seed: int = 0

    def __post_init__(self) -> None:
        if min(self.rate, self.steps, self.batch, self.most) <= 0 or self.weight_decay < 0:
            raise ValueError("rate, steps, batch and most must be above 0, weight_decay not below")


@dataclass(frozen=True)
class Head:
    """A linear map of standardised features.

    Attributes:
        mean, deviation: of training features, [D].
        weight: [D, K].
        bias: [K].
    """

    mean: Tensor
    deviation: Tensor
    weight: Tensor
    bias: Tensor

    def __call__(self, values: Tensor) -> Tensor:
        """[..., K] of [..., D]."""
        return (values - self.mean) / self.deviation @ self.weight + self.bias


def trained_head(
    patches: Patches, outputs: int, options: HeadOptions, loss: Callable[[Tensor, Tensor, int], Tensor]
) -> Head:
    """A head that makes the mean loss small.

    Features are standardised by the statistics of all training patches, which is what batch normalisation
    comes to.

    Args:
        patches: to learn from.
        outputs: K.
        options: how.
        loss: of outputs [b, K], targets [b, ...] and the step.
    """
    deviation, mean = torch.std_mean(patches.values, dim=0, correction=0)
    deviation = deviation.clamp(min=1e-6)
    values, count = (patches.values - mean) / deviation, len(patches.values)
    weight = 0.01 * torch.randn(values.shape[1], outputs, generator=torch_generator(options.seed, "head"))
    weight, bias = weight.requires_grad_(), torch.zeros(outputs, requires_grad=True)
    groups = [
        {"params": [weight], "weight_decay": options.weight_decay},
        {"params": [bias], "weight_decay": 0.0},
    ]
    optimizer = torch.optim.AdamW(groups, lr=options.rate)
    for step in range(options.steps):
        for group in optimizer.param_groups:
            group["lr"] = options.rate * schedule(step, options.steps)
        rows = torch.arange(count)
        if count > options.batch:
            draws = generator(options.seed, "head", step)
            rows = torch.from_numpy(draws.integers(0, count, options.batch))
        optimizer.zero_grad()
        loss(values[rows] @ weight + bias, patches.targets[rows], step).backward()  # type: ignore[no-untyped-call]
        optimizer.step()
    return Head(mean, deviation, weight.detach(), bias.detach())


def schedule(step: int, steps: int) -> float:
    """Share of the peak rate: linear over the first tenth, then a cosine to 0."""
    warm = max(steps // 10, 1)
    if step < warm:
        return (step + 1) / warm
    return 0.5 * (1 + math.cos(math.pi * (step - warm) / max(steps - warm, 1)))


def picture_of(data: Annotated, index: int) -> np.ndarray:
    """[H, W, 3] in [0, 1], to be shown."""
    pixels = data.read(index)
    values = pixels.float() / (1 if pixels.is_floating_point() else 255)
    values = values[:3] if values.shape[0] >= 3 else values[:1].expand(3, -1, -1)
    return values.permute(1, 2, 0).numpy()


def colours(numbers: np.ndarray) -> np.ndarray:
    """[..., 3] in [0, 1]: a colour of its own for each class or object, black for 0 and grey for 255."""
    index = np.arange(256)
    table = np.stack([(index * step % 256) / 255 for step in (37, 101, 193)], axis=-1)
    table[0], table[IGNORED] = 0, 0.5
    found: np.ndarray = table[np.clip(numbers, 0, 255)]
    return found
