"""Work on real Ray workers: the same bytes for any number of them, killed ones, and errors as they were raised."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tasks_of_workers
from scholarch.curation.hierarchy import hierarchical_kmeans
from scholarch.curation.kmeans import KMeansOptions
from scholarch.curation.vectors import ArrayVectors, in_process
from scholarch.curation.workers import RayEngine, ray_engine
from scholarch.errors import UserError
from tasks_of_workers import DiesOnce, dies_once, refuses

pytestmark = pytest.mark.xdist_group("ray")
STORE_BYTES = 100 << 20


@pytest.fixture(scope="module")
def engine() -> Iterator[RayEngine]:
    with pytest.MonkeyPatch.context() as patch:
        # Workers import what they are given to do.
        folders = [str(Path(tasks_of_workers.__file__).parent), *filter(None, [os.environ.get("PYTHONPATH")])]
        patch.setenv("PYTHONPATH", os.pathsep.join(folders))
        with ray_engine("", 4, STORE_BYTES) as found:
            yield found


def test_a_killed_worker_changes_nothing(engine: RayEngine, tmp_path: Path) -> None:
    assert list(engine.map(dies_once, (tmp_path,), range(3))) == [0, 1, 4]
    (tmp_path / "kept").mkdir()
    found = list(engine.stream(DiesOnce, {"folder": tmp_path / "kept"}, [5]))
    assert found == [25]
    assert (tmp_path / "kept" / "5").exists()


def test_what_a_worker_raises_for_a_person(engine: RayEngine) -> None:
    with pytest.raises(UserError, match="7 is wrong"):
        list(engine.map(refuses, (), [7]))


def test_any_number_of_workers_comes_to_the_same_bytes(
    engine: RayEngine, monkeypatch: pytest.MonkeyPatch
) -> None:
    from scholarch.curation import kmeans as module

    monkeypatch.setattr(module, "BLOCK_POINTS", 100)
    points = np.random.default_rng(0).normal(size=(800, 6)).astype(np.float32)
    levels = [KMeansOptions(clusters=k, iterations=3, rounds=1, sample=3) for k in (20, 4)]

    def levels_of(workers: int | None) -> list[Any]:
        mapper = in_process if workers is None else engine.with_workers(workers).map
        return hierarchical_kmeans(ArrayVectors(points), levels, 0, mapper)

    wanted = levels_of(None)
    for workers in (1, 2, 4):
        for found, level in zip(levels_of(workers), wanted, strict=True):
            np.testing.assert_array_equal(found.centroids, level.centroids)
            np.testing.assert_array_equal(found.clusters, level.clusters)
