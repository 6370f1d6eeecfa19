import pytest
from scholarch.config.resolve import differences, flatten, may_change


def test_flatten_and_differences() -> None:
    before = {"a": {"b": 1, "c": [1, 2]}, "d": {}}
    after = {"a": {"b": 2, "c": [1, 2]}, "e": 3}
    assert flatten(before) == {"a.b": 1, "a.c": [1, 2], "d": {}}
    assert differences(before, after) == {"a.b": (1, 2), "d": ({}, None), "e": (None, 3)}


@pytest.mark.parametrize(
    ("key", "allowed"),
    [("training.workers", True), ("evaluation.every", True), ("training.steps", False), ("seed", False)],
)
def test_what_a_resume_may_change(key: str, allowed: bool) -> None:
    assert may_change(key) is allowed
