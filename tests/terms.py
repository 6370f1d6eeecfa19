"""Runs a term as the trainer does, on any number of ranks and micro-batches, from global tensors."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import NamedTuple

import numpy as np
import torch
from gloo import run_ranks
from numpy.typing import NDArray
from scholarch.collectives import rank, world_size
from scholarch.objectives.term import Output, Share, Term
from torch import Tensor
from torch.distributed import ProcessGroup


@dataclass(kw_only=True)
class Case:
    """A term and the outputs of a whole global batch.

    `student` and `teacher` are dense over all samples: "cls" [V, G, K], all other tokens
    [V, G, N, K], of which shares take the masked or predicted positions. `teachers` is given per
    step; results are those of the last step.
    """

    term: Callable[[], Term]
    student: dict[Output, Tensor]
    teachers: Sequence[dict[Output, Tensor]]
    global_batch: int
    masks: dict[str, Tensor] = field(default_factory=dict)
    predicted: dict[str, Tensor] = field(default_factory=dict)
    grids: dict[str, tuple[int, int]] = field(default_factory=dict)


class Result(NamedTuple):
    parts: dict[str, Tensor]
    drawn: dict[str, Tensor]
    gradients: list[Tensor]  # of the student's dense tensors, then of the term's parameters


def run(case: Case, world: int = 1, micro_batches: int = 1) -> Result:
    """Sum over ranks and micro-batches; one rank runs in this process without a group."""
    if world == 1:
        return run_on_rank(None, case, micro_batches)
    results = run_ranks(world, run_on_rank, case, micro_batches)
    first = results[0]
    return Result(
        {key: torch.stack([r.parts[key] for r in results]).sum(0) for key in first.parts},
        {key: torch.stack([r.drawn[key] for r in results]).sum(0) for key in first.drawn},
        [
            torch.stack(list(gradients)).sum(0)
            for gradients in zip(*(r.gradients for r in results), strict=True)
        ],
    )


def run_on_rank(group: ProcessGroup | None, case: Case, micro_batches: int) -> Result:
    term = case.term()
    widths = [
        {output: x.shape[-1] for output, x in outputs.items()} for outputs in (case.student, case.teachers[0])
    ]
    term.allocate(*widths, seed=0)
    term.double()
    student = {output: x.clone().requires_grad_() for output, x in case.student.items()}
    parts: dict[str, Tensor] = {}
    drawn: dict[str, Tensor] = {}
    for step, teacher in enumerate(case.teachers):
        shares = [make_share(case, step, group, m, micro_batches) for m in range(micro_batches)]
        with torch.no_grad():
            targets = term.targets([take(teacher, share) for share in shares], shares)
        if step < len(case.teachers) - 1:
            continue
        for target, share in zip(targets, shares, strict=True):
            value = term(take(student, share), target, share)
            torch.stack(list(value.parts.values())).sum().backward()
            for total, found in ((parts, value.parts), (drawn, value.drawn)):
                for key, x in found.items():
                    total[key] = total.get(key, 0) + x.detach()
    leaves = [*student.values(), *term.parameters()]
    return Result(parts, drawn, [torch.zeros_like(x) if x.grad is None else x.grad for x in leaves])


def make_share(case: Case, step: int, group: ProcessGroup | None, number: int, micro_batches: int) -> Share:
    size = case.global_batch // micro_batches
    start, place, world = number * size, rank(group), world_size(group)
    positions = torch.arange(start + size * place // world, start + size * (place + 1) // world)
    views = {o.view: x.shape[0] for outputs in (case.student, case.teachers[0]) for o, x in outputs.items()}
    return Share(
        step=step,
        global_batch=case.global_batch,
        positions=positions,
        micro_batch=(start, start + size),
        views=views,
        masks={view: mask[:, positions] for view, mask in case.masks.items()},
        predicted={view: mask[:, positions] for view, mask in case.predicted.items()},
        grids=case.grids,
        group=group,
    )


def take(outputs: dict[Output, Tensor], share: Share) -> dict[Output, Tensor]:
    taken = {}
    for output, x in outputs.items():
        x = x[:, share.positions]
        if output.tokens == "masked":
            x = x[share.masks[output.view]]
        elif output.tokens == "predicted":
            x = x[share.predicted.get(output.view, share.masks[output.view])]
        taken[output] = x
    return taken


def assert_equal_on_ranks(case: Case, layouts: Sequence[tuple[int, int]]) -> Result:
    """Values, drawn sums and gradients are those of one process; layouts are (world, micro-batches)."""
    whole = run(case)
    for world, micro_batches in layouts:
        result = run(case, world, micro_batches)
        for found, expected in ((result.parts, whole.parts), (result.drawn, whole.drawn)):
            assert found.keys() == expected.keys()
            for key in expected:
                torch.testing.assert_close(found[key], expected[key], rtol=1e-10, atol=1e-12)
        for a, b in zip(result.gradients, whole.gradients, strict=True):
            torch.testing.assert_close(a, b, rtol=1e-9, atol=1e-12)
    return whole


def random(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))


def slow_sinkhorn(
    logits: NDArray[np.float64], temperature: float, iterations: int = 3
) -> NDArray[np.float64]:
    """Word for word reference.md 3.3, divisions by K and B included."""
    plan = np.exp(logits / temperature).T
    prototypes, samples = plan.shape
    plan /= plan.sum()
    for _ in range(iterations):
        plan /= plan.sum(axis=1, keepdims=True)
        plan /= prototypes
        plan /= plan.sum(axis=0, keepdims=True)
        plan /= samples
    return (plan * samples).T
