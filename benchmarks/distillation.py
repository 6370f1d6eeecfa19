"""Bytes that each process receives and holds for a step of several students: ours, and everything to everyone.

Both forms are carried out over gloo on the same pictures and the same teacher, and counted; the formula's figures
stand beside them (scholarch.distillation.traffic).
"""

from __future__ import annotations

import argparse
import multiprocessing
import sys
import tempfile
from datetime import timedelta
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist

sys.path.insert(0, str(Path(__file__).parent / "parts"))

from gather_everything import gather_everything
from machine import machine, write

RECIPE = "dinov3/distill-vits"
OVERRIDES = (
    "data.source=digits",
    "data.channels=3",
    "training.global_batch=32",
    "training.precision=fp32",
    "students.vits16plus=null",
    "students.vith16plus=null",
)
STEPS = 4
GROUPS = {4: {"vits16": 1, "vitb16": 1, "vitl16": 2}, 8: {"vits16": 1, "vitb16": 2, "vitl16": 5}}


def job(rank: int, world_size: int, store: str, results: Any) -> None:
    """One process: the mean over some steps of what it received and held, in both forms."""
    from scholarch.data.catalog import open_source
    from scholarch.data.loader import StepLoader
    from scholarch.distillation.groups import Tiling, even, part_of
    from scholarch.distillation.together import Place, build_student, masks_differ
    from scholarch.distillation.traffic import exchanged, gathered, picture_bytes
    from scholarch.objectives.term import Output
    from scholarch.training import autos
    from scholarch.training.distributed import World
    from scholarch.training.preflight import check_batch
    from scholarch.training.recipe import load_recipe, student_recipe
    from torch.distributed.device_mesh import init_device_mesh

    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"file://{store}", rank=rank, world_size=world_size)
    mesh, cpu = init_device_mesh("cpu", (world_size,)), torch.device("cpu")
    world = World(rank, world_size, rank, world_size, cpu, mesh, dist.group.WORLD)
    source, recipes = open_source("digits"), {}
    for name in GROUPS[world_size]:
        own = student_recipe(load_recipe(RECIPE, OVERRIDES, "tiny"), name)
        recipes[name] = autos.resolve(
            own, autos.look_at(own, source), world_size=world_size, local_size=world_size
        )
    batch = 32
    tiling = Tiling(GROUPS[world_size], even(batch, world_size))
    part, everywhere = part_of(world, tiling, timedelta(minutes=2))
    recipe = recipes[tiling.student(rank)]
    place = Place(world, part, everywhere, tiling, masks_differ(list(recipes.values())))
    with tempfile.TemporaryDirectory() as folder:
        trainer, exchange = build_student(place, recipe, source, check_batch(recipe, part.size), folder)
    batches = exchange(0)
    for _ in range(STEPS):
        (given,) = next(batches)
    steps = exchange._next  # one more is under way
    held = sum(rows.numel() * rows.element_size() for rows in given.bottlenecks["teacher"].values())
    batches.close()
    exchange.close()

    # Everything: all crops of this process's part, and what the heads make of CLS and of every patch.
    positions = torch.arange(tiling.teacher[rank], tiling.teacher[rank + 1]).numpy()
    dataset = trainer.loader.own.dataset
    (whole,) = next(iter(StepLoader(dataset, start_step=0, end_step=1, shares=[positions])))
    share = exchange._share(0, whole)
    wanted = {Output("global", "cls", "dino"), Output("global", "patches", "ibot")}
    from scholarch.training.learner import project, teacher_features

    with torch.no_grad():
        teacher: Any = trainer.learner.teachers["teacher"]
        features = project(
            teacher, teacher_features(teacher, whole, share, wanted), wanted, share, "bottleneck"
        )
    tensors = {**whole.views, **{str(output): rows for output, rows in features.items()}}
    sizes = [b - a for a, b in zip(tiling.teacher, tiling.teacher[1:], strict=False)]
    everything = gather_everything(tensors, sizes)
    mine = {p for s in exchange.needs[rank].shares for p in s.tolist()}
    ours = len(mine & set(positions.tolist()))
    bytes_each = picture_bytes(recipe)
    results.put(
        {
            "rank": rank,
            "student": tiling.student(rank),
            "received": exchange.counted.received / steps,
            "formula": exchanged(bytes_each, batch, part.size, ours),
            "held": held,
            "everything received": everything.received,
            "everything formula": gathered(bytes_each, batch, world_size),
            "everything held": everything.held,
        }
    )
    dist.barrier()
    dist.destroy_process_group()


def measure(world_size: int) -> list[dict[str, Any]]:
    """What each process counted, by rank."""
    context = multiprocessing.get_context("spawn")
    results: Any = context.Queue()
    with tempfile.TemporaryDirectory() as folder:
        store = str(Path(folder) / "store")
        processes = [
            context.Process(target=job, args=(r, world_size, store, results)) for r in range(world_size)
        ]
        for process in processes:
            process.start()
        found = [results.get(timeout=300) for _ in processes]
        for process in processes:
            process.join()
    return sorted(found, key=lambda row: row["rank"])


def main() -> None:
    """Measures and writes the result."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--processes", type=int, nargs="+", default=[4, 8], choices=sorted(GROUPS))
    where, data = machine(), {}
    heads = [
        "processes",
        "rank",
        "student",
        "ours: received",
        "formula",
        "everything: received",
        "formula",
        "less by",
    ]
    heads += ["formula", "ours: held", "everything: held"]
    lines = [f"| {' | '.join(heads)} |", "| ---: | ---: | --- |" + " ---: |" * 8]
    for world_size in parser.parse_args().processes:
        data[str(world_size)] = rows = measure(world_size)
        for row in rows:
            factor = row["everything received"] / row["received"]
            predicted = row["everything formula"] / row["formula"]
            lines.append(
                f"| {world_size} | {row['rank']} | {row['student']} | {row['received']:,.0f} | {row['formula']:,.0f} | "
                f"{row['everything received']:,} | {row['everything formula']:,.0f} | {factor:.1f} | {predicted:.1f} | "
                f"{row['held']:,} | {row['everything held']:,} |"
            )
    write("distillation", "Traffic of several students", "\n".join(lines), data, where)


if __name__ == "__main__":
    main()
