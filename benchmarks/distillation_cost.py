"""Processor time of one job of three students against the same students one after another, on the same 4 processes.

The teacher's pass is what the job saves: of three, two. Counted is each process's own processor time over some steps,
so that what else the machine does changes little; waiting for one another costs none.
"""

from __future__ import annotations

import argparse
import multiprocessing
import sys
import tempfile
import time
from collections.abc import Mapping, Sequence
from datetime import timedelta
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist

sys.path.insert(0, str(Path(__file__).parent / "parts"))

from machine import machine, write

RECIPE = "dinov3/distill-vits"
OVERRIDES = (
    "data.source=digits",
    "data.channels=3",
    "training.global_batch=32",
    "training.precision=fp32",
    "training.steps=1000",
    "teachers.teacher.sharded=none",
    "teachers.teacher.model={embed_dim: 256, depth: 8, heads: 4}",
    "students.vits16plus=null",
    "students.vith16plus=null",
)
PROCESSES, BATCH, WARM_UP, STEPS = 4, 32, 2, 6
STUDENTS = ("vits16", "vitb16", "vitl16")


def seconds_of(sizes: Mapping[str, int]) -> tuple[float, float]:
    """Processor seconds of this process over the steps of a job, and those of them that are the teacher's."""
    from scholarch.data.catalog import open_source
    from scholarch.distillation.groups import Tiling, even, part_of
    from scholarch.distillation.together import Place, build_student
    from scholarch.training import autos
    from scholarch.training.distributed import World
    from scholarch.training.preflight import check_batch
    from scholarch.training.recipe import load_recipe, student_recipe
    from torch.distributed.device_mesh import init_device_mesh

    rank, cpu = dist.get_rank(), torch.device("cpu")
    world = World(
        rank, PROCESSES, rank, PROCESSES, cpu, init_device_mesh("cpu", (PROCESSES,)), dist.group.WORLD
    )
    tiling = Tiling(sizes, even(BATCH, PROCESSES))
    part, everywhere = part_of(world, tiling, timedelta(minutes=5))
    source = open_source("digits")
    own = student_recipe(load_recipe(RECIPE, OVERRIDES, "tiny"), tiling.student(rank))
    recipe = autos.resolve(own, autos.look_at(own, source), world_size=part.size, local_size=part.size)
    place = Place(world, part, everywhere, tiling, whole=False)
    with tempfile.TemporaryDirectory() as folder:
        trainer, exchange = build_student(place, recipe, source, check_batch(recipe, part.size), folder)
    teacher = 0.0
    run = exchange._run

    def counted(*arguments: Any) -> Any:
        nonlocal teacher
        began = time.process_time()
        made = run(*arguments)
        teacher += time.process_time() - began
        return made

    exchange._run = counted
    trainer.begin()
    trainer.learner.train()
    batches, began = exchange(0), 0.0
    for step in range(WARM_UP + STEPS):
        if step == WARM_UP:
            dist.barrier()
            began, teacher = time.process_time(), 0.0
        trainer._step(step, next(batches), 0.0, 0.0)
    spent = time.process_time() - began
    batches.close()
    exchange.close()
    return spent, teacher


def process(rank: int, store: str, results: Any) -> None:
    """One process: all students together, then one after another."""
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"file://{store}", rank=rank, world_size=PROCESSES)
    jobs: Sequence[Mapping[str, int]] = [
        {"vits16": 1, "vitb16": 1, "vitl16": 2},
        *({name: PROCESSES} for name in STUDENTS),
    ]
    results.put([seconds_of(sizes) for sizes in jobs])
    dist.barrier()
    dist.destroy_process_group()


def main() -> None:
    """Measures and writes the result."""
    argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter).parse_args()
    where, context = machine(), multiprocessing.get_context("spawn")
    results: Any = context.Queue()
    with tempfile.TemporaryDirectory() as folder:
        store = str(Path(folder) / "store")
        processes = [
            context.Process(target=process, args=(rank, store, results)) for rank in range(PROCESSES)
        ]
        for one in processes:
            one.start()
        found = [results.get(timeout=540) for _ in processes]
        for one in processes:
            one.join()
    spent = [sum(rank[job][0] for rank in found) / STEPS for job in range(len(STUDENTS) + 1)]
    teacher = [sum(rank[job][1] for rank in found) / STEPS for job in range(len(STUDENTS) + 1)]
    together, apart = spent[0], sum(spent[1:])
    allowed = sum(teacher[1:]) * (len(STUDENTS) - 1) / len(STUDENTS)
    names = ["all together", *(f"{name} by itself" for name in STUDENTS)]
    lines = ["| job | processor seconds a step | of them the teacher's |", "| --- | ---: | ---: |"]
    lines += [f"| {name} | {s:.3f} | {t:.3f} |" for name, s, t in zip(names, spent, teacher, strict=True)]
    lines.append(
        f"\nOne after another: {apart:.3f} s; together: {together:.3f} s; saved: {apart - together:.3f} s, "
        f"{(apart - together) / allowed:.0%} of what two of three teacher passes take ({allowed:.3f} s)."
    )
    data = {
        "seconds": dict(zip(names, spent, strict=True)),
        "teacher": dict(zip(names, teacher, strict=True)),
    }
    write("distillation_cost", "Cost of several students, together and apart", "\n".join(lines), data, where)


if __name__ == "__main__":
    main()
