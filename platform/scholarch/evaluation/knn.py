"""k-nearest-neighbour classification of frozen features (reference.md section 9.1)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal, Protocol

import torch
from torch import Tensor
from torchmetrics.functional.classification import multiclass_accuracy

from scholarch.evaluation.classification import classes_of, found_classes, pooled, unit
from scholarch.evaluation.face import Evaluation, Given, Needs, Outcome

CHUNK = 1024


@dataclass(frozen=True, kw_only=True)
class KnnOptions:
    """Options of k-NN.

    Attributes:
        data: name of the suite's data; empty: its first.
        neighbours: k of the vote.
        temperature: a neighbour's vote is exp(cosine / temperature).
    """

    kind: Literal["knn"] = "knn"
    data: str = ""
    neighbours: int = 20
    temperature: float = 0.07

    def __post_init__(self) -> None:
        if self.neighbours < 1 or self.temperature <= 0:
            raise ValueError("neighbours must be 1 or more, and temperature above 0")


class Knn(Evaluation):
    """Nearest neighbours by the cosine of CLS."""

    Options = KnnOptions

    def needs(self) -> Needs:
        return Needs(known=frozenset({"class"}), outputs=frozenset({"cls"}))

    def run(self, given: Given) -> Outcome:
        train, test = unit(pooled(given, "train")), unit(pooled(given, "test"))
        scores = vote(
            train,
            test.values,
            neighbours=self.options.neighbours,
            temperature=self.options.temperature,
            classes=classes_of(train, test),
        )
        return found_classes(scores.argmax(1), test.labels, given.data["test"].classes)


class Rows(Protocol):
    """L2-normalised rows [n, D] with their classes [n]."""

    @property
    def values(self) -> Tensor: ...

    @property
    def labels(self) -> Tensor: ...


def vote(train: Rows, queries: Tensor, *, neighbours: int, temperature: float, classes: int) -> Tensor:
    """Class scores of each query: neighbours vote with exp(cosine / temperature).

    Args:
        queries: [n, D], L2-normalised.
        neighbours: k, cut to the number of training pictures.
        temperature: above 0.

    Returns:
        [n, classes], larger is more likely; rows sum to 1.
    """
    k = min(neighbours, len(train.labels))
    scores = []
    for start in range(0, len(queries), CHUNK):
        chunk = queries[start : start + CHUNK]
        similarity, index = (chunk @ train.values.T).topk(k, dim=1)  # [c, k]
        weights = (similarity / temperature).softmax(dim=1)
        votes = torch.zeros(len(chunk), classes, dtype=weights.dtype)
        scores.append(votes.scatter_add_(1, train.labels[index], weights))
    return torch.cat(scores)


def accuracy(train: Rows, test: Rows, *, neighbours: int, temperature: float) -> float:
    """Top-1 accuracy of `test` by the labels of `train`, in [0, 1]."""
    classes = int(torch.cat([train.labels, test.labels]).max()) + 1
    votes = vote(train, test.values, neighbours=neighbours, temperature=temperature, classes=classes)
    return float(
        multiclass_accuracy(votes.argmax(1), test.labels, num_classes=max(classes, 2), average="micro")
    )
