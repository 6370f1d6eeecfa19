"""Artefacts, stability and resolution against slow loops and scikit-learn."""

import math

import numpy as np
import pytest
import torch
from evaluation_given import Rows, annotated, given
from scholarch.draws import torch_generator
from scholarch.errors import UserError
from scholarch.evaluation.artefacts import ArtefactOptions, Artefacts, neighbour_cosine, ridge
from scholarch.evaluation.face import Given
from scholarch.evaluation.resolution import Resolution, ResolutionOptions
from scholarch.evaluation.stability import Stability, StabilityOptions, gram
from sklearn.linear_model import Ridge
from torch import Tensor


def noise(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch_generator(seed))


def test_neighbour_cosines_equal_a_slow_loop() -> None:
    embedded = noise(12, 5)
    x = embedded.reshape(3, 4, 5).double().numpy()
    x /= np.linalg.norm(x, axis=-1, keepdims=True)
    expected = np.empty((3, 4))
    for row in range(3):
        for column in range(4):
            near = [(row + d, column + r) for d, r in ((1, 0), (-1, 0), (0, 1), (0, -1))]
            inside = [x[i, j] for i, j in near if 0 <= i < 3 and 0 <= j < 4]
            expected[row, column] = np.mean([x[row, column] @ other for other in inside])
    np.testing.assert_allclose(neighbour_cosine(embedded, (3, 4)), expected.ravel(), atol=1e-6)


def test_ridge_equals_scikit_learn() -> None:
    features, targets = noise(40, 6), noise(40, 2, seed=1)
    centred = features.double() - features.double().mean(0)
    alpha = 0.01 * float(centred.square().mean()) * 40
    peer = Ridge(alpha=alpha).fit(features.double().numpy(), targets.double().numpy())
    found = ridge(features, targets, 0.01)(features)
    np.testing.assert_allclose(found.numpy(), peer.predict(features.double().numpy()), atol=1e-9)


def with_outliers() -> Given:
    """10 pictures of 5 x 5 patches that know place and pixels; one of each is long, knows nothing and is smooth."""
    places = torch.cartesian_prod(torch.arange(5.0), torch.arange(5.0))
    outputs: dict[str, list[Tensor]] = {"patches": [], "norms": [], "embedded": [], "pixels": []}
    for number in range(10):
        pixels, lengths = noise(25, 3, seed=number), 1 + 0.05 * noise(25, seed=number).tanh()
        features = torch.cat([places, pixels], dim=1)
        embedded = noise(25, 8, seed=100 + number)
        odd = (3 * number + 6) % 25
        features[odd], lengths[odd] = 100 * noise(5, seed=7).sign(), 30.0
        outputs["patches"].append(features)
        outputs["norms"].append(torch.stack([torch.ones(25), lengths], dim=1))
        outputs["embedded"].append(embedded)
        outputs["pixels"].append(pixels)
    rows = Rows(outputs, (5, 5))  # type: ignore[arg-type]
    data = annotated({"class": [0] * 10})
    return given({"train": rows, "test": rows}, {"train": data, "test": data})


def test_planted_outliers_are_found_and_know_less() -> None:
    metrics = Artefacts(ArtefactOptions(largest=0.04)).run(with_outliers()).metrics
    assert metrics["outlier_share"] == pytest.approx(1 / 25)
    assert metrics["largest_over_median"] == pytest.approx(30, rel=0.05)
    assert metrics["position_error_largest"] > 2 * metrics["position_error_rest"]
    assert metrics["pixel_error_largest"] > metrics["pixel_error_rest"]
    by_hand = Artefacts(ArtefactOptions(threshold=150.0)).run(with_outliers()).metrics
    assert by_hand["outlier_share"] == 0.0


def of_patches(ours: list[Tensor], theirs: list[Tensor], cls: list[Tensor]) -> Given:
    return given(
        {"test": Rows({"cls": cls, "patches": ours}, (2, 2))},
        {"test": annotated({"class": [0] * len(ours)})},
        others={("test", 1.0, True): Rows({"cls": cls, "patches": theirs}, (2, 2))},
    )


def test_cosines_and_gram_distance_equal_slow_loops() -> None:
    ours, theirs = ([noise(4, 3, seed=s + i) for i in range(2)] for s in (0, 50))
    cls = [noise(3, seed=90 + i) for i in range(2)]
    found = Stability(StabilityOptions(reference="other")).run(of_patches(ours, theirs, cls))

    def cosine(a: Tensor, b: Tensor) -> float:
        return float(a @ b) / math.sqrt(float(a @ a) * float(b @ b))

    for i in range(2):
        a, b = ours[i].double(), theirs[i].double()
        every = [(j, k) for j in range(4) for k in range(4)]
        difference = np.mean([(cosine(a[j], a[k]) - cosine(b[j], b[k])) ** 2 for j, k in every])
        assert found.samples["gram_distance"][i] == pytest.approx(difference)
        assert found.samples["patch_cosine"][i] == pytest.approx(
            np.mean([cosine(a[j], a[k]) for j, k in every])
        )
        expected = np.mean([cosine(cls[i].double(), a[j]) for j in range(4)])
        assert found.samples["cls_patch_cosine"][i] == pytest.approx(expected, abs=1e-6)


def test_a_model_is_at_no_distance_from_itself_whatever_the_turn() -> None:
    """The Gram matrix is the same for features that are turned and lengthened."""
    ours = [noise(4, 3)]
    turn, _ = torch.linalg.qr(noise(3, 3, seed=3))
    theirs = [2 * ours[0] @ turn]
    found = Stability(StabilityOptions(reference="other")).run(of_patches(ours, theirs, [noise(3)]))
    assert found.metrics["gram_distance"] == pytest.approx(0.0, abs=1e-12)
    torch.testing.assert_close(gram(ours[0]).diagonal(), torch.ones(4, dtype=torch.float64))


def test_other_patches_than_the_reference_are_told() -> None:
    made = of_patches([noise(4, 3)], [noise(4, 3)], [noise(3)])
    made.features("test", reference=True).grids[0] = (1, 4)
    with pytest.raises(UserError, match="other patches"):
        Stability(StabilityOptions(reference="other")).run(made)


def test_each_size_is_judged_by_training_pictures_of_the_usual_one() -> None:
    labels = [0, 1] * 5
    usual = [torch.eye(2)[label] for label in labels]
    swapped = [torch.eye(2)[1 - label] for label in labels]
    data = annotated({"class": labels})
    made = given(
        {"train": Rows({"cls": usual}), "test": Rows({"cls": usual})},
        {"train": data, "test": data},
        others={("test", 0.5, False): Rows({"cls": swapped})},
    )
    metrics = Resolution(ResolutionOptions(factors=(0.5, 1.0), neighbours=3)).run(made).metrics
    assert metrics == {"top1_0.5": 0.0, "cosine_0.5": 0.0, "top1_1": 1.0, "cosine_1": 1.0}
