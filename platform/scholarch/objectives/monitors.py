"""Signs of collapse, as sums over rows that add up over ranks and micro-batches, and their means.

Legend: n rows, K prototypes, B pictures, N patches, D width.
"""

from __future__ import annotations

import math
from collections.abc import Mapping

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from scholarch.collectives import upcast


@torch.no_grad()
def assignments(probabilities: Tensor) -> dict[str, Tensor]:
    """What a teacher's targets look like.

    Args:
        probabilities: [..., K], summing to 1 over K.

    Returns:
        "teacher_entropy": sum of the rows' entropies in nats (one prototype: 0, uniform: ln K each);
        "teacher_rows": number of rows; "usage": [K] int64, how often each prototype is the largest.
    """
    rows = probabilities.reshape(-1, probabilities.shape[-1])
    return {
        "teacher_entropy": torch.special.entr(rows).sum(),
        "teacher_rows": rows.new_full((), rows.shape[0]),
        "usage": torch.bincount(rows.argmax(dim=-1), minlength=rows.shape[-1]),
    }


def assignment_health(sums: Mapping[str, Tensor]) -> dict[str, float]:
    """Means of what terms with prototypes draw, summed over all shares of a step.

    Args:
        sums: the keys of `assignments`; "kl" and "kl_rows" where the term has them.

    Returns:
        "teacher_entropy" in nats; "teacher_entropy_share" of its largest value ln K, in [0, 1];
        "prototypes_used", the share that is the largest of at least one row; "kl" in nats.
        NaN where there was no row.
    """
    usage = sums["usage"]
    entropy = _mean(sums["teacher_entropy"], sums["teacher_rows"])
    health = {
        "teacher_entropy": entropy,
        "teacher_entropy_share": entropy / math.log(len(usage)) if len(usage) > 1 else math.nan,
        "prototypes_used": (usage > 0).double().mean().item(),
    }
    if "kl" in sums:
        health["kl"] = _mean(sums["kl"], sums["kl_rows"])
    return health


def _mean(total: Tensor, count: Tensor) -> float:
    return total.item() / count.item() if count.item() else math.nan


@torch.no_grad()
def cls_patch_cosine(cls: Tensor, patches: Tensor) -> Tensor:
    """Mean cosine of each picture's CLS and its patches: rises as dense features decay.

    Args:
        cls: [B, D], after the final norm.
        patches: [B, N, D], after the final norm.

    Returns:
        Scalar in [-1, 1] (reference.md 9.11).
    """
    return F.cosine_similarity(upcast(cls)[:, None], upcast(patches), dim=-1).mean()


@torch.no_grad()
def patch_norms(patches: Tensor) -> dict[str, Tensor]:
    """Statistics of the L2 norms of patches; artefacts show as a second mode far above the first.

    Args:
        patches: [B, N, D].

    Returns:
        Scalars "mean", "std", "median" and "largest" (reference.md 9.9).
    """
    norms = upcast(patches).norm(dim=-1).flatten()
    return {
        "mean": norms.mean(),
        "std": norms.std(correction=0),
        "median": norms.median(),
        "largest": norms.max(),
    }


def usual_norms(norms: np.ndarray) -> tuple[float, float]:
    """Lowest and highest norm that does not stand far out: the median, and 6 deviations to each side.

    A deviation is 1.4826 times the median distance from the median, which for a normal distribution
    is its standard deviation, and at least 1 % of the median.
    """
    median = float(np.median(norms))
    deviation = max(1.4826 * float(np.median(np.abs(norms - median))), 1e-2 * median)
    return median - 6 * deviation, median + 6 * deviation


@torch.no_grad()
def feature_std(features: Tensor) -> Tensor:
    """Mean over channels of the standard deviation of unit-length features, times sqrt(D).

    Near 1 for features spread over the sphere, 0 when all pictures have the same.

    Args:
        features: [B, D], B at least 2.
    """
    unit = F.normalize(upcast(features), dim=-1)
    return unit.std(dim=0, correction=0).mean() * math.sqrt(features.shape[-1])


@torch.no_grad()
def effective_rank(features: Tensor) -> Tensor:
    """Exponential of the entropy of the centred features' singular values, as shares of their sum.

    From 1 (all on one line) to min(B - 1, D); 0 when all rows are equal. Roy and Vetterli, "The
    effective rank", 2007, section 2.

    Args:
        features: [B, D].
    """
    x = upcast(features)
    values = torch.linalg.svdvals(x - x.mean(dim=0))
    total = values.sum()
    # Rounding leaves a rest when all rows are equal.
    if total <= torch.finfo(x.dtype).eps * x.norm() * len(values):
        return torch.zeros_like(total)
    rank: Tensor = torch.special.entr(values / total).sum().exp()
    return rank
