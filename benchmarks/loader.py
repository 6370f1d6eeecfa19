"""Data loading from local files: how fast pictures are decoded, read, and made into crops, in one run.

The limit is the decoder's: a loader that is far from it loses time elsewhere. Decoders take turns,
then the same files go through a folder source and through the loader with DINOv3's crops.
Each figure is pictures a second of processor time of one process; with workers, of wall time.
"""

from __future__ import annotations

import argparse
import io
import os
import statistics
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch
from PIL import Image

sys.path.insert(0, str(Path(__file__).parent / "parts"))

from machine import machine, write
from photographs import jpeg
from scholarch.data.decode import decode
from scholarch.data.folder import FolderSource
from scholarch.data.loader import Cut, StepLoader, StreamDataset
from scholarch.data.stream import SampleStream
from scholarch.data.views import IMAGENET_MEAN, IMAGENET_STD, MultiCrop
from scholarch.training.assemble import view_sets
from scholarch.training.recipe import load_recipe

BATCH = 16


def arguments() -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--pictures", type=int, default=32)
    parser.add_argument("--height", type=int, default=375)
    parser.add_argument("--width", type=int, default=500)
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--workers", type=int, default=2)
    return parser.parse_args()


def per_second(work: Callable[[], int], repeats: int, clock: Callable[[], float]) -> list[float]:
    """Pictures a second of each repeat, the first left out; `work` gives how many it did."""
    found = []
    for _ in range(repeats + 1):
        began = clock()
        done = work()
        found.append(done / (clock() - began))
    return found[1:]


def main() -> None:
    """Measures, and writes results/loader.md and loader.json."""
    options, where = arguments(), machine()
    torch.set_num_threads(1)
    files = [jpeg(n, options.height, options.width) for n in range(options.pictures)]
    (_, views), *_ = view_sets(load_recipe("dinov3/vitl16", ["data.source=digits"]))
    crops = MultiCrop(views, IMAGENET_MEAN, IMAGENET_STD)
    steps = options.pictures // BATCH
    took: dict[str, list[float]] = {}
    with tempfile.TemporaryDirectory() as folder:
        for number, data in enumerate(files):
            (Path(folder) / f"{number:04d}.jpg").write_bytes(data)
        source = FolderSource(Path(folder), "none")
        dataset = StreamDataset(source, SampleStream(len(source), BATCH, 0), Cut(crops))

        def load(workers: int) -> int:
            loader = StepLoader(dataset, start_step=0, end_step=steps, workers=workers)
            return sum(len(part) for step in loader for part in step)

        work: dict[str, tuple[Callable[[], int], Callable[[], float]]] = {
            "decode, Pillow": (
                lambda: len([np.array(Image.open(io.BytesIO(d))) for d in files]),
                time.process_time,
            ),
            "decode, ours": (lambda: len([decode(d, "") for d in files]), time.process_time),
            "read and decode": (
                lambda: len([source.read(n) for n in range(len(source))]),
                time.process_time,
            ),
            "read, decode and crop": (lambda: load(0), time.process_time),
            f"loader with {options.workers} workers, wall time": (
                lambda: load(options.workers),
                time.perf_counter,
            ),
        }
        for name, (run, clock) in work.items():
            took[name] = per_second(run, options.repeats, clock)
            print(f"  {name}: {statistics.median(took[name]):.0f} a second", flush=True)
    where["load after"] = "{:.1f} {:.1f} {:.1f}".format(*os.getloadavg())
    limit = statistics.median(took["decode, ours"])
    size = sum(map(len, files)) / len(files) / 2**10
    lines = [
        (
            f"{options.pictures} JPEG files of {options.height} x {options.width}, {size:.0f} KiB each, local; "
            "2 crops of 224 and 8 of 96 with DINOv3's distortions. Median of "
            f"{options.repeats} (lowest to highest)."
        ),
        "",
        "| what | pictures a second | of the decode limit |",
        "|---|---|---|",
    ]
    for name, values in took.items():
        middle = statistics.median(values)
        lines.append(
            f"| {name} | {middle:.0f} ({min(values):.0f} to {max(values):.0f}) | {middle / limit:.2f} |"
        )
    write("loader", "Loading from local files", "\n".join(lines), {"pictures a second": took}, where)


if __name__ == "__main__":
    main()
