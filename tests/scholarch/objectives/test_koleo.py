import math

import numpy as np
import pytest
import torch
from scholarch.objectives.koleo import KoLeo, KoLeoOptions
from scholarch.objectives.term import Output
from terms import Case, assert_equal_on_ranks, random, run
from torch import Tensor

CLS = Output("global", "cls")


def make_case(features: Tensor, group: int | None) -> Case:
    return Case(
        term=lambda: KoLeo(KoLeoOptions(group=group), "koleo"),
        student={CLS: features},
        teachers=[{}],
        global_batch=features.shape[1],
    )


def slow_value(features: Tensor, groups: list[range]) -> float:
    total, batch = 0.0, features.shape[1]
    for view in features.double().numpy():
        x = view / np.linalg.norm(view, axis=1, keepdims=True)
        for group in groups:
            for i in group:
                _, j = max((x[i] @ x[j], j) for j in group if j != i)
                total -= math.log(np.linalg.norm(x[i] - x[j] + 1e-8) + 1e-8)
    return total / batch


@pytest.mark.gloo
@pytest.mark.parametrize(
    ("group", "groups", "layouts"),
    [
        (None, [range(12)], [(2, 1), (3, 1), (4, 1)]),
        (16, [range(12)], [(4, 1)]),
        (6, [range(6), range(6, 12)], [(1, 2), (2, 1), (2, 2), (3, 1), (4, 2)]),
        (4, [range(4), range(4, 8), range(8, 12)], [(1, 3), (2, 1), (3, 1), (4, 3)]),
        (5, [range(5), range(5, 10), range(10, 12)], [(2, 1), (4, 1)]),
        (11, [range(12)], [(4, 1)]),
    ],
)
def test_groups_in_global_order(
    group: int | None, groups: list[range], layouts: list[tuple[int, int]]
) -> None:
    features = random(2, 12, 4)
    whole = assert_equal_on_ranks(make_case(features, group), layouts)
    assert whole.parts[""].item() == pytest.approx(slow_value(features, groups), rel=1e-10)
    assert whole.drawn["rows"].item() == 24


@pytest.mark.gloo
def test_ranks_without_samples_take_part() -> None:
    features = random(1, 2, 4)
    whole = assert_equal_on_ranks(make_case(features, 2), [(3, 1), (4, 1)])
    assert whole.parts[""].item() == pytest.approx(slow_value(features, [range(2)]), rel=1e-10)


def test_gradient_against_finite_differences() -> None:
    features = random(2, 5, 3)
    torch.autograd.gradcheck(
        lambda x: _value(x), (features.requires_grad_(),), eps=1e-7, atol=1e-5, nondet_tol=0.0
    )


def _value(x: Tensor) -> Tensor:
    from terms import make_share

    case = make_case(x, None)
    return case.term()({CLS: x}, None, make_share(case, 0, None, 0, 1)).parts[""]


def test_two_orthogonal_vectors() -> None:
    # reference.md 12.6: -ln(sqrt 2).
    found = run(make_case(torch.eye(2, dtype=torch.float64)[None] * 7, None)).parts[""]
    assert found.item() == pytest.approx(-math.log(math.sqrt(2)), abs=1e-7)


def test_antipodes_are_neighbours_of_each_other() -> None:
    features = torch.tensor([[[1.0, 0.0], [-1.0, 0.0]]], dtype=torch.float64)
    assert run(make_case(features, None)).parts[""].item() == pytest.approx(-math.log(2), abs=1e-7)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_duplicates_and_zeros_stay_finite(dtype: torch.dtype) -> None:
    features = torch.ones(1, 4, 16, dtype=dtype)
    features[0, 3] = 0
    result = run(make_case(features, None))
    assert torch.isfinite(result.parts[""])
    assert torch.isfinite(result.gradients[0]).all()


def test_bfloat16_features_are_compared_in_float32() -> None:
    features = random(2, 6, 8).bfloat16()
    found = run(make_case(features, None)).parts[""]
    assert found.dtype == torch.float32
    assert found.item() == pytest.approx(slow_value(features, [range(6)]), rel=1e-4)


def test_what_it_asks_of_the_batch() -> None:
    term = KoLeo(KoLeoOptions(), "koleo")
    assert term.smallest_batch() == 2
    assert (term.group_size(64), term.group_size(8)) == (16, 8)
    assert KoLeo(KoLeoOptions(group=None), "koleo").group_size(64) == 64


def test_a_group_across_micro_batches_is_refused() -> None:
    with pytest.raises(ValueError, match="whole groups of 4"):
        run(make_case(random(1, 12, 4), 4), micro_batches=2)


def test_wrong_options() -> None:
    with pytest.raises(ValueError, match="neighbour"):
        KoLeoOptions(group=1)
