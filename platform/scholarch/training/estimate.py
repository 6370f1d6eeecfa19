"""Parameters, memory and traffic of a recipe on so many processes, from shapes alone (meta device)."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

from scholarch.config.schema import Recipe
from scholarch.data.options import ViewOptions
from scholarch.objectives.term import Output, Term
from scholarch.training.assemble import allocate_term, view_sets
from scholarch.training.layout import Layout
from scholarch.training.networks import Execution, Network, units

BYTES = {"fp32": 4, "bf16": 4, "fp64": 8}
"""Of a weight that the optimizer moves."""
COMPUTED = {"fp32": 4, "bf16": 2, "fp64": 8}
"""Of the same where it is computed with, and of activations."""
REDUCED = {"fp32": 4, "bf16": 4, "fp64": 8}
"""Of a gradient on its way between processes."""


def numel(module: nn.Module) -> int:
    """Parameters of a module."""
    return sum(p.numel() for p in module.parameters())


def moving(network: nn.Module) -> int:
    """Parameters of a student that the optimizer moves: all but those of a locked backbone."""
    return sum(p.numel() for p in network.parameters() if p.requires_grad)


def term_parameters(
    recipe: Recipe, terms: Mapping[str, Term], student: Network, teachers: Mapping[str, Network]
) -> int:
    """How many parameters terms train of their own (CAPI's clustering); allocates them."""
    how = Execution(device=torch.device("cpu"))
    count = 0
    for term in terms.values():
        allocate_term(term, recipe, student, teachers, how)
        trained = term.trained()
        count += sum(numel(module) for module in (trained.modules if trained else ()))
    return count


def memory(
    recipe: Recipe,
    student: Network,
    teachers: Mapping[str, Network],
    terms: Mapping[str, Term],
    layout: Layout,
    world_size: int,
) -> dict[str, int]:
    """Bytes on one process by part: an estimate, activations from the shapes of a ViT's tensors.

    Args:
        terms: allocated.
    """
    training = recipe.training
    item, computed = BYTES[training.precision], COMPUTED[training.precision]
    own = sum(numel(m) for term in terms.values() if (t := term.trained()) for m in t.modules)
    trained = moving(student) + own
    whole = sum(numel(teacher) for n, teacher in teachers.items() if recipe.teachers[n].sharded == "none")
    held = sum(numel(teacher) for teacher in teachers.values()) - whole + numel(student) - moving(student)
    share = layout.largest_share(world_size)
    sharing = 1 if layout.whole else world_size
    patch, width = recipe.model.patch, student.backbone.width
    sets = [views for _, views in view_sets(recipe)]
    tokens = max(sum(v.crops * share * (1 + (v.size // patch) ** 2) for v in s.values()) for s in sets)
    depth = len(getattr(student.backbone, "blocks", ())) or 12
    # Saved for the backward pass of one block and token: norms, qkv, attention, MLP's two widths.
    # Checkpointed: two residuals of each block, and the inside of the one that is computed again; or
    # its input and its products (qkv, attention, projection, MLP's two), and the rest of that one.
    per_token = (
        width
        * {
            "none": 18 * depth,
            "selective": 11 * depth + 7,
            "full": 2 * depth + 18,
        }[training.activation_checkpointing]
    )
    logits = max(
        sum(
            _rows(recipe, output, views, share) * int(recipe.heads[output.head].prototypes)
            for term in terms.values()
            for output in term.student_outputs()
            if output.head is not None and output.view in views
        )
        + sum(_own_logits(recipe, term, views, share) for term in terms.values())
        for views in sets
    )
    # Of the unit in use and the next one, whole on every process.
    gathered = 2 * max(unit_sizes(network)[0] for network in (student, *teachers.values())) * computed
    return {
        "weights": (trained + held) * item // sharing + whole * item,
        # With grains a table of all of theirs, and those that this process puts there.
        "gradients": trained * item * (2 * layout.micro_batches if layout.whole else 1) // sharing,
        "optimizer": 2 * trained * item // sharing,
        "gathered weights": gathered if sharing > 1 or computed != item else 0,
        "activations": tokens * per_token * computed,
        "teachers' activations": max(
            (passing(recipe, name, teacher, sets, share) for name, teacher in teachers.items()), default=0
        )
        * computed,
        # Of student and teacher, their softmax and their gradient.
        "logits": 4 * logits * max(item, 4),
    }


def passing(
    recipe: Recipe,
    name: str,
    teacher: Network,
    sets: Sequence[Mapping[str, ViewOptions]],
    share: int,
) -> int:
    """Values that a teacher's forward pass has at once: one block's, nothing is kept for a backward pass."""
    patch, sees = teacher.backbone.patch, recipe.teachers[name].sees
    tokens = max(
        sum(s[v].crops * share * (1 + (s[v].as_teachers_see().size // patch) ** 2) for v in sees)
        for s in sets
    )
    # Residual, norm, qkv, and the MLP's inner width, of a ViT.
    return tokens * teacher.backbone.width * 9


def _own_logits(recipe: Recipe, term: Term, views: Mapping[str, ViewOptions], share: int) -> int:
    """Logits that a term's own prototypes make of the teacher's outputs (CAPI: of all patches)."""
    trained = term.trained()
    if trained is None:
        return 0
    prototypes = max(p.shape[0] for module in trained.modules for p in module.parameters())
    rows = sum(
        _rows(recipe, output, views, share) for output in term.teacher_outputs() if output.view in views
    )
    return prototypes * rows


def _rows(recipe: Recipe, output: Output, views: Mapping[str, ViewOptions], share: int) -> int:
    """Rows of an output in one process's micro-batch, masks at the mean of their range."""
    view = views[output.view]
    pictures = view.crops * share
    patches: int = (view.size // recipe.model.patch) ** 2
    if output.tokens in ("cls", "patches"):
        return pictures * (1 if output.tokens == "cls" else patches)
    mask: Any = recipe.masks.get(output.view)
    ratio = getattr(mask, "ratio", 1.0)
    masked = getattr(mask, "share", 1.0) * (sum(ratio) / 2 if isinstance(ratio, tuple) else ratio)
    if output.tokens == "predicted":
        masked *= getattr(mask, "predicted", 1.0)
    return math.ceil(pictures * patches * masked)


def unit_sizes(network: Network) -> tuple[int, int]:
    """Parameters of the largest unit that is gathered at once, and of all units."""
    found, counted = [], set[nn.Parameter]()
    for _, unit in units(network):
        own = set(unit.parameters()) - counted
        counted |= own
        found.append(sum(p.numel() for p in own))
    return max(found), sum(found)


def checkpoint_bytes(
    recipe: Recipe, student: Network, teachers: Sequence[Network], term_parameters: int = 0
) -> int:
    """Size of a whole checkpoint: weights, both Adam moments, teachers."""
    item = BYTES[recipe.training.precision]
    held = sum(numel(teacher) for teacher in teachers) + numel(student) - moving(student)
    return item * (3 * (moving(student) + term_parameters) + held)


@dataclass(frozen=True)
class Traffic:
    """Bytes that one process receives in a step, by what they are for.

    Attributes:
        gathered: weights of the student, before the forward and again before the backward pass of
            each micro-batch.
        teachers: weights of the teachers, once for each micro-batch.
        reduced: gradients, after each micro-batch.
    """

    gathered: int
    teachers: int
    reduced: int

    @property
    def total(self) -> int:
        """All of it."""
        return self.gathered + self.teachers + self.reduced


def traffic(
    recipe: Recipe, student: Network, teachers: Sequence[Network], layout: Layout, world_size: int
) -> Traffic:
    """What is moved in a step, by a ring; sums of losses and centring are small beside it."""
    precision = recipe.training.precision

    def moved(parameters: int, bytes_each: int) -> int:
        return layout.micro_batches * parameters * bytes_each * (world_size - 1) // world_size

    if layout.whole:  # nothing is sharded, and the gradients of all grains are summed on every process
        return Traffic(gathered=0, teachers=0, reduced=2 * moved(numel(student), BYTES[precision]))
    held = sum(numel(teacher) for teacher in teachers)
    return Traffic(
        gathered=2 * moved(numel(student), COMPUTED[precision]),
        teachers=moved(held, COMPUTED[precision]),
        reduced=moved(moving(student), REDUCED[precision]),
    )
