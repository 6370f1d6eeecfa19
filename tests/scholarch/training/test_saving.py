"""Saves in the background, into a folder and into MinIO, cut off in each phase."""

from __future__ import annotations

import errno
import os
import pickle
import signal
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import TypeVar, cast

import cloudpickle
import minio_server
import pytest
from gloo import run_ranks
from minio_server import MinioServer
from scholarch.errors import SaveFailed
from scholarch.storage import dcp
from scholarch.storage.objects import joined, open_objects
from scholarch.training import saving
from scholarch.training.checkpoint import committed, newest_whole
from scholarch.training.learner import Learner
from scholarch.training.optimizer import Optimizer
from tiny_training import gloo_world, tiny_recipe, tiny_trainer, train
from torch.distributed import ProcessGroup

SHORT = ("training.workers=0", "training.checkpoint_every=2", "training.precision=fp64")
Losses = dict[int, float]
T = TypeVar("T")


def _with_environment(group: ProcessGroup, environment: dict[str, str], work: bytes) -> object:
    os.environ.update(environment)
    fn, args = pickle.loads(work)
    return fn(group, *args)


def ranks(world: int, fn: Callable[..., T], *args: object) -> list[T]:
    """As `run_ranks`, with the store's address and keys."""
    environment = {name: value for name, value in os.environ.items() if name.startswith("AWS_")}
    cloudpickle.register_pickle_by_value(sys.modules[__name__])
    work = cloudpickle.dumps((fn, args))
    return cast(list[T], run_ranks(world, _with_environment, environment, work))


def trained(group: ProcessGroup, address: str, *overrides: str) -> Losses:
    records = train(gloo_world(group), address, (*SHORT, *overrides))
    return {int(r["step"]): r["loss/total"] for r in records if "loss/total" in r}


def stopped(group: ProcessGroup, address: str, step: int) -> Losses:
    """Trains on from what is there, and is asked to stop so that `step` is the last."""
    losses: Losses = {}
    trainer, _ = tiny_trainer(gloo_world(group), address, tiny_recipe(*SHORT))
    told = trainer._record

    def record(finished: int, parts: dict[str, float], *rest: object) -> None:
        losses[finished + 1] = sum(parts.values())
        trainer.stop.asked = finished + 1 == step - 1
        told(finished, parts, *rest)  # type: ignore[arg-type]

    trainer._record = record  # type: ignore[method-assign,assignment]
    found = newest_whole(address)
    assert trainer.run(trainer.resume(found) if found else 0)[1] == step
    return losses


@pytest.fixture(params=["folder", pytest.param("s3", marks=pytest.mark.service)])
def address(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    if request.param == "folder":
        return str(tmp_path / "checkpoints")
    return joined(request.getfixturevalue("bucket"), "a run/checkpoints")


@pytest.fixture(scope="module")
def untouched(tmp_path_factory: pytest.TempPathFactory) -> Losses:
    return ranks(1, trained, str(tmp_path_factory.mktemp("untouched")))[0]


@pytest.mark.gloo
def test_saved_at_two_loaded_at_three_and_one(address: str, untouched: Losses) -> None:
    """Student, teachers, both optimizers, centres: the losses go on within rounding."""
    first = ranks(2, stopped, address, 2)[0]
    assert committed(address)[-1].manifest()["world_size"] == 2
    second = ranks(3, stopped, address, 4)[0]
    third = ranks(1, trained, address)[0]
    assert [*first, *second, *third] == [1, 2, 3, 4, 5, 6]
    for step, loss in (first | second | third).items():
        assert loss == pytest.approx(untouched[step], rel=1e-12)
    assert [checkpoint.step for checkpoint in committed(address)] == [2, 4, 6]


@pytest.mark.gloo
def test_training_goes_on_while_a_save_is_written(address: str, untouched: Losses) -> None:
    """The first save is held back for two steps: what it writes is the state when it was asked for."""

    def run(group: ProcessGroup) -> Losses:
        losses: Losses = {}
        write = saving.Checkpoints._attempt

        def held(self: saving.Checkpoints, *args: object) -> object:
            until = time.monotonic() + 60
            while len(losses) < 5 and time.monotonic() < until:
                time.sleep(0.01)
            return write(self, *args)  # type: ignore[arg-type]

        saving.Checkpoints._attempt = held  # type: ignore[assignment,method-assign]
        trainer, _ = tiny_trainer(
            gloo_world(group), address, tiny_recipe(*SHORT, "training.checkpoint_every=3")
        )
        told = trainer._record

        def record(step: int, parts: dict[str, float], *rest: object) -> None:
            losses[step + 1] = sum(parts.values())
            told(step, parts, *rest)  # type: ignore[arg-type]

        trainer._record = record  # type: ignore[method-assign,assignment]
        trainer.run()
        assert trainer.checkpoints.metrics["checkpoint/seconds"] > 0
        return losses

    losses = ranks(2, run)[0]
    assert losses == pytest.approx(untouched, rel=1e-12)
    open_objects(address).remove("step-000000006/manifest.json")
    assert ranks(2, trained, address)[0] == {step: losses[step] for step in (4, 5, 6)}


def _die(*_: object) -> None:
    os.kill(os.getpid(), signal.SIGKILL)


def killed(group: ProcessGroup, address: str, phase: str) -> None:
    """Trains until the save after step 4, and dies in it."""
    trainer, _ = tiny_trainer(gloo_world(group), address, tiny_recipe(*SHORT, "training.keep_checkpoints=1"))
    checkpoints, save = trainer.checkpoints, trainer.checkpoints.save

    def arm() -> None:
        objects = checkpoints.objects
        if phase == "staging":
            checkpoints._stager.stage = _die  # type: ignore[method-assign,assignment]
        elif phase == "shards":
            write = dcp._HashingStream.write

            def torn(self: dcp._HashingStream, data: bytes) -> int:
                if self._bytes > 10_000:
                    _die()
                return write(self, data)

            dcp._HashingStream.write = torn  # type: ignore[method-assign,assignment]
        elif phase == "before the manifest":
            checkpoints.before_commit = _die
        elif phase == "after the manifest":
            wrote = objects.write
            objects.write = lambda name, data: (wrote(name, data), _die())  # type: ignore[method-assign]
        else:  # retention: the old manifest is gone, its files are not
            objects.remove_all = _die  # type: ignore[method-assign]

    def armed(learner: Learner, optimizer: Optimizer, step: int) -> None:
        checkpoints.wait()
        if step == 4:
            arm()
        save(learner, optimizer, step)

    checkpoints.save = armed  # type: ignore[method-assign]
    trainer.run()


PHASES = {
    "staging": 2,
    "shards": 2,
    "before the manifest": 2,
    "after the manifest": 4,
    "retention": 4,
}


@pytest.mark.parametrize("phase", PHASES)
def test_killed_within_a_save(address: str, phase: str, untouched: Losses) -> None:
    with pytest.raises(AssertionError, match="died without a word"):
        ranks(1, killed, address, phase)
    found = newest_whole(address, pytest.fail)
    assert found is not None
    assert found.step == PHASES[phase]
    again = ranks(1, trained, address, "training.keep_checkpoints=1")[0]
    assert again == {step: untouched[step] for step in range(found.step + 1, 7)}
    # What the killed process left has gone.
    objects, (last,) = open_objects(address), committed(address)
    assert objects.children() == ["LATEST", "step-000000006"]
    assert objects.children("step-000000006") == sorted(["manifest.json", last.manifest()["data"]])


def _announced(group: ProcessGroup, address: str, notes: Path) -> Losses:
    """Trains; in the first file of the first save it tells that it is there, and waits to be told to go on."""
    write = dcp._HashingStream.write

    def waiting(self: dcp._HashingStream, data: bytes) -> int:
        (notes / "writing").touch()
        until = time.monotonic() + 60
        while not (notes / "go on").exists() and time.monotonic() < until:
            time.sleep(0.01)
        return write(self, data)

    dcp._HashingStream.write = waiting  # type: ignore[method-assign,assignment]
    return trained(group, address)


def _once_writing(notes: Path, act: Callable[[], None]) -> Callable[[], None]:
    def watch() -> None:
        while not (notes / "writing").exists():
            time.sleep(0.01)
        act()

    return watch


@pytest.mark.gloo
@pytest.mark.service
def test_minio_is_away_during_a_save(own_minio: MinioServer, tmp_path: Path, untouched: Losses) -> None:
    """Down for some seconds while files are written: the save is done again, nothing is lost."""
    address = joined(own_minio.make_bucket("runs"), "checkpoints")

    def away() -> None:
        own_minio.stop()
        (tmp_path / "go on").touch()
        time.sleep(4)
        own_minio.start()

    watcher = threading.Thread(target=_once_writing(tmp_path, away))
    watcher.start()
    losses = ranks(2, _announced, address, tmp_path)[0]
    watcher.join()
    assert losses == pytest.approx(untouched, rel=1e-12)
    assert [checkpoint.step for checkpoint in committed(address)] == [2, 4, 6]
    assert [checkpoint.damage() for checkpoint in committed(address)] == ["", "", ""]


@pytest.mark.gloo
@pytest.mark.service
def test_keys_that_are_refused_in_mid_run(
    own_minio: MinioServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """All ranks end with one plain message and the exit code of a run that can be resumed."""
    address = joined(own_minio.make_bucket("runs"), "checkpoints")

    def revoke() -> None:
        own_minio.stop()
        monkeypatch.setattr(minio_server, "PASSWORD", "another-secret")
        own_minio.start()
        (tmp_path / "go on").touch()

    def refused(group: ProcessGroup, notes: Path) -> tuple[int, str]:
        with pytest.raises(SaveFailed) as caught:
            _announced(group, address, notes)
        return caught.value.exit_code, str(caught.value)

    watcher = threading.Thread(target=_once_writing(tmp_path, revoke))
    watcher.start()
    told = ranks(2, refused, tmp_path)
    watcher.join()
    assert told[0] == told[1]
    assert told[0][0] == 75
    assert "step 2: the checkpoint could not be written" in told[0][1]
    assert "refuses these credentials" in told[0][1]


def test_a_full_disk_ends_the_run_resumably(tmp_path: Path) -> None:
    def full(group: ProcessGroup) -> str:
        def write(*_: object) -> int:
            raise OSError(errno.ENOSPC, "No space left on device")

        dcp._HashingStream.write = write  # type: ignore[method-assign,assignment]
        with pytest.raises(SaveFailed) as caught:
            trained(group, str(tmp_path))
        return str(caught.value)

    assert "the disk is full" in ranks(1, full)[0]
    assert committed(tmp_path) == []
