"""The same run on 1, 2, 3 and 4 workers, with and without accumulation, and 2 -> 4 -> 1 -> 3 under kills.

    python benchmarks/elastic/invariance.py FOLDER [--precision fp64 | fp32] [key.path=value ...]

Real launchers and workers, recipe demo/digits; `--batch`, `--group` and overrides
shrink it for a machine that has little time. Writes FOLDER/invariance-PRECISION.json; runs that are
there are not repeated.
"""

from __future__ import annotations

import argparse
import json
import sys
import time
from collections import defaultdict
from pathlib import Path

from nodes import Process, Store, node, records, step, wait

SECONDS = 1800
CHANGES = ((0.2, "2 -> 4"), (0.45, "4 -> 1"), (0.7, "1 -> 3"))
"""Shares of the steps after which the elastic run changes."""


def arguments(run: Path, steps: int, *overrides: str) -> list[str]:
    """The command of a run that records every step."""
    return [
        "pretrain", "--run", str(run), "--recipe", "demo/digits",
        f"training.steps={steps}", "training.log_every=1", "training.workers=0", "evaluation.at_most=64",
        f"evaluation.every={steps}", f"training.checkpoint_every={max(1, steps // 20)}", *overrides,
    ]  # fmt: skip


def fixed(folder: Path, name: str, world: int, steps: int, *overrides: str, **extra: str) -> None:
    """A run that nobody touches."""
    run = folder / name
    if (run / "export").is_dir():
        return
    trace = folder / f"{name}-samples"
    trace.mkdir(parents=True)
    options = ("--module", "traced", "--processes", str(world))
    started = node(
        folder / f"{name}.log", options, arguments(run, steps, *overrides), ELASTIC_TRACE=str(trace), **extra
    )
    code = started.end(SECONDS)
    assert code == 0, started.text[-3000:]


def elastic(folder: Path, name: str, steps: int, *overrides: str) -> None:
    """2 nodes, then 4, then 1 (node 0 is among those killed), then 3."""
    run, trace = folder / name, folder / f"{name}-samples"
    if (run / "export").is_dir():
        return
    trace.mkdir(parents=True)
    store = Store(folder / f"{name}-store.log")
    options = (
        "--module",
        "traced",
        "--nodes",
        "1:4",
        "--rendezvous",
        f"localhost:{store.port}",
        "--stall",
        "120",
    )
    began: list[Process] = []

    def more(count: int) -> None:
        for _ in range(count):
            log = folder / f"{name}-node{len(began)}.log"
            command = arguments(run, steps, *overrides)
            began.append(node(log, options, command, ELASTIC_TRACE=str(trace)))

    try:
        more(2)
        wait(lambda: step(run) >= CHANGES[0][0] * steps, SECONDS, CHANGES[0][1])
        more(2)
        wait(lambda: step(run) >= CHANGES[1][0] * steps, SECONDS, CHANGES[1][1])
        for one in began[:3]:
            one.kill()
        wait(lambda: step(run) >= CHANGES[2][0] * steps, SECONDS, CHANGES[2][1])
        more(2)
        for one in began[3:]:
            assert one.end(SECONDS) == 0, one.text[-3000:]
    finally:
        for process in (*began, store):
            process.kill()


def samples(folder: Path, name: str, batch: int) -> dict[int, list[int]]:
    """Sample ids by step, in global order; every worker's account of every attempt must agree."""
    found: dict[int, dict[int, int]] = defaultdict(dict)
    for path in (folder / f"{name}-samples").glob("*.jsonl"):
        for line in path.read_text().splitlines():
            try:
                entry = json.loads(line)
            except ValueError:  # torn by a kill
                continue
            for position, sample in zip(entry["positions"], entry["ids"], strict=True):
                assert found[entry["step"]].setdefault(position, sample) == sample, (name, entry["step"])
    for number, by_position in found.items():
        assert sorted(by_position) == list(range(batch)), (name, number)
    return {number: [by_position[p] for p in range(batch)] for number, by_position in found.items()}


def worlds(folder: Path, name: str) -> dict[int, set[int]]:
    """World sizes that worked at each step."""
    found: dict[int, set[int]] = defaultdict(set)
    for path in (folder / f"{name}-samples").glob("*.jsonl"):
        for line in path.read_text().splitlines():
            if line.endswith("}"):
                entry = json.loads(line)
                found[entry["step"]].add(entry["world"])
    return dict(sorted(found.items()))


Run = tuple[int, tuple[str, ...], dict[str, str]]


def plan(precision: str, group: int) -> dict[str, Run]:
    """World size, overrides and environment of each untouched run."""
    runs: dict[str, Run] = {f"{world}": (world, (), {}) for world in (1, 2, 3, 4)}
    if precision == "fp64":
        for world in (1, 2, 3, 4):
            # As many micro-batches as keep KoLeo's groups whole.
            most = -(-group // world)
            runs[f"{world}-accumulated"] = (world, (f"training.micro_batch={most}",), {})
    runs |= {f"1-flip{n}": (1, (), {"ELASTIC_FLIP": str(n)}) for n in (0, 1, 2)}
    return runs


def main() -> int:
    """Runs what is missing and compares."""
    parser = argparse.ArgumentParser()
    parser.add_argument("folder", type=Path)
    parser.add_argument("overrides", nargs="*", metavar="key.path=value")
    parser.add_argument("--precision", default="fp64")
    parser.add_argument("--steps", type=int, default=200)
    parser.add_argument("--batch", type=int, default=64)
    parser.add_argument("--group", type=int, default=16)
    parser.add_argument("--only", nargs="*", help="names of runs; all without")
    options = parser.parse_intermixed_args()
    folder: Path = options.folder / options.precision
    folder.mkdir(parents=True, exist_ok=True)
    runs = plan(options.precision, options.group)
    common = (
        f"training.precision={options.precision}",
        f"training.global_batch={options.batch}",
        f"terms.koleo.group={options.group}",
        *options.overrides,
    )
    for name, (world, overrides, extra) in runs.items():
        if options.only is None or name in options.only:
            began = time.monotonic()
            fixed(folder, name, world, options.steps, *common, *overrides, **extra)
            print(f"{name}: {time.monotonic() - began:.0f} s", flush=True)
    if options.only is None or "elastic" in options.only:
        elastic(folder, "elastic", options.steps, *common)
    names = [name for name in (*runs, "elastic") if (folder / name / "export").is_dir()]
    losses = {name: [record["loss/total"] for record in records(folder / name)] for name in names}
    ids = {name: samples(folder, name, options.batch) for name in names}
    first = names[0]
    result = {
        "precision": options.precision,
        "steps": options.steps,
        "global_batch": options.batch,
        "losses": losses,
        "largest_relative_difference": {
            name: max(abs(x - y) / abs(x) for x, y in zip(losses[first], losses[name], strict=True))
            for name in names[1:]
        },
        "same_samples": {name: ids[name] == ids[first] for name in names[1:]},
        "worlds": {name: [sorted(sizes) for sizes in worlds(folder, name).values()] for name in names},
    }
    (options.folder / f"invariance-{options.precision}.json").write_text(json.dumps(result))
    for name, value in result["largest_relative_difference"].items():
        print(f"{name:>16}  {value:.1e}  same samples: {result['same_samples'][name]}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
