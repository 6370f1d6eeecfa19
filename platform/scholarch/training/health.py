"""Whether the features are healthy: numbers for the log, and a plain warning when they collapse."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor

from scholarch.collectives import all_reduce_max, all_reduce_sum, gather_rows, upcast
from scholarch.models.features import Features
from scholarch.objectives import monitors
from scholarch.training.distributed import World
from scholarch.training.learner import StepValues

HIGH_ENTROPY = 0.999
FEW_PROTOTYPES = 0.02
SAME_FEATURES = 0.05


class Health:
    """Measures a step's targets and teacher features over all ranks; a Probe of the trainer.

    Metrics, for each term with targets: `health/teacher_entropy/TERM` (share of ln K: 0 is one
    prototype, 1 is uniform), `health/prototypes_used/TERM` (share of those that the step's rows
    could reach), `health/kl/TERM`. For the views that the first moving teacher saw, or the student:
    `health/cls_patch_cosine`, `health/feature_std` (0: all pictures are the same, 1: none are
    alike), `health/effective_rank` (of CLS), `health/patch_norm_mean`, `health/patch_norm_max`.
    """

    def __init__(self, world: World) -> None:
        self.world = world

    @torch.no_grad()
    def __call__(self, finished: int, values: StepValues) -> dict[str, float]:  # noqa: ARG002 - a Probe
        group = self.world.group
        by_term: dict[str, dict[str, Tensor]] = {}
        for name, tensor in sorted(values.drawn.items()):
            term, _, key = name.partition("/")
            by_term.setdefault(term, {})[key] = all_reduce_sum(tensor, group)
        metrics: dict[str, float] = {}
        for term, sums in by_term.items():
            if "usage" in sums and sums["teacher_rows"] > 0:
                metrics |= _targets(term, sums)
        if values.observed:
            metrics |= self._features(next(iter(values.observed.values())))
        return metrics

    def _features(self, features: Features) -> dict[str, float]:
        group = self.world.group
        cls, patches = upcast(features.cls), upcast(features.patches)  # [B, D], [B, N, D]
        everywhere = gather_rows(cls, group)
        norms = monitors.patch_norms(patches) if len(cls) else {}
        zero = cls.new_zeros(())
        means = [monitors.cls_patch_cosine(cls, patches), norms["mean"]] if len(cls) else [zero, zero]
        sums = all_reduce_sum(torch.stack([*means, zero + 1]) * len(cls), group).tolist()
        return {
            "health/cls_patch_cosine": sums[0] / sums[2],
            "health/feature_std": float(monitors.feature_std(everywhere)),
            "health/effective_rank": float(monitors.effective_rank(everywhere)),
            "health/patch_norm_mean": sums[1] / sums[2],
            "health/patch_norm_max": float(all_reduce_max(norms.get("largest", zero), group)),
        }


def _targets(term: str, sums: Mapping[str, Tensor]) -> dict[str, float]:
    health = monitors.assignment_health(sums)
    prototypes, rows = len(sums["usage"]), float(sums["teacher_rows"])
    metrics = {
        f"health/teacher_entropy/{term}": health["teacher_entropy_share"],
        # With fewer rows than prototypes not all can be chosen.
        f"health/prototypes_used/{term}": health["prototypes_used"] * prototypes / min(prototypes, rows),
    }
    if "kl" in health:
        metrics[f"health/kl/{term}"] = health["kl"]
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
        if name == "health/feature_std" and value < SAME_FEATURES:
            found[name] = (
                f"collapse: features of different pictures are nearly the same (spread {value:.3f}, healthy is 1). "
                "Add koleo, raise the global batch, or lower optimizer.lr"
            )
    return found
