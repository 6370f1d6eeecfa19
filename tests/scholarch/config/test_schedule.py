import math

import numpy as np
import pytest
from scholarch.config.schedule import Schedule


def test_number_is_constant() -> None:
    schedule = Schedule.parse(0.3).resolve(10)
    assert [schedule(step) for step in (0, 5, 9, 1000)] == [0.3] * 4


def test_v1_shape_meets_its_peak_on_the_last_warmup_step() -> None:
    """linspace with its end point, then final + (base - final)(1 + cos(pi i / n)) / 2 (reference.md 4.2)."""
    parts = [
        {"shape": "linear", "steps": 10, "start": 0.0, "end": 1.0, "endpoint": True},
        {"shape": "cosine", "steps": 90, "end": 0.1},
    ]
    schedule = Schedule.parse(parts).resolve(100)
    cosine = [0.1 + 0.5 * 0.9 * (1 + math.cos(math.pi * i / 90)) for i in range(90)]
    expected = np.concatenate([np.linspace(0, 1, 10), cosine])
    np.testing.assert_allclose([schedule(step) for step in range(100)], expected, rtol=0, atol=1e-15)
    assert schedule(9) == 1.0
    assert schedule(99) > 0.1
    assert schedule(100) == 0.1


def test_v3_shape_meets_its_peak_one_step_after_the_warmup() -> None:
    """linspace without its end point, then a cosine that includes both of its ends (reference.md 4.2)."""
    parts = [
        {"shape": "linear", "steps": 10, "start": 0.0, "end": 2.0},
        {"shape": "cosine", "steps": 30, "end": 0.5, "endpoint": True},
        {"end": 0.5},
    ]
    schedule = Schedule.parse(parts).resolve(60)
    wave = np.linspace(0, np.pi, 30)
    expected = np.concatenate(
        [np.linspace(0, 2, 10, endpoint=False), 0.5 + 1.5 * (1 + np.cos(wave)) / 2, np.full(20, 0.5)]
    )
    np.testing.assert_allclose([schedule(step) for step in range(60)], expected, rtol=0, atol=1e-15)
    assert schedule(9) < 2.0
    assert schedule(10) == 2.0


def test_truncated_cosine_ends_where_capi_ends() -> None:
    """half (1 + cos 0.8 pi) = 0.0955 of its start (reference.md 12.10)."""
    schedule = Schedule.parse([{"shape": "cosine", "start": 1.0, "end": 0.0, "truncate": 0.8}]).resolve(1000)
    assert schedule(999) == pytest.approx(0.5 * (1 + math.cos(0.8 * math.pi * 0.999)))
    assert schedule(1000) == pytest.approx(0.0954915, abs=1e-6)


def test_shares_and_rest_fill_the_run() -> None:
    parts = [{"shape": "linear", "steps": 0.25, "start": 0.0, "end": 1.0}, {"shape": "cosine", "end": 0.0}]
    lengths = [segment.steps for segment in Schedule.parse(parts).resolve(200).segments]
    assert lengths == [50, 150]


def test_resolved_schedule_resolves_to_itself() -> None:
    parts = [{"shape": "linear", "steps": 0.25, "start": 0.0, "end": 1.0}, {"shape": "cosine", "end": 0.0}]
    once = Schedule.parse(parts).resolve(200)
    assert once.resolve(200) == once
    assert Schedule.parse(once.plain()).resolve(200) == once


def test_scale_multiplies_every_value() -> None:
    schedule = Schedule.parse([{"shape": "linear", "steps": 4, "start": 1.0, "end": 3.0}]).resolve(8)
    assert [schedule.scale(2.0)(s) for s in range(8)] == [2 * schedule(s) for s in range(8)]


@pytest.mark.parametrize(
    ("value", "message"),
    [
        ("fast", "a number or a list of segments"),
        ([], "a number or a list of segments"),
        (True, "a number or a list of segments"),
        ([0.1], "segment 1: a mapping"),
        ([{"shape": "linear"}], "segment 1: `end` is missing"),
        ([{"end": 1.0}, {"ends": 1.0}], "segment 2: unknown key 'ends'"),
        ([{"end": 1.0, "shape": "step"}], "segment 1: shape must be one of"),
        ([{"end": 1.0, "steps": 1.5}], "segment 1: steps as a share"),
        ([{"end": 1.0, "steps": -1}], "segment 1: steps must be"),
        ([{"end": 1.0, "truncate": 0.0}], "segment 1: truncate"),
    ],
)
def test_mistakes_name_the_segment(value: object, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        Schedule.parse(value)


def test_unresolved_start_and_rest_are_refused() -> None:
    with pytest.raises(ValueError, match="`start` is missing"):
        Schedule.parse([{"shape": "linear", "end": 1.0}]).resolve(10)
    with pytest.raises(ValueError, match="only the last"):
        Schedule.parse([{"end": 1.0}, {"end": 2.0}]).resolve(10)
    with pytest.raises(ValueError, match="resolve"):
        Schedule.parse([{"end": 1.0, "steps": 0.5}])(3)


def test_a_value_that_is_held_is_that_of_its_epoch() -> None:
    """numpy.linspace over the epochs, each repeated (reference.md 4.2 and 4.3)."""
    text = [
        {"shape": "linear", "steps": 20, "start": 0.04, "end": 0.07, "endpoint": True, "hold": 4},
        {"end": 0.07},
    ]
    schedule = Schedule.parse(text).resolve(30)
    expected = [*np.repeat(np.linspace(0.04, 0.07, 5), 4), *[0.07] * 10]
    assert [schedule(step) for step in range(30)] == pytest.approx(expected)
    assert Schedule.parse(schedule.plain()).resolve(30) == schedule
    with pytest.raises(ValueError, match="segment 1: hold must be a whole number"):
        Schedule.parse([{"end": 1.0, "hold": 0}])
