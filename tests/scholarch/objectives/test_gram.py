from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from scholarch.objectives.gram import Gram, GramOptions, resize_patches
from scholarch.objectives.term import Output
from terms import Case, assert_equal_on_ranks, random, run
from torch import Tensor

STUDENT, TEACHER = Output("global", "patches"), Output("gram", "patches")
VIEWS, BATCH, PATCHES, WIDTH = 2, 6, 6, 4
NEGATIVES = ["keep", "remove", "remove_teacher", "remove_teacher_as_shipped"]


def make_masks() -> Tensor:
    masks = torch.zeros(VIEWS, BATCH, PATCHES, dtype=torch.bool)
    masks[0, 3, :1] = masks[0, 5, 2:5] = masks[1, 3, 4:6] = masks[1, 4, :] = True
    return masks


def make_case(teacher: Tensor | None = None, masks: Tensor | None = None, **options: Any) -> Case:
    grids = {"global": (2, 3), "gram": (2, 3)}
    return Case(
        term=lambda: Gram(GramOptions(**options), "gram"),
        student={STUDENT: random(VIEWS, BATCH, PATCHES, WIDTH, seed=1)},
        teachers=[
            {TEACHER: random(VIEWS, BATCH, PATCHES, WIDTH + 1, seed=2) if teacher is None else teacher}
        ],
        global_batch=BATCH,
        masks={} if masks is None else {"global": masks},
        grids=grids,
    )


def slow_difference(
    student: NDArray[np.float64], teacher: NDArray[np.float64], negatives: str = "keep"
) -> float:
    """Mean over all pairs of rows; [n, D] each."""

    def cosine(x: NDArray[np.float64], i: int, j: int) -> float:
        return float(x[i] @ x[j] / np.linalg.norm(x[i]) / np.linalg.norm(x[j]))

    total, n = 0.0, len(student)
    for i in range(n):
        for j in range(n):
            s, t = cosine(student, i, j), cosine(teacher, i, j)
            if negatives == "remove" or (negatives == "remove_teacher" and t < 0):
                s = max(s, 0.0)
            if negatives != "keep":
                t = max(t, 0.0)
            total += (s - t) ** 2
    return total / n**2 if n else 0.0


@pytest.mark.gloo
@pytest.mark.parametrize("negatives", NEGATIVES)
def test_per_image(negatives: str) -> None:
    case = make_case(negatives=negatives)
    whole = assert_equal_on_ranks(case, [(1, 3), (4, 1)])
    student, teacher = case.student[STUDENT].numpy(), case.teachers[0][TEACHER].numpy()
    expected = np.mean(
        [slow_difference(student[v, i], teacher[v, i], negatives) for v in range(VIEWS) for i in range(BATCH)]
    )
    assert whole.parts[""].item() == pytest.approx(expected, rel=1e-10)


@pytest.mark.gloo
@pytest.mark.parametrize(
    ("group", "groups", "layouts"),
    [
        (16, [range(6)], [(2, 1), (3, 1), (4, 1)]),
        (3, [range(3), range(3, 6)], [(1, 2), (2, 1), (4, 1), (4, 2)]),
        (2, [range(2), range(2, 4), range(4, 6)], [(3, 1), (4, 1), (4, 3)]),
    ],
)
@pytest.mark.parametrize("tokens", ["all", "masked", "unmasked"])
def test_per_group(group: int, groups: list[range], layouts: list[tuple[int, int]], tokens: str) -> None:
    masks = make_masks()
    case = make_case(masks=masks, per_image=False, group=group, tokens=tokens)
    whole = assert_equal_on_ranks(case, layouts)
    expected = 0.0
    for members in groups:
        used = {"all": torch.ones_like(masks), "masked": masks, "unmasked": ~masks}[tokens][:, members]
        student = case.student[STUDENT][:, members][used].numpy()
        teacher = case.teachers[0][TEACHER][:, members][used].numpy()
        expected += slow_difference(student, teacher) * len(members) / BATCH
    assert whole.parts[""].item() == pytest.approx(expected, rel=1e-10)


def test_drawn_sums_split_by_mask() -> None:
    masks = make_masks()
    result = run(make_case(masks=masks))
    drawn = result.drawn
    assert drawn["masked_rows"].item() == masks.sum()
    assert drawn["unmasked_rows"].item() == (~masks).sum()
    total = (drawn["masked_difference"] + drawn["unmasked_difference"]).item()
    assert total / masks.numel() == pytest.approx(result.parts[""].item(), rel=1e-12)
    only = run(make_case(masks=torch.ones_like(masks))).drawn
    assert only["unmasked_difference"].item() == 0


def test_products_in_place_of_cosines() -> None:
    case = make_case(normalise=False)
    student, teacher = case.student[STUDENT], case.teachers[0][TEACHER]
    expected = np.mean(
        [
            ((student[v, i] @ student[v, i].T - teacher[v, i] @ teacher[v, i].T) ** 2).mean().item()
            for v in range(VIEWS)
            for i in range(BATCH)
        ]
    )
    assert run(case).parts[""].item() == pytest.approx(expected, rel=1e-10)


def test_a_student_equal_to_its_teacher_loses_nothing() -> None:
    case = make_case()
    case.teachers = [{TEACHER: case.student[STUDENT] * 3}]
    assert run(case).parts[""].item() == pytest.approx(0, abs=1e-25)


def cubic(distance: float) -> float:
    """Keys' cubic convolution with a = -0.75."""
    x, a = abs(distance), -0.75
    if x <= 1:
        return (a + 2) * x**3 - (a + 3) * x**2 + 1
    return a * x**3 - 5 * a * x**2 + 8 * a * x - 4 * a if x < 2 else 0.0


def slow_resize(image: NDArray[np.float64], height: int, width: int) -> NDArray[np.float64]:
    """[h, w, D]; corners not aligned, borders repeated, no antialiasing."""
    result = np.zeros((height, width, image.shape[2]))
    for y in range(height):
        for x in range(width):
            v = (y + 0.5) * image.shape[0] / height - 0.5
            u = (x + 0.5) * image.shape[1] / width - 0.5
            for i in range(int(np.floor(v)) - 1, int(np.floor(v)) + 3):
                for j in range(int(np.floor(u)) - 1, int(np.floor(u)) + 3):
                    pixel = image[np.clip(i, 0, image.shape[0] - 1), np.clip(j, 0, image.shape[1] - 1)]
                    result[y, x] += cubic(v - i) * cubic(u - j) * pixel
    return result


@pytest.mark.parametrize(("grid", "size"), [((4, 6), (2, 3)), ((5, 4), (3, 6)), ((4, 4), (2, 2))])
def test_resize_on_any_grid(grid: tuple[int, int], size: tuple[int, int]) -> None:
    patches = random(1, 2, grid[0] * grid[1], 3)
    found = resize_patches(patches, grid, size)
    for i in range(2):
        expected = slow_resize(patches[0, i].numpy().reshape(*grid, 3), *size)
        np.testing.assert_allclose(found[0, i], expected.reshape(-1, 3), rtol=1e-10, atol=1e-12)


@pytest.mark.gloo
def test_a_teacher_of_twice_the_size_is_resized_before_it_is_normalised() -> None:
    case = make_case(random(VIEWS, BATCH, 24, WIDTH, seed=2))
    case.grids = {"global": (2, 3), "gram": (4, 6)}
    whole = assert_equal_on_ranks(case, [(4, 2)])  # some ranks have no sample
    student, teacher = case.student[STUDENT].numpy(), case.teachers[0][TEACHER].numpy()
    expected = np.mean(
        [
            slow_difference(student[v, i], slow_resize(teacher[v, i].reshape(4, 6, -1), 2, 3).reshape(6, -1))
            for v in range(VIEWS)
            for i in range(BATCH)
        ]
    )
    assert whole.parts[""].item() == pytest.approx(expected, rel=1e-10)


def test_an_ema_teacher_that_sees_the_students_crops() -> None:
    case = make_case(teacher_view="global")
    case.teachers = [{STUDENT: case.teachers[0][TEACHER]}]
    expected = run(make_case()).parts[""].item()
    assert run(case).parts[""].item() == expected


def test_bfloat16_features_are_compared_in_float32() -> None:
    case, rounded = make_case(), make_case()
    case.student = {STUDENT: case.student[STUDENT].bfloat16()}
    case.teachers = [{TEACHER: case.teachers[0][TEACHER].bfloat16()}]
    rounded.student = {STUDENT: case.student[STUDENT].double()}
    rounded.teachers = [{TEACHER: case.teachers[0][TEACHER].double()}]
    found = run(case).parts[""]
    assert found.dtype == torch.float32
    assert found.item() == pytest.approx(run(rounded).parts[""].item(), rel=1e-5)


def test_what_it_asks_of_the_batch() -> None:
    assert Gram(GramOptions(), "gram").group_size(64) == 1
    assert Gram(GramOptions(per_image=False, group=16), "gram").group_size(64) == 16


def test_views_and_grids_that_do_not_match_are_named() -> None:
    with pytest.raises(ValueError, match="1 views 'gram'"):
        run(make_case(random(1, BATCH, PATCHES, WIDTH)))
    case = make_case()
    case.grids = {}
    with pytest.raises(ValueError, match="6 patches of view 'global'"):
        run(case)


@pytest.mark.parametrize("wrong", [{"tokens": "masked"}, {"group": 0}])
def test_wrong_options(wrong: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match=next(iter(wrong))):
        GramOptions(**wrong)
