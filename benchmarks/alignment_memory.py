"""Memory of the loss of text alignment on each process as their number grows: in a ring, and with all rows gathered.

Every process has the same number of pictures and captions. Counted is what a process's resident memory rises by, at
most, in the term's forward and backward pass, buffers of gloo included; the rows themselves were there before. No time
is measured: a busy machine changes nothing. All forms give the same value, which is checked.
"""

from __future__ import annotations

import argparse
import math
import os
import statistics
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor
from torch.distributed import ProcessGroup
from torch.nn import functional as F

sys.path.insert(0, str(Path(__file__).parent / "parts"))

from machine import machine, write
from scholarch.collectives import gather_rows
from scholarch.objectives.clip import contrast
from several_students import on_processes

SCALE, REPEATS, MIB = 20.0, 3, 2**20
Form = Callable[[Tensor, Tensor, Tensor, ProcessGroup, Sequence[int]], Tensor]


def rows_gathered(
    pictures: Tensor, texts: Tensor, scale: Tensor, group: ProcessGroup, counts: Sequence[int]
) -> Tensor:
    """This process's sum, from cosines of its rows with all rows: [b, G] twice."""
    everyone, captions = (gather_rows(x, group, counts) for x in (pictures, texts))
    own = torch.arange(len(pictures)) + sum(counts[: dist.get_rank(group)])
    both = (scale * pictures @ captions.T, scale * texts @ everyone.T)
    return 0.5 * sum((F.cross_entropy(x, own, reduction="sum") for x in both), texts.new_zeros(()))


def matrix_gathered(
    pictures: Tensor, texts: Tensor, scale: Tensor, group: ProcessGroup, counts: Sequence[int]
) -> Tensor:
    """This process's share of the sum that every process makes of the whole matrix: [G, G]."""
    everyone, captions = (gather_rows(x, group, counts) for x in (pictures, texts))
    logits, own = scale * everyone @ captions.T, torch.arange(sum(counts))
    whole = F.cross_entropy(logits, own, reduction="sum") + F.cross_entropy(logits.T, own, reduction="sum")
    return 0.5 * whole / len(counts)


FORMS: dict[str, Form] = {
    "ring": contrast,
    "rows gathered": rows_gathered,
    "matrix gathered": matrix_gathered,
}


def work(folder: str, batch: int, width: int) -> dict[str, Any]:  # noqa: ARG001
    """This process's peaks in MiB by form, and the mean loss that each form found."""
    group = dist.group.WORLD
    assert group is not None
    counts = [batch] * dist.get_world_size()
    found: dict[str, Any] = {}
    for name, form in FORMS.items():
        step(form, 8, width, group, [8] * len(counts))  # connections and code are there before
        peaks, losses = zip(*(step(form, batch, width, group, counts) for _ in range(REPEATS)), strict=True)
        found[name] = {"peak": statistics.median(peaks), "peaks": peaks, "loss": losses[0]}
    values = [form["loss"] for form in found.values()]
    if not all(math.isclose(value, values[0], rel_tol=1e-4) for value in values):
        raise RuntimeError(f"the forms differ: {values}")
    return found


def step(
    form: Form, batch: int, width: int, group: ProcessGroup, counts: Sequence[int]
) -> tuple[float, float]:
    """Peak of both passes above what was there, in MiB, and the mean loss over all processes."""
    drawn = torch.Generator().manual_seed(dist.get_rank())
    pictures, texts = (
        F.normalize(torch.randn(batch, width, generator=drawn), dim=1).requires_grad_() for _ in range(2)
    )
    scale = torch.tensor(SCALE, requires_grad=True)
    dist.barrier()
    Path("/proc/self/clear_refs").write_text("5")  # the peak begins again
    before = resident("VmRSS")
    value = form(pictures, texts, scale, group, counts)
    value.backward()
    peak = resident("VmHWM") - before
    total = value.detach().clone()
    dist.all_reduce(total)
    return peak / MIB, total.item() / sum(counts)


def resident(name: str) -> int:
    """Bytes: VmRSS now, VmHWM at most."""
    lines = Path("/proc/self/status").read_text().splitlines()
    (line,) = (line for line in lines if line.startswith(f"{name}:"))
    return int(line.split()[1]) * 1024


def main() -> None:
    """Measures, and writes results/alignment_memory.md and .json."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--processes", type=int, nargs="+", default=[1, 2, 4, 8])
    parser.add_argument("--batch", type=int, default=512, help="pictures and captions of each process")
    parser.add_argument("--width", type=int, default=2048, help="numbers of a row; the source's by default")
    asked = parser.parse_args()
    os.environ["MALLOC_MMAP_THRESHOLD_"] = "65536"  # what a tensor held goes back to the system at once
    where, data = machine(), {}
    rows = 2 * asked.batch * asked.width * 4 / MIB
    told = (
        "MiB that the loss's both passes add, at most, on the process with the most; median of "
        f"{REPEATS} steps. Each process has {asked.batch} pictures and captions of {asked.width} numbers, float32: "
        f"{rows:.0f} MiB, which are not counted. `ring`: ours. `rows gathered`: own rows against all. "
        "`matrix gathered`: the whole matrix on each process.\n"
    )
    lines = [
        told,
        f"| processes | global batch | {' | '.join(FORMS)} |",
        f"| ---: | ---: | {' | '.join('---:' for _ in FORMS)} |",
    ]
    for size in asked.processes:
        data[f"{size} processes"] = found = on_processes(size, work, asked.batch, asked.width)
        most = (max(one[form]["peak"] for one in found) for form in FORMS)
        lines.append(f"| {size} | {size * asked.batch} | {' | '.join(f'{peak:.0f}' for peak in most)} |")
    write("alignment_memory", "Memory of the loss of text alignment", "\n".join(lines), data, where)


if __name__ == "__main__":
    main()
