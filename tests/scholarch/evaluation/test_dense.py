"""Segmentation and depth: labels of patches, losses and scores worked out slowly; perfect and random features."""

import math

import numpy as np
import pytest
import torch
from evaluation_given import Rows, annotated, given
from scholarch.draws import torch_generator
from scholarch.errors import UserError
from scholarch.evaluation.dense import (
    HeadOptions,
    Patches,
    patch_means,
    patch_shares,
    schedule,
    to_pixels,
    trained_head,
)
from scholarch.evaluation.depth import Depth, DepthOptions, depth_errors, expected, sig_loss
from scholarch.evaluation.face import Evaluation, Given
from scholarch.evaluation.segmentation import (
    KnnDense,
    KnnDenseOptions,
    Segmentation,
    SegmentationOptions,
    mean_iou,
)
from torch import Tensor
from torch.nn import functional as F

GRID = (4, 4)
CLASSES = ["left", "right"]
SEGMENTERS: list[Evaluation] = [
    Segmentation(SegmentationOptions(steps=200, rate=0.05)),
    KnnDense(KnnDenseOptions(neighbours=3)),
]


def halves(borders: list[int], side: int = 16) -> list[np.ndarray]:
    """Masks whose right part begins at a border, in patches."""
    return [
        np.repeat((np.arange(side) >= b * side // 4)[None], side, axis=0).astype(np.int64) for b in borders
    ]


def of_masks(train: list[np.ndarray], test: list[np.ndarray], features: list[list[Tensor]]) -> Given:
    return given(
        {"train": Rows({"patches": features[0]}, GRID), "test": Rows({"patches": features[1]}, GRID)},
        {
            "train": annotated({"mask": train}, {"mask": CLASSES}),
            "test": annotated({"mask": test}, {"mask": CLASSES}),
        },
    )


@pytest.mark.parametrize("evaluation", SEGMENTERS, ids=lambda one: one.options.kind)
def test_patches_that_are_their_class_are_perfect(evaluation: Evaluation) -> None:
    masks = [halves([1, 2, 3]), halves([2, 1])]
    features = [[patch_shares(m, GRID, 2) for m in split] for split in masks]
    outcome = evaluation.run(of_masks(*masks, features))
    assert outcome.metrics == pytest.approx(dict.fromkeys(outcome.metrics, 1.0))
    assert outcome.samples["picture_miou"].tolist() == [1.0, 1.0]


@pytest.mark.parametrize("evaluation", SEGMENTERS, ids=lambda one: one.options.kind)
def test_patches_without_their_class_are_at_chance(evaluation: Evaluation) -> None:
    """Two classes as often, found independently: half of the pixels right, a third of the union."""
    masks = halves([2] * 60)
    noise = [[torch.randn(16, 8, generator=torch_generator(s, i)) for i in range(60)] for s in (0, 1)]
    outcome = evaluation.run(of_masks(masks, masks, noise))
    assert outcome.metrics["accuracy"] == pytest.approx(0.5, abs=0.06)
    assert outcome.metrics["miou"] == pytest.approx(1 / 3, abs=0.06)


def test_shares_of_classes_in_patches() -> None:
    mask = np.array([[0, 0, 1, 255], [0, 1, 255, 255], [1, 1, 0, 0], [1, 1, 0, 0]])
    expected_shares = [[0.75, 0.25], [0.0, 0.25], [0.0, 1.0], [1.0, 0.0]]
    assert patch_shares(mask, (2, 2), 2).tolist() == expected_shares
    values = np.array([[2.0, 0, 0, 0], [4.0, 0, 0, 0], [1, 1, 3, 5], [1, 1, 3, 5]])
    means, there = patch_means(values, (2, 2))
    assert means.tolist() == [3.0, 0.0, 1.0, 4.0]
    assert there.tolist() == [True, False, True, True]


def test_pixels_between_patches_are_bilinear() -> None:
    """Two patches of two pixels: centres at 1 and 3, so pixels at 0.5, 1.5, 2.5, 3.5."""
    found = to_pixels(torch.tensor([[0.0], [1.0]]), (1, 2), (1, 4))
    assert found[0, 0].tolist() == [0.0, 0.25, 0.75, 1.0]


def test_mean_iou_counts_pixels_of_all_pictures_together() -> None:
    outcome = KnnDense(KnnDenseOptions(neighbours=1)).run(_one_wrong())
    # Picture 0 is right; of picture 1 (all left) the found border is at 2.
    truth, found = np.concatenate(halves([2, 4])).ravel(), np.concatenate(halves([2, 2])).ravel()
    ious = []
    for label in (0, 1):
        both = sum(1 for t, f in zip(truth, found, strict=True) if t == f == label)
        either = sum(1 for t, f in zip(truth, found, strict=True) if label in (t, f))
        ious.append(both / either)
    assert outcome.metrics["miou"] == pytest.approx(np.mean(ious))
    assert outcome.samples["picture_miou"].tolist() == pytest.approx([1.0, (0.5 + 0.0) / 2])


def _one_wrong() -> Given:
    train, test = halves([2]), halves([2, 4])
    right = patch_shares(train[0], GRID, 2)
    return of_masks(train, test, [[right], [right, right]])


def test_pixels_left_out_count_for_nothing() -> None:
    assert mean_iou(torch.tensor([[3, 1], [0, 0]])) == pytest.approx((3 / 4 + 0) / 2)
    assert mean_iou(torch.tensor([[3, 0], [0, 0]])) == 1.0
    assert math.isnan(mean_iou(torch.zeros(2, 2, dtype=torch.int64)))


def test_a_head_finds_the_least_squares_of_standardised_features() -> None:
    values = torch.randn(50, 3, generator=torch_generator(0)) * torch.tensor([1.0, 10.0, 0.1]) + 5
    targets = values @ torch.tensor([[1.0], [0.2], [3.0]]) - 4
    options = HeadOptions(rate=0.3, weight_decay=0.0, steps=800)
    head = trained_head(Patches(values, targets), 1, options, lambda out, truth, _: F.mse_loss(out, truth))
    torch.testing.assert_close(head(values), targets, atol=2e-2, rtol=1e-2)


def test_the_schedule_rises_for_a_tenth_and_falls_to_nothing() -> None:
    values = [schedule(step, 100) for step in range(100)]
    assert values[0] == pytest.approx(0.1)
    assert values[9] == values[10] == 1.0
    assert values[55] == pytest.approx(0.5)
    assert values[99] < 1e-3


def test_expected_depth_is_the_mean_of_bins() -> None:
    """Outputs -1, 0.9, 0.3 become weights 0.1, 1.0, 0.4, and the mean of 1, 2, 4 is 3.7 / 1.5."""
    assert float(expected(torch.tensor([[-1.0, 0.9, 0.3]]), torch.tensor([1.0, 2.0, 4.0]))) == pytest.approx(
        3.7 / 1.5
    )


def test_sig_loss_equals_numpy() -> None:
    found, truth = np.array([1.0, 2.0, 5.0]), np.array([1.5, 1.0, 5.5])
    g = np.log(found + 1e-3) - np.log(truth + 1e-3)
    tensors = torch.from_numpy(found), torch.from_numpy(truth)
    assert float(sig_loss(*tensors, mean_alone=False)) == pytest.approx(
        math.sqrt(g.var(ddof=1) + 0.15 * g.mean() ** 2)
    )
    assert float(sig_loss(*tensors, mean_alone=True)) == pytest.approx(
        math.sqrt(0.15) * abs(g.mean()), rel=1e-4
    )


def test_depth_errors_by_hand() -> None:
    truth = np.array([1.0, 2.0, 4.0, 0.0, 99.0])
    found = np.array([1.0, 3.0, 4.5, 7.0, 1.0])
    errors = depth_errors(found, truth, 0.5, 10.0)
    assert errors == pytest.approx({"rmse": math.sqrt(1.25 / 3), "abs_rel": (0.5 + 0.125) / 3, "a1": 2 / 3})
    assert depth_errors(truth, truth, 0.5, 10.0) == {"rmse": 0.0, "abs_rel": 0.0, "a1": 1.0}
    assert depth_errors(truth, np.zeros(5), 0.5, 10.0) is None


def of_depths(features: str) -> Given:
    depths = [np.full((16, 16), metres, np.float32) for metres in (2.0, 4.0, 8.0)] * 4
    rows = {
        split: Rows(
            {
                "patches": [
                    F.one_hot(torch.tensor([i % 3] * 16), 3).float()
                    if features == "exact"
                    else torch.randn(16, 3, generator=torch_generator(seed, i))
                    for i in range(12)
                ]
            },
            GRID,
        )
        for seed, split in enumerate(("train", "test"))
    }
    data = annotated({"depth": depths})
    return given(rows, {"train": data, "test": data})  # type: ignore[arg-type]


def test_depth_from_features_that_tell_it_and_from_ones_that_do_not() -> None:
    evaluation = Depth(DepthOptions(steps=600, rate=0.1, weight_decay=0.0, bins=16))
    exact, noise = (evaluation.run(of_depths(kind)).metrics for kind in ("exact", "noise"))
    assert exact["abs_rel"] < 0.12
    assert exact["a1"] == 1.0
    # The best that a guess can do that is the same everywhere: the middle class and what is near it.
    assert noise["abs_rel"] > 0.3


def test_a_picture_without_depth_in_the_range_is_told() -> None:
    made = of_depths("exact")
    evaluation = Depth(DepthOptions(steps=1, bins=4, nearest=20.0, farthest=30.0))
    with pytest.raises(UserError, match="no pixel of made/00000 has a depth"):
        evaluation.run(made)
