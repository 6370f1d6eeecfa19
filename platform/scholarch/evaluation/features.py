"""CLS features of labelled pictures, extracted once by all ranks together."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor
from torch.distributed import ProcessGroup

from scholarch.collectives import gather_rows, rank, row_counts, world_size
from scholarch.data.evaluation import evaluation_batches
from scholarch.data.source import Source
from scholarch.data.views import EvaluationView
from scholarch.draws import generator
from scholarch.errors import UserError
from scholarch.models.features import Backbone, Views


@dataclass(frozen=True)
class Features:
    """Features of a labelled split.

    Attributes:
        values: [n, D] float32, L2-normalised, on the CPU.
        labels: [n] int64.
        broken: pictures that could not be read and were left out.
    """

    values: Tensor
    labels: Tensor
    broken: int


@dataclass(frozen=True)
class Pictures:
    """A labelled split, decoded and cut once and kept: it is embedded many times during a run.

    Attributes:
        images: [n, C, H, W] float32: this rank's share.
        labels: [n] int64.
        broken: pictures of this share that could not be read.
    """

    images: Tensor
    labels: Tensor
    broken: int

    @staticmethod
    def read(source: Source, view: EvaluationView, *, at_most: int, group: ProcessGroup | None) -> Pictures:
        """This rank's share of at most `at_most` pictures of `source`, chosen by a fixed draw."""
        count = min(len(source), at_most)
        chosen = np.sort(generator(0, "evaluation").permutation(len(source))[:count])
        mine = chosen[rank(group) :: world_size(group)]
        batches = list(evaluation_batches(source, mine, view, batch_size=256))
        empty = torch.empty(0, view.channels, view.size, view.size)
        return Pictures(
            images=torch.cat([empty, *(batch.pictures for batch in batches)]),
            labels=torch.cat([torch.empty(0, dtype=torch.int64), *(batch.labels for batch in batches)]),
            broken=sum(len(batch.broken) for batch in batches),
        )


@torch.no_grad()
def extract(
    backbone: Backbone, pictures: Pictures, *, device: torch.device, batch: int, group: ProcessGroup | None
) -> Features:
    """CLS after the final norm, L2-normalised (reference.md section 9.1), gathered from all ranks.

    The backbone may be sharded, so every rank runs it equally often.
    """
    was_training = backbone.training
    backbone.eval()
    dtype = next(backbone.parameters()).dtype
    images, labels = pictures.images, pictures.labels
    counts = row_counts(labels.to(device), group)
    if min(counts) == 0:
        raise UserError(
            "too few readable labelled pictures: some process has none to embed",
            where="data",
            fix="add labelled pictures, start fewer processes, or set data.labels=none",
        )
    largest = max(counts)
    found = []
    for start in range(0, largest, batch):
        # A rank that has run out repeats its first picture, and the result is cut off below.
        rows = torch.arange(start, min(start + batch, largest)).clamp(max=len(labels) - 1)
        (features,) = backbone([Views(images[rows].to(device, dtype))])
        found.append(features.cls.float())
    mine = torch.cat(found)[: len(labels)]
    values = torch.nn.functional.normalize(mine, dim=-1)
    backbone.train(was_training)
    return Features(
        values=gather_rows(values, group).cpu(),
        labels=gather_rows(labels.to(device), group).cpu(),
        broken=pictures.broken,
    )
