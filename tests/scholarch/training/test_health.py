import pytest
import torch
from scholarch.draws import torch_generator
from scholarch.models.features import Features
from scholarch.objectives.monitors import assignments
from scholarch.training.distributed import World
from scholarch.training.health import Health, warnings
from scholarch.training.learner import StepValues

ALONE = World(0, 1, 0, 1, torch.device("cpu"), mesh=None, group=None)  # type: ignore[arg-type]


def values(targets: torch.Tensor, cls: torch.Tensor, patches: torch.Tensor) -> StepValues:
    drawn = {f"dino/{key}": tensor for key, tensor in assignments(targets).items()}
    empty = torch.empty(len(cls), 0, cls.shape[1])
    return StepValues(drawn=drawn, observed={"ema/global": Features(cls, empty, patches, patches)})


def random_features(rows: int = 32) -> tuple[torch.Tensor, torch.Tensor]:
    draws = torch_generator(3)
    return torch.randn(rows, 8, generator=draws), torch.randn(rows, 5, 8, generator=draws)


def test_healthy_features_warn_of_nothing() -> None:
    cls, patches = random_features()
    targets = (4 * torch.randn(64, 16, generator=torch_generator(4))).softmax(-1)
    metrics = Health(ALONE)(1, values(targets, cls, patches))
    assert warnings(metrics) == {}
    assert 0.1 < metrics["health/teacher_entropy/dino"] < 0.9
    assert metrics["health/prototypes_used/dino"] > 0.8
    assert metrics["health/feature_std"] == pytest.approx(1.0, abs=0.1)
    assert metrics["health/patch_norm_max"] == pytest.approx(float(patches.norm(dim=-1).max()))
    assert metrics["health/patch_norm_mean"] == pytest.approx(float(patches.norm(dim=-1).mean()))


def test_one_prototype_for_all_is_a_collapse() -> None:
    cls, patches = random_features()
    targets = torch.zeros(64, 100).index_fill_(1, torch.tensor([3]), 1.0)
    metrics = Health(ALONE)(1, values(targets, cls, patches))
    assert metrics["health/teacher_entropy/dino"] == 0.0
    found = warnings(metrics)
    assert list(found) == ["health/prototypes_used/dino"]
    assert "prototypes of dino" in found["health/prototypes_used/dino"]


def test_uniform_targets_are_a_collapse() -> None:
    cls, patches = random_features()
    metrics = Health(ALONE)(1, values(torch.full((64, 10), 0.1), cls, patches))
    assert metrics["health/teacher_entropy/dino"] == pytest.approx(1.0)
    assert "targets of dino are uniform" in warnings(metrics)["health/teacher_entropy/dino"]


def test_equal_features_are_a_collapse() -> None:
    cls, patches = random_features()
    targets = (4 * torch.randn(64, 16, generator=torch_generator(4))).softmax(-1)
    metrics = Health(ALONE)(1, values(targets, cls[:1] + 1e-4 * cls, patches))
    assert list(warnings(metrics)) == ["health/feature_std"]


def test_few_rows_cannot_use_all_prototypes() -> None:
    cls, patches = random_features()
    targets = torch.eye(64)[:4]
    assert Health(ALONE)(1, values(targets, cls, patches))["health/prototypes_used/dino"] == 1.0
