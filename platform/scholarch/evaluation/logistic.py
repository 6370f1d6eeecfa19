"""Logistic regression with the strength of its penalty chosen on held-out samples (reference.md section 9.3)."""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import torch

from scholarch.errors import UserError
from scholarch.evaluation.classification import Labelled, found_classes, held_out, pooled, unit
from scholarch.evaluation.face import Evaluation, Given, Needs, Outcome

STRENGTHS = tuple(float(c) for c in 10 ** np.linspace(-6, 5, 45))
ITERATIONS, TOLERANCE = 1000, 1e-12


@dataclass(frozen=True, kw_only=True)
class LogisticOptions:
    """Options of logistic regression.

    Attributes:
        data: name of the suite's data; empty: its first.
        strengths: C, the inverse of the L2 penalty, to choose from.
        held_out: share of the training samples by which it is chosen; the classifier is fitted to all.
        seed: of the choice of those samples.
    """

    kind: Literal["logistic"] = "logistic"
    data: str = ""
    strengths: tuple[float, ...] = STRENGTHS
    held_out: float = 0.1
    seed: int = 0

    def __post_init__(self) -> None:
        if not self.strengths or min(self.strengths) <= 0 or not 0 < self.held_out < 1:
            raise ValueError("strengths must not be empty and above 0, held_out between 0 and 1")


class Logistic(Evaluation):
    """Multinomial logistic regression on L2-normalised CLS, in float64."""

    Options = LogisticOptions

    def needs(self) -> Needs:
        return Needs(known=frozenset({"class"}), outputs=frozenset({"cls"}))

    def run(self, given: Given) -> Outcome:
        options: LogisticOptions = self.options
        train, test = unit(pooled(given, "train")), unit(pooled(given, "test"))
        strength, accuracy = chosen_strength(train, options.strengths, options.held_out, options.seed)
        predicted = torch.from_numpy(fitted(train, strength).predict(test.values.double().numpy()))
        names = given.data["test"].classes
        return found_classes(predicted, test.labels, names, held_out_accuracy=accuracy, strength=strength)


def chosen_strength(
    train: Labelled, strengths: Sequence[float], share: float, seed: int
) -> tuple[float, float]:
    """The strength with the best accuracy on held-out samples (the smallest of several), and that accuracy."""
    learnt, chosen_by = held_out(train.labels, share, seed)
    rows, judges = train.at(learnt), train.at(chosen_by)
    best = (0.0, -1.0)
    for strength in sorted(strengths):
        score = float(fitted(rows, strength).score(judges.values.double().numpy(), judges.labels.numpy()))
        best = (strength, score) if score > best[1] else best
    return best


def fitted(rows: Labelled, strength: float) -> Any:
    """scikit-learn's classifier.

    Raises:
        UserError: if there is one class alone.
    """
    from sklearn.exceptions import ConvergenceWarning
    from sklearn.linear_model import LogisticRegression

    if int(rows.labels.min()) == int(rows.labels.max()):
        raise UserError(
            "has training samples of one class alone", where="data", fix="use data with two classes"
        )
    model = LogisticRegression(C=strength, max_iter=ITERATIONS, tol=TOLERANCE)
    with warnings.catch_warnings():
        # The published tolerance is below what L-BFGS can always reach.
        warnings.filterwarnings("ignore", category=ConvergenceWarning)
        return model.fit(rows.values.double().numpy(), rows.labels.numpy())
