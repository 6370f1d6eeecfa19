"""One run of `pretrain`: plan, train, record, and hand over the result."""

from __future__ import annotations

import json
import os
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import asdict, replace
from typing import Any

from scholarch import __version__
from scholarch.cli.console import Console
from scholarch.cli.handover import register, trained_model, write_export
from scholarch.cli.plan import CHAIN, LOCK_SECONDS, STATE, STUDENTS, Plan, Request, make_plan
from scholarch.cli.probes import KnnProbe
from scholarch.cli.progress import Progress
from scholarch.cli.reporting import report
from scholarch.cli.sources import EXPORT, RECIPE, VOCABULARY, Model, exported_network
from scholarch.config.load import parse_yaml, plain, to_yaml
from scholarch.config.schema import settled
from scholarch.data.loader import prepare_workers
from scholarch.errors import EXIT_DONE, EXIT_INTERRUPTED, RunFailed, UserError
from scholarch.models.alignment import AlignedBackbone
from scholarch.registry.tracking import Status, Tracker, known_run, tracking_uri
from scholarch.storage.local import lock, write_text
from scholarch.storage.objects import is_s3
from scholarch.storage.records import RECORDS_NAME, Record, append_record, keep_records, read_records
from scholarch.training.assemble import Loading, build_trainer
from scholarch.training.distributed import World
from scholarch.training.health import Health
from scholarch.training.initial import STAGES
from scholarch.training.layout import Layout
from scholarch.training.learner import Learner
from scholarch.training.observe import Observer, Outcome
from scholarch.training.rescue import rescue
from scholarch.training.trainer import Probe, Trainer

TRACKING_SECONDS = 60.0


class Records:
    """An Observer that writes metrics.jsonl, from which MLflow and the report are made.

    Attributes:
        committed: gives the finished steps of the newest commit.
    """

    def __init__(self, plan: Plan) -> None:
        self.path = plan.run / RECORDS_NAME
        self.committed: Callable[[], int] = lambda: -1
        self._newest: list[Record] = []

    def recorded(self, record: Mapping[str, float]) -> None:
        append_record(self.path, record)
        committed = self.committed()
        self._newest = [known for known in self._newest if known["step"] > committed] + [dict(record)]

    def newest(self) -> list[Record]:
        """The records since the last commit: others are with the checkpoint."""
        return self._newest

    def warned(self, message: str) -> None:
        """The console's business."""


class Session:
    """Carries out a request on this process; rank 0 speaks and writes for all.

    Attributes:
        everyone: the processes that begin together or not at all.
    """

    def __init__(self, request: Request, world: World) -> None:
        self.request, self.world = request, world
        self.everyone = world
        self.tracker: Tracker | None = None

    def run(self) -> int:
        """The exit code: 0 done, 75 interrupted and resumable.

        Raises:
            UserError: before anything is written.
            RunFailed: when training cannot go on.
        """
        plan = self._plan()
        self._say(f"scholarch {__version__}  {plan.recipe.name}\n{plan.preflight.table()}")
        with ExitStack() as held:
            self.everyone.agree(lambda: self._open(plan, held) if self.world.first else None)
            plan = self._newest(plan)
            self.tracker = self._track(plan) if self.world.first else None
            try:
                code = self._carry_out(plan)
            except BaseException:
                self._finish_tracking("FAILED")
                raise
            self._finish_tracking("KILLED" if code == EXIT_INTERRUPTED else "FINISHED")
        return code

    def _plan(self) -> Plan:
        """What will be done; nothing is written."""
        return make_plan(self.request, self.world)

    def _open(self, plan: Plan, held: ExitStack) -> None:
        plan.run.mkdir(parents=True, exist_ok=True)
        # The first worker of before may live on for a moment, on a machine that was cut off.
        held.enter_context(lock(plan.run, patience=LOCK_SECONDS if self.request.restarted else 0.0))
        if plan.start is None:
            write_text(plan.run / STATE, json.dumps(_state(plan), indent=1))
        write_text(plan.run / RECIPE, to_yaml(plan.recipe))
        if plan.tokenizer is not None:
            write_text(plan.run / VOCABULARY, plan.tokenizer.text())
        if self.request.chain is not None:
            write_text(plan.run.parent.parent / CHAIN, json.dumps(asdict(self.request.chain), indent=1))

    def _newest(self, plan: Plan) -> Plan:
        """The plan, going on from what nodes kept in memory where that is newer; the log ends where it goes on."""
        log, committed = plan.run / RECORDS_NAME, plan.start.step if plan.start else -1

        def before_commit(step: int, records: list[Record]) -> None:
            keep_records(log, step, records)
            self.request.before_commit()

        found = rescue(plan.checkpoints, committed, self.world, before_commit)
        if found is None:
            if self.world.first:
                keep_records(log, committed)
            return plan
        self._say(f"step {found.step} was in the memory of the nodes, and is committed now")
        return replace(plan, start=found)

    def _track(self, plan: Plan) -> Tracker:
        parent = self.request.parent
        experiment = os.environ.get("MLFLOW_EXPERIMENT_NAME") or self._experiment(plan)
        tracker = Tracker.start(plan.run, experiment, plan.run.name, known_run(plan.run))
        if parent and (nested_in := known_run(parent)):
            tracker.tags({"mlflow.parentRunId": nested_in})
        tracker.recipe(plain(plan.recipe))
        tracker.tags({"scholarch.version": __version__, "scholarch.world_size": self.world.size})
        for data in plan.data:
            tracker.data(data)
        return tracker

    def _experiment(self, plan: Plan) -> str:
        parent = self.request.parent
        name: str = parse_yaml((parent / RECIPE).read_text())["name"] if parent else plan.recipe.name
        return name

    def _finish_tracking(self, status: Status) -> None:
        if self.tracker is not None:
            self.tracker.finish(status)

    def _carry_out(self, plan: Plan) -> int:
        recipe, world = plan.recipe, self.world
        if settled(recipe.training.workers):
            prepare_workers()
        layout, start = plan.preflight.layout, plan.start.step if plan.start else 0
        progress = self._progress(plan)
        console = Console(recipe.training.steps, name=self.request.student)
        records = Records(plan)
        trainer = self._trainer(plan, layout, [records, console, progress])
        records.committed = lambda: trainer.checkpoints.committed or (plan.start.step if plan.start else -1)
        trainer.replicas.records = records.newest
        trainer.checkpoints.before_commit = self.request.before_commit
        progress.committed = lambda: trainer.checkpoints.committed or start or None
        progress.page = lambda: self.tracker.page if self.tracker else ""
        trainer.probes += self._probes(plan, trainer.learner)
        if plan.start is not None:
            start = trainer.resume(plan.start)
            self._say(f"resumed from step {start} of {plan.address}")
        else:
            start = trainer.begin()
        if recipe.data.features is not None:
            self._keep_features(plan, trainer)
        outcome, finished = self._train(trainer, start)
        merges = plan.tokenizer.text() if plan.tokenizer else ""
        model = trained_model(recipe, trainer.learner, f"{plan.run.name}, step {finished}", merges)
        if world.first:
            progress.write()
            self._hand_over(plan, model, outcome, finished)
        world.barrier()
        return EXIT_INTERRUPTED if outcome == "interrupted" else EXIT_DONE

    def _trainer(self, plan: Plan, layout: Layout, observers: Sequence[Observer]) -> Trainer:
        return build_trainer(
            plan.local, plan.split.train, layout, self.world, plan.checkpoints, observers, plan.tokenizer
        )

    def _keep_features(self, plan: Plan, trainer: Trainer) -> None:
        from scholarch.training.kept_features import keep_features

        backbone, loading = trainer.learner.student.backbone, trainer.loader
        assert isinstance(backbone, AlignedBackbone)
        assert isinstance(loading, Loading)
        kept = keep_features(plan.recipe, plan.split.train, backbone, self.world, self._say)
        loading.dataset.read_features(kept)

    def _progress(self, plan: Plan) -> Progress:
        return Progress(plan.run, plan.recipe.training.steps, self.world.size)

    def _train(self, trainer: Trainer, start: int) -> tuple[Outcome, int]:
        return trainer.run(start)

    def _probes(self, plan: Plan, learner: Learner) -> list[Probe]:
        probes: list[Probe] = [Health(self.world)]
        if plan.split.held is not None:
            probes.append(KnnProbe(plan, learner, exported_network(plan.recipe), self.world))
        return probes

    def _hand_over(self, plan: Plan, model: Model, outcome: Outcome, finished: int) -> None:
        """The report in any case; export and registered version when the run is done."""
        assert self.tracker is not None
        records = read_records(plan.run / RECORDS_NAME)
        state = "interrupted" if outcome == "interrupted" else "finished"
        following = next_commands(plan, outcome)
        if outcome != "interrupted":
            write_export(model, plan.run / EXPORT)
        written = report(plan, model, records, finished, state, list(following.items()))
        for path in (written.page, *written.pictures):
            self.tracker.file(path, "report")
        if outcome == "interrupted":
            steps = plan.recipe.training.steps
            self._say(f"stopped at step {finished} of {steps}; everything up to it is in {plan.address}")
        else:
            if not self.tracker.trouble:
                self.tracker.wait(TRACKING_SECONDS)
            self._say(accuracy(plan, records))
            try:
                done = register(plan.run, plan.recipe, model, plan.data, finished, records[-1])
                self._say(f"registered {done.name} version {done.version}, alias candidate")
            except (RunFailed, UserError) as error:
                # The training is whole and exported; only the registry is missing.
                self._say(f"warning: {error}\nwhen MLflow can be reached: scholarch register {plan.address}")
        width = max(map(len, following))
        lines = [f"  {what:<{width}}  {command}" for what, command in following.items()]
        self._say("next:\n" + "\n".join(lines))

    def _say(self, text: str) -> None:
        if self.world.first:
            named = f"{self.request.student}: " if self.request.student else ""
            print("\n".join(f"{named}{line}" for line in text.splitlines()), file=sys.stderr, flush=True)


def accuracy(plan: Plan, records: list[Record]) -> str:
    """k-NN accuracy of the trained teacher and of the untrained network, in words."""
    scores = [record["evaluation/knn"] for record in records if "evaluation/knn" in record]
    if not scores:
        return "no labels: k-NN accuracy was not measured"
    return (
        f"k-NN accuracy on {len(plan.split.held or ())} held-out pictures: "
        f"{scores[-1]:.1%} trained, {scores[0]:.1%} untrained"
    )


def next_commands(plan: Plan, outcome: Outcome) -> dict[str, str]:
    """What to type next, by what it does."""
    run = plan.address
    # What is beside a run in S3 on this machine goes with the machine, or with the pod.
    page = f"{run}/report/index.html" if is_s3(run) else f"open {plan.run}/report/index.html"
    commands = {"see the report": page}
    if outcome == "interrupted":
        verb = "distill" if f"/{STUDENTS}/" in run else "pretrain"
        whole = run.partition(f"/{STUDENTS if verb == 'distill' else STAGES}/")[0]
        commands["go on"] = f"scholarch {verb} --run {whole} --resume"
    else:
        commands["evaluate"] = f"scholarch evaluate {run}"
        commands["use elsewhere"] = f"scholarch export {run} --to FOLDER"
    uri = tracking_uri(plan.run)
    if uri.startswith("sqlite:"):
        commands["see MLflow"] = f"mlflow ui --backend-store-uri {uri}"
    commands["your own pictures"] = "scholarch pretrain data=FOLDER"
    return commands


def _state(plan: Plan) -> dict[str, Any]:
    return {
        "scholarch": __version__,
        "began": time.strftime("%Y-%m-%dT%H:%M:%S%z"),
        "data_sets": [asdict(data) for data in plan.data],
    }
