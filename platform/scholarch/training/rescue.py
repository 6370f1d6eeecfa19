"""Makes a checkpoint of what nodes have kept in memory, where it is newer than the last commit."""

from __future__ import annotations

import pickle
import re
import sys
import tempfile
import uuid
from collections import defaultdict
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from torch.distributed.checkpoint.filesystem import FileSystemWriter

from scholarch.errors import UserError
from scholarch.storage.dcp import Content, content_of
from scholarch.storage.objects import FolderObjects, Unreachable, joined, open_objects
from scholarch.storage.records import Record
from scholarch.training.checkpoint import NAME, Checkpoint, step_name
from scholarch.training.distributed import World
from scholarch.training.replicas import DATA, METADATA, PIECE, Piece, part, place_of
from scholarch.training.saving import write_manifest

_WORLD = re.compile(r"(\d+)-[0-9a-f]+")
_RANK = re.compile(r"rank-(\d{5})")
DCP_METADATA = ".metadata"


@dataclass(frozen=True, order=True)
class Held:
    """A rank's part of a step, on some node.

    Attributes:
        step: finished steps.
        world: name of the world that it is of, which begins with its size.
        rank: whose it is, there.
    """

    step: int
    world: str
    rank: int


@dataclass(frozen=True)
class Rescue:
    """A step that is whole.

    Attributes:
        step: finished steps.
        world: name of the world that kept it.
        holders: for each rank of that world, the rank of today's that has its part.
    """

    step: int
    world: str
    holders: tuple[int, ...]


def choose(held: Sequence[Sequence[Held]], newest: int) -> Rescue | None:
    """The newest step after `newest` of which every part is somewhere.

    Args:
        held: what each rank of today finds on its node.
        newest: finished steps that are committed; -1: none.
    """
    found: dict[tuple[int, str], dict[int, int]] = defaultdict(dict)
    for holder, parts in enumerate(held):
        for one in parts:
            found[one.step, one.world].setdefault(one.rank, holder)
    for (step, world), holders in sorted(found.items(), reverse=True):
        match = _WORLD.fullmatch(world)
        if step > newest and match and sorted(holders) == list(range(int(match[1]))):
            return Rescue(step, world, tuple(holders[rank] for rank in sorted(holders)))
    return None


def look(place: Path | None) -> list[Held]:
    """What is on this node."""
    if place is None:
        return []
    found = []
    for folder in place.glob("*/rank-*/step-*"):
        step, rank = NAME.fullmatch(folder.name), _RANK.fullmatch(folder.parent.name)
        world = folder.parents[1]
        if step and rank and (world / METADATA).is_file():
            found.append(Held(int(step[1]), world.name, int(rank[1])))
    return found


def rescue(
    address: str, newest: int, world: World, before_commit: Callable[[int, list[Record]], object]
) -> Checkpoint | None:
    """Commits what is in the memory of the nodes; all ranks take part.

    Args:
        address: of the run's checkpoints.
        newest: finished steps that are committed; -1: none.
        before_commit: called on rank 0 with the step, and the records that the log may lack, before
            the checkpoint exists.

    Returns:
        the checkpoint; None where nothing whole is newer, or the store would not take it.
    """
    place = place_of(address) if world.members is None else None
    held = world.gather(look(place) if world.local_rank == 0 else [])
    chosen = choose(held, newest)
    if chosen is None:
        return None
    name = f"{step_name(chosen.step)}/{world.from_first(uuid.uuid4().hex[:8])}"
    given = world.gather(_upload(chosen, place, address, name, world.rank))
    trouble = next((one for one in given if isinstance(one, str)), "")
    if not trouble:
        parts = {rank: one for found in given for rank, one in found.items()}
        trouble = world.from_first(
            _commit(chosen, address, name, parts, before_commit) if world.first else ""
        )
    if trouble:
        if world.first:
            sys.stderr.write(
                f"warning: step {chosen.step} is in memory and could not be committed: {trouble}\n"
            )
        return None
    return Checkpoint(joined(address, step_name(chosen.step)), chosen.step)


_Part = tuple[Content, bytes, bytes]
"""Of a rank's file: what is in it, its piece, and (rank 0's) DCP's metadata."""


def _upload(chosen: Rescue, place: Path | None, address: str, name: str, me: int) -> dict[int, _Part] | str:
    """This rank's parts, by rank of their world, when they are in the store; or what went wrong."""
    objects, found = open_objects(address), {}
    try:
        for rank, holder in enumerate(chosen.holders):
            if holder != me or place is None:
                continue
            folder = part(place / chosen.world, rank, chosen.step)
            content = content_of(FolderObjects(folder), DATA)
            assert content is not None
            file = f"{name}/{_file(rank)}"
            if content.bytes:
                objects.upload(file, folder / DATA)
                if content_of(objects, file) != content:
                    return f"{file} reads back differently"
            metadata = b"" if rank else (place / chosen.world / METADATA).read_bytes()
            found[rank] = content, (folder / PIECE).read_bytes(), metadata
    except (UserError, Unreachable, OSError) as error:
        return str(error)
    return found


def _commit(
    chosen: Rescue,
    address: str,
    name: str,
    parts: Mapping[int, _Part],
    before_commit: Callable[[int, list[Record]], object],
) -> str:
    objects = open_objects(address)
    pieces: list[Piece] = [pickle.loads(parts[rank][1]) for rank in range(len(parts))]
    files = {_file(rank): content for rank, (content, _, _) in parts.items() if content.bytes}
    try:
        with tempfile.TemporaryDirectory(prefix="scholarch-") as folder:
            FileSystemWriter(folder).finish(pickle.loads(parts[0][2]), [piece.results for piece in pieces])
            objects.upload(f"{name}/{DCP_METADATA}", Path(folder) / DCP_METADATA)
            content = content_of(FolderObjects(Path(folder)), DCP_METADATA)
        assert content is not None
        files[DCP_METADATA] = content
        before_commit(chosen.step, pieces[0].records)
        write_manifest(objects, name, chosen.step, len(parts), files)
    except (UserError, Unreachable, OSError) as error:
        return str(error)
    return ""


def _file(rank: int) -> str:
    """As DCP's writer calls it."""
    return f"__{rank}_0.distcp"
