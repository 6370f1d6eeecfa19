"""On a CUDA GPU: images/s, MFU and memory of DINOv3's recipe with ViT-B/16 and ViT-L/16, and a profile.

Pictures are noise in the GPU's memory. MFU is the operations of the model (parts/flops.py) over the
measured time and the rate of a large bf16 matrix product, measured here. Packed against unpacked and
the forms of activation checkpointing are in the same run. Without a GPU it says so and ends with 0.
"""

from __future__ import annotations

import argparse
import gc
import statistics
import sys
import tempfile
from collections.abc import Callable, Generator, Sequence
from pathlib import Path
from typing import Any

import torch

sys.path.insert(0, str(Path(__file__).parent / "parts"))

import contextlib
import itertools

from flops import step as operations
from machine import machine, write
from memory import batches
from our_step import unpack
from scholarch.config.schema import Recipe
from scholarch.data.batch import MicroBatch
from scholarch.data.catalog import open_source
from scholarch.training.assemble import build_trainer
from scholarch.training.distributed import World, world
from scholarch.training.layout import plan_layout
from scholarch.training.recipe import load_recipe

MODES = {
    "packed": (),
    "unpacked": (),
    "selective checkpointing": ("training.activation_checkpointing=selective",),
    "full checkpointing": ("training.activation_checkpointing=full",),
}


def arguments() -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--models", nargs="+", default=["base", "large"])
    parser.add_argument("--modes", nargs="+", choices=MODES, default=list(MODES))
    parser.add_argument("--batch", type=int, default=64)
    parser.add_argument(
        "--steps", type=int, default=20, help="measured; as many of them as needed to be sure"
    )
    parser.add_argument("--warm-up", type=int, default=8, help="compiles, and finds dynamic shapes")
    parser.add_argument("--no-compile", action="store_true")
    return parser.parse_args()


def recipe_for(size: str, options: argparse.Namespace, overrides: Sequence[str]) -> Recipe:
    """dinov3/vitl16 with another size and batch."""
    return load_recipe(
        "dinov3/vitl16",
        [
            "data.source=digits",
            "data.channels=3",
            "data.mean=[0.485, 0.456, 0.406]",
            "data.std=[0.229, 0.224, 0.225]",
            f"model.size={size}",
            f"training.global_batch={options.batch}",
            f"training.micro_batch={options.batch}",
            f"terms.koleo.group={options.batch}",
            "training.precision=bf16",
            f"training.compile={str(not options.no_compile).lower()}",
            "training.workers=0",
            "training.checkpoint_every=100000",
            "training.log_every=100000",
            "evaluation.every=100000",
            *overrides,
        ],
    )


def ceiling() -> float:
    """Operations a second of a large bf16 product on this GPU: the best of some."""
    side = 8192
    a, b = (torch.randn(side, side, device="cuda", dtype=torch.bfloat16) for _ in range(2))
    seconds = []
    for _ in range(20):
        start, stop = (torch.cuda.Event(enable_timing=True) for _ in range(2))
        start.record()
        torch.mm(a, b)
        stop.record()
        torch.cuda.synchronize()
        seconds.append(start.elapsed_time(stop) / 1e3)
    return 2 * side**3 / statistics.median(seconds[5:])


class Done(Exception):  # noqa: N818 - it ends the trainer's loop
    """Enough steps."""


def measure(here: World, recipe: Recipe, packed: bool, options: argparse.Namespace) -> dict[str, Any]:
    """Seconds of each step, memory, operations and a profile."""
    pool = [part.to(here.device) for part in batches(recipe)]
    profiler = torch.profiler.profile(
        activities=[torch.profiler.ProfilerActivity.CPU, torch.profiler.ProfilerActivity.CUDA]
    )
    marks: list[torch.cuda.Event] = []

    def load(start: int) -> Generator[Sequence[MicroBatch], None, None]:
        for step in range(start, options.warm_up + options.steps + 3):
            if step == options.warm_up:
                torch.cuda.reset_peak_memory_stats()
            if step >= options.warm_up and len(marks) <= options.steps:
                marks.append(torch.cuda.Event(enable_timing=True))
                marks[-1].record()
            if step == options.warm_up + options.steps:
                profiler.start()
            yield [pool[step % len(pool)]]
        torch.cuda.synchronize()
        profiler.stop()
        raise Done

    with tempfile.TemporaryDirectory() as folder:
        layout = plan_layout(options.batch, 1, None, ())
        trainer = build_trainer(recipe, open_source("digits"), layout, here, Path(folder))
        trainer.loader = load
        if not packed:
            unpack(trainer.learner.student.backbone)
        with contextlib.suppress(Done):
            trainer.run(0)
    masked = statistics.mean(float(len(part.places["global"])) for part in pool)
    seconds = [a.elapsed_time(b) / 1e3 for a, b in itertools.pairwise(marks)]
    return {
        "seconds": seconds,
        "memory GiB": torch.cuda.max_memory_allocated() / 2**30,
        "operations": operations(recipe, options.batch, masked),
        "profile": profiler.key_averages().table(sort_by="self_cuda_time_total", row_limit=20),
    }


def guarded(work: Callable[[], dict[str, Any]]) -> dict[str, Any] | None:
    """None when the GPU's memory does not hold it."""
    try:
        return work()
    except torch.cuda.OutOfMemoryError:
        return None
    finally:
        gc.collect()
        torch.cuda.empty_cache()


def main() -> None:
    """Measures, and writes results/gpu.md and gpu.json."""
    options = arguments()
    if not torch.cuda.is_available():
        print("benchmarks/gpu.py: there is no CUDA GPU here, nothing is measured")
        return
    where = machine() | {"gpu": torch.cuda.get_device_name()}
    best = ceiling()
    lines = [
        (
            f"DINOv3's recipe, batch {options.batch} x (2 x 224^2 + 8 x 96^2), bf16, compiled: "
            f"{not options.no_compile}. The largest product measured here: {best / 1e12:.0f} TFLOP/s."
        ),
        "",
        "| model | form | seconds a step | images/s | TFLOP/s | MFU | memory GiB |",
        "|---|---|---|---|---|---|---|",
    ]
    data: dict[str, Any] = {"ceiling": best}
    profiles: list[str] = []
    with world() as here:
        for size in options.models:
            for mode in options.modes:
                recipe = recipe_for(size, options, MODES[mode])
                found = guarded(lambda r=recipe, m=mode: measure(here, r, m != "unpacked", options))  # type: ignore[misc]
                if found is None:
                    lines.append(f"| {size} | {mode} | out of memory | | | | |")
                    continue
                seconds = statistics.median(found["seconds"])
                rate = found["operations"]["total"] / seconds
                lines.append(
                    f"| {size} | {mode} | {seconds:.4f} | {options.batch / seconds:.0f} | {rate / 1e12:.0f} "
                    f"| {rate / best:.1%} | {found['memory GiB']:.1f} |"
                )
                print(lines[-1], flush=True)
                data[f"{size}, {mode}"] = found
                if mode == options.modes[0]:
                    profiles.append(f"## Profile of {size}, {mode}\n\n```\n{found['profile']}\n```")
    write("gpu", "On a GPU", "\n".join([*lines, "", *profiles]), data, where)


if __name__ == "__main__":
    main()
