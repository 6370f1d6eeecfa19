"""A job of several tiny students on processes of this machine, put together as `scholarch distill` does."""

from __future__ import annotations

import multiprocessing
import os
import queue
import tempfile
from collections.abc import Callable, Sequence
from datetime import timedelta
from typing import Any, NamedTuple

import torch
import torch.distributed as dist
from scholarch.config.schema import Recipe
from scholarch.data.catalog import open_source
from scholarch.distillation.exchange import Exchange
from scholarch.distillation.groups import Tiling, part_of
from scholarch.distillation.together import Place, build_student, masks_differ
from scholarch.training import autos
from scholarch.training.distributed import World
from scholarch.training.preflight import check_batch
from scholarch.training.recipe import load_recipe, student_recipe
from scholarch.training.trainer import Trainer
from torch.distributed.device_mesh import init_device_mesh

LIMIT = timedelta(minutes=5)
RECIPE = "dinov3/distill-vits"
DIGITS = (
    "data.source=digits",
    "data.channels=3",
    "training.precision=fp32",
    "training.steps=1000",
    "evaluation.every=1000",
)


class Member(NamedTuple):
    """This process in a job.

    Attributes:
        student: its student's name.
        recipe: of that student, resolved.
    """

    student: str
    recipe: Recipe
    trainer: Trainer
    exchange: Exchange


def member(overrides: Sequence[str], tiling: Tiling, folder: str) -> Member:
    """This process's trainer and exchange; all processes take part."""
    rank, cpu = dist.get_rank(), torch.device("cpu")
    size = tiling.world_size
    mesh = init_device_mesh("cpu", (size,))
    world = World(rank, size, rank, size, cpu, mesh, dist.group.WORLD)
    part, everywhere = part_of(world, tiling, LIMIT)
    source, recipes = open_source("digits"), {}
    for name, count in tiling.sizes.items():
        own = student_recipe(load_recipe(RECIPE, [*DIGITS, *overrides], "tiny"), name)
        look = autos.look_at(own, source)
        recipes[name] = autos.resolve(own, look, world_size=count, local_size=count)
    name = tiling.student(rank)
    place = Place(world, part, everywhere, tiling, masks_differ(list(recipes.values())))
    layout = check_batch(recipes[name], part.size)
    trainer, exchange = build_student(place, recipes[name], source, layout, f"{folder}/{name}")
    return Member(name, recipes[name], trainer, exchange)


def _process(rank: int, size: int, folder: str, results: Any, work: Callable[..., Any], given: Any) -> None:
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"file://{folder}/store", rank=rank, world_size=size)
    results.put((rank, work(folder, *given)))
    dist.barrier()
    dist.destroy_process_group()


def on_processes(size: int, work: Callable[..., Any], *given: Any) -> list[Any]:
    """What `work(folder, *given)` gives on each of `size` processes, in their order.

    Raises:
        RuntimeError: if one of them ends without a result.
    """
    os.environ["OMP_NUM_THREADS"] = "1"
    context = multiprocessing.get_context("spawn")
    results: Any = context.Queue()
    with tempfile.TemporaryDirectory() as folder:
        arguments = [(rank, size, folder, results, work, given) for rank in range(size)]
        processes = [context.Process(target=_process, args=one) for one in arguments]
        for process in processes:
            process.start()
        found: dict[int, Any] = {}
        try:
            while len(found) < size:
                try:
                    rank, value = results.get(timeout=5)
                    found[rank] = value
                except queue.Empty:
                    if any(process.exitcode for process in processes):
                        raise RuntimeError("a process failed; its message is above") from None
            for process in processes:
                process.join()
        finally:
            for process in processes:
                process.kill()
    return [found[rank] for rank in range(size)]
