"""A run that is killed or stopped goes on as if nothing had happened: weights and losses bit-equal."""

from __future__ import annotations

import random
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest
from scholarch.storage.records import RECORDS_NAME, read_records
from scholarch.training.checkpoint import committed
from tiny_training import TINY

STEPS = 30
OPTIONS = (
    f"training.steps={STEPS}",
    "training.workers=1",
    "training.checkpoint_every=4",
    "evaluation.every=10",
    "evaluation.at_most=64",
)
VERBS = {
    "pretrain": ("--recipe", "demo/digits", *TINY, *OPTIONS),
    "align": ("--scale", "tiny", "model.head.stochastic_depth=0.3", "evaluation.size=32", *OPTIONS),
}
TIMEOUT_SECONDS = 200


def command(verb: str, run: Path, *words: str) -> list[str]:
    return [sys.executable, "-m", "scholarch.cli", verb, "--run", str(run), *words]


def finish(verb: str, run: Path, *words: str) -> str:
    done = subprocess.run(
        command(verb, run, *words), capture_output=True, text=True, timeout=TIMEOUT_SECONDS, check=False
    )
    assert done.returncode == 0, done.stderr
    return done.stderr


def stop_at(verb: str, run: Path, step: int, number: signal.Signals) -> tuple[int, str]:
    """Starts a run, sends it a signal when it has recorded `step`, and gives exit code and output."""
    process = subprocess.Popen(
        command(verb, run, *VERBS[verb]), stderr=subprocess.PIPE, text=True
    )  # its loader workers hold stderr too: `communicate` returns only when they have ended
    until = time.monotonic() + TIMEOUT_SECONDS
    while not any(record["step"] >= step for record in read_records(run / RECORDS_NAME)):
        assert process.poll() is None, process.communicate()[1]
        assert time.monotonic() < until, "the run does not get there"
        time.sleep(0.02)
    process.send_signal(number)
    _, text = process.communicate(timeout=TIMEOUT_SECONDS)
    return process.returncode, text


def losses(run: Path) -> list[tuple[int, float]]:
    records = read_records(run / RECORDS_NAME)
    return [(record["step"], record["loss/total"]) for record in records if "loss/total" in record]


@pytest.fixture(scope="module")
def untouched(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Path]:
    folder = tmp_path_factory.mktemp("runs")

    def found(verb: str) -> Path:
        run = folder / verb
        if not run.exists():
            finish(verb, run, *VERBS[verb])
        return run

    return found


def assert_bit_equal(run: Path, untouched: Path) -> None:
    assert losses(run) == losses(untouched)
    assert [step for step, _ in losses(run)] == list(range(1, STEPS + 1))
    weights = "export/backbone.safetensors"
    assert (run / weights).read_bytes() == (untouched / weights).read_bytes()


@pytest.mark.parametrize("verb", VERBS)
def test_killed_at_a_random_step_and_resumed(
    verb: str, untouched: Callable[[str], Path], tmp_path: Path
) -> None:
    step = random.randint(2, STEPS - 4)
    run = tmp_path / "killed"
    code, _ = stop_at(verb, run, step, signal.SIGKILL)
    assert code == -signal.SIGKILL, f"at step {step}"
    saved = bool(committed(run / "checkpoints"))  # saving may lag behind steps as short as these
    text = finish(verb, run, "--resume")
    assert ("resumed from step" in text) == saved, f"at step {step}"
    assert_bit_equal(run, untouched(verb))


def test_asked_to_stop_it_saves_and_says_how_to_go_on(
    untouched: Callable[[str], Path], tmp_path: Path
) -> None:
    run = tmp_path / "stopped"
    code, text = stop_at("pretrain", run, 9, signal.SIGTERM)
    assert code == 75, text
    assert "stopped at step" in text
    assert f"scholarch pretrain --run {run} --resume" in text
    assert (run / "report" / "index.html").is_file()
    finish("pretrain", run, "--resume")
    assert_bit_equal(run, untouched("pretrain"))
