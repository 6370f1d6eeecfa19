"""TorchX as a person types it."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parents[1]
TORCHX = [sys.executable, "-m", "torchx.cli.main"]


def torchx(
    *arguments: str, path: str | None = None, folder: Path = ROOT, **extra: str
) -> subprocess.CompletedProcess[str]:
    """The command with these words; `path`: another PATH; `extra`: further variables."""
    environment = {**os.environ, "PATH": path or os.environ["PATH"], **extra}
    return subprocess.run(
        [*TORCHX, *arguments],
        cwd=folder,
        env=environment,
        capture_output=True,
        text=True,
        timeout=240,
        check=False,
    )


def run_here(component: str, *words: str, path: str | None = None) -> subprocess.CompletedProcess[str]:
    """Runs a component on this machine, to its good end."""
    done = torchx("run", "-s", "local_cwd", component, *words, path=path)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "job finished: SUCCEEDED" in done.stderr
    return done
