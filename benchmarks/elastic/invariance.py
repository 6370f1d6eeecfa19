"""The same run on 1, 2, 3 and 4 workers, with and without accumulation, and 2 -> 4 -> 1 -> 3 under kills.

    python benchmarks/elastic/invariance.py FOLDER [--precision fp64 | fp32] [--grain 16] [key.path=value ...]

Real launchers and workers, recipe demo/digits; `--batch`, `--group` and overrides shrink it for a machine
that has little time. Writes FOLDER/invariance-PRECISION[-grain].json. Runs that are there are not repeated;
with `--minutes` those that are not done by then save, and the same command goes on with them.
"""

from __future__ import annotations

import argparse
import json
import math
import signal
import subprocess
import sys
import time
from collections import defaultdict
from collections.abc import Sequence
from pathlib import Path

from nodes import Process, Store, node, records, step, wait
from scholarch.errors import EXIT_INTERRUPTED

SECONDS = 1800
SIZES = (2, 4, 1, 3)
SHARES = (0.2, 0.45, 0.7, 1.0)
"""Nodes of the elastic run, and the share of the steps up to which it has them."""
UNTIL = math.inf


def arguments(run: Path, steps: int, *overrides: str) -> list[str]:
    """The command of a run that records every step."""
    return [
        "pretrain", "--run", str(run), "--recipe", "demo/digits",
        f"training.steps={steps}", "training.log_every=1", "training.workers=0", "evaluation.at_most=64",
        f"evaluation.every={steps}", f"training.checkpoint_every={max(1, steps // 20)}", *overrides,
    ]  # fmt: skip


def remaining() -> float:
    """Seconds until this call is to end."""
    return UNTIL - time.monotonic()


def command(run: Path, steps: int, *overrides: str) -> list[str]:
    """Begins the run, or goes on with it."""
    begun = (run / "recipe.yaml").exists()
    return ["pretrain", "--run", str(run), "--resume"] if begun else arguments(run, steps, *overrides)


def end(processes: Sequence[Process]) -> bool:
    """Whether the run came to its end in time; if not, its workers have saved and ended."""
    codes = set()
    try:
        for process in processes:
            codes.add(process.process.wait(max(0.1, remaining())))
    except subprocess.TimeoutExpired:
        for process in processes:
            process.signal(signal.SIGTERM)
        codes = {process.end(SECONDS) for process in processes}
    assert codes <= {0, 75}, processes[-1].text[-3000:]
    return codes == {0}


def fixed(folder: Path, name: str, world: int, steps: int, *overrides: str, **extra: str) -> bool:
    """A run that nobody touches; whether it is done."""
    run = folder / name
    if (run / "export").is_dir():
        return True
    trace = folder / f"{name}-samples"
    trace.mkdir(parents=True, exist_ok=True)
    options = ("--module", "traced", "--processes", str(world))
    words = command(run, steps, *overrides)
    if "--resume" in words:
        extra = {}
    return end([node(folder / f"{name}.log", options, words, ELASTIC_TRACE=str(trace), **extra)])


def elastic(folder: Path, name: str, steps: int, *overrides: str) -> bool:
    """2 nodes, then 4, then 1 (node 0 is among those killed), then 3; whether it is done."""
    run, trace = folder / name, folder / f"{name}-samples"
    if (run / "export").is_dir():
        return True
    trace.mkdir(parents=True, exist_ok=True)
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
    alive: list[Process] = []
    try:
        for share, size in zip(SHARES, SIZES, strict=True):
            if step(run) >= share * steps:
                continue
            for one in alive[: max(0, len(alive) - size)]:
                one.kill()
            alive = alive[max(0, len(alive) - size) :]
            while len(alive) < size:
                log = folder / f"{name}-node{time.monotonic_ns()}.log"
                words = command(run, steps, *overrides)
                alive.append(node(log, options, words, ELASTIC_TRACE=str(trace)))
            if share < 1:
                wait(
                    lambda share=share: step(run) >= share * steps or remaining() < 0,
                    SECONDS,
                    f"{size} nodes",
                )  # type: ignore[misc]
            if share == 1 or remaining() < 0:
                return end(alive)
    finally:
        for process in (*alive, store):
            process.kill()
    return True


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


def plan(precision: str, group: int, grain: int) -> dict[str, Run]:
    """World size, overrides and environment of each untouched run."""
    runs: dict[str, Run] = {f"{world}": (world, (), {}) for world in (1, 2, 3, 4)}
    # Grains have accumulation wherever there are more of them than workers.
    if precision == "fp64" and not grain:
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
    parser.add_argument("--grain", type=int, default=0, help="training.grain")
    parser.add_argument("--minutes", type=float, default=math.inf)
    parser.add_argument("--only", nargs="*", help="names of runs; all without")
    options = parser.parse_intermixed_args()
    global UNTIL
    UNTIL = time.monotonic() + 60 * options.minutes
    kind = options.precision + ("-grain" if options.grain else "")
    folder: Path = options.folder / kind
    folder.mkdir(parents=True, exist_ok=True)
    runs = plan(options.precision, options.group, options.grain)
    common = (
        f"training.precision={options.precision}",
        f"training.global_batch={options.batch}",
        f"terms.koleo.group={options.group}",
        *([f"training.grain={options.grain}"] if options.grain else []),
        *options.overrides,
    )
    for name, (world, overrides, extra) in runs.items():
        if options.only is None or name in options.only:
            began = time.monotonic()
            if not fixed(folder, name, world, options.steps, *common, *overrides, **extra):
                return EXIT_INTERRUPTED
            print(f"{name}: {time.monotonic() - began:.0f} s", flush=True)
    wanted = options.only is None or "elastic" in options.only
    if wanted and not elastic(folder, "elastic", options.steps, *common):
        return EXIT_INTERRUPTED
    names = [name for name in (*runs, "elastic") if (folder / name / "export").is_dir()]
    losses = {name: [record["loss/total"] for record in records(folder / name)] for name in names}
    ids = {name: samples(folder, name, options.batch) for name in names}
    first = names[0]
    result = {
        "precision": options.precision,
        "grain": options.grain,
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
    (options.folder / f"invariance-{kind}.json").write_text(json.dumps(result))
    for name, value in result["largest_relative_difference"].items():
        print(f"{name:>16}  {value:.1e}  same samples: {result['same_samples'][name]}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
