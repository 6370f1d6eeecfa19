"""Puts a student's trainer and the shared teacher together."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from scholarch.config.schema import Recipe, settled
from scholarch.data.loader import Cut, StreamDataset
from scholarch.data.mixture import stream_of
from scholarch.data.source import Source
from scholarch.data.stream import rank_positions
from scholarch.data.views import MultiCrop
from scholarch.distillation.exchange import AgreedStop, Exchange, Needs, Read
from scholarch.distillation.groups import Tiling
from scholarch.errors import UserError
from scholarch.training.assemble import (
    Everywhere,
    build_masks,
    build_terms,
    build_trainer,
    teacher_model,
    view_sets,
)
from scholarch.training.distributed import World
from scholarch.training.layout import Layout
from scholarch.training.networks import Network
from scholarch.training.observe import Observer
from scholarch.training.trainer import Trainer

HIDDEN_OR_NOT = "predicted", "masked"


def reads_of(recipe: Recipe, *, whole: bool) -> list[Read]:
    """What a student's terms read of frozen teachers.

    Args:
        whole: all patches are sent in place of those at the places of the masks.
    """
    found = {}
    for term in build_terms(recipe).values():
        name = term.options.teacher
        if name is None or recipe.teachers[name].weights != "frozen":
            continue
        for output in term.teacher_outputs():
            patches = whole and output.tokens in HIDDEN_OR_NOT
            found[name, output] = output._replace(tokens="patches") if patches else output
    return [Read(name, output, sent) for (name, output), sent in sorted(found.items(), key=str)]


def masks_differ(recipes: Sequence[Recipe]) -> bool:
    """Whether students have masks of their own, so that none knows where the others' are."""
    first = _masks(recipes[0])
    return any(_masks(recipe) != first for recipe in recipes[1:])


def _masks(recipe: Recipe) -> object:
    sizes = [
        {view: views[view].size // recipe.model.patch for view in recipe.masks}
        for _, views in view_sets(recipe)
    ]
    options = {view: {**vars(mask), "hide": None} for view, mask in recipe.masks.items()}
    return options, sizes


def check_together(recipes: Mapping[str, Recipe]) -> None:
    """One pass of the teacher must serve all students.

    Raises:
        UserError: naming two students and what they differ in.
    """
    first, *others = recipes
    if not reads_of(recipes[first], whole=False):
        raise UserError(
            "no term reads a frozen teacher: there is nothing to distil",
            where="terms",
            fix="give a term `teacher: NAME`, and `weights: frozen` to that teacher; or use scholarch pretrain",
        )
    for name in others:
        for what, of in (("teachers", _teachers), ("views that the teacher sees", _seen)):
            if of(recipes[first]) != of(recipes[name]):
                raise UserError(
                    f"{first} and {name} differ in the {what}, and one pass of the teacher is to serve both",
                    where=f"students.{name}",
                    fix="give them the same; a student with crops of another size wants views.VIEW.teacher_size",
                )


def frozen(recipe: Recipe) -> list[str]:
    """Names of the frozen teachers."""
    return [name for name, teacher in recipe.teachers.items() if teacher.weights == "frozen"]


def _teachers(recipe: Recipe) -> object:
    return {
        name: (
            t.checkpoint,
            t.of,
            t.sees,
            t.heads if t.heads is not None else recipe.heads,
            teacher_model(recipe, name),
        )
        for name, t in recipe.teachers.items()
        if t.weights == "frozen"
    }


def _seen(recipe: Recipe) -> object:
    sees = sorted({view for name in frozen(recipe) for view in recipe.teachers[name].sees})
    return [
        (ratio, [(v, views[v].as_teachers_see()) for v in sees if v in views])
        for ratio, views in view_sets(recipe)
    ]


def teacher_dataset(recipe: Recipe, source: Source) -> StreamDataset:
    """What frozen teachers see of every sample, with the masks of the student: where those of others differ, all
    patches are sent, and masks only tell how many there are."""
    mean, std = settled(recipe.data.mean), settled(recipe.data.std)
    sees = {view for name in frozen(recipe) for view in recipe.teachers[name].sees}
    cuts = []
    for ratio, views in view_sets(recipe):
        # Grids are the student's: patches are compared one to one.
        masks = {name: mask for name, mask in build_masks(recipe, views).items() if mask.view in sees}
        shown = {name: views[name].as_teachers_see() for name in sorted(sees) if name in views}
        cuts.append(Cut(MultiCrop(shown, mean, std, recipe.model.patch), masks, ratio))
    stream = stream_of(source, recipe.training.global_batch, recipe.seed)
    return StreamDataset(source, stream, *cuts)


@dataclass(frozen=True)
class Place:
    """Where a process stands in a job of several students.

    Attributes:
        world: all processes.
        part: those of its student.
        everywhere: how the teacher is spread.
        tiling: who does what.
        whole: all patches are exchanged, since students have masks of their own.
    """

    world: World
    part: World
    everywhere: Everywhere
    tiling: Tiling
    whole: bool


def build_student(
    place: Place,
    recipe: Recipe,
    source: Source,
    layout: Layout,
    checkpoints: str,
    observers: Sequence[Observer] = (),
) -> tuple[Trainer, Exchange]:
    """The trainer of this process's student and what brings it the teacher's features; all processes take part.

    Args:
        place: where this process stands.
        recipe: the student's own, resolved, without `auto`; the rest as for `build_trainer`.
    """
    trainer = build_trainer(
        recipe, source, layout, place.part, checkpoints, observers, everywhere=place.everywhere
    )
    shares = rank_positions(
        layout.global_batch, layout.micro_batches, place.part.rank, place.part.size, whole=layout.whole
    )
    name = place.tiling.student(place.world.rank)
    needs = place.world.gather(Needs(name, shares, reads_of(recipe, whole=place.whole)))
    teachers = {}
    for one in frozen(recipe):
        network = trainer.learner.teachers[one]
        assert isinstance(network, Network)
        teachers[one] = network
    stop = AgreedStop()
    exchange = Exchange(
        world=place.world,
        needs=needs,
        parts=place.tiling.teacher,
        teachers=teachers,
        dataset=teacher_dataset(recipe, source),
        own=trainer.loader,
        steps=recipe.training.steps,
        precision=recipe.training.precision,
        micro_batch=settled(recipe.training.micro_batch),
        workers=settled(recipe.training.workers),
        stop=stop,
        every=settled(recipe.training.checkpoint_every),
    )
    trainer.stop, trainer.loader, trainer.busy = stop, exchange, exchange.seconds
    return trainer, exchange
