"""`python -m scholarch.training.store`: the place where the nodes of an elastic run meet.

It stands outside the workers, so that no node's loss takes it along. It holds some kilobytes and no state
that a run needs: when it is lost the nodes meet anew and go on from the newest checkpoint.
"""

from __future__ import annotations

import argparse
import signal
import sys
import threading
from collections.abc import Sequence

from torch.distributed import DistError, TCPStore  # type: ignore[attr-defined]

DEFAULT_PORT = 29400


def serve(port: int) -> int:
    """Serves until SIGTERM or SIGINT; gives the exit code."""
    asked = threading.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, lambda *_: asked.set())
    try:
        store = TCPStore("localhost", port, is_master=True, wait_for_workers=False)
    except (DistError, RuntimeError) as error:
        sys.stderr.write(f"error: no store at port {port}: {str(error).partition(chr(10))[0]}\n")
        return 1
    sys.stderr.write(f"the nodes meet at port {store.port} of this machine\n")
    sys.stderr.flush()
    while not asked.wait(1.0):  # in short pieces: a signal's handler runs between them
        pass
    return 0


def main(argv: Sequence[str] | None = None) -> int:
    """The command; returns its exit code."""
    parser = argparse.ArgumentParser(
        prog="python -m scholarch.training.store",
        description="Where the nodes of an elastic run meet. Ends with 0 on SIGTERM or Ctrl-C.",
    )
    parser.add_argument(
        "--port", type=int, default=DEFAULT_PORT, help=f"on all interfaces; 0: any free one ({DEFAULT_PORT})"
    )
    return serve(parser.parse_args(argv).port)


if __name__ == "__main__":
    sys.exit(main())
