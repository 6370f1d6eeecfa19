"""The command of a worker, with a kill built into each phase of saving.

`SCHOLARCH_FAULTS` names a folder; a file in it that is called after a phase kills the first worker that
reaches the phase, once.
"""

from __future__ import annotations

import os
import signal
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

from faults.schedule import Phase


def strike(phase: Phase) -> None:
    """Kills this process if the phase's file is there."""
    try:
        (Path(os.environ["SCHOLARCH_FAULTS"]) / phase).unlink()
    except FileNotFoundError:
        return
    os.kill(os.getpid(), signal.SIGKILL)


def around(owner: Any, name: str, before: Phase | None = None, after: Phase | None = None) -> None:
    """Strikes before or after a method is carried out."""
    method: Callable[..., Any] = getattr(owner, name)

    def carried_out(*arguments: Any, **options: Any) -> Any:
        if before:
            strike(before)
        result = method(*arguments, **options)
        if after:
            strike(after)
        return result

    setattr(owner, name, carried_out)


def arm() -> None:
    """Puts the phases where saving goes through them."""
    from scholarch.training.saving import Checkpoints

    around(Checkpoints, "_commit", before="staging")
    around(Checkpoints, "_attempt", after="shards")
    around(Checkpoints, "_committed_by_first", before="before the manifest", after="retention")
    around(Checkpoints, "_clean", before="after the manifest")


if __name__ == "__main__":
    from scholarch.cli import main

    arm()
    sys.exit(main())
