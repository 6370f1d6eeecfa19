import math

import numpy as np
import pytest
import torch
from scholarch.objectives import monitors
from terms import random


def test_assignments_add_up_over_shares() -> None:
    probabilities = torch.softmax(random(9, 4) * 3, dim=-1)
    whole = monitors.assignments(probabilities)
    parts = [monitors.assignments(part) for part in (probabilities[:0], probabilities[:4], probabilities[4:])]
    for key, value in whole.items():
        torch.testing.assert_close(sum(part[key] for part in parts), value)


def test_health_between_its_extremes() -> None:
    uniform = monitors.assignments(torch.full((6, 8), 1 / 8))
    health = monitors.assignment_health(uniform)
    assert health["teacher_entropy"] == pytest.approx(math.log(8), rel=1e-6)
    assert health["teacher_entropy_share"] == pytest.approx(1)
    collapsed = monitors.assignment_health(monitors.assignments(torch.eye(8)[[3, 3, 3]]))
    assert collapsed == {"teacher_entropy": 0, "teacher_entropy_share": 0, "prototypes_used": 1 / 8}
    spread = monitors.assignments(torch.eye(8)) | {"kl": torch.tensor(6.0), "kl_rows": torch.tensor(4.0)}
    assert monitors.assignment_health(spread)["prototypes_used"] == 1
    assert monitors.assignment_health(spread)["kl"] == 1.5


def test_health_without_rows_is_not_a_number() -> None:
    assert math.isnan(monitors.assignment_health(monitors.assignments(torch.zeros(0, 4)))["teacher_entropy"])


def test_cls_patch_cosine() -> None:
    cls, patches = random(3, 5), random(3, 4, 5, seed=1)
    cosines = [
        c @ p / np.linalg.norm(c) / np.linalg.norm(p)
        for c, row in zip(cls.numpy(), patches.numpy(), strict=True)
        for p in row
    ]
    assert monitors.cls_patch_cosine(cls, patches).item() == pytest.approx(np.mean(cosines))
    assert monitors.cls_patch_cosine(cls, cls[:, None] * 7).item() == pytest.approx(1)


def test_patch_norms() -> None:
    patches = torch.tensor([[[3.0, 4.0], [0.0, 1.0], [0.0, 300.0]]])
    found = {key: value.item() for key, value in monitors.patch_norms(patches).items()}
    norms = [5, 1, 300]
    assert found == pytest.approx(
        {"mean": np.mean(norms), "std": np.std(norms), "median": 5, "largest": 300}, rel=1e-5
    )


def test_feature_std() -> None:
    assert monitors.feature_std(torch.ones(10, 16) * 3).item() == pytest.approx(0, abs=1e-6)
    assert monitors.feature_std(random(4000, 16)).item() == pytest.approx(1, abs=0.02)


def test_effective_rank() -> None:
    assert monitors.effective_rank(torch.ones(10, 4)).item() == 0
    line = torch.arange(10.0)[:, None] * torch.tensor([1.0, 2.0, 3.0])
    assert monitors.effective_rank(line).item() == pytest.approx(1, abs=1e-4)
    corners = torch.cat([torch.eye(4), -torch.eye(4)])  # equal singular values, mean 0
    assert monitors.effective_rank(corners).item() == pytest.approx(4, rel=1e-5)


def test_bfloat16_features() -> None:
    features = random(8, 4).bfloat16()
    for value in (monitors.effective_rank(features), monitors.feature_std(features)):
        assert value.dtype == torch.float32
        assert torch.isfinite(value)
