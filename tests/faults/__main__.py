"""`make faults`: many schedules of faults against jobs of two nodes with a real MinIO, and a table of them.

python -m faults --schedules 50 [--first 0] [--write docs/faults.md]
"""

from __future__ import annotations

import argparse
import os
import shutil
import sys
import tempfile
import time
from pathlib import Path

from faults.play import SECONDS, STEPS, Outcome, play, undisturbed


def main() -> int:
    """Exit code 1 if one schedule came to something that must not be."""
    parser = argparse.ArgumentParser(prog="python -m faults", description=__doc__)
    parser.add_argument("--schedules", type=int, default=50)
    parser.add_argument("--first", type=int, default=0, help="seed of the first")
    parser.add_argument("--write", type=Path, help="the table, in Markdown")
    arguments = parser.parse_args()
    outcomes = []
    with tempfile.TemporaryDirectory(prefix="scholarch-faults-") as folder:
        expected = undisturbed(Path(folder))
        for seed in range(arguments.first, arguments.first + arguments.schedules):
            place = Path(folder) / str(seed)
            outcome = play(seed, place, expected)
            outcomes.append(outcome)
            sys.stdout.write(f"{_row(outcome)}\n")
            sys.stdout.flush()
            if outcome.trouble:
                for text in sorted((place / "nodes").glob("*.txt")):
                    sys.stderr.write(f"--- {text.name}\n{text.read_text()[-3000:]}\n")
            shutil.rmtree(place, ignore_errors=True)
            if arguments.write:
                arguments.write.write_text(table(outcomes))
    return int(any(outcome.trouble for outcome in outcomes))


def _row(outcome: Outcome) -> str:
    result = outcome.trouble or "as undisturbed"
    return (
        f"| {outcome.seed} | {'; '.join(outcome.faults)} | {result} | {outcome.worst:.1e} | "
        f"{outcome.jobs} | {outcome.seconds:.0f} |"
    )


def table(outcomes: list[Outcome]) -> str:
    """The page docs/faults.md."""
    bad = sum(bool(outcome.trouble) for outcome in outcomes)
    head = f"""# Faults

Written by `make faults`: a run of {STEPS} steps on two nodes that may become three or one, checkpoints and files
in a real MinIO, with faults drawn from a seed. A schedule counts as good when the run comes to its end within
{SECONDS} s, every step's loss (fp64) is within 1e-6 of the run that nothing happened to, the log has every step
once, and each checkpoint that is left is whole.

{len(outcomes) - bad} of {len(outcomes)} schedules were good, on {os.cpu_count()} CPU cores, {time.strftime("%Y-%m-%d")}.

| seed | faults, by the step after which they struck | result | largest difference | jobs started again | seconds |
|---|---|---|---|---|---|
"""
    return head + "\n".join(map(_row, outcomes)) + "\n"


if __name__ == "__main__":
    sys.exit(main())
