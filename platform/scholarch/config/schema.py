"""The recipe's schema: strict pydantic models, one section each.

A method is data: model, heads, views, masks, teachers, terms and schedules. The kinds that a layer
above owns (backbones, terms, views, ...) bring their own option dataclasses; `recipe_type` joins
them to the sections here, so that one validation names every mistake at once.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import reduce
from operator import or_
from typing import Annotated, Any, Literal, TypeVar

from pydantic import BaseModel, ConfigDict, Field, create_model, field_validator, model_validator

from scholarch.config.schedule import Length, Schedule
from scholarch.config.views import CAPTION

Auto = Literal["auto"]


T = TypeVar("T")


def settled(value: T | str) -> T:
    """A setting that could be a word such as `auto`, once `training.autos` has resolved it."""
    if isinstance(value, str):
        raise ValueError(f"{value!r} has not been resolved")
    return value


class Section(BaseModel):
    """Base of all sections: unknown keys and coercions are errors; instances do not change."""

    model_config = ConfigDict(extra="forbid", strict=True, frozen=True, arbitrary_types_allowed=True)


class DataSetSection(Section):
    """A data set of a mixture (reference.md section 5.4)."""

    source: str = Field(min_length=1, description="as `data.source`")
    labels: Literal["auto", "none", "folders"] = "auto"
    weight: float = Field(1.0, ge=0, description="share of mixed batches, relative to the others")
    homogeneous: float = Field(
        0.0, ge=0, le=1, description="share of all steps, in thousandths, that are of this data set alone"
    )


class DataSection(Section):
    """Where pictures come from and how they are normalised."""

    source: str = Field(
        "", description="`digits`, `photos`, or a folder of pictures; empty: the user names it"
    )
    sources: Annotated[dict[str, DataSetSection], Field(min_length=1)] | None = Field(
        None, description="several data sets by name, in place of `source` and `labels`"
    )
    labels: Literal["auto", "none", "folders"] = "auto"
    channels: Annotated[int, Field(ge=1)] | Auto = "auto"
    mean: tuple[float, ...] | Literal["auto", "imagenet"] = "auto"
    std: tuple[float, ...] | Literal["auto", "imagenet"] = "auto"
    holdout: float = Field(0.2, ge=0, lt=1, description="share of a labelled source kept for evaluation")
    features: str | None = Field(
        None,
        description="of an aligned model: a folder or s3:// prefix where what its locked backbone makes of the "
        "pictures is kept; computed before the first step where it is missing",
    )
    evaluated: str | None = Field(
        None, description="of `sources`, the labelled one that gives it; null: the first by name"
    )

    @model_validator(mode="after")
    def _one_or_several(self) -> DataSection:
        if self.sources is None:
            if self.evaluated is not None:
                raise ValueError("`evaluated` names one of several `sources`, and there are none")
            return self
        if self.source or self.labels != "auto":
            raise ValueError("give `source` and `labels`, or `sources` with labels of their own, not both")
        if wrong := [name for name in self.sources if not re.fullmatch(r"\w+", name)]:
            raise ValueError(f"names of sources are letters, digits and _, not {wrong[0]!r}")
        if self.evaluated is not None and self.evaluated not in self.sources:
            raise ValueError(
                f"evaluated: no source {self.evaluated!r}; there are: {', '.join(sorted(self.sources))}"
            )
        return self

    @property
    def where(self) -> str:
        """The part of the recipe that names the pictures, for messages."""
        return "data.sources" if self.sources is not None else f"data={self.source}"

    @property
    def labelled_source(self) -> str:
        """The source that is evaluated, as far as the recipe tells; empty if it does not."""
        if self.sources is None:
            return self.source
        return self.sources[self.evaluated].source if self.evaluated is not None else ""


class CaptionsSection(Section):
    """How captions become tokens (reference.md section 7)."""

    merges: str = Field(
        "",
        description="file of byte-pair merges, such as CLIP's; `learned`: from the training captions; "
        "empty: the user names it",
    )


class RefreshSection(Section):
    """When a snapshot teacher is copied again (reference.md section 3.7)."""

    first: int = Field(ge=0)
    every: int = Field(ge=1)
    at_most: int | None = Field(None, ge=1)


class FoundSection(Section):
    """What a `checkpoint` turned out to be; scholarch writes it, and a run that goes on holds to it."""

    name: str = Field(description="a version, a checkpoint's folder or a file")
    sha256: str = Field(description="of the file of weights, or of the checkpoint's manifest")


DRAWN = "drawn"
"""As a frozen teacher's `checkpoint`: its weights are drawn, for trying a recipe out."""


class TeacherSection(Section):
    """A teacher: what its weights are and which views it sees."""

    weights: Literal["ema", "snapshot", "frozen"] = "ema"
    momentum: Schedule = Schedule.parse(0.996)
    of: str = "ema"
    refresh: RefreshSection | None = None
    checkpoint: str | None = Field(
        None, description="a run, an export, models:/NAME@ALIAS or a file; or drawn"
    )
    found: FoundSection | None = None
    model: Any = None
    heads: dict[str, Any] | None = None
    sees: tuple[str, ...] = ("global",)
    sharded: Literal["all", "none"] = Field(
        "all",
        description="of a frozen one: its weights are spread over all processes, or each has them whole",
    )

    @model_validator(mode="after")
    def _has_weights(self) -> TeacherSection:
        if self.weights == "frozen":
            return self
        if self.checkpoint is not None:
            raise ValueError(
                "`checkpoint` is of frozen teachers; others begin from init_from, or as the student"
            )
        if self.model is not None or self.heads is not None:
            raise ValueError("`model` and `heads` are of frozen teachers; others are built as the student")
        if self.sharded == "none":
            raise ValueError("`sharded: none` is of frozen teachers; others are where the student is")
        return self


class InitSection(Section):
    """What a run begins from instead of drawn weights; see docs/recipes.md."""

    stage: str | None = Field(None, description="the stage that comes before, found by chaining recipes")
    checkpoint: str | None = Field(None, description="a run, an export, models:/NAME@ALIAS or a file")
    found: FoundSection | None = None
    student: str = Field("student", description="whose weights the student begins with: or a teacher's")
    what: tuple[Literal["backbone", "heads", "terms"], ...] = ("backbone", "heads", "terms")
    resize_positions: bool = Field(False, description="resample learned positions of another grid")
    head_warmup: Length = Field(0, description="steps, or share of the run, that the backbone does not move")

    @field_validator("head_warmup")
    @classmethod
    def _not_rest(cls, value: Length) -> Length:
        return not_rest(value)

    @model_validator(mode="after")
    def _agrees(self) -> InitSection:
        if self.stage is None and self.checkpoint is None:
            raise ValueError("give `checkpoint`, or `stage` where recipes are chained")
        if self.goes_on and (self.head_warmup or self.student != "student" or len(self.what) < 3):
            raise ValueError(
                "with `continue`, everything is taken over: leave student, what, head_warmup out"
            )
        return self

    @property
    def goes_on(self) -> bool:
        """Whether the optimizer and the step are taken over too."""
        return bool(getattr(self, "continue", False))


def not_rest(value: Length) -> Length:
    """A length at the start of a run.

    Raises:
        ValueError: for `rest`.
    """
    if value == "rest":
        raise ValueError("must be a number of steps or a share in [0, 1]")
    return value


# `continue` is the word that people expect, and no name that Python lets a class body use.
_CONTINUE: dict[str, Any] = {
    "continue": (bool, Field(False, description="the optimizer and the step go on as well"))
}
_Init: Any = create_model("InitSection", __base__=InitSection, **_CONTINUE)


class LrScaling(Section):
    """Multiplies the whole learning-rate schedule by a function of the global batch."""

    rule: Literal["none", "sqrt", "linear"] = "none"
    reference_batch: int = Field(1024, ge=1)


class OptimizerSection(Section):
    """AdamW and its parameter groups (reference.md section 4.1)."""

    lr: Schedule
    lr_scaling: LrScaling = LrScaling()
    weight_decay: Schedule = Schedule.parse(0.04)
    betas: tuple[float, float] = (0.9, 0.999)
    epsilon: float = Field(1e-8, gt=0)
    layer_decay: float = Field(1.0, gt=0, le=1)
    norm_decay: float = Field(0.0, ge=0, le=1, description="multiplier of weight decay for norms' weights")
    patch_embed_lr: float = Field(1.0, ge=0, description="multiplier of the patch embedding's learning rate")
    freeze_prototypes: Length = Field(
        0, description="steps, or share of the run, that prototypes do not move"
    )
    clip: float | None = Field(3.0, gt=0, description="the largest L2 norm of a gradient")
    clip_each: Literal["part", "tensor"] = Field(
        "part", description="whose norm: the backbone and each head, or every tensor by itself (DINO, iBOT)"
    )

    @field_validator("freeze_prototypes")
    @classmethod
    def _not_rest(cls, value: Length) -> Length:
        return not_rest(value)


class ResolutionSection(Section):
    """One of the sets of crop sizes that steps are drawn from (reference.md section 5.4)."""

    ratio: float = Field(gt=0, description="how often, relative to the others")
    sizes: dict[str, Annotated[int, Field(ge=1)]] = Field(min_length=1, description="pixels by view")


class TrainingSection(Section):
    """The length, size and execution of a run."""

    steps: int = Field(ge=1)
    global_batch: int = Field(ge=1)
    micro_batch: Annotated[int, Field(ge=1)] | Auto = "auto"
    grain: int | None = Field(
        None,
        ge=1,
        description="samples that one process computes together, in place of micro_batch; sums over grains are "
        "taken in the order of the global batch, so that any number of processes gives the same bits. Networks "
        "are then not sharded, and each process holds the gradients of all grains",
    )
    precision: Literal["auto", "fp32", "bf16", "fp64"] = "auto"
    compile: bool = False
    activation_checkpointing: Literal["none", "selective", "full"] = Field(
        "none", description="what of each block is computed again; selective keeps products and attention"
    )
    workers: Annotated[int, Field(ge=0)] | Auto = "auto"
    checkpoint_every: Annotated[int, Field(ge=1)] | Auto = "auto"
    keep_checkpoints: int = Field(3, ge=1)
    replicate_every: int = Field(
        1,
        ge=0,
        description="steps between copies of the state in memory of this node and of the next one, from which a run "
        "goes on after a fault; where the launcher starts workers again. 0: none",
    )
    log_every: Annotated[int, Field(ge=1)] | Auto = "auto"


class EvaluationSection(Section):
    """What is measured while a run trains."""

    every: Annotated[int, Field(ge=1)] | Auto = "auto"
    neighbours: int = Field(20, ge=1, description="k of the k-NN vote (reference.md section 9.1)")
    temperature: float = Field(0.07, gt=0)
    size: Annotated[int, Field(ge=1)] | Auto = "auto"
    at_most: int = Field(2_000, ge=2, description="pictures of each split that are embedded, and held")


class Recipe(Section):
    """A whole recipe. Sections typed Any here get their owner's option types by `recipe_type`."""

    name: str = ""
    about: str = ""
    seed: int = Field(0, ge=0)
    data: DataSection
    model: Any
    heads: dict[str, Any]
    views: dict[str, Any]
    resolutions: tuple[ResolutionSection, ...] = ()
    captions: CaptionsSection | None = None
    masks: dict[str, Any] = {}
    init_from: _Init | None = None
    teachers: dict[str, TeacherSection]
    terms: dict[str, Any] = Field(min_length=1)
    students: dict[Annotated[str, Field(pattern=r"^\w+$")], dict[str, Any]] = Field(
        {}, description="of `scholarch distill`: what each student changes in this recipe, by name"
    )
    groups: dict[str, Annotated[int, Field(ge=1)]] = Field(
        {}, description="processes of each student, in this proportion; empty: planned"
    )
    optimizer: OptimizerSection
    training: TrainingSection
    evaluation: EvaluationSection = EvaluationSection()
    registered_name: str | Auto = "auto"

    @model_validator(mode="after")
    def _names_exist(self) -> Recipe:
        problems = [
            *_unknown_teachers(self),
            *_unknown_views(self),
            *_unknown_heads(self),
            *_without_captions(self),
        ]
        if self.groups and set(self.groups) != set(self.students):
            problems.append(f"groups: give one number for each student: {_one_of(self.students)}")
        if problems:
            raise ValueError("; ".join(problems))
        return self


def written_out(data: Mapping[str, Any]) -> dict[str, Any]:
    """The short forms of a recipe written out.

    `data: PATH` is `data: {source: PATH}`, and a kind left out is a ViT, a block mask, or a term
    named as its kind. Done before validation: strict JSON validation would end at a validator
    that returns Python objects.
    """
    whole = dict(data)
    if isinstance(whole.get("data"), str):
        whole["data"] = {"source": whole["data"]}
    if isinstance(whole.get("model"), Mapping):
        model = {"kind": "vit", **whole["model"]}
        if isinstance(model.get("vision"), Mapping):
            model["vision"] = {"kind": "vit", **model["vision"]}
        whole["model"] = model
    if isinstance(whole.get("teachers"), Mapping):
        whole["teachers"] = {name: _teacher(entry) for name, entry in whole["teachers"].items()}
    for section, default in (("terms", None), ("masks", "block")):
        entries = whole.get(section)
        if isinstance(entries, Mapping):
            whole[section] = {
                name: {"kind": default or name, **entry} if isinstance(entry, Mapping) else entry
                for name, entry in entries.items()
            }
    return whole


def _teacher(entry: Any) -> Any:
    if isinstance(entry, Mapping) and isinstance(entry.get("model"), Mapping):
        return {**entry, "model": {"kind": "vit", **entry["model"]}}
    return entry


def _one_of(names: Mapping[str, Any]) -> str:
    return ", ".join(names) or "none"


def _unknown_teachers(recipe: Recipe) -> list[str]:
    return [
        f"terms.{name}.teacher: no teacher {term.teacher!r}; there are: {_one_of(recipe.teachers)}"
        for name, term in recipe.terms.items()
        if getattr(term, "teacher", None) is not None and term.teacher not in recipe.teachers
    ] + [
        f"teachers.{name}.of: no teacher {teacher.of!r}; there are: {_one_of(recipe.teachers)}"
        for name, teacher in recipe.teachers.items()
        if teacher.weights == "snapshot" and teacher.of not in recipe.teachers
    ]


def _unknown_views(recipe: Recipe) -> list[str]:
    return (
        [
            f"teachers.{name}.sees: no view {view!r}; there are: {_one_of(recipe.views)}"
            for name, teacher in recipe.teachers.items()
            for view in teacher.sees
            if view not in recipe.views
        ]
        + [
            f"resolutions.{number}.sizes.{view}: no view {view!r}; there are: {_one_of(recipe.views)}"
            for number, resolution in enumerate(recipe.resolutions)
            for view in resolution.sizes
            if view not in recipe.views
        ]
        + [
            f"masks.{view}: no view {view!r}; there are: {_one_of(recipe.views)}"
            for view in recipe.masks
            if view not in recipe.views
        ]
    )


def _without_captions(recipe: Recipe) -> list[str]:
    aligned = recipe.model.kind == "aligned"
    problems = []
    if CAPTION in recipe.views:
        problems.append(f"views.{CAPTION}: is the name of what a sample's caption is; choose another")
    if aligned and recipe.captions is None:
        problems.append("captions: missing; a model of kind aligned reads captions")
    if recipe.captions is not None and not aligned:
        problems.append("captions: only a model of kind aligned reads them")
    for name, term in recipe.terms.items():
        if term.kind == "clip" and not aligned:
            problems.append(f"terms.{name}: compares captions, which only a model of kind aligned reads")
        if term.kind == "clip" and term.view not in recipe.views:
            problems.append(f"terms.{name}.view: no view {term.view!r}; there are: {_one_of(recipe.views)}")
    return problems


def _unknown_heads(recipe: Recipe) -> list[str]:
    found = []
    for name, term in recipe.terms.items():
        head, teacher = getattr(term, "head", None), recipe.teachers.get(getattr(term, "teacher", None) or "")
        if head is not None and head not in recipe.heads:
            found.append(f"terms.{name}.head: no head {head!r}; there are: {_one_of(recipe.heads)}")
        elif head is not None and teacher and teacher.heads is not None and head not in teacher.heads:
            found.append(
                f"terms.{name}.head: teacher {term.teacher!r} has no head {head!r}; "
                f"it has: {_one_of(teacher.heads)}"
            )
    return found


@dataclass(frozen=True)
class Kinds:
    """The option dataclasses of the layers above, by kind."""

    models: Mapping[str, type]
    terms: Mapping[str, type]
    masks: Mapping[str, type]
    head: type
    view: type
    extra: Mapping[str, type] = field(default_factory=dict)


def _tagged(kinds: Mapping[str, type]) -> Any:
    options = list(kinds.values())
    if len(options) == 1:
        return options[0]
    return Annotated[reduce(or_, options), Field(discriminator="kind")]


def recipe_type(kinds: Kinds) -> type[Recipe]:
    """The schema with the option types of `kinds` in it."""
    heads: Any = dict[str, kinds.head]  # type: ignore[name-defined]
    mappings = {
        "heads": heads,
        "views": dict[str, kinds.view],  # type: ignore[name-defined]
        "masks": dict[str, _tagged(kinds.masks)],  # type: ignore[misc]
        "terms": dict[str, _tagged(kinds.terms)],  # type: ignore[misc]
    }
    model = _tagged(kinds.models)
    of_teacher: dict[str, Any] = {"model": (model | None, None), "heads": (heads | None, None)}
    teacher = create_model("TeacherSection", __base__=TeacherSection, **of_teacher)
    fields: dict[str, Any] = {
        "model": (model, ...),
        "teachers": (dict[str, teacher], ...),
    }
    fields |= {
        name: (annotation, Field(min_length=1) if name in ("terms", "views") else Field(default_factory=dict))
        for name, annotation in mappings.items()
    }
    return create_model("Recipe", __base__=Recipe, **fields)
