"""The faults of `make faults` are drawn from a seed; the harness itself is run by hand."""

from __future__ import annotations

from faults.schedule import KINDS, draw


def test_schedules_are_drawn_from_their_seed_and_cover_every_kind() -> None:
    assert draw(7, 40) == draw(7, 40) != draw(8, 40)
    assert {fault.kind for seed in range(len(KINDS)) for fault in draw(seed, 40)} == set(KINDS)
    steps = [fault.step for seed in range(50) for fault in draw(seed, 40)]
    assert min(steps) >= 2
    assert max(steps) < 34
