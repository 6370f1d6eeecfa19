"""What a save costs training: seconds that it waits, and steps slowed down while the save is written.

    make bench, or: python benchmarks/checkpoints.py [width] [depth]

Three ways by turns on one process, each save during further steps: our thread; torch's `async_save` in a
process of its own; and written at once, while training waits.
"""

from __future__ import annotations

import shutil
import statistics
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parent / "parts"))

from machine import machine, write
from scholarch.config.schema import Recipe
from scholarch.data.catalog import open_source
from scholarch.storage.objects import open_objects
from scholarch.training import autos
from scholarch.training.assemble import build_trainer
from scholarch.training.checkpoint import learner_state, optimizer_state
from scholarch.training.distributed import world
from scholarch.training.preflight import check_batch
from scholarch.training.recipe import load_recipe
from scholarch.training.trainer import Trainer
from torch.distributed.checkpoint.filesystem import FileSystemWriter
from torch.distributed.checkpoint.state_dict_saver import AsyncCheckpointerType, async_save

ROUNDS = 2
QUIET_STEPS = 3


def recipe_for(width: int, depth: int) -> Recipe:
    """demo/digits with a wider backbone: few tokens and many weights, the hardest case for a save."""
    return load_recipe(
        "demo/digits",
        [
            f"model.embed_dim={width}",
            f"model.depth={depth}",
            f"model.heads={width // 64}",
            "training.global_batch=32",
            "training.workers=0",
            "training.steps=100000",
            "training.checkpoint_every=100000",
        ],
    )


class Bench:
    """A trainer whose steps and saves are timed."""

    def __init__(self, trainer: Trainer, batches: Any, address: str) -> None:
        self.trainer, self.batches, self.address = trainer, batches, address
        self.step = 0

    def one_step(self) -> float:
        batch = next(self.batches)
        began = time.perf_counter()
        self.trainer._step(self.step, batch, began, 0.0)
        self.step += 1
        return time.perf_counter() - began

    def save(self, way: str) -> dict[str, float]:
        """Stall, seconds until the save is whole, and the mean of the steps meanwhile."""
        trainer, began = self.trainer, time.perf_counter()
        if way == "process":
            state = {
                "learner": learner_state(trainer.learner),
                **optimizer_state(trainer.learner, trainer.optimizer),
            }
            dcp = FileSystemWriter(Path(self.address) / f"process-{self.step}")
            future: Any = async_save(
                state, storage_writer=dcp, async_checkpointer_type=AsyncCheckpointerType.PROCESS
            )
            done = future.done
        else:
            trainer.checkpoints.save(trainer.learner, trainer.optimizer, self.step)
            job = trainer.checkpoints._job
            assert job is not None
            if way == "at once":
                trainer.checkpoints.wait()
            done = lambda: not job._thread.is_alive()  # noqa: E731
        stall, steps = time.perf_counter() - began, []
        while not done():
            steps.append(self.one_step())
        return {
            "stall": stall,
            "seconds": time.perf_counter() - began,
            "step": statistics.fmean(steps) if steps else 0.0,
            "steps": float(len(steps)),
        }


def measure(width: int, depth: int, address: str) -> dict[str, Any]:
    """Medians over the rounds."""
    source = open_source("digits")
    with world() as processes:
        asked = recipe_for(width, depth)
        recipe = autos.resolve(asked, autos.look_at(asked, source), world_size=1, local_size=1)
        trainer = build_trainer(recipe, source, check_batch(recipe, 1), processes, address)
        trainer.learner.train()
        bench = Bench(trainer, trainer.loader(0), address)
        for _ in range(2):
            bench.one_step()
        bench.save("thread")  # the first save makes the memory that later ones use again
        rounds: dict[str, list[dict[str, float]]] = {"thread": [], "process": [], "at once": []}
        quiet: list[float] = []
        for number in range(ROUNDS):
            for way, found in rounds.items():
                quiet += [bench.one_step() for _ in range(QUIET_STEPS)]
                if way == "process" and not number:
                    bench.save(way)  # starts the process
                found.append(bench.save(way))
        trainer.checkpoints.wait()
        size = sum(e.bytes for e in open_objects(address).entries("step-")) // (
            recipe.training.keep_checkpoints
        )
        return {
            "width": width,
            "depth": depth,
            "checkpoint_mib": size >> 20,
            "quiet_step": statistics.median(quiet),
            **{
                way: {key: statistics.median(r[key] for r in found) for key in found[0]}
                for way, found in rounds.items()
            },
        }


def table(result: dict[str, Any]) -> str:
    """Markdown."""
    quiet = result["quiet_step"]
    lines = [
        (
            f"ViT of width {result['width']}, {result['depth']} blocks; {result['checkpoint_mib']} MiB a checkpoint; "
            f"a step without a save takes {quiet:.3f} s (median)."
        ),
        "",
        "| save | training waits, s | in steps | whole after, s | a step meanwhile |",
        "| --- | --- | --- | --- | --- |",
    ]
    for way in ("thread", "process", "at once"):
        row = result[way]
        meanwhile = f"{row['step'] / quiet:.2f} x" if row["steps"] else ""
        lines.append(
            f"| {way} | {row['stall']:.3f} | {row['stall'] / quiet:.2f} | {row['seconds']:.2f} | {meanwhile} |"
        )
    return "\n".join(lines)


if __name__ == "__main__":
    width, depth = (int(sys.argv[1]), int(sys.argv[2])) if len(sys.argv) > 2 else (192, 4)
    where, here = machine(), Path(tempfile.mkdtemp(prefix="scholarch-bench-"))
    try:
        result = measure(width, depth, str(here))
    finally:
        shutil.rmtree(here, ignore_errors=True)
    write("checkpoints", "What a save costs training", table(result), result, where)
