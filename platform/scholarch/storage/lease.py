"""Holds a prefix of an S3 bucket for one writer, by conditional writes of one object.

The holder writes `lease.json` anew every `BEAT_SECONDS`. Who wants a prefix that is held watches the object:
if it changes, its holder lives; if it does not for `LAPSE_SECONDS`, the lease has lapsed and is taken over.
No clocks are compared. The limit of it: a holder that was cut off from the store writes what it had begun
until it asks again, which it does before every commit.
"""

from __future__ import annotations

import json
import os
import socket
import threading
import time
import uuid
from contextlib import suppress

from scholarch.errors import UserError
from scholarch.storage.objects import Unreachable
from scholarch.storage.s3 import S3Objects

LEASE_NAME = "lease.json"
BEAT_SECONDS = 10.0
LAPSE_SECONDS = 35.0


class Lease:
    """The right to write under an address.

    Args:
        objects: the prefix.
        run: what is the same for all processes that the launchers of one run start, also again.
        restarted: whether this process was started again, and so takes over from one of the same `run`.
    """

    def __init__(self, objects: S3Objects, run: str = "", restarted: bool = False) -> None:
        self._objects, self._run, self._restarted = objects, run, restarted
        self._id = uuid.uuid4().hex
        self._tag = ""
        self._lost = ""
        self._lock = threading.Lock()
        self._closing = threading.Event()
        self._thread = threading.Thread(target=self._keep, name="lease", daemon=True)

    def acquire(self) -> None:
        """Takes the lease; waits at most `LAPSE_SECONDS` for a holder that has gone without a word.

        Raises:
            UserError: if a living process holds it, or the prefix cannot be written to.
            Unreachable: if the store does not answer.
        """
        tag = self._objects.write_if(LEASE_NAME, self._content(), None)
        if tag is None:
            tag = self._take_over()
        self._tag = tag
        self._thread.start()

    def check(self) -> None:
        """Renews the lease.

        Raises:
            UserError: if another process has taken it over.
            Unreachable: if the store does not answer.
        """
        with self._lock:
            if not self._lost:
                tag = self._objects.write_if(LEASE_NAME, self._content(), self._tag)
                if tag is None and self._holder().get("id") == self._id:
                    # The answer to an earlier renewal was lost on its way.
                    tag = self._objects.tag(LEASE_NAME)
                if tag is None:
                    self._lost = f"another process writes here now ({self._told(self._holder())})"
                else:
                    self._tag = tag
            if self._lost:
                raise UserError(self._lost, where=self._objects.address, fix="end one of the two runs")

    def release(self) -> None:
        """Gives the prefix back; a lease that was lost is left alone."""
        self._closing.set()
        self._thread.join()
        with suppress(UserError, Unreachable):
            self.check()
            self._objects.remove(LEASE_NAME)

    def _keep(self) -> None:
        while not self._closing.wait(BEAT_SECONDS):
            with suppress(UserError, Unreachable):  # told by the next `check`
                self.check()

    def _take_over(self) -> str:
        holder, seen, since = self._holder(), self._objects.tag(LEASE_NAME), time.monotonic()
        while True:
            if seen is None or self._is_ours(holder) or time.monotonic() - since > LAPSE_SECONDS:
                if tag := self._objects.write_if(LEASE_NAME, self._content(), seen):
                    return tag
                seen = None
            now = self._objects.tag(LEASE_NAME)
            if now is not None and now != seen:
                if self._holder().get("id") == self._id:
                    return now
                raise UserError(
                    f"is in use by {self._told(holder)}",
                    where=self._objects.address,
                    fix="wait for it, stop it, or give this run another prefix",
                )
            seen = now
            time.sleep(min(1.0, BEAT_SECONDS / 4))

    def _is_ours(self, holder: dict[str, str]) -> bool:
        """Whether the holder was started by our launcher, or is a process of this machine that has ended."""
        if self._restarted and holder.get("run") == self._run:
            return True
        if holder.get("host") != socket.gethostname() or not holder.get("process", "").isdigit():
            return False
        try:
            os.kill(int(holder["process"]), 0)
        except ProcessLookupError:
            return True
        except PermissionError:
            pass
        return False

    def _holder(self) -> dict[str, str]:
        try:
            found = json.loads(self._objects.read(LEASE_NAME))
        except (FileNotFoundError, ValueError):
            return {}
        return found if isinstance(found, dict) else {}

    def _told(self, holder: dict[str, str]) -> str:
        return f"process {holder.get('process', '?')} on {holder.get('host', '?')}"

    def _content(self) -> bytes:
        found = {
            "id": self._id,
            "run": self._run,
            "host": socket.gethostname(),
            "process": str(os.getpid()),
            "renewed": time.strftime("%Y-%m-%dT%H:%M:%S%z"),
            "beat": uuid.uuid4().hex,  # so that every renewal changes the object's tag
        }
        return json.dumps(found, indent=1).encode()
