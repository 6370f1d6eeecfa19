from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from scholarch.config.schedule import Schedule
from scholarch.objectives.centring import CentringOptions
from scholarch.objectives.dino import TEACHER_TEMPERATURE, Dino, DinoOptions
from scholarch.objectives.term import Output
from terms import Case, assert_equal_on_ranks, random, run

GLOBAL, LOCAL = Output("global", "cls", "dino"), Output("local", "cls", "dino")
BATCH, PROTOTYPES = 6, 5


def constant(value: float) -> Schedule:
    return Schedule.parse(value).resolve(10)


def make_case(global_views: int = 2, local_views: int = 3, steps: int = 1, **options: Any) -> Case:
    options.setdefault("teacher_temperature", constant(0.07))
    options.setdefault("local_weight", constant(1.0))
    student = {GLOBAL: random(global_views, BATCH, PROTOTYPES, seed=1)}
    if local_views:
        student[LOCAL] = random(local_views, BATCH, PROTOTYPES, seed=2)
    return Case(
        term=lambda: Dino(DinoOptions(**options), "dino"),
        student=student,
        teachers=[{GLOBAL: random(global_views, BATCH, PROTOTYPES, seed=3 + step)} for step in range(steps)],
        global_batch=BATCH,
    )


def log_softmax(x: NDArray[np.float64]) -> NDArray[np.float64]:
    return np.asarray(x - np.log(np.exp(x).sum(axis=-1, keepdims=True)))


def softmax_targets(case: Case, centre: NDArray[np.float64] | float = 0.0) -> NDArray[np.float64]:
    return np.exp(log_softmax((case.teachers[-1][GLOBAL].numpy() - centre) / 0.07))


def cross_entropy(student: NDArray[np.float64], teacher: NDArray[np.float64]) -> float:
    """Mean over the batch for one pair of views; student [B, K] are log-probabilities."""
    return float(-sum(teacher[i, k] * student[i, k] for i in range(BATCH) for k in range(PROTOTYPES)) / BATCH)


def test_coefficients_of_the_source() -> None:
    case = make_case(local_views=8, centring=CentringOptions(kind="moving_average"))
    teacher = softmax_targets(case)
    student = {output: log_softmax(x.numpy() / 0.1) for output, x in case.student.items()}
    pairs = [cross_entropy(student[GLOBAL][s], teacher[1 - s]) for s in range(2)]
    local = [cross_entropy(student[LOCAL][s], teacher[t]) for s in range(8) for t in range(2)]
    parts = run(case).parts
    assert parts["global"].item() == pytest.approx(2 / 18 * np.mean(pairs), rel=1e-12)
    assert parts["local"].item() == pytest.approx(16 / 18 * np.mean(local), rel=1e-12)
    # DINO v1: all pairs weigh the same.
    assert sum(parts.values()).item() == pytest.approx(np.mean(pairs + local), rel=1e-12)


def test_with_the_diagonal_all_four_pairs_count() -> None:
    case = make_case(local_views=0, ignore_diagonal=False, centring=CentringOptions(kind="moving_average"))
    teacher, student = softmax_targets(case), log_softmax(case.student[GLOBAL].numpy() / 0.1)
    pairs = [cross_entropy(student[s], teacher[t]) for s in range(2) for t in range(2)]
    assert run(case).parts["global"].item() == pytest.approx(np.mean(pairs), rel=1e-12)


def test_two_crops_without_locals() -> None:
    case = make_case(local_views=0, centring=CentringOptions(kind="moving_average"))
    teacher, student = softmax_targets(case), log_softmax(case.student[GLOBAL].numpy() / 0.1)
    expected = (cross_entropy(student[0], teacher[1]) + cross_entropy(student[1], teacher[0])) / 2
    parts = run(case).parts
    assert list(parts) == ["global"]
    assert parts["global"].item() == pytest.approx(expected, rel=1e-12)


def test_coefficients_sum_to_one_and_local_weight_leaves_the_divisor() -> None:
    # Uniform student: every cross-entropy is ln K, whatever the targets (reference.md 12.4, 3.1).
    for weight, total in ((1.0, 1.0), (0.5, 10 / 18)):
        case = make_case(local_views=8, local_weight=constant(weight))
        case.student = {output: torch.zeros_like(x) for output, x in case.student.items()}
        value = sum(run(case).parts.values()).item()
        assert value == pytest.approx(total * np.log(PROTOTYPES), rel=1e-12)


@pytest.mark.gloo
def test_equal_on_any_number_of_ranks_and_micro_batches() -> None:
    assert_equal_on_ranks(make_case(), [(1, 2), (2, 1), (3, 1), (4, 1), (2, 3), (4, 2)])


@pytest.mark.gloo
def test_moving_average_is_equal_on_ranks_and_lags() -> None:
    case = make_case(steps=2, centring=CentringOptions(kind="moving_average"))
    whole = assert_equal_on_ranks(case, [(1, 3), (4, 1)])
    centre = 0.1 * case.teachers[0][GLOBAL].numpy().mean(axis=(0, 1))
    teacher, student = softmax_targets(case, centre), log_softmax(case.student[GLOBAL].numpy() / 0.1)
    pairs = [cross_entropy(student[s], teacher[1 - s]) for s in range(2)]
    assert whole.parts["global"].item() == pytest.approx(2 / 8 * np.mean(pairs), rel=1e-6)


def test_drawn_sums() -> None:
    case = make_case(local_views=0, centring=CentringOptions(kind="moving_average"))
    teacher, student = softmax_targets(case), log_softmax(case.student[GLOBAL].numpy() / 0.1)
    drawn = run(case).drawn
    entropy = -(teacher * np.log(teacher)).sum()
    assert drawn["teacher_entropy"].item() == pytest.approx(entropy, rel=1e-12)
    assert drawn["teacher_rows"].item() == 2 * BATCH
    usage = np.bincount(teacher.argmax(axis=-1).reshape(-1), minlength=PROTOTYPES)
    assert drawn["usage"].tolist() == usage.tolist()
    divergence = (teacher * (np.log(teacher) - student[::-1])).sum()
    assert drawn["kl"].item() == pytest.approx(divergence, rel=1e-12)
    assert drawn["kl_rows"].item() == 2 * BATCH


def test_bfloat16_logits_are_compared_in_float32() -> None:
    case = make_case()
    case.student = {output: x.bfloat16() for output, x in case.student.items()}
    case.teachers = [{GLOBAL: case.teachers[0][GLOBAL].bfloat16()}]
    rounded = make_case()
    rounded.student = {output: x.double() for output, x in case.student.items()}
    rounded.teachers = [{GLOBAL: case.teachers[0][GLOBAL].double()}]
    found, expected = run(case), run(rounded)
    assert found.parts["local"].dtype == torch.float32
    assert found.gradients[0].dtype == torch.bfloat16
    assert found.parts["local"].item() == pytest.approx(expected.parts["local"].item(), rel=1e-5)


def test_one_view_alone_has_no_pair() -> None:
    with pytest.raises(ValueError, match="no pair"):
        run(make_case(global_views=1, local_views=0))


def test_teacher_temperature_follows_its_schedule() -> None:
    schedule = TEACHER_TEMPERATURE.resolve(100)
    assert [schedule(0), schedule(29), schedule(99)] == pytest.approx([0.04, 0.07, 0.07])


@pytest.mark.parametrize("wrong", [{"student_temperature": 0.0}, {"teacher_views": ()}])
def test_wrong_options(wrong: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match=next(iter(wrong))):
        DinoOptions(**wrong)
