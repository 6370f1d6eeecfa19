"""The runs of one seed, each trained by the product's own trainer, from its newest checkpoint on.

    plain         4 registers, from drawn weights, to the last step
    gram          what `plain` was at the branch, from there on with Gram anchoring to `plain` as it was early
    no-registers  0 registers, otherwise as `plain`

`gram` takes over optimizer and step, and draws depend on seed and step alone: it sees the very batches
that `plain` sees, and Gram anchoring is the only difference between them.
"""

from __future__ import annotations

import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, cast

from scholarch.config.load import to_yaml
from scholarch.config.schema import Recipe
from scholarch.data.catalog import open_source
from scholarch.data.source import Source
from scholarch.storage.local import write_text
from scholarch.storage.records import RECORDS_NAME, append_record, keep_records
from scholarch.training import autos
from scholarch.training.assemble import build_trainer
from scholarch.training.checkpoint import Checkpoint, committed, newest_whole
from scholarch.training.distributed import World, world
from scholarch.training.preflight import check_batch, check_beginning
from scholarch.training.recipe import load_recipe

RECIPE = Path(__file__).with_name("pretrain.yaml")
RUNS = ("plain", "gram", "no-registers")
_KEPT = 10_000


@dataclass(frozen=True, kw_only=True)
class Course:
    """Lengths in finished steps, multiples of `every`.

    Attributes:
        steps: of `plain` and `no-registers`, and where `gram` ends.
        early: checkpoint of `plain` that is the Gram teacher.
        branch: checkpoint of `plain` that `gram` goes on from.
        every: between checkpoints, which are all kept and measured.
    """

    steps: int
    early: int
    branch: int
    every: int

    def __post_init__(self) -> None:
        if not 0 < self.early <= self.branch < self.steps:
            raise ValueError(f"early {self.early}, branch {self.branch} and steps {self.steps} must rise")
        if any(value % self.every for value in (self.steps, self.early, self.branch)):
            raise ValueError(f"steps, early and branch must be multiples of {self.every}")


class Progress:
    """An observer that keeps records of losses, and says now and then how far it is."""

    def __init__(self, run: Path, steps: int) -> None:
        self.run, self.steps, self.said = run, steps, 0.0

    def recorded(self, record: Mapping[str, float]) -> None:
        append_record(self.run / RECORDS_NAME, record)
        if "loss/total" in record and time.monotonic() - self.said > 30:
            self.said = time.monotonic()
            left = record.get("eta_seconds", 0.0) / 60
            print(
                f"{self.run}: step {record['step']:.0f} of {self.steps}, loss {record['loss/total']:.3f}, "
                f"{left:.0f} minutes left",
                flush=True,
            )

    def warned(self, message: str) -> None:
        print(f"{self.run}: {message}", file=sys.stderr, flush=True)


@contextmanager
def one_process() -> Iterator[World]:
    """This process alone, without FSDP: its hooks would be a third of so small a step, with nothing to shard."""
    with world() as processes:
        yield replace(processes, mesh=cast(Any, None))


def overrides(run: str, folder: Path, course: Course) -> list[str]:
    """What makes the recipe that of `run`; `folder` is that of the seed."""
    if run == "no-registers":
        return ["model.registers=0"]
    if run == "plain":
        return []
    early, branch = (checkpoint(folder / "plain", step).address for step in (course.early, course.branch))
    return [
        f"init_from.checkpoint={branch}",
        "init_from.continue=true",
        # At the size of the global crops: at twice it, as in dinov3/vit7b16-gram, a step would cost double.
        "views.gram={like: global, size: 36, distortions: none}",
        f"teachers.gram={{weights: frozen, checkpoint: {early}, sees: [gram]}}",
        "terms.gram={teacher: gram, weight: 2.0}",
    ]


def checkpoint(run: Path, step: int) -> Checkpoint:
    """The run's checkpoint after `step` finished steps.

    Raises:
        FileNotFoundError: if there is none.
    """
    for found in committed(run / "checkpoints"):
        if found.step == step:
            return found
    raise FileNotFoundError(f"{run} has no checkpoint of step {step}")


def train(
    run: str, folder: Path, data: Path, seed: int, course: Course, processes: World, also: Sequence[str] = ()
) -> None:
    """Trains `run` of the seed whose folder is `folder` to its end; finished steps are not repeated.

    Args:
        data: folder of pictures.
        also: overrides of the recipe, for every run.
    """
    place = folder / run
    saved = committed(place / "checkpoints")
    if saved and saved[-1].step >= course.steps:
        return
    recipe, source = _recipe([*overrides(run, folder, course), *also], data, seed, course)
    place.mkdir(parents=True, exist_ok=True)
    write_text(place / "recipe.yaml", to_yaml(recipe))
    begin = newest_whole(place / "checkpoints")
    keep_records(place / RECORDS_NAME, begin.step if begin else -1)
    check_beginning(recipe, begin is None)
    trainer = build_trainer(
        recipe,
        source,
        check_batch(recipe, processes.size),
        processes,
        place / "checkpoints",
        [Progress(place, course.steps)],
    )
    start = trainer.resume(begin) if begin else trainer.begin()
    if start == 0:
        trainer.checkpoints.save(trainer.learner, trainer.optimizer, 0)  # to be measured untrained
        trainer.checkpoints.wait()
    outcome, step = trainer.run(start)
    if outcome == "interrupted":
        raise KeyboardInterrupt(f"{place} stopped at step {step}; the same command goes on")


def _recipe(changes: Sequence[str], data: Path, seed: int, course: Course) -> tuple[Recipe, Source]:
    asked = load_recipe(
        str(RECIPE),
        [
            f"data.source={data}",
            f"seed={seed}",
            f"training.steps={course.steps}",
            f"training.checkpoint_every={course.every}",
            f"training.keep_checkpoints={_KEPT}",
            "training.workers=0",
            "training.log_every=10",
            *changes,
        ],
    )
    source = open_source(asked.data.source, asked.data.labels)
    look = autos.look_at(asked, source)
    return autos.resolve(asked, look, world_size=1, local_size=1), source
