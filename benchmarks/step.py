"""Time of a training step: packed against unpacked, and against lightly-train's DINOv2, as ratios.

All sides have the same backbone, crops, batch, heads (two of three layers, hidden 2048, bottleneck
256, weight-normed prototypes), centring (Sinkhorn-Knopp, 3 rounds), KoLeo, mean masked share, share
of stochastic depth, clipping, AdamW, moving average and precision (fp32), and pictures in memory:
decoding and cropping are in none of them. Sides take turns step by step.
"""

from __future__ import annotations

import argparse
import os
import statistics
import sys
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parent / "parts"))

from environment import environment
from machine import machine, write
from turns import Worker, by_turns, ratios, spread

LIGHTLY = ("lightly-train==0.18.0",)
SIZES = {
    "small": {"embed_dim": 384, "depth": 12, "heads": 6},
    "tiny": {"embed_dim": 192, "depth": 12, "heads": 3},
}


def arguments() -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--size", choices=SIZES, default="tiny", help="backbone, patches of 14")
    parser.add_argument("--batch", type=int, default=4)
    parser.add_argument("--global-size", type=int, default=224)
    parser.add_argument("--local-size", type=int, default=98)
    parser.add_argument("--local-crops", type=int, default=8)
    parser.add_argument("--prototypes", type=int, default=8192)
    parser.add_argument("--stochastic-depth", type=float, default=0.3)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--warm-up", type=int, default=2)
    parser.add_argument("--repeats", type=int, default=9)
    parser.add_argument("--without-lightly", action="store_true", help="packed against unpacked alone")
    return parser.parse_args()


def table(took: dict[str, dict[str, list[float]]], settings: dict[str, Any]) -> str:
    """Markdown."""
    lines = [
        (
            f"ViT of width {settings['embed_dim']}, {settings['depth']} blocks, patches of 14; batch "
            f"{settings['batch']} x (2 x {settings['global_size']}^2 + {settings['local_crops']} x "
            f"{settings['local_size']}^2); {settings['prototypes']:,} prototypes in each of two heads; "
            f"stochastic depth {settings['stochastic_depth']}; fp32; {settings['threads']} thread(s); "
            f"{len(took['packed']['wall'])} rounds by turns. Median (lowest to highest); a ratio below 1 "
            "means that packed, which is what Scholarch runs, is faster."
        ),
        "",
        "| side | wall seconds | processor seconds | packed / side, wall | packed / side, processor |",
        "|---|---|---|---|---|",
    ]
    for name, seconds in took.items():
        compared = [
            "1" if name == "packed" else spread(ratios(took["packed"][kind], seconds[kind]))
            for kind in ("wall", "cpu")
        ]
        lines.append(
            f"| {name} | {spread(seconds['wall'])} | {spread(seconds['cpu'])} | {' | '.join(compared)} |"
        )
    lines += [
        "",
        "Processor seconds leave out what other programs on the machine took; wall seconds do not.",
    ]
    return "\n".join(lines)


def main() -> None:
    """Measures, and writes results/step.md and step.json."""
    options = arguments()
    where = machine()
    settings = {**vars(options), **SIZES[options.size]}
    workers: dict[str, Worker] = {}
    try:
        for name, packed in (("packed", True), ("unpacked", False)):
            chosen = settings | {"packed": packed}
            workers[name] = Worker(sys.executable, "our_step.py", chosen, options.threads)
        if not options.without_lightly:
            python = environment("lightly", [*LIGHTLY, f"torch=={where['torch'].split('+')[0]}"])
            workers["lightly-train"] = Worker(python, "lightly_step.py", settings, options.threads)
            where["lightly-train"] = LIGHTLY[0].partition("==")[2]
        took = by_turns(workers, options.warm_up, options.repeats)
    finally:
        for worker in workers.values():
            worker.end()
    where["load after"] = "{:.1f} {:.1f} {:.1f}".format(*os.getloadavg())
    medians = {
        name: {
            kind: statistics.median(ratios(took["packed"][kind], seconds[kind])) for kind in ("wall", "cpu")
        }
        for name, seconds in took.items()
        if name != "packed"
    }
    data = {"settings": settings, "seconds": took, "packed / side": medians}
    write("step", "Time of a training step", table(took, settings), data, where)


if __name__ == "__main__":
    main()
