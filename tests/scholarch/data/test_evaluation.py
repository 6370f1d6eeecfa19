"""Evaluation batches: order, labels, broken pictures."""

from pathlib import Path

import numpy as np
import torch
from scholarch.data.catalog import open_source
from scholarch.data.evaluation import evaluation_batches
from scholarch.data.views import EvaluationView

VIEW = EvaluationView(16, (0.3,), (0.4,))


def test_order_and_labels() -> None:
    source, indices = open_source("digits"), np.array([5, 3, 1000, 7, 8])
    batches = list(evaluation_batches(source, indices, VIEW, 2, threads=2))
    assert [len(batch.labels) for batch in batches] == [2, 2, 1]
    assert torch.cat([batch.sample_ids for batch in batches]).tolist() == indices.tolist()
    labels = torch.cat([batch.labels for batch in batches]).tolist()
    assert labels == [source.label(int(i)) for i in indices]
    pictures = torch.cat([batch.pictures for batch in batches])
    assert pictures.equal(torch.stack([VIEW(source.read(int(i))) for i in indices]))


def test_broken_pictures_are_left_out_and_named(tmp_path: Path) -> None:
    for name in "abc":
        np.save(tmp_path / f"{name}.npy", np.full((4, 4), ord(name), np.uint8))
    (tmp_path / "b.npy").write_bytes(b"")
    first, second = evaluation_batches(open_source(str(tmp_path)), np.arange(3), VIEW, 2)
    assert (first.sample_ids.tolist(), first.labels.tolist()) == ([0], [-1])
    assert first.broken == ["b.npy: the file is empty"]
    assert second.sample_ids.tolist() == [2]


def test_no_pictures_no_batches() -> None:
    assert list(evaluation_batches(open_source("digits"), np.arange(0), VIEW, 4)) == []
