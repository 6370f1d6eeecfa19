"""Gram anchoring: keeps the similarities among patches where an earlier teacher had them.

Legend: V views, b samples of this rank's micro-batch, G samples of the global batch, N patches of
the student's view, D width (of student and teacher, which may differ), g samples of a group,
R rows of similarities that this rank has, C their columns.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor
from torch.nn import functional as F

from scholarch.collectives import upcast
from scholarch.config.schedule import Schedule
from scholarch.objectives import groups
from scholarch.objectives.term import ALWAYS_ONE, Output, Share, Term, TermValue


@dataclass(frozen=True, kw_only=True)
class GramOptions:
    """Options of Gram anchoring (reference.md 3.7).

    Attributes:
        weight: the mean over all N * N similarities is weighted, as in the source (2.0 in the 7B
            recipe); the paper's squared Frobenius norm is N * N times it.
        teacher: a frozen or snapshot teacher, or the EMA teacher.
        view: the student's views.
        teacher_view: the teacher's views of the same pictures, as many as `view` has; the same
            name for an EMA teacher that sees the student's crops.
        per_image: compare patches with patches of their own picture (the 7B recipes), or with those
            of a group of samples, all their views together.
        group: samples in a group when `per_image` is off, in global order. The source takes the
            rank's local batch, which would make the loss depend on the number of ranks: set this
            to its batch per GPU for parity.
        normalise: compare directions (cosines) instead of products.
        negatives: of similarities below 0. "keep"; "remove": both become 0; "remove_teacher": the
            teacher's become 0, and the student's where both are below; "remove_teacher_as_shipped":
            the teacher's become 0 and no student's ever does, since the released code looks for the
            teacher's negatives after it has removed them.
        tokens: which of the student's patches are compared; all of them if `per_image`.
    """

    kind: Literal["gram"] = "gram"
    weight: Schedule = ALWAYS_ONE
    teacher: str = "gram"
    view: str = "global"
    teacher_view: str = "gram"
    per_image: bool = True
    group: int = 16
    normalise: bool = True
    negatives: Literal["keep", "remove", "remove_teacher", "remove_teacher_as_shipped"] = "keep"
    tokens: Literal["all", "masked", "unmasked"] = "all"

    def __post_init__(self) -> None:
        if self.per_image and self.tokens != "all":
            raise ValueError(f"tokens {self.tokens!r} needs per_image: false; pictures have unequal counts")
        if self.group < 1:
            raise ValueError(f"group must be at least 1, not {self.group}")


class Gram(Term):
    """Mean squared difference between the student's and the teacher's patch similarities.

    `drawn`: "masked_difference" and "masked_rows", the sum over the student's masked patches of
    their mean squared difference and their number; "unmasked_difference" and "unmasked_rows".
    """

    Options = GramOptions
    options: GramOptions

    def student_outputs(self) -> Sequence[Output]:
        return (Output(self.options.view, "patches"),)

    def teacher_outputs(self) -> Sequence[Output]:
        return (Output(self.options.teacher_view, "patches"),)

    def same_patches(self) -> bool:
        return False  # the teacher's are resized to the student's grid

    def group_size(self, global_batch: int) -> int:
        return 1 if self.options.per_image else min(self.options.group, global_batch)

    def targets(
        self, teacher: Sequence[Mapping[Output, Tensor]], shares: Sequence[Share]
    ) -> Sequence[Tensor]:
        """The teacher's patches [V, b, N_teacher, D] of each micro-batch; nothing crosses ranks."""
        (output,) = self.teacher_outputs()
        for share in shares:
            views = share.views[self.options.view], share.views[self.options.teacher_view]
            if views[0] != views[1]:
                raise ValueError(
                    f"{views[0]} views {self.options.view!r} cannot be compared with "
                    f"{views[1]} views {self.options.teacher_view!r}; give them the same number"
                )
        return [outputs[output] for outputs in teacher]

    def forward(self, student: Mapping[Output, Tensor], targets: Tensor, share: Share) -> TermValue:
        (output,) = self.student_outputs()
        options, patches = self.options, upcast(student[output])
        size = grid_of(share, options.view, patches.shape[2])
        seen = grid_of(share, options.teacher_view, targets.shape[2], options.teacher)
        teacher = resize_patches(upcast(targets), seen, size)
        if options.normalise:
            # The teacher is resized first: interpolated directions are not of unit length.
            patches, teacher = F.normalize(patches, dim=-1), F.normalize(teacher, dim=-1)
        masks = share.masks.get(options.view)
        if masks is None:
            masks = torch.zeros(patches.shape[:3], dtype=torch.bool, device=patches.device)
        if options.per_image:
            rows = self._differences(patches, patches, teacher, teacher)  # [V, b, N]
            images = patches.shape[0] * share.global_batch
            return TermValue({"": rows.sum() / (rows.shape[-1] * images)}, _drawn([rows], [masks]))
        return self._over_groups(patches, teacher, masks, share)

    def _over_groups(self, patches: Tensor, teacher: Tensor, masks: Tensor, share: Share) -> TermValue:
        size = self.options.group
        at_hand, students = groups.cut(patches.transpose(0, 1), share, size)
        _, teachers = groups.cut(teacher.transpose(0, 1), share, size)
        # Not every backend of torch.distributed sends bool.
        _, masked = groups.cut(masks.transpose(0, 1).to(torch.uint8), share, size)
        value = at_hand[:0].sum()  # keeps ranks without samples in the backward collective
        all_rows, all_masks = [], []
        for s, t, m in zip(students, teachers, masked, strict=True):
            mask = m.members.bool()
            used = self._used(mask)
            own = slice(s.first, s.first + s.own)
            columns = s.members[used], t.members[used]  # [C, D]
            rows = self._differences(
                s.members[own][used[own]], columns[0], t.members[own][used[own]], columns[1]
            )  # [R]
            weight = s.members.shape[0] / share.global_batch
            value = value + rows.sum() * (weight / max(columns[0].shape[0], 1))
            all_rows.append(rows)
            all_masks.append(mask[own][used[own]])
        return TermValue(
            {"": value}, _drawn(all_rows or [value.new_zeros(0)], all_masks or [masks.new_zeros(0)])
        )

    def _used(self, masks: Tensor) -> Tensor:
        if self.options.tokens == "all":
            return torch.ones_like(masks)
        return masks if self.options.tokens == "masked" else ~masks

    def _differences(
        self, rows: Tensor, columns: Tensor, teacher_rows: Tensor, teacher_columns: Tensor
    ) -> Tensor:
        """[..., R]: for each row the mean over the columns of the squared difference."""
        student = rows @ columns.transpose(-1, -2)  # [..., R, C]
        with torch.no_grad():
            teacher = teacher_rows @ teacher_columns.transpose(-1, -2)
        negatives = self.options.negatives
        if negatives == "remove":
            student = student.clamp(min=0)
        elif negatives == "remove_teacher":
            student = torch.where((student < 0) & (teacher < 0), 0.0, student)
        if negatives != "keep":
            teacher = teacher.clamp(min=0)
        return (student - teacher).square().mean(dim=-1)


def grid_of(share: Share, view: str, patches: int, teacher: str = "") -> tuple[int, int]:
    """The student's grid of a view, or a teacher's; square where the share does not say.

    Raises:
        ValueError: if the number of patches fits no such grid.
    """
    side = math.isqrt(patches)
    grids = share.teacher_grids.get(teacher, share.grids)
    height, width = grids.get(view, (side, side))
    if height * width != patches:
        raise ValueError(f"{patches} patches of view {view!r} are not a grid of {height} x {width}")
    return height, width


def resize_patches(patches: Tensor, grid: tuple[int, int], size: tuple[int, int]) -> Tensor:
    """Bicubic, corners not aligned, without antialiasing.

    Args:
        patches: [V, b, h * w, D] on `grid`.
        size: the grid to go to.

    Returns:
        [V, b, height * width of `size`, D].
    """
    if grid == size:
        return patches
    views, samples, _, width = patches.shape
    maps = patches.reshape(views * samples, *grid, width).permute(0, 3, 1, 2)
    if views * samples:  # interpolate refuses an empty batch
        maps = F.interpolate(maps, size=size, mode="bicubic", align_corners=False, antialias=False)
    return maps.permute(0, 2, 3, 1).reshape(views, samples, size[0] * size[1], width)


def _drawn(rows: Sequence[Tensor], masks: Sequence[Tensor]) -> dict[str, Tensor]:
    differences = torch.cat([x.detach().flatten() for x in rows])
    masked = torch.cat([x.flatten() for x in masks]).to(differences.dtype)
    return {
        "masked_difference": (differences * masked).sum(),
        "masked_rows": masked.sum(),
        "unmasked_difference": (differences * (1 - masked)).sum(),
        "unmasked_rows": (1 - masked).sum(),
    }
