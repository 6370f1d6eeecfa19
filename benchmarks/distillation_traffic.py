"""Bytes that each process receives and holds for a step of several students: ours, and everything to everyone.

Both forms are carried out over gloo on the same pictures and the same teacher, and counted; the formula's figures
stand beside them (scholarch.distillation.traffic). No processor time is measured: a busy machine changes nothing.
"""

from __future__ import annotations

import argparse
import itertools
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch

sys.path.insert(0, str(Path(__file__).parent / "parts"))

from gather_everything import gather_everything
from machine import machine, write
from scholarch.data.loader import StepLoader
from scholarch.distillation.groups import Tiling, even
from scholarch.distillation.traffic import exchanged, gathered, held, held_of_all, picture_bytes
from scholarch.objectives.term import Output
from scholarch.training.learner import project, share_of, teacher_features
from several_students import Member, member, on_processes
from torch import Tensor

BATCH, STEPS = 32, 24
OVERRIDES = (
    f"training.global_batch={BATCH}",
    "students.vits16plus=null",
    "students.vith16plus=null",
)
GROUPS = {4: {"vits16": 1, "vitb16": 1, "vitl16": 2}, 8: {"vits16": 1, "vitb16": 2, "vitl16": 5}}
EVERYTHING = (Output("global", "cls", "dino"), Output("global", "patches", "ibot"))


def bytes_of(*tensors: Tensor) -> int:
    """Of all of them."""
    return sum(tensor.numel() * tensor.element_size() for tensor in tensors)


def ours(one: Member) -> tuple[float, float]:
    """Bytes received in a step, and held when it begins; means over some steps."""
    batches, found = one.exchange(0), []
    for _ in range(STEPS):
        given = next(batches)
        coming = one.exchange.coming
        assert coming is not None
        pictures = [view for batch in (*given, *coming.batches) for view in batch.views.values()]
        rows = [r for batch in given for by_output in batch.bottlenecks.values() for r in by_output.values()]
        found.append(bytes_of(*pictures, *rows, coming.received, coming.sending))
    batches.close()
    one.exchange.close()
    return one.exchange.counted.received / (STEPS + 1), sum(found) / STEPS  # one step is ahead


def everything(one: Member, tiling: Tiling, rank: int) -> tuple[int, int]:
    """The same where all crops and all features of the teacher go to every process."""
    positions = torch.arange(tiling.teacher[rank], tiling.teacher[rank + 1]).numpy()
    own: Any = one.trainer.loader
    (whole,) = next(iter(StepLoader(own.own.dataset, start_step=0, end_step=1, shares=[positions])))
    share = share_of(whole, (0, BATCH), BATCH, 0)
    teacher: Any = one.trainer.learner.teachers["teacher"]
    with torch.no_grad():
        features = teacher_features(teacher, whole, share, set(EVERYTHING))
        made = project(teacher, features, set(EVERYTHING), share, "bottleneck")
    tensors = {**whole.views, **{str(output): rows for output, rows in made.items()}}
    return gather_everything(tensors, [b - a for a, b in itertools.pairwise(tiling.teacher)])


def work(folder: str, sizes: Mapping[str, int]) -> dict[str, Any]:
    """One process's row."""
    tiling = Tiling(sizes, even(BATCH, sum(sizes.values())))
    one = member(OVERRIDES, tiling, folder)
    rank = one.exchange.world.rank
    received, kept = ours(one)
    received_of_all, kept_of_all = everything(one, tiling, rank)
    part = range(tiling.teacher[rank], tiling.teacher[rank + 1])
    mine = {int(p) for share in one.exchange.needs[rank].shares for p in share}
    bytes_each = picture_bytes(one.recipe)  # with masks at the mean of what is drawn
    return {
        "rank": rank,
        "student": one.student,
        "received": received,
        "received, formula": exchanged(bytes_each, len(mine), 1, len(mine & set(part))),
        "held": kept,
        "held, formula": held(bytes_each, len(mine), 1, len(part), len(sizes)),
        "received of all": received_of_all,
        "received of all, formula": gathered(bytes_each, BATCH, tiling.world_size),
        "held of all": kept_of_all,
        "held of all, formula": held_of_all(bytes_each, BATCH),
    }


def table(rows: list[dict[str, Any]], what: str) -> list[str]:
    """Lines of what each process `received` or `held`."""
    lines = [
        f"| process | student | ours, {what} | formula | everything, {what} | formula | less by | formula |",
        "| ---: | --- | ---: | ---: | ---: | ---: | ---: | ---: |",
    ]
    for row in rows:
        mine, predicted, of_all, all_predicted = (
            row[name] for name in (what, f"{what}, formula", f"{what} of all", f"{what} of all, formula")
        )
        lines.append(
            f"| {row['rank']} | {row['student']} | {mine:,.0f} | {predicted:,.0f} | {of_all:,} | "
            f"{all_predicted:,.0f} | {of_all / mine:.1f} | {all_predicted / predicted:.1f} |"
        )
    return lines


def main() -> None:
    """Measures, and writes results/distillation_traffic.md and .json."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--processes", type=int, nargs="+", default=[4, 8], choices=sorted(GROUPS))
    where, data, lines = machine(), {}, []
    for size in parser.parse_args().processes:
        data[f"{size} processes"] = rows = on_processes(size, work, GROUPS[size])
        lines += [f"## {size} processes, bytes a step", ""]
        for what in ("received", "held"):
            lines += [*table(rows, what), ""]
    write("distillation_traffic", "Traffic and memory of several students", "\n".join(lines), data, where)


if __name__ == "__main__":
    main()
