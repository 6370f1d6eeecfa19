"""Worker: steps of one rank on its share of a global batch in memory; rank 0 takes the turns."""

from __future__ import annotations

import json
import os
import sys
import tempfile
from collections.abc import Generator, Sequence
from pathlib import Path

import torch
from memory import POOL, batches
from our_step import recipe_for
from scholarch.data.batch import MicroBatch
from scholarch.data.catalog import open_source
from scholarch.data.stream import rank_positions
from scholarch.training.assemble import build_trainer
from scholarch.training.distributed import world
from scholarch.training.layout import plan_layout
from turns import Clock, wait_for_turn


def main() -> None:
    """Serves steps until nobody asks any more."""
    settings = json.loads(sys.argv[1])
    os.environ |= settings["environment"]
    torch.set_num_threads(1)
    recipe = recipe_for(settings)
    with world() as here, tempfile.TemporaryDirectory() as folder:
        (positions,) = rank_positions(settings["batch"], 1, here.rank, here.size)
        pool = batches(recipe, positions)

        def load(start: int) -> Generator[Sequence[MicroBatch], None, None]:
            step = start
            while True:
                if here.first:
                    wait_for_turn()
                clock = Clock()
                yield [pool[step % POOL]]
                if here.first:
                    clock.report()
                step += 1

        layout = plan_layout(settings["batch"], here.size, None, ())
        trainer = build_trainer(recipe, open_source("digits"), layout, here, Path(folder))
        trainer.loader = load
        trainer.run(0)


if __name__ == "__main__":
    main()
