"""What a result needs to be understood: hardware, versions, command; and where results go."""

from __future__ import annotations

import json
import os
import platform
import shlex
import sys
from datetime import UTC, datetime
from importlib.metadata import version
from pathlib import Path
from typing import Any

RESULTS = Path(__file__).parents[1] / "results"


def machine() -> dict[str, str]:
    """Processor, cores, memory, load and versions."""
    model = platform.processor() or platform.machine()
    information = Path("/proc/cpuinfo")
    if information.exists():
        lines = [line for line in information.read_text().splitlines() if line.startswith("model name")]
        model = lines[0].split(":")[1].strip() if lines else model
    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 2**30
    return {
        "processor": f"{model}, {os.cpu_count()} cores, {memory:.0f} GiB",
        "load before": "{:.1f} {:.1f} {:.1f}".format(*os.getloadavg()),
        "python": platform.python_version(),
        "torch": version("torch"),
        "date": datetime.now(UTC).strftime("%Y-%m-%d %H:%M UTC"),
        "command": shlex.join(["python", *map(_relative, sys.argv)]),
    }


def _relative(argument: str) -> str:
    path = Path(argument)
    return (
        str(path.relative_to(Path.cwd()))
        if path.is_absolute() and path.is_relative_to(Path.cwd())
        else argument
    )


def write(name: str, title: str, text: str, data: dict[str, Any], where: dict[str, str]) -> None:
    """benchmarks/results/NAME.md and NAME.json, and the text on the screen."""
    RESULTS.mkdir(exist_ok=True)
    conditions = "\n".join(f"- {key}: {value}" for key, value in where.items())
    page = f"# {title}\n\n{text.strip()}\n\n## Measured on\n\n{conditions}\n"
    (RESULTS / f"{name}.md").write_text(page)
    (RESULTS / f"{name}.json").write_text(json.dumps({"machine": where, **data}, indent=1) + "\n")
    print(page)
