"""Classification from a few labelled samples of each class, averaged over draws of them (reference.md section 9.1)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import numpy as np
import torch

from scholarch.draws import generator
from scholarch.evaluation.classification import Labelled, classes_of, pooled, unit
from scholarch.evaluation.face import Evaluation, Given, Needs, Outcome, means
from scholarch.evaluation.knn import vote
from scholarch.evaluation.logistic import fitted


@dataclass(frozen=True, kw_only=True)
class FewShotOptions:
    """Options of few-shot classification.

    Attributes:
        data: name of the suite's data; empty: its first.
        shots: labelled samples of each class; of a class with fewer, all.
        tries: draws of them, whose accuracies are averaged.
        by: nearest neighbours (all shots vote), or logistic regression with C = `strength`.
        temperature: of the vote.
        strength: of logistic regression.
        seed: of the draws.
    """

    kind: Literal["few_shot"] = "few_shot"
    data: str = ""
    shots: tuple[int, ...] = (1, 5)
    tries: int = 5
    by: Literal["knn", "logistic"] = "knn"
    temperature: float = 0.07
    strength: float = 1.0
    seed: int = 0

    def __post_init__(self) -> None:
        if not self.shots or min(self.shots) < 1 or self.tries < 1:
            raise ValueError("shots and tries must be 1 or more")
        if self.temperature <= 0 or self.strength <= 0:
            raise ValueError("temperature and strength must be above 0")


class FewShot(Evaluation):
    """`top1_SHOTS`: of each test sample, the share of tries that took it for its class."""

    Options = FewShotOptions

    def needs(self) -> Needs:
        return Needs(known=frozenset({"class"}), outputs=frozenset({"cls"}))

    def run(self, given: Given) -> Outcome:
        options: FewShotOptions = self.options
        train, test = unit(pooled(given, "train")), unit(pooled(given, "test"))
        classes = classes_of(train, test)
        samples, spread = {}, {}
        for shots in options.shots:
            right = np.stack(
                [
                    (
                        self._predicted(train.at(few(train, shots, options.seed, t)), test, classes)
                        == test.labels
                    )
                    .double()
                    .numpy()
                    for t in range(options.tries)
                ]
            )
            samples[f"top1_{shots}"] = right.mean(axis=0)
            spread[f"top1_{shots}_std"] = float(right.mean(axis=1).std())
        metrics, arrays = means(samples, **spread)
        return Outcome(metrics=metrics, samples=arrays)

    def _predicted(self, shown: Labelled, test: Labelled, classes: int) -> torch.Tensor:
        options: FewShotOptions = self.options
        if options.by == "logistic":
            return torch.from_numpy(fitted(shown, options.strength).predict(test.values.double().numpy()))
        k = len(shown.labels)
        scores = vote(shown, test.values, neighbours=k, temperature=options.temperature, classes=classes)
        return scores.argmax(1)


def few(train: Labelled, shots: int, seed: int, attempt: int) -> np.ndarray:
    """Rows of `shots` samples of each class."""
    labels = train.labels.numpy()
    chosen = [
        generator(seed, "few shot", shots, attempt, int(label)).permutation(np.flatnonzero(labels == label))[
            :shots
        ]
        for label in np.unique(labels)
    ]
    return np.sort(np.concatenate(chosen))
