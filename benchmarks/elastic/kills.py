"""One world size, workers killed at random (seeded) steps: the final weights are those of the run never killed.

    python benchmarks/elastic/kills.py FOLDER [--kills 20] [--steps 100] [--seed 7] [key.path=value ...]

Real launcher with two workers and restarts; SIGKILL to one of them. Writes FOLDER/kills.json.
"""

from __future__ import annotations

import argparse
import json
import random
import sys
import time
from pathlib import Path
from typing import Any

import torch
from nodes import Process, node, records, step, wait
from scholarch.training.checkpoint import committed, saved_shapes
from torch.distributed.checkpoint.state_dict_loader import load

SECONDS = 1800
WORLD = 2


def start(run: Path, log: Path, steps: int, every: int, overrides: list[str]) -> Process:
    """A launcher that starts its workers again as often as it must."""
    arguments = [
        "pretrain", "--run", str(run), "--recipe", "demo/digits", f"training.steps={steps}",
        f"training.checkpoint_every={every}", "training.log_every=1", "training.workers=0",
        f"evaluation.every={steps}", "evaluation.at_most=64", *overrides,
    ]  # fmt: skip
    return node(log, ("--processes", str(WORLD), "--max-restarts", "1000"), arguments)


def kill_at_random(process: Process, run: Path, steps: int, kills: int, seed: int) -> list[dict[str, Any]]:
    """Kills a worker at each of `kills` steps; where, and the seconds until the run was further than that."""
    draw = random.Random(seed)
    found = []
    for at in sorted(draw.sample(range(1, steps - 1), kills)):
        wait(lambda at=at: step(run) >= at, SECONDS, f"step {at}")  # type: ignore[misc]
        time.sleep(draw.random() * 0.3)  # in the midst of a step, of an exchange or of a checkpoint
        rank = draw.randrange(WORLD)
        killed = time.time()
        process.workers()[rank].kill()
        wait(
            lambda at=at, killed=killed: any(r["time"] > killed and r["step"] > at for r in records(run)),  # type: ignore[misc]
            SECONDS,
            f"going on after step {at}",
        )
        found.append({"step": at, "rank": rank, "seconds": time.time() - killed})
        print(found[-1], flush=True)
    return found


def state(run: Path) -> dict[str, Any]:
    """All tensors and numbers of the newest checkpoint: student, teachers, optimizers, counters."""
    checkpoint = committed(run / "checkpoints")[-1]
    shapes = saved_shapes(checkpoint)
    flat: dict[str, Any] = {key: torch.full(shape, torch.nan) for key, shape in shapes.items()}
    load(flat, checkpoint_id=checkpoint.data(), no_dist=True)
    return flat


def _equal(a: Any, b: Any) -> bool:
    return torch.equal(a, b) if isinstance(a, torch.Tensor) else bool(a == b)


def compare(killed: Path, untouched: Path) -> dict[str, bool]:
    """What is equal to the last bit."""
    a, b = state(killed), state(untouched)
    same = set(a) == set(b) and all(_equal(a[key], b[key]) for key in a)
    weights = "export/backbone.safetensors"
    losses = [[(r["step"], r["loss/total"]) for r in records(run)] for run in (killed, untouched)]
    return {
        "checkpoint": same,
        "export": (killed / weights).read_bytes() == (untouched / weights).read_bytes(),
        "losses": losses[0] == losses[1],
    }


def main() -> int:
    """Both runs and their comparison; 1 when something differs."""
    parser = argparse.ArgumentParser()
    parser.add_argument("folder", type=Path)
    parser.add_argument("overrides", nargs="*")
    parser.add_argument("--kills", type=int, default=20)
    parser.add_argument("--steps", type=int, default=100)
    parser.add_argument("--every", type=int, default=3)
    parser.add_argument("--seed", type=int, default=7)
    options = parser.parse_intermixed_args()
    folder: Path = options.folder
    folder.mkdir(parents=True, exist_ok=True)
    processes: list[Process] = []
    try:
        for name in ("untouched", "killed"):
            began = start(
                folder / name, folder / f"{name}.log", options.steps, options.every, options.overrides
            )
            processes.append(began)
            if name == "killed":
                kills = kill_at_random(began, folder / name, options.steps, options.kills, options.seed)
            code = began.end(SECONDS)
            assert code == 0, began.text[-3000:]
    finally:
        for process in processes:
            process.kill()
    equal = compare(folder / "killed", folder / "untouched")
    (folder / "kills.json").write_text(json.dumps({"kills": kills, "bit_equal": equal}, indent=1))
    print(equal)
    return int(not all(equal.values()))


if __name__ == "__main__":
    sys.exit(main())
