"""Random lives of a run, with an operator that is killed at any point and sees Jobs late.

The world below is a few lines of what Kubernetes does with Jobs, enough to ask what the operator's decisions
lead to. What Kubernetes itself does is the cluster tests' matter.
"""

from __future__ import annotations

import itertools
import random
from dataclasses import replace
from typing import Any

import pytest
from scholarch_operator.observed import Job, Observed, Pod, Run
from scholarch_operator.plan import Plan, plan
from scholarch_operator.settings import Settings
from training_runs import a_pod, a_run, after, progress

SETTINGS = Settings()


class World:
    """The API server's Jobs and pods of one run, and the run itself."""

    def __init__(self, run: Run, chance: random.Random) -> None:
        self.run, self.chance, self.time, self.step = run, chance, 0.0, 0
        self.jobs: dict[str, Job] = {}
        self.pods: dict[str, Pod] = {}
        self.created: list[str] = []
        self.late: tuple[Job, ...] = ()
        self.numbers = itertools.count()

    def observe(self) -> Observed:
        """The run as it is; Jobs sometimes as they were."""
        self.late = self.late if self.chance.random() < 0.3 else tuple(self.jobs.values())
        moved = progress(self.step, self.time, f"step-{self.step // 100}")
        return Observed(after(self.time), self.late, tuple(self.pods.values()), moved)

    def do(self, todo: Plan) -> None:
        """Carries out the plan, or its beginning, when the operator is killed."""
        actions: list[Any] = [("status", todo.status)]
        actions += [("create", manifest) for manifest in todo.create]
        actions += [("patch", patch) for patch in todo.patch]
        actions += [("delete", name) for name in todo.delete]
        lives = self.chance.random() < 0.8
        for kind, what in actions if lives else actions[: self.chance.randint(0, len(actions))]:
            getattr(self, f"_{kind}")(what)

    def _status(self, status: Any) -> None:
        self.run = replace(self.run, status=status)

    def _create(self, manifest: Any) -> None:
        name, spec = manifest["metadata"]["name"], manifest["spec"]
        if name in self.jobs:
            return  # AlreadyExists
        self.created.append(name)
        nodes = manifest["metadata"]["annotations"]["scholarch.dev/nodes"]
        attempt = int(name.rpartition("-")[2])
        self.jobs[name] = Job(
            name, attempt, nodes=nodes, parallelism=spec["parallelism"], suspended=spec.get("suspend", False)
        )

    def _patch(self, patch: Any) -> None:
        name, change = patch
        if name not in self.jobs:
            return  # NotFound
        job = self.jobs[name]
        changed = {key: change["spec"][key] for key in ("parallelism",) if key in change["spec"]}
        annotations = change.get("metadata", {}).get("annotations", {})
        self.jobs[name] = replace(
            job,
            suspended=change["spec"].get("suspend", job.suspended),
            nodes=annotations.get("scholarch.dev/nodes", job.nodes),
            **changed,
        )

    def _delete(self, name: str) -> None:
        if name in self.jobs:
            self.jobs[name] = replace(self.jobs[name], deleting=True)

    def live(self) -> set[str]:
        """Jobs with pods at work."""
        return {f"digits-{pod.attempt}" for pod in self.pods.values() if not pod.over}

    def passes(self) -> None:
        """Some time, and what the Job controller does in it."""
        self.time += self.chance.choice([1, 20, 200])
        self.step += self.chance.choice([0, 50])
        for name, job in list(self.jobs.items()):
            stopped = job.deleting or job.suspended or bool(job.ended)
            for pod in [pod for pod in self.pods.values() if pod.attempt == job.attempt and not pod.over]:
                if stopped and self.chance.random() < 0.7:
                    del self.pods[pod.name]
            alive = [pod for pod in self.pods.values() if pod.attempt == job.attempt and not pod.over]
            if job.deleting and not alive:
                del self.jobs[name]
            elif not stopped and len(alive) < job.parallelism and self.chance.random() < 0.8:
                new = f"{name}-{next(self.numbers)}"
                self.pods[new] = a_pod(job.attempt, len(alive), name=new, started=after(self.time))
            elif job.suspended and self.run.spec.queue and self.chance.random() < 0.5:
                self.jobs[name] = replace(job, suspended=False)  # Kueue admits it

    def happens(self) -> None:
        """Something that is nobody's plan."""
        what = self.chance.random()
        alive = [pod for pod in self.pods.values() if not pod.over]
        jobs = [job for job in self.jobs.values() if not job.ended and not job.deleting and not job.suspended]
        spec = self.run.spec
        if what < 0.2 and alive:
            pod = self.chance.choice(alive)
            self.pods[pod.name] = replace(pod, phase="Failed", exit_code=self.chance.choice([1, 75, 137]))
        elif what < 0.25 and jobs:
            job = self.chance.choice(jobs)
            self.jobs[job.name] = replace(job, ended="Failed", reason="BackoffLimitExceeded")
        elif what < 0.35:
            self.run = replace(self.run, spec=spec.model_copy(update={"suspend": not spec.suspend}))
        elif what < 0.45:
            least = self.chance.randint(1, 2)
            nodes = spec.nodes.model_copy(update={"min": least, "max": least + self.chance.randint(0, 2)})
            self.run = replace(self.run, spec=spec.model_copy(update={"nodes": nodes}))


QUEUED: dict[str, Any] = {"gang": {"backend": "kueue", "timeoutSeconds": 500}, "queue": "team"}


@pytest.mark.parametrize("spec", [{"gang": {"timeoutSeconds": 500}}, QUEUED], ids=["none", "kueue"])
@pytest.mark.parametrize("seed", range(40))
def test_never_two_jobs_for_an_attempt_nor_two_attempts_at_work(spec: dict[str, Any], seed: int) -> None:
    run = a_run(nodes={"min": 1, "max": 2}, stallSeconds=300, retries={"attempts": 20}, **spec)
    world = World(run, random.Random(seed))
    for _ in range(120):
        world.do(plan(world.run, world.observe(), SETTINGS))
        assert len(world.created) == len(set(world.created)), world.created
        assert len(world.live()) <= 1, world.live()
        world.passes()
        world.happens()
    # Left alone, it comes to rest at one Job that runs, and has nothing more to do.
    world.run = replace(world.run, spec=world.run.spec.model_copy(update={"suspend": False}))
    world.chance.random = lambda: 0.4  # type: ignore[method-assign]
    world.time += 7200
    for _ in range(40):
        world.step += 100
        world.do(plan(world.run, world.observe(), SETTINGS))
        world.passes()
    if not world.run.status.finished:
        assert world.live() == {f"digits-{world.run.status.attempt}"}
        assert world.run.status.is_true("Running")
    again = plan(world.run, world.observe(), SETTINGS)
    assert (again.create, again.patch, again.delete) == ((), (), ())


def test_plan_of_its_own_outcome_changes_nothing() -> None:
    world = World(a_run(nodes={"min": 1, "max": 2}), random.Random(1))
    world.chance.random = lambda: 0.5  # type: ignore[method-assign]
    world.do(plan(world.run, world.observe(), SETTINGS))
    once = plan(world.run, world.observe(), SETTINGS)  # there is a Job now, and the wait for its pods begins
    world.do(once)
    twice = plan(world.run, world.observe(), SETTINGS)
    assert once.apply == twice.apply
    assert twice.status == world.run.status
    assert (twice.create, twice.patch, twice.delete, twice.events) == ((), (), (), ())
