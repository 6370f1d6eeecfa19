from pathlib import Path

import numpy as np
import pytest
import torch
from gloo import run_ranks
from scholarch.data.catalog import open_source
from scholarch.data.split import Subset
from scholarch.data.views import EvaluationView
from scholarch.errors import UserError
from scholarch.evaluation.features import Features, Pictures, extract
from scholarch.models.features import Views
from tiny_training import tiny_learner, tiny_recipe
from torch.distributed import ProcessGroup

VIEW = EvaluationView(16, (0.3,), (0.4,))
CPU = torch.device("cpu")


def digits(count: int) -> Subset:
    return Subset(open_source("digits"), np.arange(count))


def embed(group: ProcessGroup | None, count: int, batch: int) -> Features:
    backbone = tiny_learner(tiny_recipe(), precision="fp32").student.backbone
    pictures = Pictures.read(digits(count), VIEW, at_most=count, group=group)
    return extract(backbone, pictures, device=CPU, batch=batch, group=group)


def test_features_are_normalised_cls_in_eval_mode() -> None:
    found = embed(None, 9, batch=4)
    backbone = tiny_learner(tiny_recipe(), precision="fp32").student.backbone.eval()
    source = digits(9)
    images = torch.stack([VIEW(source.read(i)) for i in range(9)])
    (features,) = backbone([Views(images)])
    expected = features.cls / features.cls.norm(dim=-1, keepdim=True)
    torch.testing.assert_close(found.values, expected)
    assert found.labels.tolist() == [source.label(i) for i in range(9)]


@pytest.mark.gloo
@pytest.mark.parametrize("batch", [2, 64])
def test_ranks_and_batches_change_nothing(batch: int) -> None:
    """Shares of 11 pictures on 2 ranks are uneven; the order over ranks is another, the pairs are not."""
    one = embed(None, 11, batch=64)
    for found in run_ranks(2, embed, 11, batch):
        order = [int((found.values - row).norm(dim=1).argmin()) for row in one.values]
        assert sorted(order) == list(range(11))
        torch.testing.assert_close(found.values[order], one.values)
        assert found.labels[order].tolist() == one.labels.tolist()


def test_at_most_chooses_the_same_pictures_every_time() -> None:
    few = [Pictures.read(digits(40), VIEW, at_most=10, group=None) for _ in range(2)]
    assert len(few[0].labels) == 10
    assert torch.equal(few[0].images, few[1].images)


def test_a_broken_picture_is_left_out_and_counted(tmp_path: Path) -> None:
    for name in ("a", "b"):
        folder = tmp_path / name
        folder.mkdir()
        for number in range(2):
            np.save(folder / f"{number}.npy", np.full((9, 9), 50 * number, np.uint8))
    (tmp_path / "a" / "0.npy").write_bytes(b"\0")
    pictures = Pictures.read(open_source(str(tmp_path)), VIEW, at_most=10, group=None)
    assert (len(pictures.labels), pictures.broken) == (3, 1)


def test_no_readable_picture_is_the_users_mistake() -> None:
    empty = Pictures(torch.empty(0, 1, 16, 16), torch.empty(0, dtype=torch.int64), 0)
    backbone = tiny_learner(tiny_recipe(), precision="fp32").student.backbone
    with pytest.raises(UserError, match="too few readable labelled pictures"):
        extract(backbone, empty, device=CPU, batch=4, group=None)
