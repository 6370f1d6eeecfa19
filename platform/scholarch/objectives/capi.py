"""CAPI: clusters the teacher's patches online, and predicts the clusters of hidden patches.

Legend: V views, b samples of this rank's micro-batch, G samples of the global batch, N patches,
P predicted patches, D width, K prototypes.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Literal, NamedTuple, cast

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from scholarch.collectives import Pieces, all_reduce_max, all_reduce_sum, upcast
from scholarch.config.schedule import Schedule
from scholarch.draws import torch_generator
from scholarch.objectives import monitors
from scholarch.objectives.term import ALWAYS_ONE, Output, Share, Term, TermValue, Trained, pieces

LEARNING_RATE = Schedule.parse(
    [
        {"shape": "linear", "steps": 0.1, "start": 0.0, "end": 5e-4, "endpoint": True},
        {"shape": "cosine", "end": 0.0, "truncate": 0.8},
    ]
)
"""Warm-up over 50k of 500k steps, then 0.8 of a half cosine (reference.md 3.8)."""

LARGEST_EXPONENT = 50.0
"""What the largest logit of a prototype is moved to before exp, far above EPSILON."""
EPSILON = 1e-8


@dataclass(frozen=True, kw_only=True)
class CapiOptions:
    """Options of CAPI (reference.md 3.8).

    Attributes:
        weight: of prediction and clustering together; while it is 0 neither is trained.
        teacher: name of the teacher, whose backbone's patches are clustered.
        head: the student's head on its predictor; it has as many prototypes as clusters are made.
        view: name of the masked views.
        student_temperature: of the prediction.
        clustering_temperature: of the clustering's own loss.
        assignment_temperature: of the assignments, which are the targets of both.
        iterations: of positional Sinkhorn-Knopp.
        learning_rate, weight_decay, betas: of the clustering's AdamW. 0.01 is torch's default,
            which the source leaves as it is.
    """

    kind: Literal["capi"] = "capi"
    weight: Schedule = ALWAYS_ONE
    teacher: str = "ema"
    head: str = "capi"
    view: str = "global"
    student_temperature: float = 0.12
    clustering_temperature: float = 0.12
    assignment_temperature: float = 0.06
    iterations: int = 3
    learning_rate: Schedule = LEARNING_RATE
    weight_decay: float = 0.01
    betas: tuple[float, float] = (0.9, 0.95)

    def __post_init__(self) -> None:
        for name in ("student_temperature", "clustering_temperature", "assignment_temperature"):
            if getattr(self, name) <= 0:
                raise ValueError(f"{name} must be above 0, not {getattr(self, name)}")
        if self.iterations < 1:
            raise ValueError(f"iterations must be at least 1, not {self.iterations}")


class Clustering(nn.Module):
    """Prototypes of unit-length features: L2-normalise, then linear with bias.

    Weights start from N(0, 1), biases from 0.
    """

    def __init__(self, width: int, prototypes: int, generator: torch.Generator) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.randn(prototypes, width, generator=generator))
        self.bias = nn.Parameter(torch.zeros(prototypes))

    def forward(self, features: Tensor) -> Tensor:
        """[..., D] to logits [..., K], in the features' dtype."""
        unit = F.normalize(features, dim=-1, eps=1e-7)
        return F.linear(unit, self.weight.to(unit.dtype), self.bias.to(unit.dtype))


class Scalings(NamedTuple):
    """Assignments in short: exp(logits / temperature + prototypes + rows).

    A hundredth of the assignments' size or less, so that those of all micro-batches can be kept.
    """

    prototypes: Tensor  # [N, K]
    rows: Tensor  # [V, b, N]

    def assignments(self, logits: Tensor, temperature: float) -> Tensor:
        """[V, b, N, K], summing to 1 over K but for the source's epsilon."""
        return (upcast(logits) / temperature + self.prototypes + self.rows[..., None]).exp()


class Targets(NamedTuple):
    """What `Capi.forward` needs of the teacher, for one micro-batch."""

    features: Tensor  # [V, b, N, D]
    scalings: Scalings
    predicted: Tensor  # [], predicted patches of the global batch


@torch.no_grad()
def positional_sinkhorn(
    logits: Sequence[Tensor], temperature: float, iterations: int, pieces: Pieces
) -> list[Scalings]:
    """Sinkhorn-Knopp at each position by itself, over the samples of all micro-batches and ranks.

    Without it, prototypes could serve to tell positions apart. There are no factors 1/K and 1/B.

    Args:
        logits: of each micro-batch, [V, b, N, K]; b may be 0.
        temperature: above 0.
        pieces: how the micro-batches of all ranks add up.

    Returns:
        The scalings of each micro-batch; `prototypes` is the same for all.
    """
    scaled = [upcast(x) / temperature for x in logits]
    # A maximum for each position and prototype is a factor that the first sum over samples removes.
    largest = scaled[0].new_full(scaled[0].shape[2:], -torch.inf)  # [N, K]
    for x in scaled:
        if x.shape[1]:
            largest = torch.maximum(largest, x.amax(dim=(0, 1)))
    prototypes = LARGEST_EXPONENT - all_reduce_max(largest, pieces.group)
    rows = [x.new_zeros(x.shape[:3]) for x in scaled]
    for _ in range(iterations):
        plans = (Scalings(prototypes, r).assignments(x, 1.0) for x, r in zip(scaled, rows, strict=True))
        total = pieces.sum([plan.sum(dim=(0, 1)) for plan in plans])
        prototypes = prototypes - torch.log(total + EPSILON)
        plans = (Scalings(prototypes, r).assignments(x, 1.0) for x, r in zip(scaled, rows, strict=True))
        rows = [r - torch.log(plan.sum(dim=-1) + EPSILON) for r, plan in zip(rows, plans, strict=True)]
    return [Scalings(prototypes, r) for r in rows]


class Capi(Term):
    """Cross-entropy of the predicted patches' clusters, and of the clustering itself.

    Parts: "prediction", a mean over all predicted patches, trains the student; "clustering", a
    mean over all patches, trains the term's own prototypes and nothing else.

    `drawn`: the keys of `monitors.assignments` (over all patches), "kl" (sum over predicted patches
    of KL(teacher || student)) and "kl_rows" (their number).
    """

    Options = CapiOptions
    options: CapiOptions
    clustering: Clustering

    def student_outputs(self) -> Sequence[Output]:
        return (Output(self.options.view, "predicted", self.options.head),)

    def teacher_outputs(self) -> Sequence[Output]:
        return (Output(self.options.view, "patches"),)

    def allocate(self, student: Mapping[Output, int], teacher: Mapping[Output, int], seed: int) -> None:
        (predicted,), (patches,) = self.student_outputs(), self.teacher_outputs()
        generator = torch_generator(seed, "term", self.name, "clustering")
        self.clustering = Clustering(teacher[patches], student[predicted], generator)

    def trained(self) -> Trained:
        options = self.options
        return Trained((self.clustering,), options.learning_rate, options.weight_decay, options.betas)

    def targets(
        self, teacher: Sequence[Mapping[Output, Tensor]], shares: Sequence[Share]
    ) -> Sequence[Targets]:
        """Features and scalings of each micro-batch; assignments are made from them in `forward`.

        Logits [V, b, N, K] of all micro-batches of this rank are in memory meanwhile.
        """
        (output,) = self.teacher_outputs()
        features = [outputs[output].detach() for outputs in teacher]
        with torch.no_grad():
            logits = [self.clustering(x) for x in features]
        scalings = positional_sinkhorn(
            logits, self.options.assignment_temperature, self.options.iterations, pieces(shares)
        )
        own = torch.stack([self._predicted(share).sum() for share in shares]).sum()
        count = all_reduce_sum(own, shares[0].group)
        return [Targets(x, scaling, count) for x, scaling in zip(features, scalings, strict=True)]

    def forward(self, student: Mapping[Output, Tensor], targets: Targets, share: Share) -> TermValue:
        options, (output,) = self.options, self.student_outputs()
        logits = upcast(cast(Tensor, self.clustering(targets.features)))  # [V, b, N, K]
        with torch.no_grad():
            assignments = targets.scalings.assignments(logits, options.assignment_temperature)
        clusters = torch.log_softmax(logits / options.clustering_temperature, dim=-1)
        patches = logits.shape[0] * share.global_batch * logits.shape[2]
        wanted = assignments[self._predicted(share)]  # [P, K]
        found = torch.log_softmax(upcast(student[output]) / options.student_temperature, dim=-1)
        prediction = -(wanted * found).sum()
        parts = {
            "prediction": prediction / targets.predicted.clamp(min=1),
            "clustering": -(assignments * clusters).sum() / patches,
        }
        drawn = monitors.assignments(assignments)
        drawn["kl"] = prediction.detach() - torch.special.entr(wanted).sum()
        drawn["kl_rows"] = torch.full_like(drawn["kl"], wanted.shape[0])
        return TermValue(parts, drawn)

    def _predicted(self, share: Share) -> Tensor:
        """[V, b, N] bool."""
        view = self.options.view
        return share.predicted[view] if view in share.predicted else share.masks[view]
