"""KoLeo: spreads features by pushing each sample from its nearest neighbour (reference.md 3.6).

Legend: V views, b samples of this rank's micro-batch, n samples of a group, D width.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor
from torch.nn import functional as F

from scholarch.collectives import upcast
from scholarch.config.schedule import Schedule
from scholarch.objectives import groups
from scholarch.objectives.term import Output, Share, Term, TermValue

WEIGHT = Schedule.parse(0.1)

EPSILON = 1e-8
"""Of the norm, of each element of the difference and of the distance under the logarithm."""


@dataclass(frozen=True, kw_only=True)
class KoLeoOptions:
    """Options of KoLeo.

    Attributes:
        weight: of the sum over the views; the sources use 0.1.
        teacher: always None.
        view: the views whose CLS features are spread, each view by itself.
        group: samples among which neighbours are looked for, in global order; DINOv3 pretrains
            with 16. None: the whole global batch, which then allows no gradient accumulation.
    """

    kind: Literal["koleo"] = "koleo"
    weight: Schedule = WEIGHT
    teacher: None = None
    view: str = "global"
    group: int | None = 16

    def __post_init__(self) -> None:
        if self.group is not None and self.group < 2:
            raise ValueError(f"group must be at least 2, not {self.group}: a sample needs a neighbour")


class KoLeo(Term):
    """Minus the mean logarithm of the distance to the nearest neighbour, summed over views.

    `drawn`: "distance" and "rows", the sum and the number of the nearest distances.

    Two deviations from the source: bf16 features are compared in float32 (in bf16 the epsilons
    vanish), and a sample can never be its own neighbour (the source sets its similarity to -1,
    which ties with that of an antipode).
    """

    Options = KoLeoOptions
    options: KoLeoOptions

    def student_outputs(self) -> Sequence[Output]:
        return (Output(self.options.view, "cls"),)

    def smallest_batch(self) -> int:
        return 2

    def group_size(self, global_batch: int) -> int:
        return min(self.options.group or global_batch, global_batch)

    def forward(self, student: Mapping[Output, Tensor], targets: Any, share: Share) -> TermValue:  # noqa: ARG002
        (output,) = self.student_outputs()
        features = F.normalize(upcast(student[output]), dim=-1, eps=EPSILON)  # [V, b, D]
        rows, cut = groups.cut(features.transpose(0, 1), share, self.options.group)
        distances = [rows[:0].flatten()]  # keeps ranks without samples in the backward collective
        for group in cut:
            distances.append(
                nearest_distances(group.members.transpose(0, 1), group.first, group.own).flatten()
            )
        nearest = torch.cat(distances)
        value = -torch.log(nearest + EPSILON).sum() / share.global_batch
        drawn = {"distance": nearest.detach().sum(), "rows": torch.full_like(value.detach(), len(nearest))}
        return TermValue({"": value}, drawn)


def nearest_distances(members: Tensor, first: int, own: int) -> Tensor:
    """Distances of `own` members, from `first` on, to their nearest other member.

    Args:
        members: [V, n, D], L2-normalised, n at least 2.

    Returns:
        [V, own].
    """
    asking = members[:, first : first + own]  # [V, own, D]
    with torch.no_grad():
        similarity = asking @ members.transpose(1, 2)  # [V, own, n]
        similarity.diagonal(offset=first, dim1=1, dim2=2).fill_(-torch.inf)
        neighbours = similarity.argmax(dim=-1)  # [V, own]
    found = members.gather(1, neighbours[..., None].expand(-1, -1, members.shape[-1]))
    distances: Tensor = torch.linalg.vector_norm(asking - found + EPSILON, dim=-1)
    return distances
