"""Measures every checkpoint of a seed's runs, once, and puts the figures together."""

from __future__ import annotations

import json
from collections.abc import Iterator
from itertools import pairwise
from pathlib import Path
from typing import Any

from measure import Probes, Tokens, dense, gram_difference, norms, see
from scenes import Scenes
from scholarch.config.load import parse_yaml
from scholarch.config.schema import Recipe, settled
from scholarch.models.features import Backbone
from scholarch.registry.backbone import assemble
from scholarch.storage.local import write_text
from scholarch.storage.records import RECORDS_NAME, read_records
from scholarch.training.checkpoint import Checkpoint, backbone_weights, committed
from scholarch.training.recipe import recipe_from
from train import RUNS, Course, checkpoint

Figures = dict[str, Any]
_PAUSE = 300.0
"""Seconds between two records that are a pause and no training."""


def recipe_of(run: Path) -> Recipe:
    """The recipe that a run was trained by."""
    return recipe_from(parse_yaml((run / "recipe.yaml").read_text()), where=str(run))


def teacher_at(run: Path, found: Checkpoint) -> Backbone:
    """The moving average's backbone, in evaluation mode: what a run would give away."""
    recipe = recipe_of(run)
    return assemble(recipe.model, backbone_weights(found, recipe.model, "teachers.ema")).float().eval()


def tokens_at(run: Path, found: Checkpoint, scenes: Scenes) -> Tokens:
    """What a run's teacher makes of scenes."""
    data = recipe_of(run).data
    return see(teacher_at(run, found), scenes, settled(data.mean), settled(data.std))


def measure(folder: Path, course: Course, probes: Probes) -> None:
    """Measures what is new below the folder of a seed."""
    reference: Tokens | None = None
    for run, found, place in _unmeasured(folder):
        if reference is None:
            early = checkpoint(folder / "plain", course.early)
            reference = tokens_at(folder / "plain", early, probes.test)
        train, test = tokens_at(run, found, probes.train), tokens_at(run, found, probes.test)
        figures: Figures = {
            **dense(train, test, probes),
            "gram_difference": gram_difference(test, reference),
            "norms": norms(train, test, probes),
        }
        place.parent.mkdir(exist_ok=True)
        write_text(place, json.dumps(figures, indent=1))
        print(
            f"{run}: step {found.step}, CLS and patches {figures['cls_patch_cosine']:.3f}, "
            f"mIoU {figures['dense_miou']:.3f}, CLS accuracy {figures['cls_accuracy']:.3f}",
            flush=True,
        )


def _unmeasured(folder: Path) -> Iterator[tuple[Path, Checkpoint, Path]]:
    for name in RUNS:
        for found in committed(folder / name / "checkpoints"):
            place = folder / name / "measured" / f"{found.step:06d}.json"
            if not place.is_file():
                yield folder / name, found, place


def figures_of(folder: Path) -> Figures:
    """Everything measured of a seed: by run, then by step; and the losses along the way."""
    found: Figures = {}
    for name in RUNS:
        files = sorted((folder / name / "measured").glob("*.json"))
        if files:
            records = read_records(folder / name / RECORDS_NAME)
            losses = [record for record in records if "loss/total" in record]
            times = [record["time"] for record in records]
            gaps = [after - before for before, after in pairwise(times)]
            found[name] = {
                "measured": {str(int(file.stem)): json.loads(file.read_text()) for file in files},
                "losses": {
                    key.removeprefix("loss/"): [
                        [record["step"], round(record[key], 4)] for record in losses[::5]
                    ]
                    for key in losses[-1]
                    if key.startswith("loss/")
                },
                "training_seconds": round(sum(gap for gap in gaps if gap < _PAUSE)),
            }
    return found
