"""Linear classification: every head of a grid is trained at once on the same batches (reference.md section 9.2).

Heads do not touch one another: the gradient of the sum of their losses is, for each, that of its own.

Legend: R rates, C classes, D width, b samples of a batch.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from scholarch.draws import generator, torch_generator
from scholarch.evaluation.classification import Labelled, classes_of, found_classes, held_out, pooled
from scholarch.evaluation.face import Evaluation, Given, Needs, Outcome, Output

RATES = (1e-5, 2e-5, 5e-5, 1e-4, 2e-4, 5e-4, 1e-3, 2e-3, 5e-3, 1e-2, 2e-2, 5e-2, 1e-1)
Pooling = Literal["cls", "cls+mean", "cls4", "cls4+mean"]


@dataclass(frozen=True, kw_only=True)
class LinearOptions:
    """Options of linear classification.

    Attributes:
        data: name of the suite's data; empty: its first.
        rates: learning rates for 256 samples; scaled by the batch (reference.md 9.2).
        poolings: which features heads see.
        steps: of stochastic gradient descent with momentum 0.9, along a cosine to 0.
        batch: samples of a step.
        held_out: share of the training samples by which the best head is chosen.
        seed: of batches and first weights.
    """

    kind: Literal["linear"] = "linear"
    data: str = ""
    rates: tuple[float, ...] = RATES
    poolings: tuple[Pooling, ...] = ("cls", "cls+mean")
    steps: int = 12_500
    batch: int = 128
    held_out: float = 0.1
    seed: int = 0

    def __post_init__(self) -> None:
        if not self.rates or not self.poolings or min(self.rates) <= 0:
            raise ValueError("rates and poolings must not be empty, and rates above 0")
        if self.steps < 1 or self.batch < 1 or not 0 < self.held_out < 1:
            raise ValueError("steps and batch must be 1 or more, held_out between 0 and 1")


class Linear(Evaluation):
    """A linear classifier on frozen features, the best of a grid of rates and poolings."""

    Options = LinearOptions

    def needs(self) -> Needs:
        wanted: set[Output] = set()
        for pooling in self.options.poolings:
            wanted.add("cls_last" if pooling.startswith("cls4") else "cls")
            wanted |= {"mean_patch"} if pooling.endswith("+mean") else set()
        return Needs(known=frozenset({"class"}), outputs=frozenset(wanted))

    def run(self, given: Given) -> Outcome:
        options: LinearOptions = self.options
        splits = {p: (pooled(given, "train", p), pooled(given, "test", p)) for p in options.poolings}
        train, test = next(iter(splits.values()))
        classes = classes_of(train, test)
        learnt, chosen_by = held_out(train.labels, options.held_out, options.seed)
        best, kept, where = -1.0, test.labels, (options.poolings[0], 0)
        for pooling, (train, test) in splits.items():
            heads = trained_heads(train.at(learnt), classes, options)
            accuracies = heads.accuracies(train.at(chosen_by))
            number = int(accuracies.argmax())
            if float(accuracies[number]) > best:
                best, where = float(accuracies[number]), (pooling, number)
                kept = heads.logits(test.values)[number].argmax(1)
        return found_classes(
            kept,
            test.labels,
            given.data["test"].classes,
            held_out_accuracy=best,
            rate=options.rates[where[1]],
            pooling=float(options.poolings.index(where[0])),
        )


@dataclass(frozen=True)
class Heads:
    """One linear head for each rate.

    Attributes:
        weight: [R, D, C].
        bias: [R, 1, C].
    """

    weight: Tensor
    bias: Tensor

    def logits(self, values: Tensor) -> Tensor:
        """[R, b, C] of [b, D]."""
        return torch.baddbmm(self.bias, values.expand(len(self.weight), -1, -1), self.weight)

    def accuracies(self, rows: Labelled) -> Tensor:
        """[R]."""
        return (self.logits(rows.values).argmax(-1) == rows.labels).double().mean(1)


def trained_heads(rows: Labelled, classes: int, options: LinearOptions) -> Heads:
    """Heads trained from N(0, 0.01) by gradient descent with momentum; batches are drawn by step."""
    count, width = rows.values.shape
    rates = torch.tensor(options.rates) * options.batch / 256
    first = 0.01 * torch.randn(width, classes, generator=torch_generator(options.seed, "linear", width))
    weight, bias = first.repeat(len(rates), 1, 1), torch.zeros(len(rates), 1, classes)
    heads = Heads(weight.requires_grad_(), bias.requires_grad_())
    moments = [torch.zeros_like(weight), torch.zeros_like(bias)]
    order = np.empty(0, dtype=np.int64)
    for step in range(options.steps):
        while len(order) < options.batch:  # passes over all samples, one after the other
            more = generator(options.seed, "linear", step, len(order)).permutation(count)
            order = np.concatenate([order, more])
        chosen, order = torch.from_numpy(order[: options.batch]), order[options.batch :]
        labels = rows.labels[chosen].expand(len(rates), -1).flatten()
        loss = F.cross_entropy(heads.logits(rows.values[chosen]).flatten(0, 1), labels, reduction="sum")
        gradients = torch.autograd.grad(loss / len(chosen), [heads.weight, heads.bias])
        factor = 0.5 * (1 + math.cos(math.pi * step / options.steps))
        with torch.no_grad():
            for parameter, moment, gradient in zip((weight, bias), moments, gradients, strict=True):
                moment.mul_(0.9).add_(gradient)
                parameter.sub_(factor * rates[:, None, None] * moment)
    return Heads(weight.detach(), bias.detach())
