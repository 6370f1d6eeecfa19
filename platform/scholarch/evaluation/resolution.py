"""What features are worth when pictures come larger or smaller than the ones that a classifier was made for."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import numpy as np
from torch.nn import functional as F

from scholarch.evaluation.classification import classes_of, pooled, unit
from scholarch.evaluation.face import Evaluation, Given, Needs, Outcome, means
from scholarch.evaluation.knn import vote


@dataclass(frozen=True, kw_only=True)
class ResolutionOptions:
    """Options of robustness to resolution.

    Attributes:
        data: name of the suite's data; empty: its first.
        factors: sizes of the test pictures, as multiples of the suite's.
        neighbours: k of the vote, among training pictures of the suite's own size.
        temperature: a neighbour's vote is exp(cosine / temperature).
    """

    kind: Literal["resolution"] = "resolution"
    data: str = ""
    factors: tuple[float, ...] = (0.5, 1.0, 2.0)
    neighbours: int = 20
    temperature: float = 0.07

    def __post_init__(self) -> None:
        if not self.factors or min(self.factors) <= 0:
            raise ValueError("factors must not be empty, and above 0")
        if self.neighbours < 1 or self.temperature <= 0:
            raise ValueError("neighbours must be 1 or more, and temperature above 0")


class Resolution(Evaluation):
    """`top1_FACTOR`: k-NN accuracy of test pictures of that size; `cosine_FACTOR`: of their CLS with that of the
    same picture at the suite's size."""

    Options = ResolutionOptions

    def needs(self) -> Needs:
        sizes = (1.0, *(factor for factor in self.options.factors if factor != 1.0))
        return Needs(known=frozenset({"class"}), outputs=frozenset({"cls"}), sizes=sizes)

    def run(self, given: Given) -> Outcome:
        options: ResolutionOptions = self.options
        train, usual = unit(pooled(given, "train")), unit(pooled(given, "test"))
        samples = {}
        for factor in options.factors:
            test = unit(pooled(given, "test", size=factor))
            scores = vote(
                train,
                test.values,
                neighbours=options.neighbours,
                temperature=options.temperature,
                classes=classes_of(train, test),
            )
            samples[f"top1_{factor:g}"] = (scores.argmax(1) == test.labels).numpy().astype(np.float64)
            samples[f"cosine_{factor:g}"] = F.cosine_similarity(usual.values, test.values).numpy()
        metrics, arrays = means(samples)
        return Outcome(metrics=metrics, samples=arrays)
