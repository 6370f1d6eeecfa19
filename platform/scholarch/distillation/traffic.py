"""Bytes that the teacher's features, and in the source's form pixels too, take on their way (reference.md 6.3).

Legend: G samples of the global batch, V views, N patches of a view, m share of patches that are masked, W processes,
n those of a student, D width of a bottleneck.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from scholarch.config.schema import Recipe
from scholarch.distillation.together import reads_of
from scholarch.training.assemble import build_terms, teacher_heads, teacher_model, view_sets
from scholarch.training.estimate import COMPUTED


@dataclass(frozen=True)
class PictureBytes:
    """Of one sample with all its views.

    Attributes:
        read: of what a student reads of the teacher's features: CLS, and patches at the masked places.
        features: of all features of the teacher: CLS and every patch.
        pixels: of all crops.
    """

    read: float
    features: float
    pixels: float


def picture_bytes(recipe: Recipe) -> PictureBytes:
    """From a student's recipe without `auto`; masks at the mean of their range, the largest of its resolutions."""
    item = COMPUTED[recipe.training.precision]
    views = max(
        (views for _, views in view_sets(recipe)), key=lambda v: sum(o.crops * o.size**2 for o in v.values())
    )
    read, features = 0.0, 0.0
    for teacher, output, _ in reads_of(recipe, whole=False):
        view = views[output.view]
        patches = (view.size // recipe.model.patch) ** 2
        rows = 1.0 if output.tokens == "cls" else float(patches)
        bytes_each = view.crops * _width(recipe, teacher, output.head) * item
        read += rows * bytes_each * (_masked(recipe, output.view) if output.tokens == "masked" else 1.0)
        features += rows * bytes_each
    channels: int = recipe.model.channels
    pixels = sum(o.crops * channels * o.size**2 for o in views.values()) * item
    return PictureBytes(read, features, pixels)


def _width(recipe: Recipe, teacher: str, head: str | None) -> int:
    if head is None:
        model: Any = teacher_model(recipe, teacher)
        return int(model.shape.embed_dim)
    return int(teacher_heads(recipe, teacher, build_terms(recipe))[head].bottleneck)


def _masked(recipe: Recipe, view: str) -> float:
    mask = recipe.masks[view]
    ratio: Any = mask.ratio
    mean = sum(ratio) / len(ratio) if isinstance(ratio, Sequence) else float(ratio)
    return float(getattr(mask, "share", 1.0)) * mean


def exchanged(sizes: PictureBytes, global_batch: int, group: int, own: float) -> float:
    """Bytes that a process receives in a step.

    Args:
        group: processes of its student, so that it trains on G / group samples.
        own: of these, the samples that it ran the teacher on itself.
    """
    return (global_batch / group - own) * sizes.read


def gathered(sizes: PictureBytes, global_batch: int, world_size: int) -> float:
    """Bytes that a process receives where every process gets everything."""
    return global_batch * (world_size - 1) / world_size * (sizes.features + sizes.pixels)


def held(sizes: PictureBytes, global_batch: int, group: int, part: int, students: int) -> float:
    """Bytes of pictures and rows on a process when its student begins a step, the next step's under way.

    Crops of this step and the next, this step's rows and room for the next's, and the rows that leave: each sample
    of the process's part goes to one process of every student.

    Args:
        group: processes of its student.
        part: samples that it runs the teacher on.
        students: of the job.
    """
    return 2 * global_batch / group * (sizes.pixels + sizes.read) + part * students * sizes.read


def held_of_all(sizes: PictureBytes, global_batch: int) -> float:
    """Bytes of the same on a process where every process gets everything, one step at a time."""
    return global_batch * (sizes.features + sizes.pixels)
