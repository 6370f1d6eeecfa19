"""From a resolved recipe to the objects of a run."""

from __future__ import annotations

from collections.abc import Generator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch.distributed import ProcessGroup
from torch.distributed.device_mesh import DeviceMesh

from scholarch.config.schema import Recipe, settled
from scholarch.data.batch import MicroBatch
from scholarch.data.loader import Captioning, Cut, StepLoader, StreamDataset, ViewMask
from scholarch.data.mixture import stream_of
from scholarch.data.options import ViewOptions, resolve_views
from scholarch.data.source import Source
from scholarch.data.stream import rank_positions
from scholarch.data.tokenizer import Tokenizer
from scholarch.data.views import MultiCrop
from scholarch.draws import generator
from scholarch.errors import UserError
from scholarch.models.heads import ProjectionHead
from scholarch.objectives import MASKS, TERMS
from scholarch.objectives.term import Output, Term
from scholarch.training.distributed import World, alone
from scholarch.training.initial import load_frozen
from scholarch.training.layout import Layout
from scholarch.training.learner import Learner
from scholarch.training.networks import DTYPES, Execution, Network, build_network, materialise, place
from scholarch.training.observe import Observer
from scholarch.training.optimizer import Optimizer
from scholarch.training.replicas import Replicas, place_of
from scholarch.training.saving import Checkpoints
from scholarch.training.teachers import Teachers
from scholarch.training.trainer import Trainer


def build_terms(recipe: Recipe) -> dict[str, Term]:
    """The recipe's terms by name, without their buffers."""
    return {name: TERMS[options.kind](options, name) for name, options in recipe.terms.items()}


def teacher_model(recipe: Recipe, teacher: str) -> Any:
    """Options of a teacher's backbone: its own, or the student's."""
    own = recipe.teachers[teacher].model
    return recipe.model if own is None else own


def teacher_heads(recipe: Recipe, teacher: str, terms: Mapping[str, Term]) -> dict[str, Any]:
    """Options of the heads that terms read of a teacher: its own, or the student's."""
    own = recipe.teachers[teacher].heads
    read = {
        output.head
        for term in terms.values()
        if term.options.teacher == teacher
        for output in term.teacher_outputs()
    }
    heads = recipe.heads if own is None else own
    return {
        name: replace(options, patches="shared") if options.patches == "student" else options
        for name, options in heads.items()
        if name in read
    }


def build_networks(recipe: Recipe, terms: Mapping[str, Term]) -> tuple[Network, dict[str, Network]]:
    """The student and the teachers on the meta device."""
    student = build_network(recipe.model, recipe.heads)
    teachers = {
        name: build_network(teacher_model(recipe, name), teacher_heads(recipe, name, terms))
        for name in recipe.teachers
    }
    return student, teachers


def execution(recipe: Recipe, world: World) -> Execution:
    """How the recipe's networks are carried out on this world.

    One process has nothing to share out, and FSDP2 would cost it a quarter of a small step
    (benchmarks/results/step.md); but it is what computes in bf16. With grains every process has whole
    networks: the order in which shards are reduced depends on the number of processes.
    """
    sharded = not recipe.training.grain and (world.size > 1 or recipe.training.precision == "bf16")
    return Execution(
        device=world.device,
        precision=recipe.training.precision,
        mesh=world.mesh if sharded else None,
        compile=recipe.training.compile,
        activation_checkpointing=recipe.training.activation_checkpointing,
    )


@dataclass(frozen=True)
class Everywhere:
    """How frozen teachers are carried out that serve several students, on more processes than one student has.

    Attributes:
        mesh: over all those processes, which hold the teacher together.
        prototypes: over the student's own, which hold the prototypes of its heads together.
    """

    mesh: DeviceMesh
    prototypes: DeviceMesh


def build_learner(
    recipe: Recipe, how: Execution, group: ProcessGroup | None, everywhere: Everywhere | None = None
) -> Learner:
    """Student, teachers (equal to the student at the start) and terms, with memory and shards."""
    terms = build_terms(recipe)
    student, teachers = build_networks(recipe, terms)
    materialise(student, how, recipe.seed, trained=True)
    for name, teacher in teachers.items():
        options, mesh, prototypes = recipe.teachers[name], how.mesh, None
        if everywhere is not None and options.weights == "frozen":
            mesh, prototypes = everywhere.mesh, everywhere.prototypes
        if mesh is not None and options.sharded == "none":
            mesh = alone(how.device.type)
        wide = replace(how, mesh=mesh)
        materialise(teacher, wide, recipe.seed, trained=False, prototypes=prototypes)
    for term in terms.values():
        allocate_term(term, recipe, student, teachers, how)
    return Learner(
        student,
        teachers,
        {name: options.sees for name, options in recipe.teachers.items()},
        terms,
        frozen=[name for name, options in recipe.teachers.items() if options.weights == "frozen"],
        shown=[view for view, mask in recipe.masks.items() if not mask.hide],
        seed=recipe.seed,
        group=group,
    )


def allocate_term(
    term: Term, recipe: Recipe, student: Network, teachers: Mapping[str, Network], how: Execution
) -> None:
    """Gives a term its buffers and parameters, where and how the networks are.

    Raises:
        UserError: if it cannot compare outputs of these widths.
    """
    read = term.teacher_outputs() if term.options.teacher is not None else ()
    ours = {output: _width(student, output) for output in term.student_outputs()}
    theirs = {output: _width(teachers[term.options.teacher], output) for output in read}
    try:
        term.allocate(ours, theirs, recipe.seed)
    except ValueError as error:
        raise UserError(
            str(error), where=f"terms.{term.name}", fix="change heads.NAME, or choose another teacher"
        ) from None
    trained = term.trained()
    for module in trained.modules if trained else ():
        place(module, how)
    term.to(how.device, DTYPES[how.precision])


def _width(network: Network, output: Output) -> int:
    if output.head is None:
        return network.backbone.width
    head = network.heads[output.head]
    assert isinstance(head, ProjectionHead)
    return head.options.prototypes


def build_dataset(recipe: Recipe, source: Source, tokenizer: Tokenizer | None = None) -> StreamDataset:
    """Crops and masks of every step over `source`; captions too, where there is a tokenizer."""
    mean, std = settled(recipe.data.mean), settled(recipe.data.std)
    patch = recipe.model.patch
    cuts = [
        Cut(MultiCrop(views, mean, std, patch), build_masks(recipe, views), ratio)
        for ratio, views in view_sets(recipe)
    ]
    stream = stream_of(source, recipe.training.global_batch, recipe.seed)
    captioning = None if tokenizer is None else Captioning(tokenizer, recipe.model.text.length)
    return StreamDataset(source, stream, *cuts, captioning=captioning)


def view_sets(recipe: Recipe) -> list[tuple[float, dict[str, ViewOptions]]]:
    """(ratio, resolved views) of each set of sizes that steps are drawn from.

    Raises:
        ValueError: from `resolve_views`, or for a size that a view cannot have.
    """
    if not recipe.resolutions:
        return [(1.0, resolve_views(recipe.views))]
    return [
        (
            resolution.ratio,
            resolve_views(
                {n: replace(v, size=resolution.sizes.get(n, v.size)) for n, v in recipe.views.items()}
            ),
        )
        for resolution in recipe.resolutions
    ]


def build_masks(recipe: Recipe, views: Mapping[str, ViewOptions]) -> dict[str, ViewMask]:
    """Samplers of the recipe's masks, by the name that a micro-batch gives them."""
    masks: dict[str, ViewMask] = {}
    for view, options in recipe.masks.items():
        # A key of its own for each view, so that two views are not masked alike.
        seed = int(generator(recipe.seed, "masks", view).integers(2**62))
        sampler = MASKS[options.kind](options, seed)
        side = views[view].size // recipe.model.patch
        masks[view] = ViewMask(view, sampler.mask, (side, side))
        if any(o.tokens == "predicted" for t in build_terms(recipe).values() for o in t.student_outputs()):
            masks[f"{view}/predicted"] = ViewMask(view, sampler.predicted, (side, side))
    return masks


class Loading:
    """Starts this rank's loader at any step.

    Args:
        shares: positions of the global batch that this rank holds, an array for each micro-batch.
    """

    def __init__(self, recipe: Recipe, dataset: StreamDataset, shares: Sequence[np.ndarray]) -> None:
        self.recipe, self.dataset, self.shares = recipe, dataset, shares

    def __call__(self, start: int) -> Generator[Sequence[MicroBatch], None, None]:
        yield from StepLoader(
            self.dataset,
            start_step=start,
            end_step=self.recipe.training.steps,
            shares=self.shares,
            workers=settled(self.recipe.training.workers),
            pin_memory=torch.cuda.is_available(),
        )


def build_trainer(
    recipe: Recipe,
    source: Source,
    layout: Layout,
    world: World,
    checkpoints: str | Path,
    observers: Sequence[Observer] = (),
    tokenizer: Tokenizer | None = None,
    everywhere: Everywhere | None = None,
) -> Trainer:
    """A trainer at the start of its run, with everything it needs; all ranks take part.

    Args:
        recipe: resolved, without `auto`.
        source: what is trained on.
        layout: from `layout.plan_layout`.
        checkpoints: address for them.
        observers: told on rank 0.
        tokenizer: of captions; None: the recipe reads none.
        everywhere: how frozen teachers are carried out; None: on the processes of `world`, as all else. Where
            it is given, all processes of its mesh call this at the same time.
    """
    learner = build_learner(recipe, execution(recipe, world), world.group, everywhere)
    training = recipe.training
    optimizer = Optimizer(
        learner.student,
        recipe.optimizer,
        global_batch=training.global_batch,
        total_steps=training.steps,
        terms=learner.trained_terms(),
        head_warmup=recipe.init_from.head_warmup if recipe.init_from else 0,
    )
    load_frozen(recipe, learner)
    shares = rank_positions(
        layout.global_batch, layout.micro_batches, world.rank, world.size, whole=layout.whole
    )
    return Trainer(
        recipe,
        learner,
        optimizer,
        Teachers(learner, recipe.teachers),
        Loading(recipe, build_dataset(recipe, source, tokenizer), shares),
        layout,
        Checkpoints(checkpoints, training.keep_checkpoints, world),
        Replicas(place_of(str(checkpoints)), training.replicate_every, world),
        world,
        observers,
    )
