"""Packs pictures into shards by several processes, and goes on where a killed pack ended.

What is finished lies in the target as `packing-*` until the manifest is written: the plan, and
for each shard what the index needs of it, written after the shard.
"""

from __future__ import annotations

import hashlib
import io
import json
import multiprocessing
import time
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from contextlib import contextmanager
from dataclasses import dataclass

import numpy as np

from scholarch import __version__
from scholarch.data.index import CAPTIONS, INDEX, MANIFEST, NAMES
from scholarch.data.kept_features import BROKEN
from scholarch.data.manifest import (
    FeaturesPart,
    FilePart,
    Lineage,
    Manifest,
    Moments,
    ShardPart,
    read_manifest,
)
from scholarch.data.packing.listing import Input
from scholarch.data.packing.shard import Packed, make_shard
from scholarch.data.source import listing_fingerprint
from scholarch.errors import UserError
from scholarch.storage.objects import Objects

STATE = "packing-"
_PLAN = f"{STATE}plan.json"

Progress = Callable[[int, int, int], None]
"""(pictures done in this call, pictures to do in this call, broken so far)"""


@dataclass(frozen=True)
class Job:
    """What every process needs.

    Attributes:
        source: the pictures.
        target: where shards go.
        borders: the first picture of each shard, and the number of all.
        resize: the shorter side at most; None: files stay as they are.
        features: what the samples are, where they are features of pictures.
    """

    source: Input
    target: Objects
    borders: tuple[int, ...]
    resize: int | None
    features: FeaturesPart | None = None

    def digest(self) -> str:
        """Equal when the same shards will be made."""
        told = f"{self.source.listing.fingerprint()} {self.borders} {self.resize}"
        return hashlib.sha256(told.encode()).hexdigest()[:32]


def borders(sizes: Sequence[int], shard_bytes: int) -> tuple[int, ...]:
    """Where shards of about `shard_bytes` begin and end: a function of the listing alone."""
    found, filled = [0], 0
    for number, size in enumerate(sizes):
        if filled and filled + size > shard_bytes:
            found.append(number)
            filled = 0
        filled += max(size, 1)
    return (*found, len(sizes))


def shard_name(number: int) -> str:
    """Name of a shard in the target."""
    return f"shard-{number:06d}.tar"


def pack(
    source: Input,
    target: Objects,
    *,
    address: str,
    command: str,
    shard_bytes: int,
    workers: int,
    resize: int | None = None,
    progress: Progress | None = None,
) -> Manifest:
    """Packs all pictures, or what a former call left to do; the same shards for any number of workers.

    Args:
        address, command: for the manifest.

    Raises:
        UserError: if the target holds something else, or no picture can be used.
        Unreachable: if a store does not answer.
    """
    job = Job(source, target, borders(source.listing.sizes, shard_bytes), resize)
    if (there := read_manifest(target)) is not None:
        if there.lineage.plan == job.digest():
            return there
        raise UserError("holds other packed pictures", where=target.address, fix="name another target")
    finished = finished_shards(job)
    todo = [number for number in range(len(job.borders) - 1) if number not in finished]
    total = sum(job.borders[number + 1] - job.borders[number] for number in todo)
    done, broken = 0, sum(len(packed.broken) for packed in finished.values())
    for number, packed in _carried_out(job, todo, workers):
        finished[number] = packed
        done += job.borders[number + 1] - job.borders[number]
        broken += len(packed.broken)
        if progress is not None:
            progress(done, total, broken)
    return finish(job, [finished[number] for number in sorted(finished)], address, command)


def finished_shards(job: Job) -> dict[int, Packed]:
    """The shards that a former call has finished."""
    plan = {"digest": job.digest(), "shards": len(job.borders) - 1}
    there = {entry.name: entry.bytes for entry in job.target.entries()}
    if _PLAN not in there:
        if there:
            raise UserError(
                f"is not empty: it holds {min(there)}",
                where=job.target.address,
                fix="name an empty or new place",
            )
        job.target.write(_PLAN, json.dumps(plan).encode())
        return {}
    if json.loads(job.target.read(_PLAN)) != plan:
        raise UserError(
            "holds an unfinished pack of other pictures, or with other options",
            where=job.target.address,
            fix="give the same command as before, or name another target",
        )
    finished = {}
    for number in range(len(job.borders) - 1):
        if _state_name(number) in there:
            packed = Packed.from_bytes(job.target.read(_state_name(number)))
            if there.get(shard_name(number)) == packed.size:
                finished[number] = packed
    return finished


def _state_name(number: int) -> str:
    return f"{STATE}{shard_name(number)}.npz"


_job: Job | None = None
"""Of a worker process; set once, because listings are large."""


def _begin(job: Job) -> None:
    global _job
    _job = job


def _carry_out(number: int) -> tuple[int, Packed]:
    assert _job is not None
    return number, pack_shard(_job, number)


def pack_shard(job: Job, number: int) -> Packed:
    """Makes a shard and writes it, and behind it what the index needs of it."""
    for_broken = None if job.features is None else BROKEN
    start, stop = job.borders[number : number + 2]
    content, packed = make_shard(job.source, start, stop, job.resize, for_broken)
    job.target.write(shard_name(number), content)
    job.target.write(_state_name(number), packed.to_bytes())
    return packed


def _carried_out(job: Job, todo: Sequence[int], workers: int) -> Iterator[tuple[int, Packed]]:
    if workers <= 1 or len(todo) <= 1:
        for number in todo:
            yield number, pack_shard(job, number)
        return
    with _pool(job, min(workers, len(todo))) as pool:
        for future in as_completed([pool.submit(_carry_out, number) for number in todo]):
            yield future.result()


@contextmanager
def _pool(job: Job, workers: int) -> Iterator[ProcessPoolExecutor]:
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload([__name__])
    pool = ProcessPoolExecutor(workers, context, initializer=_begin, initargs=(job,))
    try:
        yield pool
    finally:
        pool.shutdown(cancel_futures=True)


def finish(job: Job, parts: list[Packed], address: str, command: str) -> Manifest:
    """Writes index and names, the manifest last, and clears what was kept to resume."""
    kept = [(number, part) for number, part in enumerate(parts) if len(part.records)]
    broken = [entry for part in parts for entry in part.broken]
    if not kept:
        raise UserError(
            f"none of the {len(broken)} pictures can be used: {'; '.join(broken[:3])}",
            where=address,
            fix="name pictures that can be read",
        )
    names = b"".join(part.names for _, part in kept)
    records = np.concatenate([part.records for _, part in kept])
    counts = [len(part.records) for _, part in kept]
    records["shard"] = np.repeat(np.arange(len(kept)), counts)
    records["name_end"] += np.repeat(np.cumsum([0, *(len(p.names) for _, p in kept[:-1])]), counts).astype(
        np.uint64
    )
    file = io.BytesIO()
    np.save(file, records)
    starts = np.concatenate([[0], records["name_end"][:-1]]).astype(np.int64).tolist()
    listed = zip(starts, records["name_end"].tolist(), records["bytes"].tolist(), strict=True)
    manifest = Manifest(
        samples=len(records),
        bytes=int(records["bytes"].sum(dtype=np.int64)),
        fingerprint=listing_fingerprint((names[start:end], size) for start, end, size in listed),
        classes=None if job.source.listing.classes is None else tuple(job.source.listing.classes),
        moments=_moments(parts),
        shorter_sides=dict(sorted(sum((part.sides for part in parts), Counter[int]()).items())),
        broken=tuple(broken),
        lineage=Lineage(
            source=address,
            packed=time.strftime("%Y-%m-%dT%H:%M:%S%z"),
            scholarch=__version__,
            command=command,
            plan=job.digest(),
        ),
        index=_written(job.target, INDEX, file.getvalue()),
        names=_written(job.target, NAMES, names),
        captions=_captions(job, kept),
        features=job.features,
        shards=tuple(
            ShardPart(name=shard_name(number), bytes=p.size, sha256=p.sha256, samples=len(p.records))
            for number, p in kept
        ),
    )
    job.target.write(MANIFEST, manifest.model_dump_json(indent=1).encode())
    for entry in list(job.target.entries(STATE)):
        job.target.remove(entry.name)
    for number, part in enumerate(parts):
        if not len(part.records):
            job.target.remove(shard_name(number))
    return manifest


def _captions(job: Job, parts: Sequence[tuple[int, Packed]]) -> FilePart | None:
    """Writes the samples' captions, in their order."""
    said = job.source.listing.captions
    if said is None:
        return None
    numbers = np.concatenate([job.borders[number] + part.kept for number, part in parts])
    return _written(job.target, CAPTIONS, captions_file([said[i] for i in numbers.tolist()]))


def captions_file(captions: Sequence[Sequence[str]]) -> bytes:
    """An Arrow file with one list of strings for each sample."""
    import pyarrow  # type: ignore[import-untyped]

    table = pyarrow.table({"captions": pyarrow.array(captions, pyarrow.large_list(pyarrow.large_string()))})
    file = io.BytesIO()
    with pyarrow.ipc.new_file(file, table.schema) as writer:
        writer.write_table(table)
    return file.getvalue()


def _written(target: Objects, name: str, data: bytes) -> FilePart:
    target.write(name, data)
    return FilePart(name=name, bytes=len(data), sha256=hashlib.sha256(data).hexdigest())


def _moments(parts: Sequence[Packed]) -> dict[int, Moments]:
    found = {}
    for channels in sorted({channels for part in parts for channels in part.moments}):
        mine = [part.moments[channels] for part in parts if channels in part.moments]
        count = sum(n for n, _, _ in mine)
        first = np.sum([f for _, f, _ in mine], axis=0) / count
        second = np.sum([s for _, _, s in mine], axis=0) / count
        std = np.sqrt(np.maximum(second - first**2, 0))
        found[channels] = Moments(pictures=count, mean=tuple(first.tolist()), std=tuple(std.tolist()))
    return found
