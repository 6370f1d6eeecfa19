"""One run of `curate`: holds its place, carries out the steps, and hands over report and record."""

from __future__ import annotations

import signal
import sys
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from types import FrameType

import yaml

from scholarch.cli.curation_report import report
from scholarch.cli.sources import find_model, opened
from scholarch.curation.embedding import Embedder
from scholarch.curation.pipeline import Curation, Outcome
from scholarch.curation.recipe import CurationRecipe, SetSection
from scholarch.curation.workers import ray_engine
from scholarch.data.catalog import open_source
from scholarch.data.source import Source
from scholarch.data.views import EvaluationView
from scholarch.errors import EXIT_INTERRUPTED, RunFailed
from scholarch.registry.backbone import assemble
from scholarch.registry.outbox import Data
from scholarch.registry.tracking import Status, Tracker, known_run
from scholarch.storage.lease import Lease
from scholarch.storage.local import check_writable, lock
from scholarch.storage.mirror import scratch
from scholarch.storage.objects import Objects, is_s3, open_objects
from scholarch.storage.s3 import S3Objects

RECIPE = "curation.yaml"


class Stopped(RunFailed):
    """SIGTERM: what is finished stands, and the same command goes on."""

    exit_code = EXIT_INTERRUPTED


def carry_out(recipe: CurationRecipe, address: str, ray: str, workers: int | None) -> str:
    """All steps of a recipe; gives the address of the mixture.

    Raises:
        UserError: before anything is written, where the recipe cannot be carried out.
        RunFailed: if workers cannot go on, or the command is told to stop.
    """
    run = open_objects(address)
    run.check()
    folder = scratch(address) / run.address.rpartition("/")[2] if is_s3(address) else Path(address)
    check_writable(folder)
    models = {recipe.embed.model, *([recipe.deduplicate.model] if recipe.deduplicate else [])} - {None}
    embedders = {name: embedder(name, recipe) for name in sorted(m for m in models if m)}
    opened_sets = {(s.source, s.labels): _open(s) for s in _sections(recipe)}

    def open_set(section: SetSection) -> Source:
        return opened_sets[section.source, section.labels]

    with _held(run, folder), _stoppable(), ray_engine(ray, workers) as engine:
        run.write(RECIPE, yaml.safe_dump(recipe.model_dump(mode="json"), sort_keys=False).encode())
        tracker = _track(recipe, folder, open_set)
        status: Status = "FAILED"
        try:
            outcome = Curation(recipe, run, engine, open_set, embedders, _say).carry_out()
            _hand_over(recipe, run, folder, outcome, tracker)
            status = "FINISHED"
        except Stopped:
            status = "KILLED"
            raise
        finally:
            tracker.finish(status)
    return outcome.mixture


def embedder(name: str, recipe: CurationRecipe) -> Embedder:
    """The model of this name, ready to embed.

    Raises:
        UserError: if there is no such model, or it is damaged.
    """
    place = find_model(name, "embed.model")
    model = opened(place)
    seen = model.preprocessing
    return Embedder(
        name=model.origin,
        digest=place.sha256(),
        backbone=assemble(model.options, model.weights).float().eval(),
        view=EvaluationView(seen.size, seen.mean, seen.std),
        precision=recipe.embed.precision,
        stored=recipe.embed.stored,
        batch=recipe.embed.batch,
    )


def _sections(recipe: CurationRecipe) -> list[SetSection]:
    groups = (recipe.pool, recipe.references, recipe.evaluations)
    return [section for group in groups for section in group.values()]


def _open(section: SetSection) -> Source:
    return open_source(section.source, section.labels)


@contextmanager
def _held(run: Objects, folder: Path) -> Iterator[None]:
    """The run's place for this process alone."""
    with ExitStack() as held:
        folder.mkdir(parents=True, exist_ok=True)
        held.enter_context(lock(folder))
        if isinstance(run, S3Objects):
            lease = Lease(run)
            lease.acquire()
            held.callback(lease.release)
        yield


@contextmanager
def _stoppable() -> Iterator[None]:
    def stop(_signal: int, _frame: FrameType | None) -> None:
        raise Stopped("stopped; what is finished stands, and the same command goes on")

    before = signal.signal(signal.SIGTERM, stop)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)


def _track(recipe: CurationRecipe, folder: Path, open_set: object) -> Tracker:
    tracker = Tracker.start(folder, f"curate/{recipe.name}", folder.name, known_run(folder))
    tracker.recipe(recipe.model_dump(mode="json"))
    assert callable(open_set)
    for group in ("pool", "references", "evaluations"):
        for name, section in getattr(recipe, group).items():
            source: Source = open_set(section)
            tracker.data(
                Data(
                    name=name,
                    source=section.source,
                    fingerprint=source.fingerprint(),
                    counts={"pictures": len(source)},
                    context=group,
                )
            )
    return tracker


def _hand_over(
    recipe: CurationRecipe, run: Objects, folder: Path, outcome: Outcome, tracker: Tracker
) -> None:
    """The report, in the run and in MLflow."""
    written = report(folder, recipe, outcome)
    for path in (written.page, *written.pictures):
        if is_s3(run.address):
            run.upload(f"report/{path.name}", path)
        tracker.file(path, "report")
    tracker.tags({"mixture": outcome.mixture})
    _say(f"report: {run.address}/report/{written.page.name}")


def _say(text: str) -> None:
    print(text, file=sys.stderr, flush=True)
