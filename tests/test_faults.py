"""The harness of `make faults`, short: two schedules; the whole runs for half an hour."""

from __future__ import annotations

from pathlib import Path

import pytest
from faults.play import play, undisturbed
from faults.schedule import KINDS, draw
from minio_server import find_minio

SCHEDULES = (1, 9)


def test_schedules_are_drawn_from_their_seed_and_cover_every_kind() -> None:
    assert draw(7, 40) == draw(7, 40) != draw(8, 40)
    assert {fault.kind for seed in range(len(KINDS)) for fault in draw(seed, 40)} == set(KINDS)
    steps = [fault.step for seed in range(50) for fault in draw(seed, 40)]
    assert min(steps) >= 2
    assert max(steps) < 34


@pytest.fixture(scope="module")
def expected(tmp_path_factory: pytest.TempPathFactory) -> dict[int, float]:
    if find_minio() is None:
        pytest.skip("no MinIO server on this machine: .ci/bring_minio builds one")
    return undisturbed(tmp_path_factory.mktemp("undisturbed"))


@pytest.mark.service
@pytest.mark.gloo
@pytest.mark.timeout(600)
@pytest.mark.parametrize("seed", SCHEDULES)
def test_a_schedule_of_faults(seed: int, tmp_path: Path, expected: dict[int, float]) -> None:
    outcome = play(seed, tmp_path, expected)
    nodes = "\n".join(f"--- {path.name}\n{path.read_text()[-2000:]}" for path in tmp_path.glob("nodes/*.txt"))
    assert not outcome.trouble, f"{outcome.faults}\n{nodes}"
