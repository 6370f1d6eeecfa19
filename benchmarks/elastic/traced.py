"""`scholarch`, with a trace of the samples of every step; started by the launcher as `--module traced`.

Environment: ELASTIC_TRACE, a folder for lines {step, rank, world, positions, ids} of each worker;
ELASTIC_FLIP, the number of a weight whose last bit is flipped before the first step.
"""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Generator, Sequence
from contextlib import closing
from pathlib import Path
from typing import Any

import torch
from scholarch.cli import main, session
from scholarch.data.batch import MicroBatch
from scholarch.training.assemble import build_trainer
from scholarch.training.trainer import Loader, Trainer


def traced(loader: Loader, rank: int, world: int, folder: Path) -> Loader:
    """`loader`, which notes what it gives."""

    def batches(start: int) -> Generator[Sequence[MicroBatch], None, None]:
        with closing(loader(start)) as found, (folder / f"{os.getpid()}.jsonl").open("a") as file:
            for step, batch in enumerate(found, start):
                line = {
                    "step": step,
                    "rank": rank,
                    "world": world,
                    "positions": [p for part in batch for p in part.positions.tolist()],
                    "ids": [i for part in batch for i in part.sample_ids.tolist()],
                }
                file.write(json.dumps(line) + "\n")
                file.flush()
                yield batch

    return batches


def flip(trainer: Trainer, number: int) -> None:
    """Turns the last bit of one weight of the student and of its equal teacher."""
    for network in (trainer.learner.student, *trainer.learner.teachers.values()):
        parameter = next(iter(network.backbone.blocks[0].parameters()))  # type: ignore[union-attr,index]
        local = parameter.to_local() if hasattr(parameter, "to_local") else parameter
        bits = local.detach().view(torch.int32 if local.dtype == torch.float32 else torch.int64)
        bits.view(-1)[number] ^= 1


def build(*arguments: Any) -> Trainer:
    """`build_trainer` with a trace."""
    trainer = build_trainer(*arguments)
    world = arguments[3]
    if folder := os.environ.get("ELASTIC_TRACE"):
        trainer.loader = traced(trainer.loader, world.rank, world.size, Path(folder))
    if number := os.environ.get("ELASTIC_FLIP"):
        begin = trainer.begin

        def begun() -> int:
            start = begin()
            flip(trainer, int(number))
            return start

        trainer.begin = begun  # type: ignore[method-assign]
    return trainer


if __name__ == "__main__":
    session.build_trainer = build  # type: ignore[attr-defined]
    sys.exit(main())
