"""Everything a run needs, checked before anything is written."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import torch

from scholarch.config.schema import Recipe, settled
from scholarch.data.mixture import Mixture
from scholarch.data.options import ViewOptions
from scholarch.data.source import Source
from scholarch.data.statistics import ScanReport
from scholarch.errors import UserError
from scholarch.objectives.term import Term
from scholarch.storage.local import check_free, check_writable, readable_size
from scholarch.storage.objects import is_s3
from scholarch.training.assemble import (
    allocate_term,
    build_networks,
    build_terms,
    teacher_model,
    view_sets,
)
from scholarch.training.checkpoint import Checkpoint
from scholarch.training.distributed import World
from scholarch.training.estimate import checkpoint_bytes, memory, numel, term_parameters
from scholarch.training.initial import (
    beginning,
    check_file,
    check_transfers,
    find,
    frozen_sources,
    frozen_transfer,
    transfers,
)
from scholarch.training.layout import Layout, plan_layout, whole_layout
from scholarch.training.learner import Learner
from scholarch.training.networks import Execution, Network

FILES_BESIDE_CHECKPOINTS = 64 * 2**20
"""MLflow's database, pictures, the report."""


@dataclass(frozen=True)
class Preflight:
    """What was found; shown as a table before the first step.

    Attributes:
        rows: (what, value in words).
        warnings: what is allowed but worth knowing.
        layout: how the global batch is cut.
    """

    rows: list[tuple[str, str]]
    warnings: list[str]
    layout: Layout

    def table(self) -> str:
        """The rows, aligned."""
        width = max(len(name) for name, _ in self.rows)
        lines = [f"  {name:<{width}}  {value}" for name, value in self.rows]
        return "\n".join([*lines, *(f"  note: {warning}" for warning in self.warnings)])


def check(
    recipe: Recipe, source: Source, look: ScanReport, world: World, run: Path, address: str
) -> Preflight:
    """Checks a resolved recipe against the data, the machine and the target.

    Args:
        recipe, source, look, world: of the run.
        run: folder of the run's small files.
        address: of the run; checkpoints go there.

    Raises:
        UserError: the first thing that cannot work.
    """
    check_views(recipe)
    layout = check_batch(recipe, world.size)
    check_writable(run)
    terms = build_terms(recipe)
    student, teachers = build_networks(recipe, terms)
    try:
        Learner(student, teachers, {n: t.sees for n, t in recipe.teachers.items()}, terms, seed=recipe.seed)
    except ValueError as error:
        raise UserError(str(error), where="teachers") from None
    check_patches(recipe, terms, teachers)
    own = term_parameters(recipe, terms, student, teachers)
    sizes = memory(recipe, student, teachers, terms, layout, world.size)
    checkpoint = checkpoint_bytes(recipe, student, saved_teachers(recipe, teachers), own)
    if world.device.type == "cpu":  # else it is in the host's memory
        sizes["checkpoint being written"] = checkpoint // world.size
    kept_here = 0 if is_s3(address) else recipe.training.keep_checkpoints + 1
    check_free(run, checkpoint * kept_here + FILES_BESIDE_CHECKPOINTS)
    _check_memory(sizes, world)
    training = recipe.training
    rows = [
        ("data", _data_words(recipe, source)),
        *_features_rows(recipe, source, student),
        ("views", "; or ".join(_views_words(views) for _, views in view_sets(recipe))),
        (
            "model",
            f"{recipe.model.kind}, {_count(student.backbone)} parameters, heads {_count(student.heads)}",
        ),
        *_frozen_rows(recipe, teachers),
        ("terms", ", ".join(recipe.terms)),
        (
            "world",
            f"{world.size} process{'es' * (world.size > 1)} on {world.device.type}, {training.precision}",
        ),
        ("batch", _batch_words(layout, world)),
        ("steps", f"{training.steps:,}, that is {training.steps * training.global_batch:,} pictures seen"),
        (
            "memory",
            f"about {readable_size(sum(sizes.values()))} a process, of {readable_size(_available(world))} free",
        ),
        ("disk", f"about {readable_size(checkpoint)} a checkpoint, {training.keep_checkpoints} are kept"),
        ("results", address),
    ]
    return Preflight(rows, _warnings(recipe, source, look), layout)


def saved_teachers(recipe: Recipe, teachers: Mapping[str, Network]) -> list[Network]:
    """Teachers that are in checkpoints."""
    return [teacher for name, teacher in teachers.items() if recipe.teachers[name].weights != "frozen"]


def check_beginning(recipe: Recipe, fresh: bool) -> None:
    """What the run begins from must be there and fit.

    Args:
        fresh: whether the run begins now; a resumed one has taken `init_from` over long ago.

    Raises:
        UserError: naming the key of the recipe, and the tensors that do not fit.
    """
    terms = build_terms(recipe)
    student, teachers = build_networks(recipe, terms)
    for name, where, path in frozen_sources(recipe):
        source = find(path, where)
        if isinstance(source, Checkpoint):
            check_transfers([frozen_transfer(recipe, name, teachers[name])], source, where, False)
        else:
            check_file(source, teachers[name], where)
    init = recipe.init_from
    if not fresh or init is None:
        return
    found = beginning(recipe)
    if isinstance(found, Checkpoint):
        for term in terms.values():
            allocate_term(term, recipe, student, teachers, Execution(device=torch.device("cpu")))
        taken = transfers(recipe, student, teachers, terms, found)
        check_transfers(taken, found, "init_from.checkpoint", init.resize_positions)
        if init.goes_on and found.step >= recipe.training.steps:
            raise UserError(
                f"the run that is gone on with has finished step {found.step} of {recipe.training.steps}",
                where="training.steps",
                fix="set training.steps to where this run is to end, counted from the first run's start",
            )
    elif found is not None:
        if init.goes_on or init.student != "student":
            raise UserError(
                "a file of weights holds a backbone alone",
                where="init_from",
                fix="leave out continue and student",
            )
        check_file(found, student.backbone, "init_from.checkpoint", init.resize_positions)


def check_views(recipe: Recipe) -> None:
    """Crops must be multiples of the patch.

    Raises:
        UserError: naming the view and the nearest sizes that work.
    """
    try:
        sets = [views for _, views in view_sets(recipe)]
    except ValueError as error:
        raise UserError(str(error), where="views") from None
    patch = recipe.model.patch
    for number, name, view in ((i, name, view) for i, s in enumerate(sets) for name, view in s.items()):
        if view.size % patch:
            below = view.size // patch * patch
            near = f"{below} or {below + patch}" if below else str(patch)
            raise UserError(
                f"crops of {view.size} pixels do not divide into patches of {patch}",
                where=f"resolutions.{number}.sizes.{name}" if recipe.resolutions else f"views.{name}.size",
                fix=f"use {near}",
            )


def check_patches(recipe: Recipe, terms: Mapping[str, Term], teachers: Mapping[str, Network]) -> None:
    """Crops must be multiples of the patch of each teacher that a term reads, and patches at hand to compare.

    Raises:
        UserError: naming the teacher or the term.
    """
    for name, teacher in teachers.items():
        if all(term.options.teacher != name for term in terms.values()):
            continue  # such as the moving average of a distilled student: nothing is shown to it
        patch, ours = teacher.backbone.patch, recipe.model.patch
        for view, options in (
            (v, sizes[v]) for v in recipe.teachers[name].sees for _, sizes in view_sets(recipe)
        ):
            size = options.as_teachers_see().size
            if size % patch:
                raise UserError(
                    f"crops {view!r} of {size} pixels do not divide into patches of {patch}, which the "
                    f"teacher {name} has",
                    where=f"views.{view}.{'size' if options.teacher_size is None else 'teacher_size'}",
                    fix=f"use a multiple of {math.lcm(patch, ours)}",
                )
            grids = options.size // ours, size // patch
            for term in terms.values():
                if term.options.teacher != name or not term.same_patches() or grids[0] == grids[1]:
                    continue
                raise UserError(
                    f"the term compares patches with those of the teacher {name}, which has {grids[1]} x {grids[1]} "
                    f"on the crops {view!r}, and the student {grids[0]} x {grids[0]}",
                    where=f"terms.{term.name}.teacher",
                    fix=f"set views.{view}.teacher_size={grids[0] * patch}, choose another teacher, or a term that "
                    "resizes (gram)",
                )


def check_batch(recipe: Recipe, world_size: int) -> Layout:
    """The global batch must be enough for every term and divide among the processes.

    Raises:
        UserError: naming the term or key.
    """
    batch = recipe.training.global_batch
    terms = build_terms(recipe)
    for name, term in terms.items():
        if batch < term.smallest_batch():
            raise UserError(
                f"a global batch of {batch} is too small for the term {name}, which compares samples with one another",
                where="training.global_batch",
                fix=f"raise it to at least {term.smallest_batch()}, or remove the term with terms.{name}=null",
            )
        group = term.group_size(batch)
        if batch % group:
            raise UserError(
                f"a global batch of {batch} does not divide into groups of {group} of the term {name}",
                where=f"terms.{name}.group",
                fix=f"use a group size that divides {batch}",
            )
    groups = [term.group_size(batch) for term in terms.values()]
    if recipe.training.grain:
        _check_grain(recipe)
        return whole_layout(batch, world_size, recipe.training.grain, groups)
    return plan_layout(batch, world_size, settled(recipe.training.micro_batch), groups)


def _check_grain(recipe: Recipe) -> None:
    if recipe.training.precision == "bf16":
        raise UserError(
            "networks are not sharded with grains, and bf16 comes with sharding",
            where="training.grain",
            fix="use training.precision=fp32 or fp64, or leave training.grain out",
        )


def _available(world: World) -> int:
    if world.device.type == "cuda":
        return int(torch.cuda.mem_get_info(world.device)[0])
    import psutil

    return int(psutil.virtual_memory().available) // world.local_size


def _check_memory(sizes: dict[str, int], world: World) -> None:
    needed, available = sum(sizes.values()), _available(world)
    if needed > available:
        parts = ", ".join(f"{name} {readable_size(size)}" for name, size in sizes.items())
        raise UserError(
            f"needs about {readable_size(needed)} a process ({parts}) and {readable_size(available)} is free",
            where="memory",
            fix="lower training.micro_batch, set training.activation_checkpointing=full, or use more processes",
        )


def _warnings(recipe: Recipe, source: Source, look: ScanReport) -> list[str]:
    batch = recipe.training.global_batch
    found = [
        f"{part.name} has {len(part.source)} pictures, and homogeneous batches of {batch} show some twice"
        for part in (source.parts if isinstance(source, Mixture) else ())
        if part.homogeneous and len(part.source) < batch
    ]
    largest = max(view.size for _, views in view_sets(recipe) for view in views.values())
    if small := look.smaller_than(largest):
        found.append(
            f"{small} of {look.checked} pictures checked are smaller than {largest} px and will be enlarged"
        )
    if look.broken:
        shown = "; ".join(look.broken[:3])
        found.append(
            f"{len(look.broken)} of {look.checked} pictures checked are broken and left out: {shown}"
        )
    if recipe.model.kind == "aligned" and recipe.init_from is None:
        found.append("the locked backbone has drawn weights: name one with init_from.checkpoint=MODEL")
    if batch < 64:
        found.append(f"a global batch of {batch} is small for these objectives; 64 or more is steadier")
    return found


def _count(module: torch.nn.Module) -> str:
    count = numel(module)
    for limit, unit in ((10**9, "B"), (10**6, "M"), (10**3, "k")):
        if count >= limit:
            return f"{count / limit:.1f}{unit}"
    return str(count)


def _frozen_rows(recipe: Recipe, teachers: Mapping[str, Network]) -> list[tuple[str, str]]:
    rows = []
    for name, options in recipe.teachers.items():
        if options.weights == "frozen":
            network, origin = teachers[name], options.found.name if options.found else options.checkpoint
            sizes = f"{_count(network.backbone)} parameters, heads {_count(network.heads)}"
            rows.append((f"teacher {name}", f"{teacher_model(recipe, name).kind}, {sizes}, frozen: {origin}"))
    return rows


def _features_rows(recipe: Recipe, source: Source, student: Network) -> list[tuple[str, str]]:
    if recipe.data.features is None:
        return []
    from scholarch.training.kept_features import check_features  # needs what reads shards

    return [("features", check_features(recipe, source, student.backbone))]


def _views_words(views: Mapping[str, ViewOptions]) -> str:
    return ", ".join(f"{view.crops} {name} of {view.size} px" for name, view in views.items())


def _data_words(recipe: Recipe, source: Source) -> str:
    channels = recipe.data.channels
    each = f"{channels} channel{'s' if channels != 1 else ''}"
    if not isinstance(source, Mixture):
        return f"{recipe.data.source}: {_pictures(source)}, {each}"
    sets = [
        f"{part.name} {share:.1%} ({_pictures(part.source)}{_alone(part.homogeneous)})"
        for part, share in zip(source.parts, source.shares, strict=True)
    ]
    return f"{'; '.join(sets)}; {each}"


def _pictures(source: Source) -> str:
    return f"{len(source):,} pictures{f', {len(source.classes)} classes' if source.classes else ''}"


def _alone(homogeneous: float) -> str:
    return f", alone in {homogeneous:.1%} of steps" if homogeneous else ""


def _batch_words(layout: Layout, world: World) -> str:
    words = f"{layout.global_batch} pictures a step"
    if world.size > 1:
        words += f" over {world.size} processes"
    if layout.micro_batches > 1:
        words += f" in {layout.micro_batches} micro-batches"
    return words
