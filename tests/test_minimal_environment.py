"""scholarch in an environment with torch, NumPy and what those two need; and the command's start."""

from __future__ import annotations

import subprocess
import sys
import time
from importlib.util import find_spec
from pathlib import Path

import pytest
from environments import linked_environment

ROOT = Path(__file__).parents[1]


@pytest.fixture(scope="module")
def minimal_python(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Of an environment with torch, NumPy, and this package as it stands here."""
    folder = tmp_path_factory.mktemp("minimal")
    python = linked_environment(folder, "torch", "numpy")
    (packages,) = folder.glob("lib/python3.*/site-packages")
    (packages / "scholarch.pth").write_text(f"{ROOT / 'platform'}\n")
    return python


def run(*command: str | Path) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [str(part) for part in command], capture_output=True, text=True, timeout=120, check=False
    )


def test_one_training_step(minimal_python: Path) -> None:
    done = run(minimal_python, ROOT / "tests" / "minimal_step.py")
    assert done.returncode == 0, done.stderr
    assert done.stdout.endswith("also here: []\n"), "the environment has more than torch and NumPy"


def test_light_imports(minimal_python: Path) -> None:
    """`import scholarch` and the errors need nothing at all, torch neither."""
    code = "import scholarch, scholarch.errors, sys; print(sorted({'torch', 'numpy'} & set(sys.modules)))"
    done = run(minimal_python, "-c", code)
    assert (done.returncode, done.stdout) == (0, "[]\n"), done.stderr


@pytest.mark.skipif(find_spec("scholarch.cli.__main__") is None, reason="the command is not there yet")
def test_help_takes_less_than_a_second() -> None:
    seconds = []
    for _ in range(3):  # the quickest of three: other tests share the cores
        start = time.perf_counter()
        done = run(sys.executable, "-m", "scholarch.cli", "--help")
        seconds.append(time.perf_counter() - start)
        assert done.returncode == 0, done.stderr
        assert "pretrain" in done.stdout
    assert min(seconds) < 1.0, seconds
