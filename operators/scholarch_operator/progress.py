"""Reads how far a run is from its own `progress.json`, and nothing else of its storage."""

from __future__ import annotations

import time
from pathlib import PurePosixPath

from pydantic import ValidationError
from scholarch.config.training_run import TrainingRunSpec
from scholarch.errors import UserError
from scholarch.storage.objects import Unreachable, is_s3
from scholarch.storage.s3 import S3Objects

from scholarch_operator.observed import Progress

FILE = "progress.json"
TRY_SECONDS = 3.0
PAUSE_SECONDS = 30.0
"""After a store did not answer, no run asks it again for so long."""


def places(spec: TrainingRunSpec) -> list[str]:
    """Names under the run's address, the last stage first: stages keep their own."""
    if len(spec.stages) < 2:
        return [FILE]
    found = []
    for number, stage in enumerate(spec.stages, 1):
        name = (
            stage.recipe if not stage.recipe.endswith((".yaml", ".yml")) else PurePosixPath(stage.recipe).stem
        )
        name = name or f"stage-{number}"
        found.append(f"stages/{number}-{name.replace('/', '-')}/{FILE}")
    return found[::-1]


def _placed(progress: Progress, name: str) -> Progress:
    """With the checkpoint's name under the run's address, for the stages of a run count their steps anew."""
    if not isinstance(progress.checkpoint, int):
        return progress
    checkpoint = f"{name.removesuffix(FILE)}checkpoints/step-{progress.checkpoint:09d}"
    return progress.model_copy(update={"checkpoint": checkpoint})


class ProgressReader:
    """Remembers that a store does not answer, so that one outage does not hold up every run."""

    def __init__(self) -> None:
        self._silent_until = 0.0

    def read(self, spec: TrainingRunSpec) -> tuple[Progress | None, bool]:
        """The progress, and whether its absence means anything."""
        if not is_s3(spec.run) or time.monotonic() < self._silent_until:
            return None, False
        try:
            objects = S3Objects.at(spec.run)
            objects.retry_seconds = TRY_SECONDS
            for name in places(spec):
                try:
                    return _placed(Progress.model_validate_json(objects.read(name)), name), True
                except FileNotFoundError:
                    continue
        except (Unreachable, UserError, OSError):
            self._silent_until = time.monotonic() + PAUSE_SECONDS
            return None, False
        except ValidationError:  # of another version of Scholarch
            return None, False
        return None, True
