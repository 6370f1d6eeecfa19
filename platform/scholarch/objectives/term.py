"""What a term of the objective is, and what it is given.

A step has two phases, so that centring sees the whole global batch whatever the gradient
accumulation: first the teachers run over all micro-batches and each term makes its targets
(`Term.targets`, no gradient); then each micro-batch is trained on (`Term.forward`).

Legend: V views, b samples of this rank's micro-batch, N patches, D width, K prototypes,
M masked patches of the micro-batch. Tensors are crop-major: [V, b, ...].
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal, NamedTuple

from torch import Tensor, nn
from torch.distributed import ProcessGroup

Tokens = Literal["cls", "patches", "masked"]


class Output(NamedTuple):
    """Names one output of a student or teacher.

    Attributes:
        view: name of the views it is computed on, such as "global".
        tokens: "cls" gives [V, b, D], "patches" [V, b, N, D], "masked" [M, D]: the patches at the
            masked positions of `view`, flattened in [V, b, N] order (of teachers too, which
            themselves see the unmasked picture).
        head: name of the projection head applied to it, D becoming K; None: backbone features
            after the final norm.
    """

    view: str
    tokens: Tokens
    head: str | None = None


@dataclass(frozen=True)
class Share:
    """Where a micro-batch of one rank stands in the global batch of its step.

    Attributes:
        step: the step, from 0.
        global_batch: samples in the step's global batch, over all ranks and micro-batches (G).
        positions: [b] int64, places of this share's samples in the global batch, ascending.
        micro_batch: [start, stop) of the global positions that all ranks together hold in this
            micro-batch; ranks follow one another in position order.
        views: number of views by name.
        masks: by view name [V, b, N] bool, True = masked; absent where the view has no masks.
        group: the ranks that share the global batch; None for one process.
    """

    step: int
    global_batch: int
    positions: Tensor
    micro_batch: tuple[int, int]
    views: Mapping[str, int]
    masks: Mapping[str, Tensor] = field(default_factory=dict)
    group: ProcessGroup | None = None


class TermValue(NamedTuple):
    """This share's part of a term: over all ranks and micro-batches the parts add up.

    Attributes:
        parts: scalars by name, whose sum is differentiated; a term with one part names it "".
        drawn: tensors worth drawing or counting in the health report; detached.
    """

    parts: dict[str, Tensor]
    drawn: dict[str, Tensor]


class Term(nn.Module, ABC):
    """One named term of the objective. Buffers (a centre) are saved with the run.

    A subclass is built from its options alone, `Term(options, name)`, where options is a frozen
    keyword-only dataclass with `kind: Literal[...]`, `weight: Schedule` and `teacher: str | None`.
    """

    def __init__(self, options: Any, name: str) -> None:
        super().__init__()
        self.options = options
        self.name = name

    @abstractmethod
    def student_outputs(self) -> Sequence[Output]:
        """The student outputs that `forward` reads."""

    def teacher_outputs(self) -> Sequence[Output]:
        """The outputs of `options.teacher` that `targets` reads."""
        return ()

    def smallest_batch(self) -> int:
        """The smallest global batch this term means anything for (KoLeo: 2)."""
        return 1

    def group_size(self, global_batch: int) -> int:
        """Samples that must share a micro-batch, in global order (KoLeo groups); 1 when free."""
        return 1

    def targets(
        self, teacher: Sequence[Mapping[Output, Tensor]], shares: Sequence[Share]
    ) -> Sequence[Any]:
        """Targets of each micro-batch from the teacher's outputs on all of them; no gradient."""
        return [None for _ in shares]

    @abstractmethod
    def forward(self, student: Mapping[Output, Tensor], targets: Any, share: Share) -> TermValue:
        """This share's part of the term, unweighted."""
