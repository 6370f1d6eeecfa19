"""Checkpoints that were committed: which there are, whether they are whole, and what is in them.

    <run>/checkpoints/step-000001000/
        manifest.json                  sizes and checksums; written last, it is what makes the rest exist
        5f0c2a91/__0_0.distcp ...      DCP's files of the attempt that was committed: load at any world size

The same in a folder and under `s3://`. The number is of finished steps: a run resumes at exactly that step.
`LATEST` beside them names the newest one for people; nothing reads it.
"""

from __future__ import annotations

import json
import re
import sys
import warnings
from collections.abc import Callable, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.distributed import ProcessGroup
from torch.distributed.checkpoint.metadata import TensorStorageMetadata
from torch.distributed.checkpoint.state_dict import (
    StateDictOptions,
    get_optimizer_state_dict,
    set_optimizer_state_dict,
)
from torch.distributed.checkpoint.state_dict_loader import load

from scholarch.errors import UserError
from scholarch.models import BackboneOptions, build_backbone
from scholarch.storage.dcp import Content, content_of, reader
from scholarch.storage.objects import joined, open_objects
from scholarch.training.learner import Learner
from scholarch.training.optimizer import Optimizer

MANIFEST = "manifest.json"
FORMAT = 2
NAME = re.compile(r"step-(\d{9})")
_FLAT = StateDictOptions(flatten_optimizer_state_dict=True)
_READERS = 4
"""Files that are read at the same time when checksums are compared."""


@dataclass(frozen=True)
class Checkpoint:
    """A checkpoint that was committed.

    Attributes:
        address: its folder or prefix.
        step: number of finished steps.
    """

    address: str
    step: int

    def manifest(self) -> dict[str, Any]:
        """What it consists of.

        Raises:
            UserError: if another version of scholarch wrote it.
        """
        data: dict[str, Any] = json.loads(open_objects(self.address).read(MANIFEST))
        if data.get("format") != FORMAT:
            raise UserError(
                f"is a checkpoint of format {data.get('format')}, and this version reads {FORMAT}",
                where=self.address,
                fix="use the version of scholarch that wrote it",
            )
        return data

    def data(self) -> str:
        """Address of DCP's files."""
        return joined(self.address, self.manifest()["data"])

    def loss(self) -> str:
        """What is wrong with its files by their names and sizes alone; empty when nothing is."""
        return self._wrong(thorough=False)

    def damage(self) -> str:
        """What is wrong with its files, all of which are read; empty when nothing is."""
        return self._wrong(thorough=True)

    def _wrong(self, thorough: bool) -> str:
        try:
            manifest = self.manifest()
            files: dict[str, dict[str, Any]] = manifest["files"]
            objects = open_objects(joined(self.address, manifest["data"]))
        except (ValueError, KeyError, FileNotFoundError):
            return f"{MANIFEST} cannot be read"

        def look(name: str) -> str:
            entry, written = objects.entry(name), files[name]
            if entry is None:
                return f"{name} is missing"
            if entry.bytes != written["bytes"]:
                return f"{name} has {entry.bytes} bytes instead of {written['bytes']}"
            if thorough and content_of(objects, name) != Content(written["bytes"], written["sha256"]):
                return f"{name} has another checksum than when it was written"
            return ""

        with ThreadPoolExecutor(_READERS) as pool:
            return "; ".join(found for found in pool.map(look, files) if found)


def step_name(step: int) -> str:
    """The name of the checkpoint after `step` finished steps."""
    return f"step-{step:09d}"


def committed(address: str | Path) -> list[Checkpoint]:
    """The checkpoints at an address, oldest first. Partial ones do not exist here."""
    objects = open_objects(str(address))
    found = []
    for name in objects.children():
        match = NAME.fullmatch(name)
        if match and objects.entry(f"{name}/{MANIFEST}"):
            found.append(Checkpoint(joined(objects.address, name), int(match[1])))
    return sorted(found, key=lambda checkpoint: checkpoint.step)


def _warn(message: str) -> None:
    sys.stderr.write(f"warning: {message}\n")


def newest_whole(address: str | Path, warn: Callable[[str], object] = _warn) -> Checkpoint | None:
    """The newest checkpoint whose files are as they were written; damaged ones are named and passed over."""
    for checkpoint in reversed(committed(address)):
        damage = checkpoint.damage()
        if not damage:
            return checkpoint
        warn(f"checkpoint {checkpoint.address} is damaged ({damage}); using the one before")
    return None


def learner_state(learner: Learner) -> dict[str, Any]:
    frozen = tuple(f"teachers.{teacher}." for teacher in learner.frozen)
    return {name: t for name, t in learner.state_dict().items() if not name.startswith(frozen)}


def optimizer_state(learner: Learner, optimizer: Optimizer) -> dict[str, Any]:
    state = {
        "optimizer": get_optimizer_state_dict(learner.student, optimizer.adamw, options=_FLAT),
    }
    if optimizer.terms:
        state["term_optimizer"] = get_optimizer_state_dict(
            learner.terms, optimizer.terms.adamw, options=_FLAT
        )
    return state


def load_state(
    checkpoint: Checkpoint, learner: Learner, optimizer: Optimizer, members: ProcessGroup | None = None
) -> None:
    """Fills learner and optimizer, whatever the world size was when it was saved; all `members` take part.

    Raises:
        UserError: listing the keys that are missing, extra or of another shape.
    """
    state = {"learner": learner_state(learner)}
    check_same_architecture(checkpoint, state)
    load(state, storage_reader=reader(checkpoint.data()), process_group=members)
    learner.load_state_dict(state["learner"], strict=False)  # frozen teachers are not in it
    load_optimizer(checkpoint, learner, optimizer, members)


def load_optimizer(
    checkpoint: Checkpoint, learner: Learner, optimizer: Optimizer, members: ProcessGroup | None = None
) -> None:
    """Fills the optimizer alone; all `members` take part."""
    state = optimizer_state(learner, optimizer)
    load(state, storage_reader=reader(checkpoint.data()), process_group=members)
    set_optimizer_state_dict(learner.student, optimizer.adamw, state["optimizer"], options=_FLAT)
    if optimizer.terms:
        set_optimizer_state_dict(learner.terms, optimizer.terms.adamw, state["term_optimizer"], options=_FLAT)


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
            f"the checkpoint is damaged: {damage}", where=checkpoint.address, fix="use another one"
        )
    with torch.device("meta"):
        names = build_backbone(options).state_dict()
    prefix = f"{network}.backbone."
    state = {f"{prefix}{name}": torch.empty(t.shape, dtype=t.dtype) for name, t in names.items()}
    check_same_architecture(checkpoint, {"learner": state}, only=f"learner.{prefix}")
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="torch.distributed is disabled")  # as is meant here
        load({"learner": state}, storage_reader=reader(checkpoint.data()), no_dist=True)
    return {name: state[f"{prefix}{name}"] for name in names}


def saved_shapes(checkpoint: Checkpoint) -> dict[str, tuple[int, ...]]:
    """Shapes of what is in a checkpoint, by key; () for what is no tensor."""
    metadata = reader(checkpoint.data()).read_metadata().state_dict_metadata
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
            where=checkpoint.address,
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
