"""Checkpoints: written by DCP under a temporary name, checksummed, then renamed into existence.

    <run>/checkpoints/step-000001000/
        __0_0.distcp ... .metadata     DCP's shards: loads at any world size
        manifest.json                  sizes and checksums, written last

The number is of finished steps: a run resumes at exactly that step.
"""

from __future__ import annotations

import json
import re
import shutil
import sys
import time
import warnings
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.distributed.checkpoint.filesystem import FileSystemReader
from torch.distributed.checkpoint.metadata import TensorStorageMetadata
from torch.distributed.checkpoint.state_dict import (
    StateDictOptions,
    get_optimizer_state_dict,
    set_optimizer_state_dict,
)
from torch.distributed.checkpoint.state_dict_loader import load
from torch.distributed.checkpoint.state_dict_saver import save

from scholarch.errors import UserError
from scholarch.models import BackboneOptions, build_backbone
from scholarch.storage.local import sha256, write_text
from scholarch.training.distributed import World
from scholarch.training.learner import Learner
from scholarch.training.optimizer import Optimizer

MANIFEST = "manifest.json"
FORMAT = 1
_NAME = re.compile(r"step-(\d{9})")
_FLAT = StateDictOptions(flatten_optimizer_state_dict=True)


@dataclass(frozen=True)
class Checkpoint:
    """A checkpoint that was committed.

    Attributes:
        path: its folder.
        step: number of finished steps.
    """

    path: Path
    step: int

    def manifest(self) -> dict[str, Any]:
        """What it consists of."""
        data: dict[str, Any] = json.loads((self.path / MANIFEST).read_text())
        return data

    def damage(self) -> str:
        """What is wrong with its files; empty when nothing is."""
        for name, entry in self.manifest()["files"].items():
            path = self.path / name
            if not path.is_file():
                return f"{name} is missing"
            if path.stat().st_size != entry["bytes"]:
                return f"{name} has {path.stat().st_size} bytes instead of {entry['bytes']}"
            if sha256(path) != entry["sha256"]:
                return f"{name} has another checksum than when it was written"
        return ""


def committed(folder: Path) -> list[Checkpoint]:
    """The checkpoints in `folder`, oldest first. Partial ones do not exist here."""
    found = []
    for path in folder.glob("step-*") if folder.is_dir() else ():
        match = _NAME.fullmatch(path.name)
        if match and (path / MANIFEST).is_file():
            found.append(Checkpoint(path, int(match[1])))
    return sorted(found, key=lambda checkpoint: checkpoint.step)


def _warn(message: str) -> None:
    sys.stderr.write(f"warning: {message}\n")


def newest_whole(folder: Path, warn: Callable[[str], object] = _warn) -> Checkpoint | None:
    """The newest checkpoint whose files are as they were written; damaged ones are named and passed over."""
    for checkpoint in reversed(committed(folder)):
        damage = checkpoint.damage()
        if not damage:
            return checkpoint
        warn(f"checkpoint {checkpoint.path} is damaged ({damage}); using the one before")
    return None


def _learner_state(learner: Learner) -> dict[str, Any]:
    frozen = tuple(f"teachers.{teacher}." for teacher in learner.frozen)
    return {name: t for name, t in learner.state_dict().items() if not name.startswith(frozen)}


def _optimizer_state(learner: Learner, optimizer: Optimizer) -> dict[str, Any]:
    state = {
        "optimizer": get_optimizer_state_dict(learner.student, optimizer.adamw, options=_FLAT),
    }
    if optimizer.terms:
        state["term_optimizer"] = get_optimizer_state_dict(
            learner.terms, optimizer.terms.adamw, options=_FLAT
        )
    return state


class Checkpoints:
    """Writes and reads the checkpoints of a run.

    Args:
        folder: `<run>/checkpoints`.
        keep: how many of the newest stay.
        world: all ranks take part in `save` and `load`.
    """

    def __init__(self, folder: Path, keep: int, world: World) -> None:
        self.folder, self.keep, self.world = folder, keep, world

    def save(self, learner: Learner, optimizer: Optimizer, step: int) -> Checkpoint:
        """Commits the state after `step` finished steps; older ones go only after that."""
        final = self.folder / f"step-{step:09d}"
        partial = self.folder / f".{final.name}.partial"
        if self.world.first:
            for left_over in self.folder.glob(".step-*.partial"):  # of a process that was killed
                shutil.rmtree(left_over)
            partial.mkdir(parents=True)
        self.world.barrier()
        state = {"learner": _learner_state(learner), **_optimizer_state(learner, optimizer)}
        save(state, checkpoint_id=partial)
        if self.world.first:
            files = sorted(path for path in partial.iterdir() if path.is_file())
            manifest = {
                "format": FORMAT,
                "step": step,
                "world_size": self.world.size,
                "torch": torch.__version__,
                "written": time.time(),
                "files": {p.name: {"bytes": p.stat().st_size, "sha256": sha256(p)} for p in files},
            }
            write_text(partial / MANIFEST, json.dumps(manifest, indent=1))
            shutil.rmtree(final, ignore_errors=True)
            partial.rename(final)
            for old in committed(self.folder)[: -self.keep]:
                shutil.rmtree(old.path)
        self.world.barrier()
        return Checkpoint(final, step)

    def load(self, checkpoint: Checkpoint, learner: Learner, optimizer: Optimizer) -> None:
        """Fills learner and optimizer, whatever the world size was when it was saved.

        Raises:
            UserError: listing the keys that are missing, extra or of another shape.
        """
        state = {"learner": _learner_state(learner)}
        check_same_architecture(checkpoint, state)
        load(state, checkpoint_id=checkpoint.path)
        learner.load_state_dict(state["learner"], strict=False)  # frozen teachers are not in it
        self.load_optimizer(checkpoint, learner, optimizer)

    def load_optimizer(self, checkpoint: Checkpoint, learner: Learner, optimizer: Optimizer) -> None:
        """Fills the optimizer alone."""
        state = _optimizer_state(learner, optimizer)
        load(state, checkpoint_id=checkpoint.path)
        set_optimizer_state_dict(learner.student, optimizer.adamw, state["optimizer"], options=_FLAT)
        if optimizer.terms:
            set_optimizer_state_dict(
                learner.terms, optimizer.terms.adamw, state["term_optimizer"], options=_FLAT
            )


def backbone_weights(checkpoint: Checkpoint, options: BackboneOptions, network: str) -> dict[str, Tensor]:
    """Whole tensors of a backbone by name; needs no process group.

    Args:
        options: of the backbone.
        network: "student", or "teachers.NAME".

    Raises:
        UserError: if the checkpoint is damaged or of another architecture.
    """
    if damage := checkpoint.damage():
        raise UserError(
            f"the checkpoint is damaged: {damage}", where=str(checkpoint.path), fix="use another one"
        )
    with torch.device("meta"):
        names = build_backbone(options).state_dict()
    prefix = f"{network}.backbone."
    state = {f"{prefix}{name}": torch.empty(t.shape, dtype=t.dtype) for name, t in names.items()}
    check_same_architecture(checkpoint, {"learner": state}, only=f"learner.{prefix}")
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="torch.distributed is disabled")  # as is meant here
        load({"learner": state}, checkpoint_id=checkpoint.path, no_dist=True)
    return {name: state[f"{prefix}{name}"] for name in names}


def saved_shapes(checkpoint: Checkpoint) -> dict[str, tuple[int, ...]]:
    """Shapes of what is in a checkpoint, by key; () for what is no tensor."""
    metadata = FileSystemReader(checkpoint.path).read_metadata().state_dict_metadata
    return {
        key: tuple(entry.size) if isinstance(entry, TensorStorageMetadata) else ()
        for key, entry in metadata.items()
    }


def check_same_architecture(
    checkpoint: Checkpoint, state: Mapping[str, Mapping[str, Any]], only: str = ""
) -> None:
    """Compares the tensors of `state` with those of the checkpoint whose keys begin with `only`.

    Raises:
        UserError: listing the keys that are missing, extra or of another shape.
    """
    saved = {
        key: shape
        for key, shape in saved_shapes(checkpoint).items()
        if key.split(".", 1)[0] in state and key.startswith(only)
    }
    wanted = {
        f"{prefix}.{key}": tuple(tensor.shape)
        for prefix, tensors in state.items()
        for key, tensor in tensors.items()
    }
    if lines := mismatches(saved, wanted):
        raise UserError(
            f"the checkpoint is of another architecture than the recipe\n{lines}",
            where=str(checkpoint.path),
            fix="use the recipe that wrote it (recipe.yaml in its run), or another checkpoint",
        )


def mismatches(saved: Mapping[str, tuple[int, ...]], wanted: Mapping[str, tuple[int, ...]]) -> str:
    """Keys that are missing, extra or of another shape, a line each, the first twelve; empty: none."""
    lines = [f"missing: {key}" for key in wanted if key not in saved]
    lines += [f"extra: {key}" for key in saved if key not in wanted]
    lines += [
        f"shape of {key}: {list(saved[key])}, not {list(wanted[key])}"
        for key in wanted
        if key in saved and saved[key] != wanted[key]
    ]
    shown = "\n".join(f"  - {line}" for line in lines[:12])
    return shown + (f"\n  and {len(lines) - 12} more" if len(lines) > 12 else "")
