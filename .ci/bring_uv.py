"""Puts a given uv into a folder, by this Python's pip or, as Debian's may have none, by a fetched one.

`python bring_uv.py FOLDER` makes FOLDER/bin/uv. pip's own settings (index, proxy, certificates)
hold in both ways.
"""

from __future__ import annotations

import hashlib
import os
import re
import subprocess
import sys
import tempfile
import urllib.request
from pathlib import Path
from urllib.parse import urljoin

UV = "uv==0.13.9"
PIP_WHEEL = "pip-25.3-py3-none-any.whl"
PIP_SHA256 = "9655943313a94722b7774661c21049070f6bbb0a1516bf02f7c8d5d9201514cd"


def _install(pip: list[str], folder: Path) -> None:
    command = [sys.executable, *pip, "install", "--quiet", "--disable-pip-version-check"]
    command += ["--target", str(folder), "--upgrade", UV]
    subprocess.run(command, check=True, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE)


def with_pip(folder: Path) -> None:
    """By this Python's own pip, into the folder alone."""
    _install(["-m", "pip"], folder)


def with_fetched_pip(folder: Path) -> None:
    """By a pip that is fetched for this once: a wheel runs without being installed."""
    index = os.environ.get("PIP_INDEX_URL") or os.environ.get("UV_DEFAULT_INDEX") or "https://pypi.org/simple"
    page_url = f"{index.rstrip('/')}/pip/"
    with urllib.request.urlopen(page_url, timeout=60) as page:
        found = re.search(rf'href="([^"]*{re.escape(PIP_WHEEL)}[^"]*)"', page.read().decode())
    if found is None:
        raise OSError(f"{page_url} has no {PIP_WHEEL}")
    with urllib.request.urlopen(urljoin(page_url, found[1]), timeout=60) as answer:
        content = answer.read()
    if hashlib.sha256(content).hexdigest() != PIP_SHA256:
        raise OSError(f"{PIP_WHEEL} of {index} is not the one expected")
    with tempfile.TemporaryDirectory() as temporary:
        wheel = Path(temporary) / PIP_WHEEL
        wheel.write_bytes(content)
        _install([f"{wheel}/pip"], folder)


def main(folder: Path) -> int:
    """Tries each way in turn; returns the exit code."""
    reasons = []
    for way in (with_pip, with_fetched_pip):
        try:
            way(folder)
        except (OSError, subprocess.CalledProcessError) as error:
            words = getattr(error, "stderr", None)
            reasons.append(f"  {way.__name__}: {words.decode().strip() if words else error}")
            continue
        if (folder / "bin" / "uv").exists():
            return 0
        reasons.append(f"  {way.__name__}: no bin/uv in {folder}")
    sys.stderr.write("uv could not be installed:\n" + "\n".join(reasons) + "\n")
    return 1


if __name__ == "__main__":
    sys.exit(main(Path(sys.argv[1])))
