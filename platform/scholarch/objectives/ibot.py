"""iBOT: the student names the teacher's prototypes of the patches it cannot see.

Legend: V views, b samples of this rank's micro-batch, N patches, M masked patches, K prototypes.
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
from scholarch.objectives.dino import TEACHER_TEMPERATURE
from scholarch.objectives.term import ALWAYS_ONE, Output, Share, Term, TermValue, pieces, shared_prototypes


@dataclass(frozen=True, kw_only=True)
class IbotOptions:
    """Options of iBOT (reference.md 3.4).

    Attributes:
        teacher: name of the teacher.
        head: name of the head, of student and teacher.
        view: name of the masked views.
        student_temperature: above 0.
        centre_on: the patches a moving-average centre follows: "masked" (DINOv2) or "all" (iBOT,
            whose teacher head then runs on every patch).
    """

    kind: Literal["ibot"] = "ibot"
    weight: Schedule = ALWAYS_ONE
    teacher: str = "ema"
    head: str = "ibot"
    view: str = "global"
    student_temperature: float = 0.1
    teacher_temperature: Schedule = TEACHER_TEMPERATURE
    centring: CentringOptions = field(default_factory=CentringOptions)
    centre_on: Literal["masked", "all"] = "masked"

    def __post_init__(self) -> None:
        if self.student_temperature <= 0:
            raise ValueError(f"student_temperature must be above 0, not {self.student_temperature}")
        if self.centre_on == "all" and self.centring.kind != "moving_average":
            raise ValueError("centre_on 'all' needs centring of kind 'moving_average'; leave it at 'masked'")


class Ibot(Term):
    """Cross-entropy at masked patches: mean over an image's masked patches, then over all images.

    Images without masks count as 0, so with half of them masked the value is about half the mean
    cross-entropy of a masked patch.

    `drawn`: the keys of `monitors.assignments`, "kl" (sum over masked patches of KL(teacher ||
    student)) and "kl_rows" (their number).
    """

    Options = IbotOptions
    options: IbotOptions

    def __init__(self, options: IbotOptions, name: str) -> None:
        super().__init__(options, name)
        self.centring = Centring(options.centring)

    def student_outputs(self) -> Sequence[Output]:
        return (Output(self.options.view, "masked", self.options.head),)

    def smallest_batch(self) -> int:
        # Sinkhorn-Knopp shares prototypes out among samples: one alone gets all of them.
        return 2 if self.options.centring.kind == "sinkhorn" else 1

    def teacher_outputs(self) -> Sequence[Output]:
        tokens: Literal["patches", "masked"] = "patches" if self.options.centre_on == "all" else "masked"
        return (Output(self.options.view, tokens, self.options.head),)

    def allocate(self, student: Mapping[Output, int], teacher: Mapping[Output, int], seed: int) -> None:  # noqa: ARG002
        self.centring.allocate(shared_prototypes(student, teacher))

    def targets(
        self, teacher: Sequence[Mapping[Output, Tensor]], shares: Sequence[Share]
    ) -> Sequence[Tensor]:
        """Probabilities [M, K] of each micro-batch."""
        (output,) = self.teacher_outputs()
        logits = seen = [outputs[output] for outputs in teacher]
        if output.tokens == "patches":
            logits = [
                x.flatten(0, 2).index_select(0, share.chosen(self.options.view))
                for x, share in zip(seen, shares, strict=True)
            ]
        temperature = self.options.teacher_temperature(shares[0].step)
        targets: list[Tensor] = self.centring(logits, temperature, pieces(shares), seen)
        return targets

    def forward(self, student: Mapping[Output, Tensor], targets: Tensor, share: Share) -> TermValue:
        (output,) = self.student_outputs()
        logits = upcast(student[output]) / self.options.student_temperature  # [M, K]
        losses = -(targets * torch.log_softmax(logits, dim=-1)).sum(dim=-1)  # [M]
        masks = share.masks[self.options.view]  # [V, b, N]
        weights = (1.0 / masks.sum(dim=-1, keepdim=True).to(losses)).expand(masks.shape).flatten()
        weights = weights.index_select(0, share.chosen(self.options.view))  # [M]
        images = masks.shape[0] * share.global_batch
        drawn = monitors.assignments(targets)
        drawn["kl"] = losses.detach().sum() - drawn["teacher_entropy"]
        drawn["kl_rows"] = drawn["teacher_rows"]
        return TermValue({"": (losses * weights).sum() / images}, drawn)
