"""A worker that does nothing but what elasticity is about: it steps with the others, saves and loads.

    python -m counting FOLDER STEP_SECONDS

FOLDER/saved holds the finished steps, written every fifth step; FOLDER/events.jsonl a line for each step of
rank 0. The run is done when FOLDER/finish exists. It lives in the product's process group and heartbeat.
"""

from __future__ import annotations

import json
import os
import signal
import sys
import time
from pathlib import Path

from scholarch.errors import EXIT_DONE, EXIT_INTERRUPTED
from scholarch.storage.local import append_line, write_text
from scholarch.training.distributed import World, world
from scholarch.training.trainer import Stop

SAVE_EVERY = 5


def count(folder: Path, seconds: float, process: World) -> int:
    """Counts steps until it is told to end; gives the exit code."""
    saved = folder / "saved"
    step = process.from_first(int(saved.read_text()) if process.first and saved.exists() else 0)
    (folder / f"worker-{os.getpid()}").write_text(str(process.rank))
    stop = Stop()
    with stop.listening(), process.heartbeat.training(step):
        while True:
            time.sleep(seconds)
            rows = process.gather_row([float(stop.asked), float((folder / "finish").exists())])
            step += 1
            stopping, done = (bool(column.any()) for column in rows.unbind(1))
            if process.first:
                event = {"time": time.time(), "step": step, "world": process.size}
                append_line(folder / "events.jsonl", json.dumps(event))
            if stopping or done or step % SAVE_EVERY == 0:
                if process.first:
                    write_text(saved, str(step))
                process.barrier()
            process.heartbeat.beat(step, step // SAVE_EVERY * SAVE_EVERY)
            if done or stopping:
                return EXIT_DONE if done else EXIT_INTERRUPTED


if __name__ == "__main__":
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(EXIT_INTERRUPTED))  # until the steps begin
    with world() as process:
        code = count(Path(sys.argv[1]), float(sys.argv[2]), process)
    sys.exit(code)
