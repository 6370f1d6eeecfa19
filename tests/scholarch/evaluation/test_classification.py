"""Linear, logistic, few-shot and k-NN: values against NumPy and scikit-learn, perfect and random features."""

import numpy as np
import pytest
import torch
from evaluation_given import of_classes
from scholarch.draws import torch_generator
from scholarch.errors import UserError
from scholarch.evaluation.classification import Labelled, held_out
from scholarch.evaluation.face import Evaluation
from scholarch.evaluation.few_shot import FewShot, FewShotOptions, few
from scholarch.evaluation.knn import Knn, KnnOptions
from scholarch.evaluation.linear import Linear, LinearOptions, trained_heads
from scholarch.evaluation.logistic import Logistic, LogisticOptions, chosen_strength, fitted
from torch import Tensor

QUICK = [
    Knn(KnnOptions(neighbours=3)),
    Linear(LinearOptions(steps=60, batch=16, rates=(0.1, 1.0), poolings=("cls",), held_out=0.25)),
    Logistic(LogisticOptions(strengths=(1.0, 100.0), held_out=0.25)),
    FewShot(FewShotOptions(shots=(3,), tries=4)),
]


def one_hot(count: int, classes: int = 4) -> tuple[Tensor, list[int]]:
    labels = [i % classes for i in range(count)]
    return torch.eye(classes)[labels], labels


def clouds(count: int, seed: int, classes: int = 3, spread: float = 1.0) -> tuple[Tensor, list[int]]:
    labels = [i % classes for i in range(count)]
    centres = torch.randn(classes, 5, generator=torch_generator(0, "centres"))
    return centres[labels] + spread * torch.randn(count, 5, generator=torch_generator(seed)), labels


@pytest.mark.parametrize("evaluation", QUICK, ids=lambda one: one.options.kind)
def test_features_that_are_the_class_are_perfect(evaluation: Evaluation) -> None:
    outcome = evaluation.run(of_classes(one_hot(40), one_hot(24)))
    (name,) = (name for name in outcome.samples if name.startswith("top1"))
    assert outcome.metrics[name] == 1.0
    assert outcome.samples[name].tolist() == [1.0] * 24


@pytest.mark.parametrize("evaluation", QUICK, ids=lambda one: one.options.kind)
def test_features_without_the_class_are_at_chance(evaluation: Evaluation) -> None:
    labels = [i % 4 for i in range(800)]
    train, test = (torch.randn(800, 6, generator=torch_generator(seed)) for seed in (1, 2))
    outcome = evaluation.run(of_classes((train, labels), (test, labels)))
    (name,) = (name for name in outcome.samples if name.startswith("top1"))
    assert outcome.metrics[name] == pytest.approx(0.25, abs=0.06)
    assert outcome.metrics[name] == pytest.approx(outcome.samples[name].mean())


def test_heads_of_a_grid_equal_heads_trained_alone_in_float64() -> None:
    """Gradient of softmax cross-entropy by hand: (p - y) of each sample, momentum 0.9, cosine."""
    values, labels = clouds(32, 3)
    options = LinearOptions(steps=7, batch=32, rates=(0.05, 0.8), poolings=("cls",))
    heads = trained_heads(Labelled(values, torch.tensor(labels)), 3, options)
    first = 0.01 * torch.randn(5, 3, generator=torch_generator(0, "linear", 5))
    x, y = values.double().numpy(), np.eye(3)[labels]
    for number, rate in enumerate(options.rates):
        w, b = first.double().numpy(), np.zeros(3)
        mw, mb = np.zeros_like(w), np.zeros(3)
        for step in range(7):
            logits = x @ w + b
            p = np.exp(logits) / np.exp(logits).sum(1, keepdims=True)
            mw, mb = 0.9 * mw + x.T @ (p - y) / 32, 0.9 * mb + (p - y).mean(0)
            lr = rate * 32 / 256 * 0.5 * (1 + np.cos(np.pi * step / 7))
            w, b = w - lr * mw, b - lr * mb
        np.testing.assert_allclose(heads.weight[number].numpy(), w, atol=1e-5)
        np.testing.assert_allclose(heads.bias[number, 0].numpy(), b, atol=1e-5)


def test_the_best_head_is_chosen_on_held_out_training_samples() -> None:
    options = LinearOptions(steps=80, batch=32, rates=(1e-6, 1.0), poolings=("cls",), held_out=0.25)
    outcome = Linear(options).run(of_classes(clouds(90, 1, spread=0.3), clouds(60, 2, spread=0.3)))
    assert outcome.metrics["rate"] == 1.0
    assert outcome.metrics["top1"] > 0.9


def test_logistic_regression_reaches_the_optimum_of_its_objective() -> None:
    """At it, the gradient of sum of cross-entropies + |w|^2 / 2C is zero."""
    values, labels = clouds(60, 4)
    model = fitted(Labelled(values, torch.tensor(labels)), 0.5)
    x, y = values.double().numpy(), np.eye(3)[labels]
    logits = x @ model.coef_.T + model.intercept_
    p = np.exp(logits) / np.exp(logits).sum(1, keepdims=True)
    np.testing.assert_allclose((p - y).T @ x + model.coef_ / 0.5, 0, atol=1e-4)
    np.testing.assert_allclose((p - y).sum(0), 0, atol=1e-4)


def test_the_strength_is_the_best_on_what_was_held_out() -> None:
    values, labels = clouds(60, 5)
    rows = Labelled(values, torch.tensor(labels))
    learnt, judges = held_out(rows.labels, 0.2, seed=0)
    scores = {
        c: (
            fitted(rows.at(learnt), c).predict(values[judges].double().numpy()) == np.array(labels)[judges]
        ).mean()
        for c in (1e-6, 1e-2, 1.0)
    }
    assert chosen_strength(rows, (1e-6, 1e-2, 1.0), 0.2, 0) == (
        max(scores, key=lambda c: (scores[c], -c)),
        max(scores.values()),
    )


def test_held_out_samples_are_a_share_of_each_class() -> None:
    labels = torch.tensor([0] * 10 + [1] * 5 + [2])
    learnt, judges = held_out(labels, 0.2, seed=1)
    assert sorted([*learnt, *judges]) == list(range(16))
    assert torch.bincount(labels[judges], minlength=3).tolist() == [2, 1, 0]
    with pytest.raises(UserError, match="one training sample"):
        held_out(torch.tensor([0, 1, 2]), 0.2, seed=0)


def test_few_shots_are_that_many_of_each_class() -> None:
    rows = Labelled(torch.zeros(10, 2), torch.tensor([0] * 6 + [1] * 3 + [2]))
    chosen = few(rows, 3, seed=0, attempt=0)
    assert torch.bincount(rows.labels[chosen], minlength=3).tolist() == [3, 3, 1]
    assert few(rows, 3, 0, 1).tolist() != chosen.tolist()


def test_one_shot_takes_the_class_of_the_nearest_shot() -> None:
    train, test = clouds(30, 6), clouds(20, 7)
    outcome = FewShot(FewShotOptions(shots=(1,), tries=3)).run(of_classes(train, test))
    rows = Labelled(torch.nn.functional.normalize(train[0], dim=-1), torch.tensor(train[1]))
    expected = np.zeros(20)
    for attempt in range(3):
        shown = rows.at(few(rows, 1, 0, attempt))
        for i, query in enumerate(test[0].double().numpy()):
            cosines = shown.values.double().numpy() @ query / np.linalg.norm(query)
            expected[i] += (shown.labels[cosines.argmax()] == test[1][i]) / 3
    np.testing.assert_allclose(outcome.samples["top1_1"], expected)


def test_confusion_counts_classes_taken_for_others() -> None:
    train = (torch.eye(2), [0, 1])
    test = (torch.eye(2)[[0, 0, 1, 1, 1]], [0, 1, 1, 1, 0])
    outcome = Knn(KnnOptions(neighbours=1)).run(of_classes(train, test))
    table = outcome.pictures["confusion"]
    assert table.counts.tolist() == [[1, 1], [1, 2]]  # type: ignore[union-attr]
    assert outcome.metrics["top1"] == pytest.approx(3 / 5)
    assert outcome.metrics["mean_class_accuracy"] == pytest.approx((1 / 2 + 2 / 3) / 2)
