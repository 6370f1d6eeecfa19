"""DINO: cross-entropy between the CLS prototypes of teacher views and other student views.

Legend: S student views of one name, T teacher views, b samples of this rank's micro-batch,
K prototypes, G samples of the global batch.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Literal

import torch
from torch import Tensor

from scholarch.collectives import upcast
from scholarch.config.schedule import Schedule
from scholarch.objectives import monitors
from scholarch.objectives.centring import Centring, CentringOptions
from scholarch.objectives.term import ALWAYS_ONE, Output, Share, Term, TermValue, pieces, shared_prototypes

TEACHER_TEMPERATURE = Schedule.parse(
    [
        {"shape": "linear", "steps": 0.3, "start": 0.04, "end": 0.07, "endpoint": True},
        {"end": 0.07},
    ]
)
"""0.04 to 0.07 over 30 of 100 epochs (reference.md 4.3)."""


@dataclass(frozen=True, kw_only=True)
class DinoOptions:
    """Options of DINO (reference.md 3.1 to 3.3).

    Attributes:
        teacher: name of the teacher.
        head: name of the head, of student and teacher.
        student_temperature: above 0.
        student_views, teacher_views: names of views; every pair of a student view and a teacher
            view weighs the same.
        ignore_diagonal: leave out the pairs of a view with itself.
        local_weight: multiplies the pairs of views that the teacher does not see; the number of
            pairs that the term is divided by stays as it is.
    """

    kind: Literal["dino"] = "dino"
    weight: Schedule = ALWAYS_ONE
    teacher: str = "ema"
    head: str = "dino"
    student_temperature: float = 0.1
    teacher_temperature: Schedule = TEACHER_TEMPERATURE
    centring: CentringOptions = field(default_factory=CentringOptions)
    student_views: tuple[str, ...] = ("global", "local")
    teacher_views: tuple[str, ...] = ("global",)
    ignore_diagonal: bool = True
    local_weight: Schedule = ALWAYS_ONE

    def __post_init__(self) -> None:
        if self.student_temperature <= 0:
            raise ValueError(f"student_temperature must be above 0, not {self.student_temperature}")
        if not self.student_views or not self.teacher_views:
            raise ValueError("student_views and teacher_views need at least one name each")


class Dino(Term):
    """Mean cross-entropy over pairs of views, one part for each name of student views.

    `drawn`: the keys of `monitors.assignments`, "kl" (sum over pairs and samples of KL(teacher ||
    student)) and "kl_rows" (their number).
    """

    Options = DinoOptions
    options: DinoOptions

    def __init__(self, options: DinoOptions, name: str) -> None:
        super().__init__(options, name)
        self.centring = Centring(options.centring)

    def student_outputs(self) -> Sequence[Output]:
        return tuple(Output(view, "cls", self.options.head) for view in self.options.student_views)

    def smallest_batch(self) -> int:
        # Sinkhorn-Knopp shares prototypes out among samples: one alone gets all of them.
        return 2 if self.options.centring.kind == "sinkhorn" else 1

    def teacher_outputs(self) -> Sequence[Output]:
        return tuple(Output(view, "cls", self.options.head) for view in self.options.teacher_views)

    def allocate(self, student: Mapping[Output, int], teacher: Mapping[Output, int], seed: int) -> None:  # noqa: ARG002
        self.centring.allocate(shared_prototypes(student, teacher))

    def targets(
        self, teacher: Sequence[Mapping[Output, Tensor]], shares: Sequence[Share]
    ) -> Sequence[Tensor]:
        """Probabilities [T, b, K] of each micro-batch; all teacher views are centred together."""
        logits = [torch.cat([outputs[o] for o in self.teacher_outputs()]) for outputs in teacher]
        temperature = self.options.teacher_temperature(shares[0].step)
        targets: list[Tensor] = self.centring(logits, temperature, pieces(shares))
        return targets

    def forward(self, student: Mapping[Output, Tensor], targets: Tensor, share: Share) -> TermValue:
        options = self.options
        kept = {view: self._kept(view, share) for view in options.student_views if share.views.get(view, 0)}
        pairs = int(sum(keep.sum() for keep in kept.values()))
        if pairs == 0:
            raise ValueError("no pair of a student view and another teacher view; add views")
        entropy = torch.special.entr(targets).sum(dim=(1, 2))  # [T]
        parts, kl = {}, entropy.new_zeros(())
        for view, keep in kept.items():
            logits = upcast(student[Output(view, "cls", options.head)]) / options.student_temperature
            log_probabilities = torch.log_softmax(logits, dim=-1)  # [S, b, K]
            losses = -torch.einsum("sbk,tbk->st", log_probabilities, targets)
            keep = keep.to(losses.device)
            # where, not a product: a pair that is left out must not bring in its infinity.
            total = torch.where(keep, losses, 0.0).sum()
            weight = 1.0 if view in options.teacher_views else options.local_weight(share.step)
            parts[view] = total * (weight / (share.global_batch * pairs))
            kl += total.detach() - (keep * entropy).sum()
        drawn = {**monitors.assignments(targets), "kl": kl}
        drawn["kl_rows"] = torch.full_like(kl, pairs * targets.shape[1])
        return TermValue(parts, drawn)

    def _kept(self, view: str, share: Share) -> Tensor:
        """[S, T] bool on the CPU: which pairs count."""
        count = share.views[view]
        blocks = []
        for teacher_view in self.options.teacher_views:
            block = torch.ones(count, share.views[teacher_view], dtype=torch.bool)
            if self.options.ignore_diagonal and teacher_view == view:
                block.fill_diagonal_(False)
            blocks.append(block)
        return torch.cat(blocks, dim=1)
