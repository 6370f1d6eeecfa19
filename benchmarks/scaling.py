"""Scaling efficiency: 1, 2 and 4 processes at an equal global batch, one thread each, over gloo.

Efficiency of n processes is the time of one over n times the time of n. With fewer cores than
processes it can only fall: the result names the cores.
"""

from __future__ import annotations

import argparse
import os
import socket
import statistics
import sys
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parent / "parts"))

from machine import machine, write
from turns import Worker, by_turns, spread

SETTINGS = {
    "embed_dim": 192,
    "depth": 12,
    "heads": 3,
    "global_size": 112,
    "local_size": 56,
    "local_crops": 4,
    "prototypes": 4096,
    "stochastic_depth": 0.0,
}


def arguments() -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--processes", type=int, nargs="+", default=[1, 2, 4])
    parser.add_argument("--batch", type=int, default=32)
    parser.add_argument("--warm-up", type=int, default=1)
    parser.add_argument("--repeats", type=int, default=7)
    return parser.parse_args()


def start(size: int, batch: int) -> list[Worker]:
    """The processes of one world, rank 0 first; the others take no turns, but wait for it."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    settings = []
    for rank in range(size):
        environment = {
            "RANK": rank,
            "LOCAL_RANK": rank,
            "WORLD_SIZE": size,
            "LOCAL_WORLD_SIZE": size,
            "MASTER_ADDR": "127.0.0.1",
            "MASTER_PORT": port,
        }
        named = {key: str(value) for key, value in environment.items()}
        settings.append(SETTINGS | {"batch": batch, "environment": named})
    others = [Worker(sys.executable, "our_scaling.py", chosen, 1, wait=False) for chosen in settings[1:]]
    return [Worker(sys.executable, "our_scaling.py", settings[0], 1), *others]


def main() -> None:
    """Measures, and writes results/scaling.md and scaling.json."""
    options, where = arguments(), machine()
    worlds: dict[str, list[Worker]] = {}
    try:
        for size in options.processes:
            worlds[f"{size}"] = start(size, options.batch)
        took = by_turns({name: group[0] for name, group in worlds.items()}, options.warm_up, options.repeats)
    finally:
        for group in worlds.values():
            for worker in reversed(group):  # rank 0, which would complain, last
                worker.end()
    where["load after"] = "{:.1f} {:.1f} {:.1f}".format(*os.getloadavg())
    lines = [
        (
            f"ViT-Ti/14, batch {options.batch} in all, 2 x 112^2 + 4 x 56^2, fp32, one thread a process, gloo, "
            f"{os.cpu_count()} cores; {options.repeats} rounds by turns. Median (lowest to highest)."
        ),
        "",
        "| processes | seconds a step | speed-up | efficiency |",
        "|---|---|---|---|",
    ]
    one = took[str(options.processes[0])]["wall"]
    found: dict[str, Any] = {}
    for name, seconds in took.items():
        gain = statistics.median(a / b for a, b in zip(one, seconds["wall"], strict=True))
        gain *= options.processes[0]
        found[name] = gain / int(name)
        lines.append(f"| {name} | {spread(seconds['wall'])} | {gain:.2f} | {gain / int(name):.0%} |")
    data = {"settings": SETTINGS | {"batch": options.batch}, "seconds": took, "efficiency": found}
    write("scaling", "Scaling over processes", "\n".join(lines), data, where)


if __name__ == "__main__":
    main()
