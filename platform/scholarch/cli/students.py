"""A run of several students: each is a run of its own in `<run>/students/NAME`, on its own processes."""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Mapping, Sequence
from contextlib import ExitStack, suppress
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from scholarch.cli.plan import STUDENTS, Plan, Request, new_run
from scholarch.cli.progress import PROGRESS_NAME, Progress
from scholarch.cli.remote import at_hand
from scholarch.cli.session import Session
from scholarch.cli.sources import EXPORT, RECIPE, Model
from scholarch.cli.tiling import Planning, planning
from scholarch.config.load import plain
from scholarch.config.scale import Scale
from scholarch.config.schema import Recipe
from scholarch.distillation.exchange import Exchange
from scholarch.distillation.groups import Tiling, part_of
from scholarch.distillation.together import Place, build_student, check_together, masks_differ
from scholarch.errors import EXIT_DONE, EXIT_FAILED, EXIT_INTERRUPTED, RunFailed, UserError
from scholarch.registry.tracking import Status, Tracker, known_run
from scholarch.storage.objects import Unreachable, is_s3, joined, open_objects
from scholarch.storage.s3 import S3Objects
from scholarch.training.assemble import Everywhere
from scholarch.training.checkpoint import Checkpoint, committed
from scholarch.training.distributed import World, collective_timeout
from scholarch.training.layout import Layout
from scholarch.training.observe import Observer, Outcome
from scholarch.training.recipe import load_recipe, recipe_from
from scholarch.training.trainer import Trainer

JOB = "students.json"
PLANS = 4
"""That a job may go through before it is started again; the last one stays, whatever its steps cost."""
PROGRESS_SECONDS = 3.0
"""That a store which does not answer may hold up a step."""


@dataclass(frozen=True)
class Job:
    """What was asked for.

    Attributes:
        recipe: name or file; "": that of the run, on resume.
        overrides: `key.path=value`.
        scale: `tiny` shrinks the recipe.
        address: where the run is, as it was named; "": a new one is named.
        only: students that take part; none: all that are not done.
        costs: address of a run whose measured steps plan this one's beginning; "": none.
        resume: go on from the newest checkpoints.
        restarted: an elastic launcher started this process again.
    """

    recipe: str
    overrides: tuple[str, ...]
    scale: Scale
    address: str
    only: tuple[str, ...] = ()
    costs: str = ""
    resume: bool = False
    restarted: bool = False


def distil(job: Job, world: World) -> int:
    """Carries a job out; gives the exit code, the same on all processes.

    Raises:
        UserError: before anything is written.
        RunFailed: on the processes of a student that could not go on, when all others have ended.
    """
    job = replace(job, restarted=any(world.gather(job.restarted)))
    job = world.from_first(world.agree(lambda: _asked(job) if world.first else job))
    recipe = world.agree(lambda: load_recipe(job.recipe, job.overrides, job.scale))
    if not recipe.students:
        request = Request(
            job.recipe, job.overrides, job.address, job.resume, restarted=job.restarted, scale=job.scale
        )
        with at_hand(request, world) as request:
            return Session(request, world).run()
    address = world.from_first(job.address or str(new_run(recipe)))
    names = world.from_first(world.agree(lambda: _names(job, recipe, address) if world.first else []))
    if not names:
        return EXIT_DONE
    worst, failure = EXIT_DONE, None
    for left in reversed(range(PLANS)):
        plan = planning(recipe, names, (address, job.costs), world, last=not left)
        codes, error, anew = _carried_out(job, world, plan)
        worst, failure = _worst(worst, *codes.values()), failure or error
        names = [name for name in names if codes[name] == EXIT_INTERRUPTED]
        if not (anew and names):
            break
        job, worst = replace(job, resume=True), EXIT_FAILED if worst == EXIT_FAILED else EXIT_DONE
    if failure is not None:
        raise failure
    return worst


def _worst(*codes: int) -> int:
    return max(codes, key=[EXIT_DONE, EXIT_INTERRUPTED, EXIT_FAILED].index)


def _carried_out(job: Job, world: World, plan: Planning) -> tuple[dict[str, int], RunFailed | None, bool]:
    """One plan of the job: exit codes by student, what failed here, and whether the others go on by another plan."""
    tiling = world.from_first(world.agree(lambda: plan.tiling() if world.first else None))
    part, everywhere = part_of(world, tiling, collective_timeout())
    name, address = tiling.student(world.rank), plan.address
    request = Request(
        recipe=job.recipe,
        overrides=(*job.overrides, *_begins(plan.recipe, name)),
        address=joined(address, STUDENTS, name),
        resume=(job.resume or job.restarted) and _begun(joined(address, STUDENTS, name)),
        restarted=job.restarted,
        scale=job.scale,
        student=name,
    )
    with ExitStack() as held:
        request = world.agree(lambda: held.enter_context(at_hand(request, part)))
        session = StudentSession(request, part, job, Shared(world, everywhere, tiling, plan))
        code, error = EXIT_DONE, None
        try:
            code = session.run()
        except RunFailed as failure:
            code, error = failure.exit_code, failure
        codes: dict[str, int] = {}
        for student, ended in world.gather((name, code)):
            codes[student] = _worst(codes.get(student, EXIT_DONE), ended)
        session.finish(_worst(*codes.values()))
    return codes, error, session.ended_by_plan


@dataclass(frozen=True)
class Shared:
    """What the students of a job have in common.

    Attributes:
        world: all processes.
        everywhere: how the teacher is spread over them.
        tiling: who does what.
        plan: of the whole run.
    """

    world: World
    everywhere: Everywhere
    tiling: Tiling
    plan: Planning

    @property
    def address(self) -> str:
        """Of the whole run."""
        return self.plan.address


class JobProgress(Progress):
    """That of a student, kept for the whole job too: all students are at the same step.

    Args:
        address: of the job's run.
        student: whose checkpoints are named.
    """

    def __init__(self, run: Path, total: int, world_size: int, address: str, student: str) -> None:
        super().__init__(run, total, world_size)
        self.address, self.student = address, student

    def publish(self, content: Mapping[str, Any]) -> None:
        super().publish(content)
        saved = content["checkpoint"]
        name = None if saved is None else f"{STUDENTS}/{self.student}/checkpoints/step-{saved:09d}"
        objects = open_objects(self.address)
        if isinstance(objects, S3Objects):
            objects.retry_seconds = PROGRESS_SECONDS
        with suppress(Unreachable):  # training goes on; the next one may arrive
            objects.write(PROGRESS_NAME, json.dumps({**content, "checkpoint": name}).encode())


class StudentSession(Session):
    """The session of this process's student; the teacher's work is everybody's."""

    def __init__(self, request: Request, part: World, job: Job, shared: Shared) -> None:
        super().__init__(request, part)
        self.job, self.shared = job, shared
        self.everyone = shared.world
        self.exchange: Exchange | None = None
        self.whole = False
        self.parent: Tracker | None = None

    def _plan(self) -> Plan:
        shared = self.shared
        plan = shared.world.agree(lambda: super(StudentSession, self)._plan())
        gathered = shared.world.gather((self.request.student, plain(plan.recipe)))
        recipes = {name: recipe_from(data, where=f"students.{name}") for name, data in dict(gathered).items()}
        shared.world.agree(lambda: check_together(recipes))
        self.whole = masks_differ(list(recipes.values()))
        plan = replace(plan, start=self._common_start(plan))
        if shared.world.first:
            sizes = ", ".join(f"{name} {size}" for name, size in shared.tiling.sizes.items())
            print(f"students and their processes: {sizes}", file=sys.stderr, flush=True)
            _write(shared.address, self.job)
        return plan

    def _common_start(self, plan: Plan) -> Checkpoint | None:
        """The newest step at which every student has a checkpoint: they go on together."""
        mine = {c.step: c for c in committed(plan.checkpoints) if plan.start and c.step <= plan.start.step}
        everywhere = self.shared.world.gather((self.request.student, sorted(mine)))
        common = set.intersection(*(set(steps) for _, steps in everywhere))
        if common:
            return mine[max(common)]
        if any(steps for _, steps in everywhere):
            told = ", ".join(
                f"{name} {steps[-1] if steps else 0}" for name, steps in dict(everywhere).items()
            )
            raise UserError(
                f"the students stand at different steps ({told}) and have no checkpoint of the same one",
                where=self.shared.address,
                fix="go on with those of one step alone: --student NAME, several times",
            )
        return None

    def _experiment(self, plan: Plan) -> str:
        return plan.recipe.name.removesuffix(f"-{self.request.student}")

    def _track(self, plan: Plan) -> Tracker:
        tracker = super()._track(plan)
        tracker.tags({"scholarch.student": self.request.student})
        if self.shared.world.first and os.environ.get("MLFLOW_TRACKING_URI"):
            # Without a server each run has a store of its own, and nothing to be nested in.
            address = self.shared.address
            folder = plan.run.parent / "all" if is_s3(address) else Path(address)
            experiment = os.environ.get("MLFLOW_EXPERIMENT_NAME") or self._experiment(plan)
            self.parent = Tracker.start(
                folder, experiment, address.rstrip("/").rpartition("/")[2], known_run(folder)
            )
        return tracker

    def _nest(self) -> None:
        """Puts the students' MLflow runs into that of the whole; all processes take part."""
        parent = self.shared.world.from_first(self.parent and self.parent.run_id)
        if self.tracker is not None and parent:
            self.tracker.tags({"mlflow.parentRunId": parent})

    def finish(self, code: int) -> None:
        """Ends the MLflow run of the whole."""
        statuses: dict[int, Status] = {EXIT_DONE: "FINISHED", EXIT_INTERRUPTED: "KILLED"}
        if self.parent is not None:
            self.parent.finish(statuses.get(code, "FAILED"))

    def _trainer(self, plan: Plan, layout: Layout, observers: Sequence[Observer]) -> Trainer:
        shared = self.shared
        place = Place(shared.world, self.world, shared.everywhere, shared.tiling, self.whole)
        trainer, self.exchange = build_student(
            place, plan.local, plan.split.train, layout, plan.checkpoints, observers
        )
        self.exchange.replanned = shared.plan.replanned
        return trainer

    @property
    def ended_by_plan(self) -> bool:
        """Whether it ended so that the job goes on by another plan."""
        return self.exchange is not None and self.exchange.ended

    def _hand_over(self, plan: Plan, model: Model, outcome: Outcome, finished: int) -> None:
        if self.ended_by_plan and outcome == "interrupted":
            self._say(f"goes on from step {finished} by another plan")
        else:
            super()._hand_over(plan, model, outcome, finished)

    def _progress(self, plan: Plan) -> Progress:
        shared = self.shared
        if not shared.world.first:
            return super()._progress(plan)
        steps = plan.recipe.training.steps
        return JobProgress(plan.run, steps, shared.world.size, shared.address, self.request.student)

    def _train(self, trainer: Trainer, start: int) -> tuple[Outcome, int]:
        """Trains; then goes on with the teacher's work until the other students have ended too."""
        assert self.exchange is not None
        failure: RunFailed | None = None
        outcome: tuple[Outcome, int] = ("interrupted", start)
        try:
            outcome = super()._train(trainer, start)
        except RunFailed as error:
            failure = error
            self._say(f"this student has failed, the others go on: {error}")
        self.exchange.serve(lambda: self.world.heartbeat.beat(outcome[1], start or -1))
        self.exchange.close()
        self._nest()
        if failure is not None:
            raise failure
        return outcome


def _asked(job: Job) -> Job:
    """The job with what its run began with, where it is gone on with."""
    again = job.resume or job.restarted
    saved = _saved(job.address) if job.address else None
    if saved is None:
        if job.resume and not job.restarted:
            raise UserError(
                "there is no run of several students to resume",
                where=job.address or "--resume",
                fix="name the run's folder with --run; leave --resume out to begin a new one",
            )
        if not job.recipe:
            raise UserError("which recipe?", where="--recipe", fix="such as --recipe dinov3/distill-vits")
        return job
    if not again:
        raise UserError(
            "this folder already holds a run",
            where=job.address,
            fix="add --resume to go on with it, or name another folder with --run",
        )
    if job.recipe and job.recipe != saved["recipe"]:
        raise UserError(
            f"the run began with {saved['recipe']}", where="--recipe", fix="resume without --recipe"
        )
    added = tuple(o for o in job.overrides if o not in saved["overrides"])
    return replace(job, recipe=saved["recipe"], overrides=(*saved["overrides"], *added), scale=saved["scale"])


def _saved(address: str) -> dict[str, Any] | None:
    if not is_s3(address) and not Path(address).is_dir():
        return None
    try:
        found: dict[str, Any] = json.loads(open_objects(address).read(JOB))
    except FileNotFoundError:
        return None
    return found


def _write(address: str, job: Job) -> None:
    content = {"recipe": job.recipe, "overrides": list(job.overrides), "scale": job.scale}
    open_objects(address).write(JOB, json.dumps(content, indent=1).encode())


def _names(job: Job, recipe: Recipe, address: str) -> list[str]:
    """The students that take part."""
    for name in job.only:
        if name not in recipe.students:
            raise UserError(
                f"no student {name!r}", where="--student", fix=f"one of {', '.join(recipe.students)}"
            )
    again = job.resume or job.restarted
    return [
        name
        for name in recipe.students
        if (not job.only or name in job.only) and not (again and _done(joined(address, STUDENTS, name)))
    ]


def _begins(recipe: Recipe, name: str) -> tuple[str, ...]:
    """What makes a student of a later stage begin with the student of that name in a run of the stage before."""
    before = recipe.init_from and recipe.init_from.checkpoint
    if not before or _saved(before) is None:
        return ()
    return (f"init_from.checkpoint={json.dumps(joined(before, STUDENTS, name))}",)


def _begun(address: str) -> bool:
    return open_objects(address).entry(RECIPE) is not None


def _done(address: str) -> bool:
    return bool(list(open_objects(address).children(EXPORT)))
