"""Two students on four nodes, of which one is lost and comes back, against the run that nobody touches.

Real launchers, a worker each; SIGKILL to a node and all that it started. The recipe is demo/distill at its tiny scale:
a ViT and a ConvNeXt of one teacher. What is compared are the losses of every step.
"""

from __future__ import annotations

import argparse
import re
import signal
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent / "elastic"))
sys.path.insert(0, str(Path(__file__).parent / "parts"))

from machine import machine, write
from matplotlib.figure import Figure
from nodes import Process, Store, node, records, step, wait
from scholarch.errors import EXIT_INTERRUPTED
from scholarch.report.theme import LIGHT, new_figure, style, write_png

STUDENTS = ("vit", "convnext")
NODES, SECONDS = 4, 400
LOST_AT = 0.1
"""Share of the steps after which a node is lost."""
PICTURE = Path(__file__).parents[1] / "docs/pictures/distillation_elastic.png"


def arguments(run: Path, steps: int, precision: str) -> list[str]:
    """The command of a job that records every step."""
    return [
        "distill", "--run", str(run), "--recipe", "demo/distill", "--scale", "tiny", f"training.steps={steps}",
        f"training.precision={precision}", "training.log_every=1", f"training.checkpoint_every={max(steps // 20, 1)}",
        f"evaluation.every={steps}", "evaluation.at_most=16",
    ]  # fmt: skip


def untouched(folder: Path, steps: int, precision: str, until: int | None = None) -> Path:
    """The run of a job on as many processes as students: done, or stopped after step `until`."""
    run = folder / "untouched"
    process = node(
        folder / "untouched.log", ("--processes", str(len(STUDENTS))), arguments(run, steps, precision)
    )
    try:
        ended([process], run, until)
    finally:
        process.kill()
    return run


def ended(processes: Sequence[Process], run: Path, until: int | None) -> None:
    """Nodes of a run that is done, or was stopped after step `until`."""
    if until is not None:
        wait(lambda: step(run / "students" / STUDENTS[0]) >= until, SECONDS, f"step {until}")
        for process in processes:  # one alone would leave the others to go on
            process.signal(signal.SIGTERM)
    for process in processes:
        code = process.end(SECONDS)
        assert code == (0 if until is None else EXIT_INTERRUPTED), process.text[-3000:]


def groups(logs: Sequence[Path]) -> list[dict[str, int]]:
    """Processes of each student, of every plan that a node told of."""
    found = []
    for log in logs:
        for line in re.findall(r"students and their processes: (.+)", log.read_text(errors="replace")):
            found.append({name: int(size) for name, size in re.findall(r"(\w+) (\d+)", line)})
    return found


def loses_one(
    folder: Path, steps: int, precision: str, more: int | None = None
) -> tuple[Path, list[dict[str, int]]]:
    """The run of a job on all nodes, on one less and on all again, and what it planned; done, or stopped when all
    have taken `more` steps."""
    run, store = folder / "elastic", Store(folder / "store.log")
    alive: list[Process] = []
    logs: list[Path] = []

    def start(words: list[str]) -> None:
        logs.append(folder / f"node-{len(logs)}.log")
        meeting = ("--nodes", f"{NODES - 1}:{NODES}", "--rendezvous", f"localhost:{store.port}")
        alive.append(node(logs[-1], meeting, words))

    def planned_for(nodes: int, times: int) -> bool:
        return sum(sum(sizes.values()) == nodes for sizes in groups(logs)) >= times

    try:
        for _ in range(NODES):
            start(arguments(run, steps, precision))
        wait(lambda: step(run / "students" / STUDENTS[0]) >= LOST_AT * steps, SECONDS, "the first steps")
        before = sum(sum(sizes.values()) == NODES for sizes in groups(logs))
        alive.pop().kill()
        wait(lambda: planned_for(NODES - 1, 1), SECONDS, f"a plan for {NODES - 1}")
        start(["distill", "--run", str(run), "--resume"])
        wait(lambda: planned_for(NODES, before + 1), SECONDS, f"a plan for {NODES}")
        ended(alive, run, None if more is None else step(run / "students" / STUDENTS[0]) + more)
    finally:
        for process in (*alive, store):
            process.kill()
    return run, groups(logs)


def curve(run: Path, student: str) -> list[float]:
    """Losses of a student, by step."""
    return [record["loss/total"] for record in records(run / "students" / student)]


def compared(run: Path, other: Path) -> dict[str, float]:
    """The largest relative difference of each student's losses; each step of `run` is there once."""
    found = {}
    for name in STUDENTS:
        losses, others = curve(run, name), curve(other, name)
        seen = [record["step"] for record in records(run / "students" / name)]
        assert seen == list(range(1, len(losses) + 1)), seen
        pairs = zip(losses, others[: len(losses)], strict=True)
        found[name] = max(abs(a - b) / abs(b) for a, b in pairs)
    return found


def draw(runs: dict[str, tuple[Path, Path]]) -> Figure:
    """Both curves of each student, by precision; one lies on the other."""
    figure = new_figure(LIGHT, 2.6)
    panels = figure.subplots(1, len(STUDENTS) * len(runs), squeeze=False)[0]
    places = [(precision, name) for precision in runs for name in STUDENTS]
    for axes, (precision, name) in zip(panels, places, strict=True):
        style(axes, LIGHT, f"{name}, {precision}")
        run, other = runs[precision]
        axes.plot(curve(other, name), color=LIGHT.lines[0], linewidth=3, label="untouched, 2 processes")
        axes.plot(curve(run, name), color=LIGHT.lines[1], linewidth=1, label="4, 3 and 4 processes")
        axes.set_xlabel("step")
    panels[0].set_ylabel("loss")
    panels[-1].legend(fontsize=7, frameon=False)
    figure.tight_layout()
    return figure


def main() -> None:
    """Measures, and writes results/distillation_elastic.md, .json and the picture."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--steps", type=int, default=200)
    parser.add_argument("--precisions", nargs="+", default=["fp64"])
    asked = parser.parse_args()
    where, data, runs = machine(), {}, {}
    lines = [
        "| precision | student | largest relative difference of a loss | plans, processes by student |",
        "| --- | --- | ---: | --- |",
    ]
    with tempfile.TemporaryDirectory() as folder:
        for precision in asked.precisions:
            place = Path(folder, precision)
            place.mkdir()
            other = untouched(place, asked.steps, precision)
            run, plans = loses_one(place, asked.steps, precision)
            runs[precision] = run, other
            found = compared(run, other)
            assert len(curve(run, STUDENTS[0])) == asked.steps
            data[precision] = {"difference": found, "plans": plans}
            told = "; ".join(", ".join(f"{name} {size}" for name, size in plan.items()) for plan in plans)
            lines += [f"| {precision} | {name} | {worst:.1e} | {told} |" for name, worst in found.items()]
        write_png(draw(runs), PICTURE)
    text = "\n".join(
        [*__doc__.strip().partition("\n\n")[2].splitlines(), "", f"{asked.steps} steps.", "", *lines]
    )
    write("distillation_elastic", "Several students through the loss of a node", text, data, where)


if __name__ == "__main__":
    main()
