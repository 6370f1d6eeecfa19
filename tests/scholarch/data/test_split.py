"""The held-out share: per class, by name, stable."""

import numpy as np
import pytest
import torch
from scholarch.data.catalog import open_source
from scholarch.data.split import Subset, holdout
from scholarch.errors import UserError
from torch import Tensor


class Named:
    """A source of names and labels alone."""

    def __init__(self, entries: list[tuple[str, int]]) -> None:
        self.entries = sorted(entries)
        self.classes: list[str] | None = ["a", "b", "c"]

    def __len__(self) -> int:
        return len(self.entries)

    def read(self, index: int) -> Tensor:
        return torch.full((1, 1, 1), float(index))

    def label(self, index: int) -> int | None:
        return self.entries[index][1]

    def name(self, index: int) -> str:
        return self.entries[index][0]

    def fingerprint(self) -> str:
        return str(self.entries)


def entries(label: int, count: int) -> list[tuple[str, int]]:
    return [(f"{'abc'[label]}/{i}", label) for i in range(count)]


def held_names(source: Named, share: float, seed: int = 0) -> set[str]:
    return {source.name(int(i)) for i in holdout(source, share, seed)[1]}


def test_each_class_gives_its_share() -> None:
    source = open_source("digits")
    train, held = holdout(source, 0.2, 0)
    assert sorted([*train, *held]) == list(range(1797))
    labels = np.array([source.label(i) for i in range(1797)])
    for label in range(10):
        assert (labels[held] == label).sum() == round(0.2 * (labels == label).sum())
    assert not np.array_equal(held, holdout(source, 0.2, 1)[1])


def test_pictures_added_elsewhere_change_nothing() -> None:
    before = held_names(Named(entries(0, 50) + entries(2, 30)), 0.3)
    after = held_names(Named(entries(0, 50) + entries(1, 40) + entries(2, 30)), 0.3)
    assert before == {name for name in after if not name.startswith("b/")}
    assert len(before) == 15 + 9


def test_pictures_added_to_a_class_keep_who_was_first() -> None:
    before, after = held_names(Named(entries(0, 50)), 0.3), held_names(Named(entries(0, 60)), 0.3)
    assert len(before & after) >= len(before) - 5
    assert len(after) == 18


def test_small_classes_keep_both_sides() -> None:
    source = Named(entries(0, 2) + entries(1, 1) + entries(2, 3))
    for share in (0.01, 0.99):
        train, held = holdout(source, share, 0)
        for label in (0, 2):
            assert {label} <= {source.label(int(i)) for i in train} & {source.label(int(i)) for i in held}


def test_needs_labels_and_a_share() -> None:
    with pytest.raises(UserError, match="needs labels"):
        holdout(open_source("photos"), 0.2, 0)
    with pytest.raises(ValueError, match="between 0 and 1"):
        holdout(open_source("digits"), 1.0, 0)


def test_subset_renumbers() -> None:
    source = Named(entries(0, 5))
    part = Subset(source, np.array([4, 1]))
    assert (len(part), part.name(0), part.label(1), part.read(1).item()) == (2, "a/4", 0, 1.0)
    assert part.fingerprint() != Subset(source, np.array([1, 4])).fingerprint()
