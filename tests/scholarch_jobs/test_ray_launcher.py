"""Ray Train as the second launcher: the loss curve is that of the first, and exit codes are the verb's own."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest
from scholarch.config.command import LAUNCHER, launch_arguments
from scholarch.errors import UserError
from scholarch.storage.records import read_records
from scholarch_jobs.ray_launcher import main, worker_range

pytestmark = pytest.mark.xdist_group("ray")
RAY = [sys.executable, "-m", "scholarch_jobs.ray_launcher"]


def pretrain(run: Path) -> list[str]:
    changes = ("training.steps=4", "training.log_every=1", "training.workers=0", "training.precision=fp64")
    return ["pretrain", "--recipe", "demo/digits", "--scale", "tiny", "--run", str(run), *changes]


def losses(run: Path) -> list[float]:
    return [record["loss/total"] for record in read_records(run / "metrics.jsonl") if "loss/total" in record]


def test_the_curve_is_that_of_the_other_launcher(tmp_path: Path) -> None:
    one, other = tmp_path / "launcher", tmp_path / "ray"
    started = launch_arguments(pretrain(one), nodes="1", processes=2, run_id="one")
    first = [sys.executable, *LAUNCHER[1:], *started]
    for command in (first, [*RAY, "--workers", "2", "--", *pretrain(other)]):
        done = subprocess.run(command, capture_output=True, text=True, timeout=280, check=False, cwd=tmp_path)
        assert done.returncode == 0, done.stdout + done.stderr
    assert len(losses(one)) == 4
    assert losses(other) == pytest.approx(losses(one), rel=1e-9)
    assert (other / "checkpoints").is_dir()
    assert (other / "export").is_dir()


@pytest.mark.parametrize("text", ["0", "3:2", "two", "1:"])
def test_numbers_of_workers(text: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(UserError):
        worker_range(text)
    assert main(["--workers", text, "--", "pretrain"]) == 2
    assert "is no number of workers" in capsys.readouterr().err
    assert worker_range("2:8") == (2, 8)
