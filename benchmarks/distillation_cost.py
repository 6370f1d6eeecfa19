"""What several students cost side by side, against the same students one after another on as many processes.

Two cores serve four processes here, so the clock on the wall says nothing: seconds are those that each process's own
thread worked, a step's critical path is the busiest process, and waiting is what the others have less than it.
Pictures, which loader processes make elsewhere, and what the thread does for the exchange are told beside. A plan is
made from the steps of equal groups, and others from all steps so far while more than 5 % is waiting, at most as many as
a job may go through; what each expected stands beside what was measured.
"""

from __future__ import annotations

import argparse
import itertools
import json
import statistics
import sys
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parent / "parts"))

from machine import machine, write
from scholarch.cli.students import PLANS
from scholarch.distillation.groups import Tiling, apportion, even
from scholarch.distillation.measured import IDLE, Measured, Observed, hardware_name
from scholarch.distillation.planner import Costs, JobPlan, made, plan_job
from scholarch.report.theme import write_png
from scholarch.report.timeline import Bar, draw_timelines
from several_students import Member, member, on_processes
from torch import device

PROCESSES, BATCH = 4, 96
STUDENTS = ("vits16", "vitb16", "vitl16")
OVERRIDES = (
    f"training.global_batch={BATCH}",
    "training.activation_checkpointing=none",
    "views.local.count=2",
    "students.vits16plus=null",
    "students.vith16plus=null",
    "students.vits16.model={embed_dim: 32, depth: 2, heads: 2}",
    "students.vitb16.model={embed_dim: 48, depth: 3, heads: 2}",
    "students.vitl16.model={embed_dim: 64, depth: 4, heads: 2}",
    "teachers.teacher.model={embed_dim: 256, depth: 6, heads: 4}",
    "teachers.teacher.sharded=none",
)
PICTURE = Path(__file__).parents[1] / "docs/pictures/distillation_cost.png"
EQUAL, PLANNED = "equal groups", "as planned"


def work(folder: str, sizes: Mapping[str, int], teacher: Sequence[int], steps: int) -> dict[str, Any]:
    """One process's seconds a step, medians: of the teacher, of its student, and of all else in its thread."""
    one = member((*OVERRIDES, f"training.steps={steps}"), Tiling(sizes, teacher), folder)
    began = time.perf_counter()
    one.trainer.run()
    wall = (time.perf_counter() - began) / steps
    one.exchange.close()
    return {**_seconds(one), "wall": wall}


def _seconds(one: Member) -> dict[str, Any]:
    seen = one.exchange.observed()[one.exchange.world.rank]
    teaching, training = one.exchange.teaching.stretches, one.exchange.training.stretches
    # From the end of one of the student's steps to that of the next: all that the thread does in a step.
    whole = [after[1] - before[1] for before, after in itertools.pairwise(training)]
    # The teacher is a step ahead, and one of its stretches lies between two ends.
    busy = [
        b[1] - b[0] + t[1] - t[0]
        for b, t in zip(list(training)[1:], list(teaching)[-len(whole) :], strict=True)
    ]
    return {**seen._asdict(), "busy": busy, "other": statistics.median(whole) - statistics.median(busy)}


def observed(rows: Sequence[Mapping[str, Any]]) -> list[Observed]:
    """What the processes of a run saw."""
    return [Observed(*(row[name] for name in Observed._fields)) for row in rows]


def path(rows: Sequence[Mapping[str, Any]]) -> float:
    """Seconds of a step's critical path."""
    return max(one.student_seconds + one.teacher_seconds for one in observed(rows))


def path_by_step(rows: Sequence[Mapping[str, Any]]) -> float:
    """The same with the busiest process of each step by itself, mean: what varies from step to step counts too."""
    return statistics.fmean(map(max, zip(*(row["busy"] for row in rows), strict=True)))


def waiting(rows: Sequence[Mapping[str, Any]]) -> float:
    """Share of the processes' time."""
    busy = [one.student_seconds + one.teacher_seconds for one in observed(rows)]
    return 1 - statistics.fmean(busy) / max(busy)


def bars(rows: Sequence[Mapping[str, Any]]) -> list[Bar]:
    """A bar for each process."""
    return [
        Bar(f"{rank}: {one.student}", [("teacher", one.teacher_seconds), ("student", one.student_seconds)])
        for rank, one in enumerate(observed(rows))
    ]


class Runs:
    """The runs of the comparison, each measured once and kept.

    Args:
        folder: what was measured before is there.
        steps: of each run.
    """

    def __init__(self, folder: Path, steps: int) -> None:
        self.folder, self.steps = folder, steps
        folder.mkdir(parents=True, exist_ok=True)

    def measure(self, name: str, tiling: Tiling) -> list[dict[str, Any]]:
        """Rows of the processes."""
        file = self.folder / f"{name.replace(' ', '-')}.json"
        if not file.exists():
            print(f"{name}: {dict(tiling.sizes)}, edges {list(tiling.teacher)}", flush=True)
            rows = on_processes(PROCESSES, work, dict(tiling.sizes), list(tiling.teacher), self.steps)
            file.write_text(json.dumps(rows, indent=1))
        found: list[dict[str, Any]] = json.loads(file.read_text())
        return found


def measure(runs: Runs) -> tuple[dict[str, list[dict[str, Any]]], dict[str, JobPlan], Costs]:
    """Rows of every run, what was expected of each that was planned, and the costs that were known at the end."""
    cut = even(BATCH, PROCESSES)
    sizes = dict(zip(STUDENTS, apportion(PROCESSES, [1.0] * len(STUDENTS), least=1), strict=True))
    found = {EQUAL: runs.measure(EQUAL, Tiling(sizes, cut))}
    known = Measured(hardware_name(device("cpu")), together=False).with_seen(observed(found[EQUAL]))
    costs = known.costs(STUDENTS)
    assert costs is not None
    expected: dict[str, JobPlan] = {}
    last = EQUAL
    for number in range(1, PLANS + 1):
        plan = plan_job(costs, PROCESSES, BATCH)
        last = f"plan {number}"
        expected[last], found[last] = plan, runs.measure(last, plan.tiling)
        known = known.with_seen(observed(found[last]))
        costs = known.costs(STUDENTS)
        assert costs is not None
        if waiting(found[last]) <= IDLE:
            break
    found[PLANNED], expected[PLANNED] = found.pop(last), expected.pop(last)
    for name in STUDENTS:
        found[name] = runs.measure(name, Tiling({name: PROCESSES}, cut))
    return found, expected, costs


def table(found: Mapping[str, Sequence[Mapping[str, Any]]]) -> list[str]:
    """A line for each process of each run."""
    lines = [
        "| run | process | student | its pictures | the teacher's | student | teacher | all else | waiting |",
        "| --- | ---: | --- | ---: | ---: | ---: | ---: | ---: | ---: |",
    ]
    for name, rows in found.items():
        for rank, (row, one) in enumerate(zip(rows, observed(rows), strict=True)):
            waits = 1 - (one.student_seconds + one.teacher_seconds) / path(rows)
            lines.append(
                f"| {name} | {rank} | {one.student} | {one.own} | {one.part} | {one.student_seconds:.3f} s | "
                f"{one.teacher_seconds:.3f} s | {row['other']:.3f} s | {waits:.1%} |"
            )
    return lines


def saving(found: Mapping[str, Sequence[Mapping[str, Any]]], of: Any = path) -> dict[str, float]:
    """Process-seconds of a step side by side and one after another, and what the teacher's passes allow to save.

    `saved` is all that side by side takes less; `saved, teacher` what passes of the teacher are less, without the
    waiting, whatever the students themselves take in the one form and the other.
    """
    apart = PROCESSES * sum(of(found[name]) for name in STUDENTS)
    passes = sum(one.teacher_seconds for name in STUDENTS for one in observed(found[name]))
    allowed = passes * (1 - 1 / len(STUDENTS))
    figures = {"one after another": apart, "teacher": passes / len(STUDENTS), "allowed": allowed}
    for name in (EQUAL, PLANNED):
        seen = observed(found[name])
        figures[name] = here = PROCESSES * of(found[name])
        waits = here - sum(one.student_seconds + one.teacher_seconds for one in seen)
        fewer = passes - sum(one.teacher_seconds for one in seen)
        figures[f"{name}, saved"] = (apart - here) / allowed
        figures[f"{name}, saved, teacher"] = (fewer - waits) / allowed
    return figures


def compared(found: Mapping[str, Sequence[Mapping[str, Any]]]) -> list[str]:
    """Lines of costs, by medians and step by step."""
    median, stepwise = saving(found), saving(found, path_by_step)
    lines = [
        "| process-seconds a step | all | saved of what is allowed | by the teacher alone | all, step by step |",
        "| --- | ---: | ---: | ---: | ---: |",
        f"| one after another | {median['one after another']:.2f} | | | {stepwise['one after another']:.2f} |",
    ]
    for name in (EQUAL, PLANNED):
        saved = f"{median[f'{name}, saved']:.1%} | {median[f'{name}, saved, teacher']:.1%}"
        lines.append(f"| side by side, {name} | {median[name]:.2f} | {saved} | {stepwise[name]:.2f} |")
    told = (
        f"The teacher's pass takes {median['teacher']:.2f} process-seconds, and sharing it allows to save "
        f"{median['allowed']:.2f}. By the teacher alone: its passes that are saved, less the waiting, as if the "
        "students took as long in both forms."
    )
    return [*lines, "", told]


def students_seconds(found: Mapping[str, Sequence[Mapping[str, Any]]]) -> list[str]:
    """What the students themselves take in all, which is not the same on one process and on four."""
    apart = sum(one.student_seconds for name in STUDENTS for one in observed(found[name]))
    beside = sum(one.student_seconds for one in observed(found[PLANNED]))
    told = (
        f"The students' own steps take {beside:.2f} process-seconds side by side and {apart:.2f} one after another, "
        "where each is cut and kept in shards on four processes"
    )
    return [
        f"{told}; waiting is {waiting(found[EQUAL]):.1%} with equal groups, {waiting(found[PLANNED]):.1%} as planned."
    ]


def errors(
    found: Mapping[str, Sequence[Mapping[str, Any]]], expected: Mapping[str, JobPlan], costs: Costs
) -> list[str]:
    """Lines of what was expected of each run against what was measured.

    Args:
        costs: by which the runs of single students, which no plan was made from, are expected.
    """
    alone = {
        name: made(
            Costs(costs.teacher, {name: costs.students[name]}, costs.together, costs.source),
            {name: PROCESSES},
            BATCH,
            parts=[BATCH // PROCESSES] * PROCESSES,
        )
        for name in STUDENTS
    }
    lines = [
        "| run | step expected | measured | error | waiting expected | measured |",
        "| --- | ---: | ---: | ---: | ---: | ---: |",
    ]
    for name, plan in {**expected, **alone}.items():
        seconds = path(found[name])
        lines.append(
            f"| {name} | {plan.step:.3f} s | {seconds:.3f} s | {plan.step / seconds - 1:+.1%} | {plan.idle:.1%} | "
            f"{waiting(found[name]):.1%} |"
        )
    return lines


def main() -> None:
    """Measures what is missing, and writes results/distillation_cost.md, .json and the picture."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--steps", type=int, default=24)
    parser.add_argument("--work", type=Path, default=Path("runs/distillation_cost"), help="what was measured")
    asked = parser.parse_args()
    where = machine()
    found, expected, costs = measure(Runs(asked.work, asked.steps))
    shown = [
        (f"{name}: {waiting(found[name]):.1%} waiting", bars(found[name])) for name in (EQUAL, PLANNED)
    ] + [(f"{name} by itself", bars(found[name])) for name in STUDENTS]
    write_png(draw_timelines(shown), PICTURE)
    lines = [
        *(f"{__doc__}".strip().partition("\n\n")[2].splitlines()),
        "",
        *compared(found),
        "",
        *students_seconds(found),
        "",
        *errors(found, expected, costs),
        "",
        f"## Processor seconds a step of each process, medians of {asked.steps - 3} steps",
        "",
        *table(found),
    ]
    data = {"runs": found, "saving": saving(found), "saving, step by step": saving(found, path_by_step)}
    write(
        "distillation_cost",
        "Several students side by side and one after another",
        "\n".join(lines),
        data,
        where,
    )


if __name__ == "__main__":
    main()
