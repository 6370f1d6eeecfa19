"""A whole curation of small pictures: results, what is done again and what is not, bad input."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import pytest
from scholarch.curation.pipeline import Curation, Outcome
from scholarch.curation.recipe import SetSection, load_curation
from scholarch.curation.workers import Engine, Here
from scholarch.data.catalog import open_source
from scholarch.data.mixture import Mixture
from scholarch.errors import UserError
from scholarch.storage.objects import FolderObjects
from tiny_curation import embedders, write_pictures, write_recipe


def curate(folder: Path, *overrides: str, engine: Engine | None = None) -> Outcome:
    recipe = load_curation(str(write_recipe(folder)), overrides)

    def open_set(section: SetSection) -> Any:
        return open_source(section.source, section.labels)

    run = FolderObjects(folder / "run")
    return Curation(recipe, run, engine or Here(), open_set, embedders(recipe), lambda _: None).carry_out()


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("SCHOLARCH_SCRATCH", str(tmp_path / "scratch"))
    write_pictures(tmp_path)
    return tmp_path


def test_a_whole_curation(folder: Path) -> None:
    told = curate(folder)
    found = {step: result.counts for step, result in told.results.items()}
    assert found["embed/pool/web"] == {"pictures in": 61, "broken": 1, "pictures out": 60}
    assert told.results["embed/pool/web"].named[0].startswith("broken.png: ")
    counts = found["deduplicate"]
    assert counts["pictures in"] == 60
    assert counts["of the same hash"] >= 5
    assert counts["of the same hash"] + counts["near-duplicates"] >= 10  # the copies
    assert counts["like an evaluation"] >= 1
    assert counts["pictures out"] == len(told.chosen["deduplicated"])
    names = {
        told.rows.sets[0].source.name(int(told.rows.numbers[row])) for row in told.chosen["deduplicated"]
    }
    assert not any(name.startswith("copy-") for name in names)
    assert "00.png" not in names, "it is an evaluated picture"
    assert found["sample"] == {"pictures in": counts["pictures out"], "pictures out": 12, "different": 12}
    assert 1 <= found["retrieve/like"]["pictures out"] <= 10
    source = open_source(told.mixture)
    assert isinstance(source, Mixture)
    assert [(part.name, len(part.source), part.weight) for part in source.parts] == [
        ("chosen", 12, 3.0),
        ("found", found["retrieve/like"]["pictures out"], 1.0),
        ("references", 5, 1.0),
    ]
    assert source.parts[2].homogeneous == 0.1
    assert source.read(0).shape == (3, 32, 32)


def test_only_what_changed_is_done_again(folder: Path) -> None:
    first = curate(folder)
    assert first.reused == []
    again = curate(folder)
    assert again.reused == list(again.results)
    assert again.mixture == first.mixture
    more = curate(folder, "sample.pictures=15")
    assert set(more.results) - set(more.reused) == {"sample", "mix"}
    assert len(open_source(first.mixture)) + 3 == len(open_source(more.mixture))  # both are there
    assert again.results["cluster"].inputs == {"deduplicate": again.results["deduplicate"].key}


class Dies(Here):
    """Is killed after a number of results."""

    def __init__(self, left: int) -> None:
        self.left = left

    def _some(self, results: Iterable[Any]) -> Iterator[Any]:
        for result in results:
            if not self.left:
                raise KeyboardInterrupt
            self.left -= 1
            yield result

    def map(self, function: Any, shared: Any, items: Any) -> Iterator[Any]:
        return self._some(super().map(function, shared, items))

    def stream(self, worker: type, options: Any, items: Any) -> Iterator[Any]:
        return self._some(super().stream(worker, options, items))


def test_killed_anywhere_and_gone_on_with(folder: Path, tmp_path: Path) -> None:
    told = curate(folder)
    calls = 0
    other = FolderObjects(tmp_path / "other")
    recipe = load_curation(str(folder / "recipe.yaml"))

    def open_set(section: SetSection) -> Any:
        return open_source(section.source, section.labels)

    for left in range(1, 60):
        engine = Dies(8)  # one round of k-means takes so many
        try:
            done = Curation(recipe, other, engine, open_set, embedders(recipe), lambda _: None).carry_out()
        except KeyboardInterrupt:
            calls = left
            continue
        break
    assert calls >= 3, "it was killed on the way"
    assert [r.key for r in done.results.values()] == [r.key for r in told.results.values()]
    for step, result in told.results.items():
        assert done.results[step].files == result.files, step
    assert not list((tmp_path / "other").rglob("work/*")), "what was kept to go on is gone"


def test_a_damaged_result_is_named(folder: Path) -> None:
    curate(folder)
    (chosen,) = (folder / "run").glob("steps/sample-*/sample.npz")
    chosen.write_bytes(chosen.read_bytes()[:-1])
    with pytest.raises(UserError, match="missing, or has another size"):
        curate(folder)
    (part,) = (folder / "run").glob("steps/embed-pool-web-*/part-000000.parquet")
    data = bytearray(part.read_bytes())
    data[50] ^= 255
    part.write_bytes(data)
    with pytest.raises(UserError, match="is not what was written"):
        curate(folder)


def test_pictures_that_changed_after_they_were_chosen(folder: Path) -> None:
    told = curate(folder)
    (folder / "web" / "07.png").unlink()
    with pytest.raises(UserError, match="has other pictures than when they were chosen"):
        open_source(told.mixture)


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("sampel.pictures=3", r"sampel: unknown key; did you mean `sample`\?"),
        ("cluster.levels=[{clusters: 3}, {clusters: 8}]", r"cluster: levels: each needs fewer clusters"),
        ("cluster.levels=[{cluster: 3}]", r"unknown key; did you mean `clusters`"),
        ("retrieve.like.like=[other]", "no references 'other'; there are: known"),
        ("mix.chosen.of=clusters", "nothing is called 'clusters'; there are: sample, deduplicated"),
        ("deduplicate=null", "evaluations are kept out by `deduplicate`"),
        ("sample.quotas={web: 2}", "give `pictures` or `quotas`"),
        ("pool.a-b=x", "is no override"),
    ],
)
def test_mistakes_in_a_recipe(folder: Path, override: str, message: str) -> None:
    with pytest.raises(UserError, match=message):
        load_curation(str(write_recipe(folder)), [override])


def test_more_clusters_than_pictures(folder: Path) -> None:
    with pytest.raises(UserError, match="pictures cannot have 500 clusters"):
        curate(folder, "cluster.levels=[{clusters: 500}]")


def test_a_model_of_its_own_for_copies(folder: Path) -> None:
    one, other = curate(folder), curate(folder, "deduplicate.model=copies")
    assert set(other.results) - set(one.results) == {"embed-copies/pool/web", "embed-copies/evaluations/test"}
    assert other.chosen["deduplicated"].tolist() == one.chosen["deduplicated"].tolist()
    assert other.results["deduplicate"].inputs != one.results["deduplicate"].inputs


def test_retrieval_from_clusters(folder: Path) -> None:
    form = "{like: [known], form: cluster, each: 3, more_than: 0, cap: 5, clusters: {clusters: 6, rounds: 0}}"
    told = curate(folder, f"retrieve.more={form}", "mix.found.of=retrieve/more")
    assert told.results["retrieve/more"].counts["pictures out"] == 5
    assert set(told.chosen["retrieve/more"]) <= set(told.chosen["deduplicated"])


def test_quotas_and_a_pool_of_two(folder: Path) -> None:
    told = curate(
        folder,
        "pool.more=digits",
        "sample={pictures: null, quotas: {web: 5, more: 9}}",
        "embed.part=700",
        "evaluations=null",
    )
    (part, *_) = open_source(told.mixture).parts  # type: ignore[attr-defined]
    assert isinstance(part.source, Mixture)
    assert [len(one.source) for one in part.source.parts] == [9, 5]


def test_the_recipe_of_the_documentation(tmp_path: Path) -> None:
    text = (Path(__file__).parents[3] / "docs" / "curation.md").read_text()
    path = tmp_path / "curation.yaml"
    path.write_text(text.split("```yaml\n")[1].split("```")[0])
    assert load_curation(str(path)).results[:2] == ["sample", "deduplicated"]
