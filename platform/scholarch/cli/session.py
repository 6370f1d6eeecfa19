"""One run of `pretrain`: plan, train, record, and hand over the result."""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Mapping
from contextlib import ExitStack
from typing import Any

from scholarch import __version__
from scholarch.cli.console import Console
from scholarch.cli.handover import Handover
from scholarch.cli.plan import RECIPE, STATE, Plan, Request, make_plan
from scholarch.cli.probes import KnnProbe
from scholarch.config.load import plain, to_yaml
from scholarch.errors import EXIT_DONE, EXIT_INTERRUPTED
from scholarch.registry.tracking import Data, Tracker, known_run
from scholarch.storage.local import lock, write_text
from scholarch.storage.records import RECORDS_NAME, append_record, keep_records
from scholarch.training.assemble import Loading, build_dataset, build_learner
from scholarch.training.checkpoint import Checkpoints
from scholarch.training.distributed import World
from scholarch.training.health import Health
from scholarch.training.observe import Observer, Outcome
from scholarch.training.optimizer import Optimizer
from scholarch.training.teachers import Teachers
from scholarch.training.trainer import Probe, Trainer


class Records:
    """An Observer that writes metrics.jsonl, from which MLflow and the report are made."""

    def __init__(self, plan: Plan) -> None:
        self.path = plan.run / RECORDS_NAME

    def recorded(self, record: Mapping[str, float]) -> None:
        append_record(self.path, record)

    def warned(self, message: str) -> None:
        """The console's business."""


class Session:
    """Carries out a request on this process; rank 0 speaks and writes for all."""

    def __init__(self, request: Request, world: World) -> None:
        self.request, self.world = request, world

    def run(self) -> int:
        """The exit code: 0 done, 75 interrupted and resumable.

        Raises:
            UserError: before anything is written.
            RunFailed: when training cannot go on.
        """
        plan = make_plan(self.request, self.world)
        self._say(f"scholarch {__version__}  {plan.recipe.name}\n{plan.preflight.table()}")
        with ExitStack() as held:
            self.world.agree(lambda: self._open(plan, held) if self.world.first else None)
            tracker = self._track(plan) if self.world.first else None
            try:
                outcome, finished = self._train(plan, tracker)
            except BaseException:
                if tracker is not None:
                    tracker.finish("FAILED")
                raise
        return self._end(plan, outcome, finished)

    def _open(self, plan: Plan, held: ExitStack) -> None:
        plan.run.mkdir(parents=True, exist_ok=True)
        held.enter_context(lock(plan.run))
        if plan.start is None:
            write_text(plan.run / STATE, json.dumps(_state(plan), indent=1))
        write_text(plan.run / RECIPE, to_yaml(plan.recipe))
        keep_records(plan.run / RECORDS_NAME, plan.start.step if plan.start else -1)

    def _track(self, plan: Plan) -> Tracker:
        tracker = Tracker.start(plan.run, plan.recipe.name, plan.run.name, known_run(plan.run))
        tracker.recipe(plain(plan.recipe))
        tracker.tags({"scholarch.version": __version__, "scholarch.world_size": self.world.size})
        source = plan.recipe.data.source
        tracker.data(
            Data(
                name=source.rstrip("/").rpartition("/")[2],
                source=source if "/" in source else f"builtin:{source}",
                fingerprint=plan.split.train.fingerprint(),
                counts={"pictures": len(plan.split.train), "held_out": len(plan.split.held or ())},
            )
        )
        return tracker

    def _train(self, plan: Plan, tracker: Tracker | None) -> tuple[Outcome, int]:
        recipe, world = plan.recipe, self.world
        learner = build_learner(recipe, world)
        steps = recipe.training.steps
        optimizer = Optimizer(
            learner.student,
            recipe.optimizer,
            global_batch=recipe.training.global_batch,
            total_steps=steps,
        )
        keep = recipe.training.keep_checkpoints
        checkpoints = Checkpoints(plan.run / "checkpoints", keep, world)
        start = 0
        if plan.start is not None:
            checkpoints.load(plan.start, learner, optimizer)
            start = plan.start.step
            self._say(f"resumed from {plan.start.path.name} of {plan.run}")
        dataset = build_dataset(recipe, plan.split.train)
        observers: list[Observer] = [Records(plan), Console(steps)] if world.first else []
        handover = Handover(plan, learner, dataset, tracker, world)
        trainer = Trainer(
            recipe,
            learner,
            optimizer,
            Teachers(learner, recipe.teachers),
            Loading(recipe, dataset, plan.preflight.layout, world),
            plan.preflight.layout,
            checkpoints,
            world,
            observers,
            self._probes(plan, learner, handover),
        )
        outcome, finished = trainer.run(start)
        handover.finish(outcome)
        return outcome, finished

    def _probes(self, plan: Plan, learner: Any, handover: Handover) -> list[Probe]:
        probes: list[Probe] = [Health(self.world)]
        if plan.split.held is not None:
            probes.append(KnnProbe(plan, learner, handover.teacher, self.world))
        return probes

    def _end(self, plan: Plan, outcome: Outcome, finished: int) -> int:
        steps = plan.recipe.training.steps
        if outcome == "interrupted":
            self._say(
                f"stopped at step {finished} of {steps}; everything up to it is in {plan.run}\n"
                f"go on with: scholarch pretrain --run {plan.run} --resume"
            )
            return EXIT_INTERRUPTED
        return EXIT_DONE

    def _say(self, text: str) -> None:
        if self.world.first:
            print(text, file=sys.stderr, flush=True)


def _state(plan: Plan) -> dict[str, Any]:
    return {
        "scholarch": __version__,
        "began": time.strftime("%Y-%m-%dT%H:%M:%S%z"),
        "data": plan.split.train.fingerprint(),
        "pictures": len(plan.split.train),
    }
