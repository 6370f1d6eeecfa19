"""Work on real Ray workers: a whole curation is the same to the bit, and errors come out as they were raised."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tasks_of_workers
from scholarch.curation import kmeans, neighbours
from scholarch.curation.hierarchy import hierarchical_kmeans
from scholarch.curation.kmeans import KMeansOptions
from scholarch.curation.neighbours import NeighbourOptions
from scholarch.curation.pipeline import Curation, Outcome
from scholarch.curation.recipe import SetSection, load_curation
from scholarch.curation.vectors import ArrayVectors, Mapper, in_process
from scholarch.curation.workers import Engine, Here, RayEngine, ray_engine
from scholarch.data.catalog import open_source
from scholarch.errors import UserError
from scholarch.storage.objects import FolderObjects
from tasks_of_workers import DoneAndDead, done_and_dead, refuses
from tiny_curation import embedders, write_pictures, write_recipe

pytestmark = pytest.mark.xdist_group("ray")
STORE_BYTES = 100 << 20


@pytest.fixture(scope="module")
def engine(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RayEngine]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("SCHOLARCH_SCRATCH", str(tmp_path_factory.mktemp("scratch")))
        # Workers import what they are given to do.
        folders = [str(Path(tasks_of_workers.__file__).parent), *filter(None, [os.environ.get("PYTHONPATH")])]
        patch.setenv("PYTHONPATH", os.pathsep.join(folders))
        with ray_engine("", 4, STORE_BYTES) as found:
            yield found


class Deadly:
    """An engine of which one worker is killed in each step for each function that the step has carried out.

    It dies with its last item done, and nobody gets what it made. Of the workers that hold a model, which take
    long to begin again, one dies in all.

    Args:
        marks: folder in which every death leaves its mark.
    """

    def __init__(self, engine: Engine, marks: Path) -> None:
        self.engine, self.marks = engine, marks
        self.deaths: dict[str, set[str]] = {}

    def map(self, function: Any, shared: tuple[Any, ...], items: Iterable[Any]) -> Iterator[Any]:
        every = list(items)
        mark = self.marks / function.__name__
        tasks = [(function, item, mark if item == every[-1] else None) for item in every]
        return self.engine.map(done_and_dead, shared, tasks)

    def stream(self, worker: type, options: Mapping[str, Any], items: Sequence[Any]) -> Iterator[Any]:
        died = any(worker.__name__ in names for names in self.deaths.values())
        mark = None if died else self.marks / worker.__name__
        tasks = [(item, mark if item == items[-1] else None) for item in items]
        return self.engine.stream(DoneAndDead, {"worker": worker, "options": options}, tasks)

    def say(self, told: str) -> None:
        """What the curation tells: a step's name, at its end."""
        found = list(self.marks.iterdir())
        if told.startswith(" ") or not found:
            return
        self.deaths[told.split(":")[0]] = {mark.name for mark in found}
        for mark in found:
            mark.unlink()


def test_a_worker_killed_in_each_step_changes_nothing(
    engine: RayEngine, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(kmeans, "BLOCK_POINTS", 30)
    write_pictures(tmp_path)
    recipe = load_curation(str(write_recipe(tmp_path)), ["evaluations=null", "embed.part=40"])
    (tmp_path / "marks").mkdir()
    deadly = Deadly(engine, tmp_path / "marks")

    def open_set(section: SetSection) -> Any:
        return open_source(section.source, section.labels)

    def carried_out(run: str, engine: Engine, say: Callable[[str], None]) -> Outcome:
        place = FolderObjects(tmp_path / run)
        return Curation(recipe, place, engine, open_set, embedders(recipe), say).carry_out()

    wanted = carried_out("undisturbed", Here(), lambda _: None)
    found = carried_out("killed", deadly, deadly.say)
    assert deadly.deaths == {
        "embed/pool/web": {"_Worker"},
        "deduplicate": {"_search_exactly"},
        "cluster": {"_sum_block", "_assign_block"},
        "retrieve/like": {"_search_exactly"},
    }
    # sample and mix have no workers
    assert set(found.results) - set(deadly.deaths) == {"embed/references/known", "sample", "mix"}
    for step, result in wanted.results.items():
        assert found.results[step].key == result.key
        assert found.results[step].files == result.files, step  # with their checksums
        assert found.results[step].counts == result.counts


def test_what_a_worker_raises_for_a_person(engine: RayEngine) -> None:
    with pytest.raises(UserError, match="7 is wrong"):
        list(engine.map(refuses, (), [7]))


def test_any_number_of_workers_comes_to_the_same_bytes(
    engine: RayEngine, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(kmeans, "BLOCK_POINTS", 100)
    monkeypatch.setattr(neighbours, "QUERY_BLOCK", 100)
    points = ArrayVectors(np.random.default_rng(0).normal(size=(800, 8)).astype(np.float32))
    levels = [KMeansOptions(clusters=k, iterations=3, rounds=1, sample=3) for k in (20, 4)]
    searches = [
        NeighbourOptions(k=5),
        NeighbourOptions(k=5, index="ivf-pq", lists=4, probes=2, code_bytes=2),
    ]

    def found(mapper: Mapper) -> list[np.ndarray]:
        tree = hierarchical_kmeans(points, levels, 0, mapper)
        near = [neighbours.neighbours(points, points, how, 0, mapper, itself=True) for how in searches]
        return [
            *(array for level in tree for array in (level.centroids, level.clusters)),
            *(array for one in near for array in (one.numbers, one.similarities)),
        ]

    wanted = found(in_process)
    for workers in (1, 2, 4):
        for one, other in zip(found(engine.with_workers(workers).map), wanted, strict=True):
            np.testing.assert_array_equal(one, other)
