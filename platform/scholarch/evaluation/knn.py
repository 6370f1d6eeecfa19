"""k-nearest-neighbour classification of frozen features (reference.md section 9.1)."""

from __future__ import annotations

import torch
from torch import Tensor
from torchmetrics.functional.classification import multiclass_accuracy

from scholarch.evaluation.features import Features

CHUNK = 1024


def vote(train: Features, queries: Tensor, *, neighbours: int, temperature: float, classes: int) -> Tensor:
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


def accuracy(train: Features, test: Features, *, neighbours: int, temperature: float) -> float:
    """Top-1 accuracy of `test` by the labels of `train`, in [0, 1]."""
    classes = int(torch.cat([train.labels, test.labels]).max()) + 1
    votes = vote(train, test.values, neighbours=neighbours, temperature=temperature, classes=classes)
    return float(
        multiclass_accuracy(votes.argmax(1), test.labels, num_classes=max(classes, 2), average="micro")
    )
