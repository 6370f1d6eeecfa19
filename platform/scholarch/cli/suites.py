"""`scholarch evaluate MODEL --suite NAME`: a whole suite on one model, by one process or many."""

from __future__ import annotations

import json
import math
import os
import re
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from datetime import timedelta
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TypeVar

import torch.distributed as dist
from torch.distributed import ProcessGroup

from scholarch import __version__
from scholarch.cli.subjects import Found, open_subject
from scholarch.data.annotated.face import SplitName
from scholarch.errors import EXIT_DONE, EXIT_INTERRUPTED, RunFailed
from scholarch.evaluation.face import Confusion, Outcome
from scholarch.evaluation.runner import Plan, extract_all, fingerprint, open_data, run_share, samples_read
from scholarch.evaluation.suite import Suite, load_suite
from scholarch.registry.client import tracking_uri
from scholarch.registry.evidence import EXPERIMENT, MODEL_TAG, SUITE_TAG, put_on_card
from scholarch.registry.outbox import Data
from scholarch.registry.tracking import Tracker, known_run
from scholarch.report.evaluations import draw_confusion, draw_tiles
from scholarch.report.theme import png
from scholarch.storage.local import check_writable
from scholarch.storage.objects import Objects, is_s3, joined, open_objects
from scholarch.storage.records import RECORDS_NAME, append_record
from scholarch.storage.results import (
    PICTURES,
    RESULT_NAME,
    SAMPLES_NAME,
    EvaluatedData,
    Result,
    write_result,
)
from scholarch.training.distributed import World
from scholarch.training.trainer import Stop

FEATURES = "features"
PATIENCE = timedelta(days=1)
TRACKING_SECONDS = 120.0

T = TypeVar("T")


class Interrupted(RunFailed):
    """Asked to end; what was extracted stands, and the same command goes on."""

    exit_code = EXIT_INTERRUPTED

    def __init__(self) -> None:
        super().__init__("stopped; the same command goes on with what was extracted")


@dataclass(frozen=True)
class Asked:
    """What `scholarch evaluate` was asked for.

    Attributes:
        model: as it was named.
        suite: name or path.
        overrides: of the suite.
        to: address of the result; empty: evaluations/SUITE/MODEL.
        features: address that outputs are kept at; empty: under `to`, until there is a result.
        batch: pictures that go through the backbone together.
        as_json: print the document in place of a table.
        kept: the result stays at `to` after the command, which then says so.
    """

    model: str
    suite: str
    overrides: Sequence[str]
    to: str
    features: str
    batch: int
    as_json: bool
    kept: bool = True


def run_suite(asked: Asked, world: World) -> int:
    """Evaluates; rank 0 writes and speaks for all.

    Raises:
        UserError: before anything is written, for what can be known by then.
        Interrupted: after SIGTERM or Ctrl-C.
    """
    world, stop = _patient(world), Stop()

    def each(name: str = "") -> None:
        if stop.asked:
            raise Interrupted
        world.heartbeat.alive()
        if name:
            print(f"  {name}", file=sys.stderr, flush=True)

    def together(work: Callable[[], T]) -> T:
        """What `work` gives on this rank; if any rank was asked to end, all of them do."""
        result = world.agree(lambda: _unless_interrupted(work))
        if any(world.gather(stop.asked)) or result is None:
            raise Interrupted
        return result

    with stop.listening():
        found, plan = together(lambda: _planned(asked, world))
        to = (
            asked.to
            or f"evaluations/{_word(asked.suite)}/{_word(found.model.address)}-{found.model.sha256[:8]}"
        )
        objects = open_objects(asked.features or joined(to, FEATURES))
        world.agree(lambda: _check_places(to, objects))
        together(lambda: extract_all(plan, objects, batch=asked.batch, group=world.group, each=each))
        mine = together(lambda: run_share(plan, objects, group=world.group, each=each))
        outcomes = {name: one for share in world.gather(mine) for name, one in share.items()}
        world.agree(lambda: _hand_over(asked, found, plan, outcomes, objects, to) if world.first else None)
        if world.first and not asked.features:
            open_objects(to).remove_all(FEATURES)
    return EXIT_DONE


def _check_places(to: str, objects: Objects) -> None:
    for place in (open_objects(to), objects):
        place.check()
        if not is_s3(place.address):
            check_writable(Path(place.address))


def _patient(world: World) -> World:
    """The same world, whose ranks wait for one another as long as an evaluation takes."""
    if world.group is None:
        return world
    group = dist.new_group(timeout=PATIENCE)
    assert isinstance(group, ProcessGroup)
    return replace(world, group=group)


def _unless_interrupted(work: Callable[[], T]) -> T | None:
    try:
        return work()
    except Interrupted:
        return None


def _hand_over(
    asked: Asked, found: Found, plan: Plan, outcomes: Mapping[str, Outcome], objects: Objects, to: str
) -> None:
    """Writes the result, logs it and shows it."""
    result = _result(asked, found, plan, outcomes, samples_read(plan, objects))
    write_result(to, result)
    _show(asked, to, result)
    if left := _track(found, result):
        raise RunFailed(f"{left} The result is in {to}; when MLflow can be reached, give the command again")


def _planned(asked: Asked, world: World) -> tuple[Found, Plan]:
    suite = load_suite(asked.suite, asked.overrides)
    data = open_data(suite)
    found = open_subject(asked.model, world.device)
    names = {evaluation.needs().reference for evaluation in suite.built().values()} - {""}
    references = {name: open_subject(name, world.device).subject for name in sorted(names)}
    plan = Plan(suite, data, found.subject, references)
    plan.check()
    return found, plan


def _word(text: str) -> str:
    """Something that can name a folder."""
    return re.sub(r"[^\w.@-]+", "-", Path(text).stem if text.endswith((".yaml", ".yml")) else text).strip(
        "-."
    )[-60:]


def _result(
    asked: Asked,
    found: Found,
    plan: Plan,
    outcomes: Mapping[str, Outcome],
    read: Mapping[str, Mapping[SplitName, int]],
) -> Result:
    suite: Suite = plan.suite
    ordered = {name: outcomes[name] for name in suite.evaluations}
    data = {
        name: EvaluatedData(
            address=suite.data[name].address,
            fingerprint=fingerprint(splits),
            samples={str(split): count for split, count in read[name].items()},
            broken={split: len(splits[split].indices) - count for split, count in read[name].items()},
        )
        for name, splits in plan.data.items()
    }
    pictures = {}
    for name, outcome in ordered.items():
        for shown, picture in outcome.pictures.items():
            if isinstance(picture, Confusion):
                figure = draw_confusion(picture.counts, picture.classes)
            else:
                figure = draw_tiles(picture.rows, picture.titles)
            pictures[f"{name}-{shown}.png"] = png(figure)
    return Result(
        model=found.model,
        suite=asked.suite,
        evaluations=suite.plain_evaluations(),
        data=data,
        metrics={f"{n}/{m}": value for n, outcome in ordered.items() for m, value in outcome.metrics.items()},
        samples={
            f"{n}/{m}": values for n, outcome in ordered.items() for m, values in outcome.samples.items()
        },
        pictures=pictures,
        code=__version__,
    )


def _track(found: Found, result: Result) -> str:
    """The result as a run of the experiment `evaluations` on the server that `MLFLOW_TRACKING_URI` names.

    Returns:
        what went wrong; empty when all of it is there, or there is no server.
    """
    if not os.environ.get("MLFLOW_TRACKING_URI"):
        return ""
    with TemporaryDirectory() as name:
        folder = Path(name)
        write_result(name, result)
        append_record(folder / RECORDS_NAME, {"step": 0, "time": time.time(), **result.metrics})
        tracker = Tracker.start(folder, EXPERIMENT, f"{result.suite} {found.model.origin}", known_run(folder))
        tracker.tags(
            {
                "scholarch.version": __version__,
                SUITE_TAG: result.suite,
                MODEL_TAG: found.model.address,
                "scholarch.model_sha256": found.model.sha256,
            }
        )
        for of, data in result.data.items():
            counts = {f"{split}_samples": count for split, count in data.samples.items()}
            tracker.data(
                Data(
                    name=of,
                    source=data.address or "generated",
                    fingerprint=data.fingerprint,
                    counts=dict(counts),
                    context="evaluation",
                )
            )
        for file in (RESULT_NAME, SAMPLES_NAME):
            tracker.file(folder / file)
        for picture in sorted(result.pictures):
            tracker.file(folder / PICTURES / picture, PICTURES)
        tracker.finish("FINISHED", timeout=TRACKING_SECONDS)
        if tracker.trouble:
            return f"MLflow did not take the result: {tracker.trouble}."
        if missing := put_on_card(tracking_uri(folder), result, tracker.page or f"runs:/{tracker.run_id}"):
            print(f"the result is not on the version's card: {missing}", file=sys.stderr)
        return ""


def _show(asked: Asked, to: str, result: Result) -> None:
    if asked.as_json:
        print(json.dumps({**_document(result), "to": to}))
        return
    print(f"{result.model.origin} on suite {result.suite}")
    width = max(map(len, result.metrics), default=0)
    for name, value in result.metrics.items():
        count = f"  n = {len(result.samples[name])}" if name in result.samples else ""
        print(f"  {name:<{width}}  {value:>10.4g}{count}")
    broken = sum(sum(data.broken.values()) for data in result.data.values())
    if broken:
        print(f"  {broken} pictures could not be read and were left out")
    if asked.kept:
        print(f"written to {to}")


def _document(result: Result) -> dict[str, object]:
    return {
        "model": asdict(result.model),
        "suite": result.suite,
        "data": {name: asdict(data) for name, data in result.data.items()},
        "metrics": {n: None if math.isnan(v) else v for n, v in result.metrics.items()},
    }
