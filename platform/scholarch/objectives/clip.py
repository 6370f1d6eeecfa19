"""Contrastive alignment of pictures with their captions (reference.md section 7).

Legend: V views, b samples of this rank, G samples of the global batch, E joint width.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any, Literal

import torch
from torch import Tensor
from torch.distributed import ProcessGroup

from scholarch.collectives import passed_round
from scholarch.config.schedule import Schedule
from scholarch.config.views import CAPTION
from scholarch.models.alignment import image_embedding, text_embedding
from scholarch.objectives.groups import rank_edges
from scholarch.objectives.term import ALWAYS_ONE, Output, Share, Term, TermValue

ROWS = 1024
"""Rows of the matrix of cosines that are held at once."""


@dataclass(frozen=True, kw_only=True)
class ClipOptions:
    """Options of the symmetric InfoNCE (Radford et al., "Learning Transferable Visual Models From Natural
    Language Supervision", 2021; distributed as in reference.md 7).

    Attributes:
        teacher: always None.
        view: the pictures that are compared with the captions, each view by itself.
    """

    kind: Literal["clip"] = "clip"
    weight: Schedule = ALWAYS_ONE
    teacher: None = None
    view: str = "global"


class Clip(Term):
    """Cross-entropy of finding the caption of each picture, and the picture of each caption, in the batch.

    Negatives are the whole global batch, so there is no gradient accumulation. The matrix of cosines is never
    held: blocks of the other ranks pass by, in both passes (`collectives.passed_round`).
    """

    Options = ClipOptions
    options: ClipOptions

    def student_outputs(self) -> Sequence[Output]:
        view = self.options.view
        return (
            Output(view, "cls"),
            Output(view, "patches"),
            Output(CAPTION, "cls"),
            Output(CAPTION, "scale"),
        )

    def smallest_batch(self) -> int:
        return 2

    def group_size(self, global_batch: int) -> int:
        return global_batch

    def forward(self, student: Mapping[Output, Tensor], targets: Any, share: Share) -> TermValue:  # noqa: ARG002
        cls, patches, captions, scale = (student[output] for output in self.student_outputs())
        pictures, texts = image_embedding(cls, patches), text_embedding(captions[0])  # [V, b, E], [b, E]
        if share.micro_batch != (0, share.global_batch):
            raise ValueError("captions are compared over the whole global batch: no gradient accumulation")
        counts = [b - a for a, b in pairwise(rank_edges(share))]
        total = sum(
            (contrast(view, texts, scale, share.group, counts) for view in pictures), texts.new_zeros(())
        )
        return TermValue({"": total / (share.global_batch * len(pictures))}, {})


def contrast(
    pictures: Tensor, texts: Tensor, scale: Tensor, group: ProcessGroup | None, counts: Sequence[int]
) -> Tensor:
    """This rank's sum of -(2 l_ii - lse_j l_ij - lse_j l_ji) / 2 with l_ij = scale * picture_i . text_j.

    Every rank must multiply what it gets by the same factor: a rank's gradient holds what all ranks' sums
    send back to its rows, which it works out by itself.

    Args:
        pictures, texts: [b, E], rows of length 1, of this rank; at least float32.
        scale: scalar.
        counts: rows of each rank.
    """
    found: Tensor = _Contrast.apply(pictures, texts, scale, group, counts)
    return found


class _Contrast(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,
        pictures: Tensor,
        texts: Tensor,
        scale: Tensor,
        group: ProcessGroup | None,
        counts: Sequence[int],
    ) -> Tensor:
        scale = scale.to(pictures.dtype)
        width = pictures.shape[1]
        lse_pictures = pictures.new_full((len(pictures),), -torch.inf)
        lse_texts = lse_pictures.clone()
        for _, block in passed_round(torch.cat([pictures, texts], dim=1), group, counts):
            theirs, captions = block[:, :width], block[:, width:]
            lse_pictures = torch.logaddexp(lse_pictures, _lse(pictures, captions, scale))
            lse_texts = torch.logaddexp(lse_texts, _lse(texts, theirs, scale))
        ctx.group, ctx.counts = group, counts
        ctx.save_for_backward(pictures, texts, scale, lse_pictures, lse_texts)
        own = scale * (pictures * texts).sum(dim=1)
        return (0.5 * (lse_pictures + lse_texts) - own).sum()

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, Tensor, Tensor, None, None]:
        """d/da_i = s (sum_j (p_ij + q_ij) t_j / 2 - t_i) with p_ij = exp(l_ij - lse_i), q_ij = exp(l_ij - lse'_j)."""
        pictures, texts, scale, lse_pictures, lse_texts = ctx.saved_tensors
        width = pictures.shape[1]
        of_pictures, of_texts = -texts.clone(), -pictures.clone()
        of_scale = -(pictures * texts).sum()
        own = torch.cat([pictures, texts, lse_pictures[:, None], lse_texts[:, None]], dim=1)
        for _, block in passed_round(own, ctx.group, ctx.counts):
            theirs, captions = block[:, :width], block[:, width : 2 * width]
            for rows in _slices(len(pictures)):
                cosines = pictures[rows] @ captions.T
                p = (scale * cosines - lse_pictures[rows, None]).exp()
                q = (scale * cosines - block[None, :, -1]).exp()
                of_pictures[rows] += 0.5 * (p + q) @ captions
                of_scale = of_scale + 0.5 * (p * cosines).sum()
                cosines = texts[rows] @ theirs.T
                p = (scale * cosines - lse_texts[rows, None]).exp()
                q = (scale * cosines - block[None, :, -2]).exp()
                of_texts[rows] += 0.5 * (p + q) @ theirs
                of_scale = of_scale + 0.5 * (p * cosines).sum()
        factor = grads[0]
        return factor * scale * of_pictures, factor * scale * of_texts, factor * of_scale, None, None


def _slices(rows: int) -> list[slice]:
    return [slice(start, min(start + ROWS, rows)) for start in range(0, rows, ROWS)]


def _lse(asking: Tensor, asked: Tensor, scale: Tensor) -> Tensor:
    """[b] log of the sum of exp(scale * cosine) over the rows of `asked`."""
    parts = [torch.logsumexp(scale * (asking[rows] @ asked.T), dim=1) for rows in _slices(len(asking))]
    return torch.cat(parts) if parts else asking.new_empty(0)
