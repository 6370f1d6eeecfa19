"""Retrieval, correspondence, discovery and tracking: scores by hand or slow loop; perfect and random features."""

import math

import numpy as np
import pytest
import torch
from evaluation_given import Rows, annotated, given
from scholarch.data.annotated.face import Frame, Match, Relevance
from scholarch.draws import torch_generator
from scholarch.evaluation.correspondence import Correspondence, CorrespondenceOptions, at_points
from scholarch.evaluation.discovery import Discovery, DiscoveryOptions, connected, lost, overlaps
from scholarch.evaluation.face import Given
from scholarch.evaluation.retrieval import Retrieval, RetrievalOptions, average_precision
from scholarch.evaluation.tracking import (
    Tracking,
    TrackingOptions,
    boundary,
    neighbourhood,
    propagate,
    region,
    to_objects,
)
from torch import Tensor


def ids(*numbers: int) -> np.ndarray:
    return np.array(numbers, dtype=np.int64)


def test_average_precision_by_hand() -> None:
    """Found at places 0 and 2 of 3 to find: ((1 + 1) / 2 + (1/2 + 2/3) / 2) / 3, with junk taken out."""
    assert average_precision(ids(7, 9, 4, 5, 8), ids(7, 5, 6), ids(9)) == pytest.approx((1 + 7 / 12) / 3)
    assert average_precision(ids(7, 5, 6, 1), ids(7, 5, 6), ids()) == 1.0
    assert math.isnan(average_precision(ids(1, 2), ids(), ids(1)))


def test_average_precision_equals_a_slow_loop() -> None:
    for seed in range(20):
        draws = np.random.default_rng(seed)
        ranked = draws.permutation(30)
        positive, junk = ids(*ranked[draws.permutation(30)[:6]]), ids(*[])
        hits, area, precision, recall = 0, 0.0, 1.0, 0.0
        for place, number in enumerate(ranked):
            if number in positive:
                hits += 1
            now, reached = hits / (place + 1), hits / 6
            area += (reached - recall) * (precision + now) / 2
            precision, recall = now, reached
        assert average_precision(ranked, positive, junk) == pytest.approx(area)


def of_relevance(features: list[Tensor]) -> Given:
    """Two queries (0 and 5), each with an easy, a hard and a junk view, and one picture of nothing."""
    known: list[Relevance | None] = [None] * 9
    known[0] = Relevance(ids(1), ids(2), ids(3))
    known[5] = Relevance(ids(6), ids(7), ids())
    return given({"test": Rows({"cls": features})}, {"test": annotated({"relevance": known})})


def test_retrieval_takes_junk_and_other_levels_out() -> None:
    """Query 0 finds junk first, then easy, the picture of nothing, hard; query 5 finds all at once."""
    angles = [0.0, 0.2, 0.4, 0.1, 0.3, 2.0, 2.1, 2.2, 1.2]
    features = [torch.tensor([math.cos(a), math.sin(a)]) for a in angles]
    outcome = Retrieval(RetrievalOptions()).run(of_relevance(features))
    hard = (0.0 + 1 / 2) / 2  # at place 1 behind the picture of nothing
    assert outcome.samples["map_easy"].tolist() == [1.0, 1.0]
    assert outcome.samples["map_hard"].tolist() == pytest.approx([hard, 1.0])
    assert outcome.samples["map_medium"].tolist() == pytest.approx([(1 + (1 / 2 + 2 / 3) / 2) / 2, 1.0])
    assert outcome.metrics["map_hard"] == pytest.approx((hard + 1) / 2)


def points_of(grid: int, side: int) -> np.ndarray:
    """x and y of the centres of patches, row by row."""
    step = side / grid
    y, x = np.mgrid[:grid, :grid]
    return (np.stack([x.ravel(), y.ravel()], axis=1) + 0.5).astype(np.float32) * step


def of_matches(features: list[Tensor], answer: np.ndarray) -> Given:
    matches = [[Match(1, points_of(4, 16), answer, extent=16.0)], []]
    return given({"test": Rows({"patches": features}, (4, 4))}, {"test": annotated({"matches": matches})})


def test_points_are_found_where_their_features_went() -> None:
    order = torch.randperm(16, generator=torch_generator(0))
    second = torch.empty(16, 16)
    second[order] = torch.eye(16)
    moved = points_of(4, 16)[order.numpy()]
    outcome = Correspondence(CorrespondenceOptions(thresholds=(0.1,))).run(
        of_matches([torch.eye(16), second], moved)
    )
    assert outcome.metrics == {"pck_0.1": 1.0}
    # Where they are said to lie two patches further on: 8 pixels of 16.
    off = (moved + np.array([8, 0], np.float32)) % 16
    outcome = Correspondence(CorrespondenceOptions(thresholds=(0.4, 0.6))).run(
        of_matches([torch.eye(16), second], off)
    )
    assert outcome.metrics == {"pck_0.4": 0.0, "pck_0.6": 1.0}


def test_points_of_random_features_are_found_by_chance() -> None:
    found = []
    for seed in range(40):
        noise = [torch.randn(16, 64, generator=torch_generator(seed, i)) for i in range(2)]
        run = Correspondence(CorrespondenceOptions(thresholds=(0.1,))).run(
            of_matches(noise, points_of(4, 16))
        )
        found.append(run.metrics["pck_0.1"])
    assert np.mean(found) == pytest.approx(1 / 16, abs=0.03)


def test_features_between_patches_are_bilinear() -> None:
    patches = torch.tensor([[0.0], [1.0], [10.0], [11.0]])
    points = np.array([[2, 2], [6, 2], [4, 2], [4, 4], [0, 0]], np.float32)
    assert at_points(patches, (2, 2), points, (8, 8))[:, 0].tolist() == pytest.approx([0, 1, 0.5, 5.5, 0])


def object_keys(there: np.ndarray) -> Tensor:
    """Keys of two kinds whose products are positive within a kind and negative between them."""
    flat = torch.from_numpy(there.ravel().astype(np.float32))
    return torch.stack([flat - 0.5, torch.full_like(flat, 0.1)], dim=1)


def test_lost_finds_the_smaller_kind_and_what_joins_it() -> None:
    there = np.zeros((6, 6), dtype=bool)
    there[1:3, 2:5] = True
    there[5, 0] = True  # alike, and apart
    found = lost(object_keys(there), (6, 6), 100)
    expected = there.copy()
    expected[5, 0] = False
    assert np.array_equal(found, expected)
    boxes = [np.array([[4, 2, 10, 6]], np.float32), np.array([[0, 6, 4, 12]], np.float32)]
    made = given(
        {"test": Rows({"keys": [object_keys(there)] * 2}, (6, 6))},
        {"test": annotated({"boxes": boxes}, side=12)},
    )
    assert Discovery(DiscoveryOptions()).run(made).samples["corloc"].tolist() == [1.0, 0.0]


def test_lost_equals_a_slow_loop() -> None:
    for seed in range(5):
        keys = torch.randn(30, 4, generator=torch_generator(seed)).double()
        a = [[float(keys[i] @ keys[j]) for j in range(30)] for i in range(30)]
        degree = [sum(a[i][j] > 0 for j in range(30) if j != i) for i in range(30)]
        order = sorted(range(30), key=lambda i: (degree[i], i))
        seedling = order[0]
        kept = [i for i in order[:7] if a[seedling][i] > 0]
        there = np.array([sum(a[i][j] for j in kept) > 0 for i in range(30)]).reshape(5, 6)
        expected = connected(there, divmod(seedling, 6))
        assert np.array_equal(lost(keys.float(), (5, 6), 7), expected)


def test_connected_parts_do_not_touch_at_corners() -> None:
    there = np.array([[1, 1, 0], [0, 0, 1], [1, 0, 1]], dtype=bool)
    assert connected(there, (0, 0)).astype(int).tolist() == [[1, 1, 0], [0, 0, 0], [0, 0, 0]]
    assert connected(there, (2, 2)).astype(int).tolist() == [[0, 0, 0], [0, 0, 1], [0, 0, 1]]


def test_overlap_of_boxes_by_hand() -> None:
    found = overlaps(
        np.array([0.0, 0.0, 4.0, 4.0]), np.array([[2, 2, 6, 6], [0, 0, 4, 4], [5, 5, 6, 6]], np.float32)
    )
    assert found.tolist() == pytest.approx([4 / 28, 1.0, 0.0])


def moving(frames: int, side: int = 24) -> tuple[list[Frame], list[Tensor]]:
    """A square of two patches that goes a patch to the right each frame, and features that say so."""
    found, features = [], []
    for number in range(frames):
        objects = np.zeros((side, side), np.uint8)
        objects[8:16, 4 * number : 4 * number + 8] = 1
        there = torch.from_numpy(objects[::4, ::4].astype(np.int64))
        found.append(Frame("a", objects))
        features.append(torch.nn.functional.one_hot(there.flatten(), 2).float())
    return found, features


def of_video(frames: list[Frame], features: list[Tensor]) -> Given:
    return given(
        {"test": Rows({"patches": features}, (6, 6))}, {"test": annotated({"objects": frames}, side=24)}
    )


def test_an_object_is_followed_exactly() -> None:
    outcome = Tracking(TrackingOptions(radius=3)).run(of_video(*moving(5)))
    assert outcome.metrics == {"j": 1.0, "f": 1.0, "jf": 1.0}


def test_an_object_of_random_features_is_lost() -> None:
    frames, _ = moving(5)
    noise = [torch.randn(36, 8, generator=torch_generator(i)) for i in range(5)]
    lost_one = Tracking(TrackingOptions(radius=3)).run(of_video(frames, noise))
    assert lost_one.metrics["j"] < 0.4


def test_the_first_and_the_last_frame_do_not_count() -> None:
    frames, features = moving(4)
    wrong = Frame("a", 1 - frames[3].objects)  # type: ignore[operator]
    outcome = Tracking(TrackingOptions(radius=3)).run(of_video([*frames[:3], wrong], features))
    assert outcome.metrics["j"] == 1.0


def test_frames_are_put_in_order_by_name_and_short_videos_left_out() -> None:
    frames, features = moving(3)
    short = [Frame("b", frames[0].objects), Frame("b", frames[1].objects)]
    outcome = Tracking(TrackingOptions(radius=3)).run(of_video([*frames, *short], [*features, *features[:2]]))
    assert outcome.samples["j"].tolist() == [1.0]


def test_votes_of_the_most_similar_near_patches_by_hand() -> None:
    """Two of four patches in a row are near; the best two vote with exp(cosine / 0.5)."""
    query = torch.tensor([[1.0, 0.0]]).repeat(4, 1)
    angles = torch.tensor([0.1, 0.4, 0.2, 0.0])
    theirs, shares = torch.stack([angles.cos(), angles.sin()], dim=1), torch.eye(4)
    near = neighbourhood((1, 4), 1.0)
    assert near.int().tolist() == [[1, 1, 0, 0], [1, 1, 1, 0], [0, 1, 1, 1], [0, 0, 1, 1]]
    found = propagate(query, [(theirs, shares)], near, kept=2, temperature=0.5)
    for patch, voters in enumerate([(0, 1), (0, 2), (2, 3), (2, 3)]):
        votes = {v: math.exp(math.cos(float(angles[v])) / 0.5) for v in voters}
        for other in range(4):
            assert float(found[patch, other]) == pytest.approx(
                votes.get(other, 0.0) / sum(votes.values()), abs=1e-6
            )


def test_objects_are_spread_before_the_largest_is_taken() -> None:
    """Object 1 is weak everywhere, but strongest at the second patch: spread out it wins there."""
    shares = torch.tensor([[0.9, 0.1], [0.7, 0.3], [1.0, 0.0]])
    assert to_objects(shares, (1, 3), (1, 3)).tolist() == [[0, 1, 0]]


def test_region_and_boundary_by_hand() -> None:
    a, b = np.zeros((2, 20, 20), dtype=bool)
    a[5:15, 5:15], b[5:15, 6:16] = True, True
    assert region(a, b) == pytest.approx(90 / 110)
    assert region(np.zeros_like(a), np.zeros_like(a)) == 1.0
    # 0.8 % of the diagonal is under a pixel and counts as one: a shift by one is no error, one by three is.
    assert boundary(a, b) == 1.0
    b = np.roll(a, 3, axis=1)
    assert 0.3 < boundary(a, b) < 0.7
    assert boundary(a, np.zeros_like(a)) == 0.0
    assert boundary(np.zeros_like(a), np.zeros_like(a)) == 1.0


def test_the_order_of_pictures_changes_no_retrieval() -> None:
    features = [torch.randn(4, generator=torch_generator(i)) for i in range(9)]
    order = [4, 8, 5, 0, 2, 7, 1, 6, 3]
    place = {old: new for new, old in enumerate(order)}

    def moved(old: Relevance | None) -> Relevance | None:
        if old is None:
            return None
        return Relevance(*(ids(*(place[int(i)] for i in level)) for level in (old.easy, old.hard, old.junk)))

    made = of_relevance(features)
    known = [moved(made.data["test"].annotation(old, "relevance")) for old in order]
    other = given(
        {"test": Rows({"cls": [features[old] for old in order]})}, {"test": annotated({"relevance": known})}
    )
    first, second = (Retrieval(RetrievalOptions()).run(one) for one in (made, other))
    assert first.metrics == pytest.approx(second.metrics)
