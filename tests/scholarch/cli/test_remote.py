"""Runs whose prefix is in MinIO: trained, killed, resumed, chained, evaluated, exported, held by one writer."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest
import yaml
from scholarch.cli import main
from scholarch.storage import lease as leases
from scholarch.storage.lease import LEASE_NAME, Lease
from scholarch.storage.objects import joined, open_objects
from scholarch.storage.s3 import S3Objects
from scholarch.training.checkpoint import committed
from tiny_training import TINY

pytestmark = pytest.mark.service
QUICK = (*TINY, "training.workers=0", "training.checkpoint_every=2", "evaluation.at_most=32")


@pytest.fixture(autouse=True)
def _here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("SCHOLARCH_SCRATCH", str(tmp_path / "scratch"))
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)


def names(address: str) -> set[str]:
    return {
        entry.name for entry in open_objects(address).entries() if not entry.name.startswith("checkpoints/")
    }


def losses(address: str) -> list[tuple[int, float]]:
    lines = open_objects(address).read("metrics.jsonl").decode().splitlines()
    return [(r["step"], r["loss/total"]) for r in map(json.loads, lines) if "loss/total" in r]


def test_a_run_in_minio(bucket: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run = joined(bucket, "runs/first")
    assert main(["pretrain", "--recipe", "demo/digits", "--run", run, *QUICK]) == 0
    found = names(run)
    assert {"recipe.yaml", "run.json", "metrics.jsonl", "report/index.html"} <= found
    assert "export/backbone.safetensors" in found
    assert LEASE_NAME not in found
    assert not any("mlflow.db" in name for name in found)
    assert [step for step, _ in losses(run)] == [1, 2, 3, 4, 5, 6]
    assert f"  {run}/report/index.html\n" in capsys.readouterr().err, "not where this machine had it"

    assert main(["pretrain", "--recipe", "demo/digits", "--run", run, *QUICK]) == 2
    assert "already holds a run" in capsys.readouterr().err
    assert main(["evaluate", run, "--data", "digits", "--neighbours", "5"]) == 0
    assert main(["export", run, "--to", "out"]) == 0
    assert main(["evaluate", joined(run, "export"), "--data", "digits", "--neighbours", "5"]) == 0
    assert (tmp_path / "out/backbone.safetensors").read_bytes() == open_objects(run).read(
        "export/backbone.safetensors"
    )
    # Another run begins from it, on this machine.
    begin = ("demo/digits", f"init_from={{checkpoint: '{run}'}}")
    assert main(["pretrain", "--recipe", begin[0], "--run", "second", *QUICK, begin[1]]) == 0
    capsys.readouterr()

    assert main(["checkpoints", "list", run]) == 0
    text = capsys.readouterr().out
    assert [line.split()[0] for line in text.splitlines()] == ["step", "2", "4", "6"]
    assert main(["checkpoints", "verify", run]) == 0
    assert main(["checkpoints", "export", run, "--step", "6", "--to", "six"]) == 0
    assert (tmp_path / "six/backbone.safetensors").read_bytes() == (
        tmp_path / "out/backbone.safetensors"
    ).read_bytes()
    shard = f"{committed(joined(run, 'checkpoints'))[1].data()}/__0_0.distcp"
    store = open_objects(bucket)
    name = shard.removeprefix(f"{bucket}/")
    data = bytearray(store.read(name))
    data[500] ^= 1
    store.write(name, bytes(data))
    capsys.readouterr()
    assert main(["checkpoints", "list", run]) == 0
    assert main(["checkpoints", "verify", run]) == 1
    told = [line for line in capsys.readouterr().out.splitlines() if "damaged" in line]
    assert len(told) == 1
    assert "__0_0.distcp has another checksum" in told[0]


def command(run: str, *words: str) -> list[str]:
    return [sys.executable, "-m", "scholarch.cli", "pretrain", "--run", run, *words]


def test_killed_and_resumed_on_another_machine(bucket: str, tmp_path: Path) -> None:
    """Bit-equal to the run never killed, with nothing of the first machine but what is in the bucket."""
    whole, run = joined(bucket, "whole"), joined(bucket, "killed")
    options = ("--recipe", "demo/digits", *QUICK, "training.steps=12")
    assert main(["pretrain", "--run", whole, *options]) == 0
    process = subprocess.Popen(command(run, *options), stderr=subprocess.PIPE, text=True)
    until = time.monotonic() + 200
    while len(committed(joined(run, "checkpoints"))) < 2:
        assert process.poll() is None, process.communicate()[1]
        assert time.monotonic() < until
        time.sleep(0.02)
    process.kill()
    process.communicate()
    assert open_objects(run).entry(LEASE_NAME)  # of a process of this machine that has gone
    environment = {**os.environ, "SCHOLARCH_SCRATCH": str(tmp_path / "elsewhere")}
    done = subprocess.run(
        command(run, "--resume"), env=environment, capture_output=True, text=True, timeout=200, check=False
    )
    assert done.returncode == 0, done.stderr
    assert "resumed from step" in done.stderr
    assert losses(run) == losses(whole)
    weights = "export/backbone.safetensors"
    assert open_objects(run).read(weights) == open_objects(whole).read(weights)


@pytest.mark.gloo
def test_two_processes_begin_and_one_goes_on(bucket: str) -> None:
    """Through the launcher; the worker that speaks for all is killed on the way, and started again."""
    run = joined(bucket, "two")
    options = ("--recipe", "demo/digits", *QUICK, "training.steps=10")
    launcher = [
        sys.executable,
        "-m",
        "scholarch.training.launch",
        "--processes",
        "2",
        "--max-restarts",
        "1",
        "--",
    ]
    process = subprocess.Popen(
        [*launcher, *command(run, *options)[3:]], stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True
    )
    until = time.monotonic() + 200
    while not committed(joined(run, "checkpoints")):
        assert process.poll() is None, process.communicate()[1]
        assert time.monotonic() < until
        time.sleep(0.02)
    os.kill(int(json.loads(open_objects(run).read(LEASE_NAME))["process"]), signal.SIGKILL)
    _, text = process.communicate(timeout=200)
    assert process.returncode == 0, text
    assert "resumed from step" in text
    assert [step for step, _ in losses(run)] == list(range(1, 11))
    assert committed(joined(run, "checkpoints"))[-1].manifest()["world_size"] == 2
    assert main(["pretrain", "--run", run, "--resume"]) == 0
    assert LEASE_NAME not in names(run)


def test_a_chain_of_stages(bucket: str, capsys: pytest.CaptureFixture[str]) -> None:
    run = joined(bucket, "chain")
    Path("second.yaml").write_text(
        yaml.safe_dump({"extends": "demo/digits", "init_from": {"stage": "pretrain"}})
    )
    both = ("pretrain", "--recipe", "demo/digits", "--recipe", "second.yaml", "--run", run)
    assert main([*both, *QUICK, "training.steps=2"]) == 0
    assert {"stages.json", "stages/1-demo-digits/run.json", "stages/2-second/recipe.yaml"} <= names(run)
    second = yaml.safe_load(open_objects(run).read("stages/2-second/recipe.yaml"))
    assert second["init_from"]["checkpoint"] == f"{run}/stages/1-demo-digits"
    open_objects(run).remove_all("stages/2-second")
    capsys.readouterr()
    assert main(["pretrain", "--run", run, "--resume"]) == 0
    assert committed(f"{run}/stages/2-second/checkpoints")[-1].step == 2
    assert main(["checkpoints", "list", run]) == 0


def test_no_such_bucket_is_told_before_anything(bucket: str, capsys: pytest.CaptureFixture[str]) -> None:
    run = joined(f"{bucket}-not", "run")
    assert main(["pretrain", "--recipe", "demo/digits", "--run", run, *QUICK]) == 2
    assert "no such bucket" in capsys.readouterr().err


def test_wrong_recipe_leaves_nothing(bucket: str) -> None:
    run = joined(bucket, "run")
    assert main(["pretrain", "--recipe", "demo/digits", "--run", run, *QUICK, "views.global.size=17"]) == 2
    assert list(open_objects(run).entries()) == []


def opened(address: str) -> S3Objects:
    objects = open_objects(address)
    assert isinstance(objects, S3Objects)
    return objects


def test_two_writers_of_one_prefix(
    bucket: str, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(leases, "BEAT_SECONDS", 0.5)
    run = joined(bucket, "run")
    first = Lease(opened(run))
    first.acquire()
    assert main(["pretrain", "--recipe", "demo/digits", "--run", run, *QUICK]) == 2
    assert f"is in use by process {os.getpid()}" in capsys.readouterr().err
    first.release()
    second = Lease(opened(run))
    second.acquire()
    second.release()


def test_a_lease_that_has_lapsed_is_taken_over(bucket: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(leases, "BEAT_SECONDS", 3600.0)
    monkeypatch.setattr(leases, "LAPSE_SECONDS", 1.0)
    run = joined(bucket, "run")
    silent, heir = Lease(opened(run)), Lease(opened(run))
    silent.acquire()
    heir.acquire()
    with pytest.raises(Exception, match="another process writes here now"):
        silent.check()
    heir.check()
    silent.release()
    assert opened(run).entry(LEASE_NAME)
    heir.release()
    assert opened(run).entry(LEASE_NAME) is None


def test_one_of_many_gets_the_lease(bucket: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(leases, "BEAT_SECONDS", 0.3)
    run = joined(bucket, "run")
    got: list[Lease] = []

    def ask() -> None:
        lease = Lease(opened(run))
        try:
            lease.acquire()
        except Exception:
            return
        got.append(lease)

    threads = [threading.Thread(target=ask) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(got) == 1
    got[0].release()
