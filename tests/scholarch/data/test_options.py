"""Options of views: what is refused, and what a view takes from the one it is like."""

from typing import Any

import pytest
from scholarch.data.options import ViewOptions, resolve_views


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"count": 0}, "count must be at least 1"),
        ({"size": 0}, "size must be positive"),
        ({"scale": (0.5, 0.2)}, "scale must be low, high"),
        ({"scale": (0.0, 1.0)}, "scale must be low, high"),
        ({"ratio": (2.0, 1.0)}, "ratio must be low, high"),
        ({"flip": 1.5}, "flip is a probability"),
        ({"count": 2, "blur": (0.1, 0.2, 0.3)}, "blur has 3 entries for 2 crops"),
        ({"count": 2, "solarise": (0.1, -0.2)}, "solarise is a probability"),
        ({"hue": 0.6}, "hue must lie in 0 to 0.5"),
        ({"blur_kernel": 8}, "odd"),
        ({"size": 4}, "does not fit crops of 4"),
    ],
)
def test_refused(options: dict[str, Any], said: str) -> None:
    with pytest.raises(ValueError, match=said):
        ViewOptions(**options)


def test_small_crops_are_fine_without_blur() -> None:
    assert ViewOptions(size=4, blur=0.0).size == 4
    assert ViewOptions(size=4, distortions="none").size == 4


def test_a_like_view_takes_all_but_size_and_distortions() -> None:
    views = {
        "gram": ViewOptions(like="global", size=64, distortions="none"),
        "global": ViewOptions(count=2, size=32, scale=(0.4, 0.9), blur=(0.0, 0.9), flip=0.1),
    }
    gram = resolve_views(views)["gram"]
    assert (gram.crops, gram.size, gram.scale, gram.flip, gram.distortions) == (
        2,
        64,
        (0.4, 0.9),
        0.1,
        "none",
    )
    assert gram.each("blur") == (0.0, 0.9)


@pytest.mark.parametrize(
    ("gram", "said"),
    [
        (ViewOptions(like="globl"), "view gram: like 'globl' must name"),
        (ViewOptions(like="gram"), "view gram: like 'gram' must name"),
        (ViewOptions(like="global", count=3), "count 3 differs from global's 2"),
    ],
)
def test_like_must_fit(gram: ViewOptions, said: str) -> None:
    with pytest.raises(ValueError, match=said):
        resolve_views({"global": ViewOptions(count=2), "gram": gram})


@pytest.mark.parametrize(
    ("other", "said"),
    [
        ({"within": "globl"}, "view local: within 'globl' must name"),
        ({"within": "global", "size": 48}, "48 pixels do not fit within global's 32"),
        ({"within": "global", "count": 3}, "count 3 is not the same number of each of global's 2"),
        ({"within": "global", "colour": "picture"}, "colour must be crop"),
    ],
)
def test_within_must_fit(other: dict[str, Any], said: str) -> None:
    local = ViewOptions(**{"count": 4, "size": 16, **other})
    with pytest.raises(ValueError, match=said):
        resolve_views({"global": ViewOptions(count=2, size=32), "local": local})


def test_a_shared_colour_is_one() -> None:
    views = {"a": ViewOptions(colour="picture"), "b": ViewOptions(colour="picture", hue=0.2)}
    with pytest.raises(ValueError, match="hue must be the same for a, b"):
        resolve_views(views)


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"colour": "picture", "distortions": "none"}, "colour: picture is a distortion"),
        ({"like": "a", "within": "b"}, "either like another or within"),
        ({"within": "a", "teacher_distortions": "none"}, "teacher_distortions is for views with crops of"),
    ],
)
def test_combinations_that_mean_nothing(options: dict[str, Any], said: str) -> None:
    with pytest.raises(ValueError, match=said):
        ViewOptions(**options)
