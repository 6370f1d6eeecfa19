"""What a term of the objective is, and what it is given.

A step has two phases, so that centring sees the whole global batch whatever the gradient
accumulation: first the teachers run over all micro-batches and each term makes its targets
(`Term.targets`, no gradient); then each micro-batch is trained on (`Term.forward`).

Legend: V views, b samples of this rank's micro-batch, N patches, D width, K prototypes,
M masked and P predicted patches of the micro-batch. Tensors are crop-major: [V, b, ...].
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, ClassVar, Literal, NamedTuple

from torch import Tensor, nn
from torch.distributed import ProcessGroup

from scholarch.collectives import Pieces
from scholarch.config.schedule import Schedule

ALWAYS_ONE = Schedule.parse(1.0)

Tokens = Literal["cls", "patches", "masked", "predicted", "scale"]


class Output(NamedTuple):
    """Names one output of a student or teacher.

    Attributes:
        view: name of the views it is computed on, such as "global".
        tokens: "cls" gives [V, b, D], "patches" [V, b, N, D], "masked" [M, D]: the patches at the
            masked positions of `view`, flattened in [V, b, N] order (of teachers too, which
            themselves see the unmasked picture), "predicted" [P, D]: the same at the predicted
            positions; a student with a predictor gives the predictor's outputs there, "scale" a scalar:
            the temperature that a text tower has learned.
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
        whole: this rank holds all of the micro-batch; other ranks hold others, of the same size.
        views: number of views by name.
        masks: by view name [V, b, N] bool, True = masked; absent where the view has no masks.
        predicted: by view name [V, b, N] bool, True = predicted; absent where it equals `masks`.
        grids: by view name (h, w) with N = h * w, row-major; absent: a square grid.
        teacher_grids: by teacher and view the same, of teachers whose patches are of another size;
            absent: as `grids`.
        group: the ranks that share the global batch; None for one process.
        places: by mask ("VIEW", "VIEW/predicted") [M] int64, its True places in flattened [V, b, N]; where
            one is absent it is found on the device, which then waits.
    """

    step: int
    global_batch: int
    positions: Tensor
    micro_batch: tuple[int, int]
    views: Mapping[str, int]
    masks: Mapping[str, Tensor] = field(default_factory=dict)
    predicted: Mapping[str, Tensor] = field(default_factory=dict)
    grids: Mapping[str, tuple[int, int]] = field(default_factory=dict)
    teacher_grids: Mapping[str, Mapping[str, tuple[int, int]]] = field(default_factory=dict)
    group: ProcessGroup | None = None
    places: Mapping[str, Tensor] = field(default_factory=dict)
    whole: bool = False

    def chosen(self, view: str, *, predicted: bool = False) -> Tensor:
        """[M] int64: the masked, or predicted, places of `view` in flattened [V, b, N]."""
        apart = predicted and view in self.predicted
        found = self.places.get(f"{view}/predicted" if apart else view)
        mask = (self.predicted if apart else self.masks)[view]
        return mask.flatten().nonzero().squeeze(1) if found is None else found


def pieces(shares: Sequence[Share]) -> Pieces:
    """How sums over this rank's micro-batches of a step become sums over the global batch."""
    first = shares[0]
    if not first.whole:
        return Pieces(first.group)
    start, stop = first.micro_batch
    size = stop - start
    places = tuple(share.micro_batch[0] // size for share in shares)
    return Pieces(first.group, places, first.global_batch // size)


class TermValue(NamedTuple):
    """This share's part of a term: over all ranks and micro-batches the parts add up.

    Attributes:
        parts: scalars by name, whose sum is differentiated; a term with one part names it "".
        drawn: tensors worth drawing or counting in the health report; detached.
    """

    parts: dict[str, Tensor]
    drawn: dict[str, Tensor]


class Trained(NamedTuple):
    """Parameters that belong to a term and are trained beside the student's.

    Attributes:
        modules: modules of the term that hold them; each is called as a whole, so it can be
            sharded. Their gradients are summed over ranks; they have no teacher and no clipping.
        learning_rate: of AdamW; absolute, not scaled with the batch.
        weight_decay: of AdamW.
        betas: of AdamW.
    """

    modules: Sequence[nn.Module]
    learning_rate: Schedule
    weight_decay: float
    betas: tuple[float, float]


class Term(nn.Module, ABC):
    """One named term of the objective. Buffers (a centre) and parameters are saved with the run.

    A subclass is built from its options alone, `Term(options, name)`, where options is a frozen
    keyword-only dataclass with `kind: Literal[...]`, `weight: Schedule` and `teacher: str | None`.
    Outputs of a view that the recipe does not have (no local crops) are left out, not zero-sized.
    """

    Options: ClassVar[type[Any]]

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

    def allocate(self, student: Mapping[Output, int], teacher: Mapping[Output, int], seed: int) -> None:
        """Makes the buffers and parameters that depend on the widths of the outputs (a centre).

        Called once, before the state is loaded and before the first step; what it makes is fully
        initialised, from draws keyed by `seed` and the term's name.

        Args:
            student: last dimension (K, or D without a head) of each output of `student_outputs`.
            teacher: the same of `teacher_outputs`; a teacher of its own model has widths of its own.

        Raises:
            ValueError: if the term cannot compare outputs of these widths.
        """

    def same_patches(self) -> bool:
        """Whether a patch of the teacher is compared with the student's at the same place."""
        return any(output.tokens != "cls" for output in self.teacher_outputs())

    def trained(self) -> Trained | None:
        """The term's own parameters (CAPI's clustering), after `allocate`; None: it has none."""
        return None

    def smallest_batch(self) -> int:
        """The smallest global batch this term means anything for (KoLeo: 2)."""
        return 1

    def group_size(self, global_batch: int) -> int:  # noqa: ARG002
        """Samples that must share a micro-batch, in global order (KoLeo groups); 1 when free."""
        return 1

    def targets(
        self,
        teacher: Sequence[Mapping[Output, Tensor]],  # noqa: ARG002
        shares: Sequence[Share],
    ) -> Sequence[Any]:
        """Targets of each micro-batch from the teacher's outputs on all of them; no gradient."""
        return [None for _ in shares]

    @abstractmethod
    def forward(self, student: Mapping[Output, Tensor], targets: Any, share: Share) -> TermValue:
        """This share's part of the term, unweighted."""


def shared_prototypes(student: Mapping[Output, int], teacher: Mapping[Output, int]) -> int:
    """The number of prototypes that student and teacher both have.

    Raises:
        ValueError: if they differ: probabilities over other prototypes cannot be compared.
    """
    ours, theirs = sorted({*student.values()}), sorted({*teacher.values()})
    if ours != theirs or len(ours) != 1:
        raise ValueError(
            f"the student has {' and '.join(map(str, ours))} prototypes, its teacher "
            f"{' and '.join(map(str, theirs))}; the term needs equally many"
        )
    return ours[0]
