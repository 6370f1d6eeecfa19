"""Runs under `s3://`: small files are worked on in a folder of this machine, and copied to the prefix.

Rank 0 holds the prefix by a lease, has all files of it, and copies what changes. The other ranks have the
few files that say how to go on. Checkpoints go to the store directly (scholarch.training.saving).
"""

from __future__ import annotations

import os
import shutil
import sys
import tempfile
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import replace
from pathlib import Path

from scholarch.cli.plan import LOCK_SECONDS, Request
from scholarch.errors import SaveFailed, UserError
from scholarch.storage.lease import Lease
from scholarch.storage.local import lock
from scholarch.storage.mirror import Mirror, scratch
from scholarch.storage.objects import Unreachable, is_s3, open_objects
from scholarch.storage.s3 import S3Objects
from scholarch.training.distributed import World


@contextmanager
def at_hand(request: Request, world: World) -> Iterator[Request]:
    """The request with a folder for `run`; where the run is in S3, a copy that is kept up to date.

    Raises:
        UserError: on all ranks, before anything is written: no such bucket, credentials or rights to
            write, another process writes there.
        SaveFailed: at the end, if the last files could not be copied; they are in the folder that it names.
    """
    if not is_s3(request.address):
        yield replace(request, run=Path(request.address)) if request.address else request
        return
    objects = open_objects(request.address)
    assert isinstance(objects, S3Objects)
    # The first rank may be of a node that has joined later, and was not started again itself.
    request = replace(request, restarted=any(world.gather(request.restarted)))
    with ExitStack() as held:
        yield world.agree(lambda: _opened(request, objects, world, held))


def _opened(request: Request, objects: S3Objects, world: World, held: ExitStack) -> Request:
    objects.check()
    name = objects.address.rpartition("/")[2]
    try:
        if not world.first:
            folder = held.enter_context(tempfile.TemporaryDirectory(prefix="scholarch-"))
            Mirror(Path(folder) / name, objects).pull(ending=(".yaml", ".json"))
            return replace(request, run=Path(folder) / name)
        home = scratch(objects.address)
        home.mkdir(parents=True, exist_ok=True)
        held.enter_context(lock(home, patience=LOCK_SECONDS if request.restarted else 0.0))
        lease = Lease(objects, os.environ.get("TORCHELASTIC_RUN_ID", ""), request.restarted)
        lease.acquire()
        held.callback(lease.release)
        return held.enter_context(_kept(request, home / name, objects, lease))
    except Unreachable as error:
        raise UserError(str(error), where=objects.address, fix="check that the store runs") from error


@contextmanager
def _kept(request: Request, folder: Path, objects: S3Objects, lease: Lease) -> Iterator[Request]:
    """Rank 0's folder, equal to the prefix at the start and at the end."""
    for old in folder.glob("*"):  # of an earlier run on this machine: what counts is in the store
        if old.is_file():
            old.unlink()
        elif old.name != "mlflow":
            shutil.rmtree(old)
    mirror = Mirror(folder, objects)
    mirror.pull()
    mirror.start()

    def before_commit() -> None:
        lease.check()
        mirror.push()

    failed = True
    try:
        yield replace(request, run=folder, before_commit=before_commit)
        failed = False
    finally:
        mirror.stop()
        try:
            before_commit()
        except (UserError, Unreachable) as error:
            told = f"the last files of the run could not be copied from {folder}: {error}"
            if failed:  # what went wrong before is told
                sys.stderr.write(f"warning: {told}\n")
            else:
                raise SaveFailed(f"{told}\n  resume the run to write them again") from error
