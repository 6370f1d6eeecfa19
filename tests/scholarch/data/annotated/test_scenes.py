"""Generated data: annotations agree with the pixels that they are of."""

import numpy as np
from scholarch.data.annotated.generated import instances, stills, videos
from scholarch.data.annotated.scenes import SIDE, scenes


def test_the_same_scene_for_the_same_arguments() -> None:
    first, again, other = (scenes(2, seed, test=False)[1].render() for seed in (3, 3, 4))
    assert np.array_equal(first.image, again.image)
    assert not np.array_equal(first.image, other.image)


def test_boxes_and_depth_are_those_of_the_objects() -> None:
    for scene in scenes(5, 0, test=True):
        seen = scene.render()
        for number, box in zip(np.unique(seen.objects[seen.objects > 0]), seen.boxes(), strict=True):
            left, top, right, bottom = box.astype(int)
            inside = np.zeros((SIDE, SIDE), dtype=bool)
            inside[top:bottom, left:right] = True
            there = seen.objects == number
            assert there[top].any()
            assert there[:, right - 1].any()
            assert not there[~inside].any()
            assert set(seen.depth[there]) == {2.0 if number == 1 else 4.0}
        assert seen.depth[seen.objects == 0].min() >= 4.0
        assert np.array_equal(seen.objects > 0, seen.mask >= 2)


def test_points_that_match_are_of_the_same_object_and_have_its_ink() -> None:
    data = videos("")["test"]
    matched = 0
    for index in range(len(data)):
        for match in data.annotation(index, "matches"):
            here, there = (data.annotation(i, "objects").objects for i in (index, match.other))
            numbers = []
            for objects, points in ((here, match.here), (there, match.there)):
                columns, rows = points.astype(int).T
                numbers.append(objects[rows, columns])
            assert np.array_equal(numbers[0], numbers[1])
            assert (numbers[0] > 0).all()
            matched += len(match.here)
    assert matched > 50


def test_a_digit_turns_back_within_the_picture() -> None:
    for scene in scenes(6, 1, test=False):
        for frame in range(40):
            for sprite in scene.sprites:
                top, left = sprite.corner(frame)
                assert min(top, left) >= 0
                assert max(top, left) + len(sprite.ink) <= SIDE


def test_queries_name_their_own_views() -> None:
    data = instances("")["test"]
    found = [data.annotation(index, "relevance") for index in range(len(data))]
    assert sum(one is not None for one in found) * 6 == len(data)
    wanted = found[6]
    assert (wanted.easy.tolist(), wanted.hard.tolist(), wanted.junk.tolist()) == ([7, 8], [9, 10], [11])


def test_splits_share_no_picture() -> None:
    splits = stills("")
    assert splits["train"].fingerprint() != splits["test"].fingerprint()
    assert splits["train"].kinds == {"class", "mask", "depth", "boxes"}
