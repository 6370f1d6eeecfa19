"""Whether dense features keep what they had (reference.md section 9.11): CLS against patches, and Gram matrices.

Legend: N patches, D width.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from scholarch.errors import UserError
from scholarch.evaluation.face import Evaluation, Given, Needs, Outcome, means
from scholarch.objectives.monitors import cls_patch_cosine


@dataclass(frozen=True, kw_only=True)
class StabilityOptions:
    """Options of stability.

    Attributes:
        data: name of the suite's data; empty: its first.
        reference: another model, such as an earlier checkpoint of the run; empty: none, and no Gram distance.
    """

    kind: Literal["stability"] = "stability"
    data: str = ""
    reference: str = ""


class Stability(Evaluation):
    """`cls_patch_cosine` (rises as dense features decay), `patch_cosine` (mean of patches with one another), and
    `gram_distance` to the reference: mean squared difference of the cosines between patches of a picture."""

    Options = StabilityOptions

    def needs(self) -> Needs:
        return Needs(
            known=frozenset(),
            outputs=frozenset({"cls", "patches"}),
            splits=("test",),
            view="whole",
            reference=self.options.reference,
        )

    def run(self, given: Given) -> Outcome:
        seen = given.features("test")
        found: dict[str, list[float]] = {"cls_patch_cosine": [], "patch_cosine": []}
        for row in range(len(seen)):
            cls, patches = seen.one("cls", row), seen.one("patches", row)
            found["cls_patch_cosine"].append(float(cls_patch_cosine(cls[None], patches[None])))
            found["patch_cosine"].append(float(gram(patches).mean()))
        if self.options.reference:
            found["gram_distance"] = self._distances(given)
        metrics, samples = means({name: np.array(values) for name, values in found.items()})
        return Outcome(metrics=metrics, samples=samples)

    def _distances(self, given: Given) -> list[float]:
        ours, theirs = given.features("test"), given.features("test", reference=True)
        if not np.array_equal(ours.grids, theirs.grids):
            raise UserError(
                "the reference cuts pictures into other patches",
                where="evaluations.stability.reference",
                fix="name a model with patches of the same size",
            )
        pairs = ((ours.one("patches", row), theirs.one("patches", row)) for row in range(len(ours)))
        return [float((gram(a) - gram(b)).square().mean()) for a, b in pairs]


def gram(patches: Tensor) -> Tensor:
    """[N, N], cosines of patches [N, D] (reference.md section 3.7)."""
    unit = F.normalize(patches.to(torch.float64), dim=-1)
    return unit @ unit.T
