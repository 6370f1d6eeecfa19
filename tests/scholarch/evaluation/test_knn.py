from collections.abc import Callable

import numpy as np
import pytest
import torch
from scholarch.draws import torch_generator
from scholarch.evaluation.features import Features
from scholarch.evaluation.knn import accuracy, vote
from sklearn.neighbors import KNeighborsClassifier
from torch.nn import functional as F


def features(rows: int, seed: int, classes: int = 4) -> Features:
    """Unit vectors around one centre for each class, with noise."""
    draws = torch_generator(seed)
    labels = torch.arange(rows) % classes
    centres = torch.randn(classes, 6, generator=torch_generator(0))
    values = centres[labels] + 1.2 * torch.randn(rows, 6, generator=draws)
    return Features(F.normalize(values, dim=-1), labels, broken=0)


def slow_accuracy(train: Features, test: Features, k: int, temperature: float) -> float:
    """A vote with exp(cosine / temperature), one query at a time in float64 (reference.md 9.1)."""
    a, b = train.values.double().numpy(), test.values.double().numpy()
    right = 0
    for query, label in zip(b, test.labels.tolist(), strict=True):
        similarity = a @ query
        nearest = np.argsort(-similarity, kind="stable")[:k]
        votes = np.zeros(4)
        for index in nearest:
            votes[int(train.labels[index])] += np.exp(similarity[index] / temperature)
        right += int(votes.argmax() == label)
    return right / len(b)


@pytest.mark.parametrize(("k", "temperature"), [(1, 0.07), (5, 0.07), (20, 0.07), (20, 1.0), (500, 0.07)])
def test_equals_a_vote_taken_slowly(k: int, temperature: float) -> None:
    train, test = features(90, 1), features(50, 2)
    expected = slow_accuracy(train, test, k, temperature)
    assert accuracy(train, test, neighbours=k, temperature=temperature) == pytest.approx(expected)
    assert 0.3 < expected < 1.0


def test_one_neighbour_equals_scikit_learn() -> None:
    train, test = features(90, 3), features(50, 4)
    peer = KNeighborsClassifier(1, metric="cosine").fit(train.values.numpy(), train.labels.numpy())
    expected = peer.score(test.values.numpy(), test.labels.numpy())
    assert accuracy(train, test, neighbours=1, temperature=0.07) == pytest.approx(expected)


def test_votes_sum_to_one() -> None:
    train, test = features(30, 5), features(7, 6)
    votes = vote(train, test.values, neighbours=9, temperature=0.07, classes=4)
    torch.testing.assert_close(votes.sum(1), torch.ones(7))


@pytest.mark.parametrize(("shuffle", "expected"), [(lambda x: x, 1.0), (lambda x: (x + 1) % 4, 0.0)])
def test_perfect_and_always_wrong(shuffle: Callable[[torch.Tensor], torch.Tensor], expected: float) -> None:
    train = features(40, 7)
    test = Features(train.values, shuffle(train.labels), broken=0)
    assert accuracy(train, test, neighbours=1, temperature=0.07) == expected


def test_random_features_are_at_chance() -> None:
    draws = torch_generator(8)
    train, test = (
        Features(F.normalize(torch.randn(n, 6, generator=draws), dim=-1), torch.arange(n) % 4, broken=0)
        for n in (400, 2000)
    )
    assert accuracy(train, test, neighbours=20, temperature=0.07) == pytest.approx(0.25, abs=0.04)


def test_order_of_samples_changes_nothing() -> None:
    train, test = features(60, 9), features(40, 10)
    order = torch.randperm(60, generator=torch_generator(11))
    shuffled = Features(train.values[order], train.labels[order], broken=0)
    assert accuracy(train, test, neighbours=7, temperature=0.07) == accuracy(
        shuffled, test, neighbours=7, temperature=0.07
    )
