"""Whether the features are healthy: numbers for the log, and a plain warning when they collapse."""

from __future__ import annotations

import math
from collections.abc import Mapping

import torch
from torch import Tensor
from torch.nn import functional as F

from scholarch.collectives import all_reduce_max, all_reduce_sum
from scholarch.models.features import Features
from scholarch.training.distributed import World
from scholarch.training.learner import StepValues

HIGH_ENTROPY = 0.999
FEW_PROTOTYPES = 0.02
SAME_FEATURES = 0.99


class Health:
    """Measures a step's targets and teacher features over all ranks.

    Metrics, for each term with targets: `health/teacher_entropy/TERM` (share of ln K: 0 is one
    prototype, 1 is uniform), `health/prototypes_used/TERM` (share chosen at least once in the
    step), `health/kl/TERM`. For the features that a teacher gives of its first views:
    `health/cls_patch_cosine`, `health/cls_similarity` (mean cosine between pictures),
    `health/patch_norm_mean`, `health/patch_norm_max`.
    """

    def __init__(self, world: World) -> None:
        self.world = world

    @torch.no_grad()
    def __call__(self, finished: int, values: StepValues) -> dict[str, float]:  # noqa: ARG002 - a Probe
        metrics: dict[str, float] = {}
        drawn = {name: all_reduce_sum(tensor, self.world.group) for name, tensor in sorted(values.drawn.items())}
        for term in sorted({name.partition("/")[0] for name in drawn}):
            metrics |= _targets(term, drawn)
        if values.observed:
            metrics |= self._features(next(iter(values.observed.values())))
        return metrics

    def _features(self, features: Features) -> dict[str, float]:
        cls, patches = features.cls.float(), features.patches.float()  # [B, D], [B, N, D]
        norms = patches.norm(dim=-1)
        unit = F.normalize(cls, dim=-1)
        cosine = (unit[:, None] * F.normalize(patches, dim=-1)).sum(-1)  # [B, N]
        count = len(cls)
        # Mean over pairs of different pictures on this rank: (|sum of units|^2 - B) / (B (B - 1)).
        pairs = max(count * (count - 1), 1)
        similarity = (unit.sum(0).square().sum() - count) / pairs if count > 1 else unit.new_zeros(())
        sums = torch.stack(
            [
                cosine.sum(),
                norms.sum(),
                norms.new_tensor(float(norms.numel())),
                similarity * count,
                norms.new_tensor(float(count if count > 1 else 0)),
            ]
        )
        cosine_sum, norm_sum, tokens, similar, rows = all_reduce_sum(sums, self.world.group).tolist()
        largest = all_reduce_max(norms.max() if norms.numel() else norms.new_zeros(()), self.world.group)
        return {
            "health/cls_patch_cosine": cosine_sum / max(tokens, 1),
            "health/cls_similarity": similar / max(rows, 1),
            "health/patch_norm_mean": norm_sum / max(tokens, 1),
            "health/patch_norm_max": float(largest),
        }


def _targets(term: str, drawn: Mapping[str, Tensor]) -> dict[str, float]:
    metrics: dict[str, float] = {}
    usage = drawn.get(f"{term}/usage")
    if usage is not None and usage.sum() > 0:
        rows = float(drawn[f"{term}/teacher_rows"])
        entropy = float(drawn[f"{term}/teacher_entropy"]) / rows / math.log(max(len(usage), 2))
        # With fewer rows than prototypes not all can be chosen.
        reachable = min(len(usage), rows)
        metrics[f"health/teacher_entropy/{term}"] = entropy
        metrics[f"health/prototypes_used/{term}"] = float((usage > 0).sum()) / reachable
    if f"{term}/kl" in drawn:
        metrics[f"health/kl/{term}"] = float(drawn[f"{term}/kl"]) / max(float(drawn[f"{term}/kl_rows"]), 1.0)
    return metrics


def warnings(metrics: Mapping[str, float]) -> dict[str, str]:
    """What a person should know about these metrics, in plain words, by the metric that shows it."""
    found = {}
    for name, value in metrics.items():
        term = name.rpartition("/")[2]
        if name.startswith("health/prototypes_used/") and value < FEW_PROTOTYPES:
            found[name] = (
                f"collapse: only {value:.1%} of the prototypes of {term} are in use. "
                "Lower the teacher temperature's end or optimizer.lr, or use sinkhorn centring"
            )
        if name.startswith("health/teacher_entropy/") and value > HIGH_ENTROPY:
            found[name] = (
                f"collapse: the targets of {term} are uniform (entropy {value:.2%} of its maximum). "
                "Lower the teacher temperature, or check that the pictures differ"
            )
        if name == "health/cls_similarity" and value > SAME_FEATURES:
            found[name] = (
                f"collapse: features of different pictures are nearly the same (mean cosine {value:.3f}). "
                "Add koleo, raise the global batch, or lower optimizer.lr"
            )
    return found
