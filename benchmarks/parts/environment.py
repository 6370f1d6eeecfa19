"""Environments of programs that are compared with, apart from our own."""

from __future__ import annotations

import hashlib
import os
import shutil
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

ROOT = Path(__file__).parents[2]


def environment(name: str, requirements: Sequence[str]) -> Path:
    """The Python of .tools/bench/NAME-DIGEST, made with uv when it is not there yet.

    Raises:
        SystemExit: without uv, or when a requirement cannot be installed.
    """
    uv = next((str(p) for p in (ROOT / ".tools/bin/uv",) if p.exists()), None) or shutil.which("uv")
    if uv is None:
        sys.exit("benchmarks: uv is needed for the programs that are compared with; run `make setup` first")
    digest = hashlib.blake2b("\n".join(requirements).encode(), digest_size=4).hexdigest()
    folder = ROOT / ".tools/bench" / f"{name}-{digest}"
    python = folder / "bin/python"
    if (folder / ".ready").exists():
        return python
    print(f"benchmarks: installing {', '.join(requirements)} into {folder.relative_to(ROOT)}", flush=True)
    clean = {key: value for key, value in os.environ.items() if key not in ("VIRTUAL_ENV", "PYTHONPATH")}
    for command in (
        [uv, "venv", "--quiet", "--clear", "--python", sys.executable, str(folder)],
        [uv, "pip", "install", "--quiet", "--python", str(python), *requirements],
    ):
        if subprocess.run(command, env=clean, check=False).returncode:
            sys.exit(f"benchmarks: `{' '.join(command)}` failed")
    (folder / ".ready").touch()
    return python
