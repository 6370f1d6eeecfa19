"""Every evaluation of the suite `scenes` by a tiny ViT: ranks, batches, order of samples, resumption."""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from gloo import run_ranks
from scholarch.data.annotated import generated
from scholarch.data.annotated.face import Annotated, SplitName
from scholarch.errors import UserError
from scholarch.evaluation import EVALUATIONS
from scholarch.evaluation.face import Outcome
from scholarch.evaluation.runner import Plan, extract_all, fingerprint, open_data, run_share
from scholarch.evaluation.store import Subject
from scholarch.evaluation.suite import load_suite, suite_names
from scholarch.models import build_backbone
from scholarch.models.initialise import initialise
from scholarch.models.vit import ViTOptions
from scholarch.storage.objects import FolderObjects, open_objects
from torch.distributed import ProcessGroup

QUICK = (
    "data.scenes.train=50",
    "data.scenes.test=30",
    "evaluations.linear={steps: 20, rates: [0.1, 1.0], held_out: 0.3}",
    "evaluations.logistic={strengths: [1.0, 100.0], held_out: 0.3}",
    "evaluations.few_shot={tries: 2}",
    "evaluations.segmentation={steps: 20}",
    "evaluations.depth={steps: 120, bins: 8}",
    "evaluations.stability={reference: other}",
)


def tiny_subject(seed: int = 0) -> Subject:
    options = ViTOptions(
        size=None,
        embed_dim=32,
        depth=2,
        heads=2,
        ffn="mlp",
        ffn_ratio=2,
        patch=8,
        registers=2,
        layer_scale=1.0,
    )
    backbone = build_backbone(options)
    initialise(backbone, seed)
    backbone.eval().requires_grad_(False)
    return Subject(backbone, f"seed {seed}", 48, (0.5,) * 3, (0.25,) * 3, torch.device("cpu"))


def planned(overrides: Sequence[str] = QUICK) -> Plan:
    suite = load_suite("scenes", overrides)
    return Plan(suite, open_data(suite), tiny_subject(), {"other": tiny_subject(1)})


def outcomes(
    group: ProcessGroup | None, folder: str, batch: int, overrides: Sequence[str] = QUICK
) -> dict[str, Outcome]:
    plan, objects = planned(overrides), open_objects(folder)
    extract_all(plan, objects, batch=batch, group=group)
    if group is not None:
        torch.distributed.barrier(group)
    return run_share(plan, objects, group=group)


@pytest.fixture(scope="module")
def alone() -> dict[str, Outcome]:
    with tempfile.TemporaryDirectory() as folder:
        return outcomes(None, folder, batch=64)


def same(
    found: dict[str, Outcome], expected: dict[str, Outcome], order: Callable[[np.ndarray], np.ndarray]
) -> None:
    assert found.keys() == expected.keys()
    for name, outcome in found.items():
        for metric, value in outcome.metrics.items():
            assert value == pytest.approx(expected[name].metrics[metric], abs=1e-4, nan_ok=True), (
                name,
                metric,
            )
        for metric, values in outcome.samples.items():
            other = expected[name].samples[metric]
            np.testing.assert_allclose(order(values), order(other), atol=1e-3, err_msg=f"{name}/{metric}")


def test_the_suite_runs_every_evaluation(alone: dict[str, Outcome]) -> None:
    by_words = {"zero_shot", "text_retrieval", "text_segmentation"}  # of aligned models: suite text
    assert {load_suite("scenes").evaluations[name].kind for name in alone} == set(EVALUATIONS) - by_words
    for name, outcome in alone.items():
        assert outcome.metrics, name
        for metric, values in outcome.samples.items():
            assert outcome.metrics[metric] == pytest.approx(values.mean()), (name, metric)


@pytest.mark.gloo
def test_two_ranks_with_small_batches_find_the_same(alone: dict[str, Outcome], tmp_path: Path) -> None:
    shares = run_ranks(2, outcomes, str(tmp_path), 7)
    assert all(shares)
    together = {name: outcome for share in shares for name, outcome in share.items()}
    same({name: together[name] for name in alone}, alone, lambda values: values)


def test_the_order_of_samples_changes_nothing(
    alone: dict[str, Outcome], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The same samples from the last to the first: pictures, names and annotations go with them."""
    original = generated.stills

    def backwards(address: str) -> dict[SplitName, Annotated]:
        return {split: reordered(chosen_of(split, data)) for split, data in original(address).items()}

    def chosen_of(split: SplitName, data: Annotated) -> tuple[Annotated, np.ndarray]:
        indices = open_data(load_suite("scenes", QUICK))["scenes"][split].indices
        return data, indices

    prepared = backwards("")
    monkeypatch.setitem(
        __import__("scholarch.data.annotated", fromlist=["x"]).DATA_SETS, "scenes", lambda _: prepared
    )
    found = outcomes(None, str(tmp_path), 64)
    same(found, alone, np.sort)


def reordered(of: tuple[Annotated, np.ndarray]) -> Annotated:
    data, indices = of
    numbers = indices[::-1].copy()
    from scholarch.data.split import Subset

    known: dict[Any, Any] = {
        kind: (lambda index, read=read: read(int(numbers[index]))) for kind, read in data.known.items()
    }
    return Annotated(Subset(data.source, numbers), known, data.names)


def test_what_was_extracted_is_not_extracted_again(tmp_path: Path) -> None:
    plan, objects = planned(), FolderObjects(tmp_path)

    class Stopped(Exception):  # noqa: N818
        pass

    def stop() -> None:
        if any(objects.entries()):
            raise Stopped

    with pytest.raises(Stopped):
        extract_all(plan, objects, batch=8, each=stop)
    before = {entry.name: (tmp_path / entry.name).stat().st_mtime_ns for entry in objects.entries()}
    assert before
    extract_all(plan, objects, batch=8)
    after = {entry.name: (tmp_path / entry.name).stat().st_mtime_ns for entry in objects.entries()}
    assert before.items() < after.items()
    asked: list[int] = []
    extract_all(plan, objects, batch=8, each=lambda: asked.append(1))
    assert asked == []


def test_a_place_that_others_do_not_see_is_told(tmp_path: Path) -> None:
    plan, objects = planned(), FolderObjects(tmp_path)
    with pytest.raises(UserError, match="--features"):
        run_share(plan, objects)


def test_the_fingerprint_tells_samples_apart() -> None:
    first, again, fewer = (
        fingerprint(open_data(load_suite("scenes", [f"data.scenes.test={n}"]))["scenes"])
        for n in (40, 40, 39)
    )
    assert first == again != fewer


@pytest.mark.parametrize("name", suite_names())
def test_every_suite_of_the_package_is_valid(name: str) -> None:
    suite = load_suite(name)
    assert suite.about
    assert set(suite.built()) == set(suite.evaluations)


def test_data_may_have_a_size_of_its_own() -> None:
    suite = load_suite("matching", ["size=300", "data.oxford.size=null"])
    assert [suite.size_of(name) for name in ("retrieval", "tracking")] == [300, 480]


@pytest.mark.parametrize(
    ("name", "overrides", "message"),
    [
        ("scenez", (), "did you mean scenes"),
        ("scenes", ("evaluations.knn={neigbours: 3}",), "did you mean `neighbours`"),
        ("scenes", ("evaluations.knn={neighbours: 0}",), "neighbours must be 1 or more"),
        ("scenes", ("data.scenes.kind=scene",), "did you mean `scenes`"),
        ("scenes", ("evaluations.knn={data: scenez}",), "no such data: 'scenez'"),
        ("scenes", ("evaluations.knm={}",), "no such kind: 'knm'"),
    ],
)
def test_mistakes_in_a_suite_are_told(name: str, overrides: Sequence[str], message: str) -> None:
    with pytest.raises(UserError, match=message):
        load_suite(name, overrides)


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("evaluations.knn.data=videos", "videos has no train split"),
        ("evaluations.tracking.data=scenes", "scenes does not know objects"),
    ],
)
def test_data_that_lacks_what_is_needed_is_told(override: str, message: str) -> None:
    with pytest.raises(UserError, match=message):
        open_data(load_suite("scenes", [override]))
