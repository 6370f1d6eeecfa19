from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from scholarch.collectives import Pieces
from scholarch.objectives.capi import LEARNING_RATE, Capi, CapiOptions, Clustering, positional_sinkhorn
from scholarch.objectives.term import Output
from terms import Case, assert_equal_on_ranks, random, run
from torch import Tensor

STUDENT, TEACHER = Output("global", "predicted", "capi"), Output("global", "patches")
BATCH, PATCHES, WIDTH, PROTOTYPES = 6, 4, 3, 5


def make_case(predicted: Tensor | None = None, **options: Any) -> Case:
    masks = torch.ones(1, BATCH, PATCHES, dtype=torch.bool)
    if predicted is None:
        predicted = torch.zeros_like(masks)  # none for samples 0 to 2
        predicted[0, 3, :1] = predicted[0, 4, 1:4] = predicted[0, 5, 2:4] = True
    return Case(
        term=lambda: Capi(CapiOptions(**options), "capi"),
        student={STUDENT: random(1, BATCH, PATCHES, PROTOTYPES, seed=1)},
        teachers=[{TEACHER: random(1, BATCH, PATCHES, WIDTH, seed=2)}],
        global_batch=BATCH,
        masks={"global": masks},
        predicted={"global": predicted},
    )


def own_clustering() -> Clustering:
    term = Capi(CapiOptions(), "capi")
    term.allocate({STUDENT: PROTOTYPES}, {TEACHER: WIDTH}, seed=0)
    return term.clustering.double()


def slow_positional_sinkhorn(logits: NDArray[np.float64], temperature: float = 0.06) -> NDArray[np.float64]:
    """reference.md 3.8, one position after the other; [B, N, K]."""
    result = np.zeros_like(logits)
    for position in range(logits.shape[1]):
        plan = logits[:, position] / temperature
        plan = np.exp(plan - plan.max(axis=0) + 50)
        for _ in range(3):
            plan /= plan.sum(axis=0) + 1e-8
            plan /= plan.sum(axis=1, keepdims=True) + 1e-8
        result[:, position] = plan
    return result


def log_softmax(x: NDArray[np.float64]) -> NDArray[np.float64]:
    return np.asarray(x - np.log(np.exp(x).sum(axis=-1, keepdims=True)))


def teacher_logits(case: Case) -> NDArray[np.float64]:
    features, clustering = case.teachers[0][TEACHER][0].numpy(), own_clustering()
    unit = features / np.linalg.norm(features, axis=-1, keepdims=True)
    return np.asarray(unit @ clustering.weight.detach().numpy().T)  # the bias starts at 0


def test_positional_sinkhorn_against_its_definition() -> None:
    logits = random(1, BATCH, PATCHES, PROTOTYPES)
    parts = logits.split([1, 3, 2], dim=1)
    scalings = positional_sinkhorn(parts, 0.06, 3, Pieces(None))
    found = torch.cat([s.assignments(x, 0.06) for s, x in zip(scalings, parts, strict=True)], dim=1)
    np.testing.assert_allclose(found[0], slow_positional_sinkhorn(logits[0].numpy()), rtol=1e-9)


def test_positional_sinkhorn_survives_huge_logits() -> None:
    logits = random(1, BATCH, PATCHES, PROTOTYPES).float() * 1e4
    (scalings,) = positional_sinkhorn([logits], 0.06, 3, Pieces(None))
    assert torch.isfinite(scalings.assignments(logits, 0.06)).all()


@pytest.mark.gloo
def test_both_losses() -> None:
    case = make_case()
    whole = assert_equal_on_ranks(case, [(1, 2), (1, 3), (2, 1), (3, 1), (4, 1), (4, 2)])
    logits = teacher_logits(case)
    assignments = slow_positional_sinkhorn(logits)
    clustering = -(assignments * log_softmax(logits / 0.12)).sum() / (BATCH * PATCHES)
    assert whole.parts["clustering"].item() == pytest.approx(clustering, rel=1e-8)
    found = log_softmax(case.student[STUDENT][0].numpy() / 0.12)
    predicted = case.predicted["global"][0].numpy()
    prediction = -(assignments * found)[predicted].sum() / 6
    assert whole.parts["prediction"].item() == pytest.approx(prediction, rel=1e-8)
    assert whole.drawn["kl_rows"].item() == 6
    assert whole.drawn["teacher_rows"].item() == BATCH * PATCHES
    entropy = -(assignments * np.log(assignments)).sum()
    assert whole.drawn["teacher_entropy"].item() == pytest.approx(entropy, rel=1e-6)


def test_gradient_of_the_clustering_takes_assignments_as_given() -> None:
    case = make_case()
    clustering = own_clustering()
    logits = clustering(case.teachers[0][TEACHER][0])
    assignments = torch.from_numpy(slow_positional_sinkhorn(logits.detach().numpy()))
    loss = -(assignments * torch.log_softmax(logits / 0.12, dim=-1)).sum() / (BATCH * PATCHES)
    expected = torch.autograd.grad(loss, [clustering.weight, clustering.bias])
    _, weight, bias = run(case).gradients
    torch.testing.assert_close(weight, expected[0], rtol=1e-7, atol=1e-10)
    torch.testing.assert_close(bias, expected[1], rtol=1e-7, atol=1e-10)


def test_masks_are_predicted_where_no_part_of_them_is_named() -> None:
    case = make_case(torch.ones(1, BATCH, PATCHES, dtype=torch.bool))
    expected = run(case).parts["prediction"].item()
    case.predicted = {}
    assert run(case).parts["prediction"].item() == expected


def test_nothing_to_predict() -> None:
    result = run(make_case(torch.zeros(1, BATCH, PATCHES, dtype=torch.bool)))
    assert result.parts["prediction"].item() == 0
    assert result.parts["clustering"].item() > 0


def test_bfloat16_features() -> None:
    case = make_case()
    case.student = {STUDENT: case.student[STUDENT].bfloat16()}
    case.teachers = [{TEACHER: case.teachers[0][TEACHER].bfloat16()}]
    found, expected = run(case), run(make_case())
    assert found.parts["prediction"].dtype == torch.float32
    assert found.parts["prediction"].item() == pytest.approx(expected.parts["prediction"].item(), rel=0.05)


def test_the_clustering_is_trained_by_its_own_group_and_drawn_from_the_seed() -> None:
    term, other, third = (Capi(CapiOptions(), "capi") for _ in range(3))
    for made, seed in ((term, 1), (other, 1), (third, 2)):
        made.allocate({STUDENT: 200}, {TEACHER: 100}, seed)
    trained = term.trained()
    assert [p.shape for m in trained.modules for p in m.parameters()] == [(200, 100), (200,)]
    assert (trained.weight_decay, trained.betas) == (0.01, (0.9, 0.95))
    assert torch.equal(term.clustering.weight, other.clustering.weight)
    assert not torch.equal(term.clustering.weight, third.clustering.weight)
    assert term.clustering.weight.std().item() == pytest.approx(1, abs=0.02)
    assert not term.clustering.bias.any()


def test_learning_rate_ends_at_a_tenth() -> None:
    # reference.md 12.10: half of 1 + cos 0.8 pi = 0.0955 of the base.
    schedule = LEARNING_RATE.resolve(1000)
    assert schedule(0) == 0
    assert schedule(99) == schedule(100) == 5e-4
    assert schedule(1000) == pytest.approx(0.0955 * 5e-4, rel=1e-3)


@pytest.mark.parametrize("wrong", [{"student_temperature": 0.0}, {"iterations": 0}])
def test_wrong_options(wrong: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match=next(iter(wrong))):
        CapiOptions(**wrong)
