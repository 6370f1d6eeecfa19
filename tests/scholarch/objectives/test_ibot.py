from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from scholarch.config.schedule import Schedule
from scholarch.objectives.centring import CentringOptions
from scholarch.objectives.ibot import Ibot, IbotOptions
from scholarch.objectives.term import Output
from terms import Case, assert_equal_on_ranks, random, run, slow_sinkhorn

MASKED, PATCHES = Output("global", "masked", "ibot"), Output("global", "patches", "ibot")
VIEWS, BATCH, PATCH_COUNT, PROTOTYPES = 2, 6, 9, 5
CENTRED = CentringOptions(kind="moving_average")


def make_masks() -> torch.Tensor:
    """Unequal counts, images without masks, and none at all for samples 0 to 2 (ranks 0 and 1 of 4)."""
    masks = torch.zeros(VIEWS, BATCH, PATCH_COUNT, dtype=torch.bool)
    masks[0, 3, :1] = masks[0, 5, 2:7] = masks[1, 3, 4:6] = masks[1, 4, :] = True
    return masks


def make_case(masks: torch.Tensor | None = None, steps: int = 1, **options: Any) -> Case:
    options.setdefault("teacher_temperature", Schedule.parse(0.07).resolve(10))
    teacher = PATCHES if options.get("centre_on") == "all" else MASKED
    shape = (VIEWS, BATCH, PATCH_COUNT, PROTOTYPES)
    return Case(
        term=lambda: Ibot(IbotOptions(**options), "ibot"),
        student={MASKED: random(*shape, seed=1)},
        teachers=[{teacher: random(*shape, seed=2 + step)} for step in range(steps)],
        global_batch=BATCH,
        masks={"global": make_masks() if masks is None else masks},
    )


def slow_value(student: torch.Tensor, targets: NDArray[np.float64], masks: torch.Tensor) -> float:
    """`targets` are given for the masked patches in [V, b, N] order."""
    total, row = 0.0, 0
    for view in range(VIEWS):
        for sample in range(BATCH):
            losses = []
            for patch in range(PATCH_COUNT):
                if masks[view, sample, patch]:
                    x = student[view, sample, patch].numpy() / 0.1
                    losses.append(-(targets[row] * (x - np.log(np.exp(x).sum()))).sum())
                    row += 1
            total += float(np.mean(losses)) if losses else 0.0
    return total / (VIEWS * BATCH)


@pytest.mark.gloo
def test_sinkhorn_over_all_masked_patches() -> None:
    case = make_case()
    whole = assert_equal_on_ranks(case, [(1, 2), (1, 3), (2, 1), (3, 1), (4, 1), (4, 2)])
    masks = case.masks["global"]
    targets = slow_sinkhorn(case.teachers[0][MASKED][masks].numpy(), 0.07)
    assert whole.parts[""].item() == pytest.approx(
        slow_value(case.student[MASKED], targets, masks), rel=1e-12
    )


@pytest.mark.gloo
@pytest.mark.parametrize("centre_on", ["masked", "all"])
def test_moving_average(centre_on: str) -> None:
    case = make_case(steps=2, centring=CENTRED, centre_on=centre_on)
    whole = assert_equal_on_ranks(case, [(1, 2), (4, 1)])
    masks = case.masks["global"]
    first, second = (next(iter(teacher.values())) for teacher in case.teachers)
    seen = first[masks] if centre_on == "masked" else first.reshape(-1, PROTOTYPES)
    logits = (second[masks] - 0.1 * seen.mean(dim=0)).numpy() / 0.07
    targets = np.exp(logits) / np.exp(logits).sum(axis=-1, keepdims=True)
    assert whole.parts[""].item() == pytest.approx(slow_value(case.student[MASKED], targets, masks), rel=1e-6)


def test_one_masked_image_counts_one_image_in_all() -> None:
    # reference.md 12.4: the mean cross-entropy of that image / 2B; a uniform student gives ln K.
    masks = torch.zeros(VIEWS, BATCH, PATCH_COUNT, dtype=torch.bool)
    masks[1, 2, 3:7] = True
    case = make_case(masks)
    case.student = {MASKED: torch.zeros_like(case.student[MASKED])}
    assert run(case).parts[""].item() == pytest.approx(np.log(PROTOTYPES) / (2 * BATCH), rel=1e-12)


@pytest.mark.gloo
def test_no_mask_anywhere_gives_zero_and_zero_gradients() -> None:
    case = make_case(torch.zeros(VIEWS, BATCH, PATCH_COUNT, dtype=torch.bool))
    whole = assert_equal_on_ranks(case, [(2, 1)])
    assert whole.parts[""].item() == 0
    assert not whole.gradients[0].any()


def test_drawn_sums() -> None:
    case = make_case(centring=CENTRED)
    masks = case.masks["global"]
    drawn = run(case).drawn
    teacher = torch.softmax(case.teachers[0][MASKED][masks] / 0.07, dim=-1).numpy()
    student = torch.log_softmax(case.student[MASKED][masks] / 0.1, dim=-1).numpy()
    assert (
        drawn["kl_rows"].item() == drawn["teacher_rows"].item() == drawn["usage"].sum().item() == masks.sum()
    )
    assert drawn["teacher_entropy"].item() == pytest.approx(-(teacher * np.log(teacher)).sum(), rel=1e-12)
    assert drawn["kl"].item() == pytest.approx((teacher * (np.log(teacher) - student)).sum(), rel=1e-12)


def test_bfloat16_logits_are_compared_in_float32() -> None:
    case, rounded = make_case(), make_case()
    case.student = {MASKED: case.student[MASKED].bfloat16()}
    case.teachers = [{MASKED: case.teachers[0][MASKED].bfloat16()}]
    rounded.student = {MASKED: case.student[MASKED].double()}
    rounded.teachers = [{MASKED: case.teachers[0][MASKED].double()}]
    found = run(case).parts[""]
    assert found.dtype == torch.float32
    assert found.item() == pytest.approx(run(rounded).parts[""].item(), rel=1e-5)


def test_wrong_options() -> None:
    with pytest.raises(ValueError, match="moving_average"):
        IbotOptions(centre_on="all")
    with pytest.raises(ValueError, match="student_temperature"):
        IbotOptions(student_temperature=-1.0)
