"""Reads a packed data set back and checks every checksum."""

from __future__ import annotations

import hashlib
import io
import zlib
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor, as_completed

import numpy as np

from scholarch.data.index import MANIFEST, RECORD
from scholarch.data.manifest import FilePart, Manifest, read_manifest
from scholarch.errors import UserError
from scholarch.storage.objects import Objects

_THREADS = 4
"""Each holds a shard in memory."""
_NAMED = 5


def verify(
    objects: Objects, progress: Callable[[int, int], None] | None = None
) -> tuple[Manifest, list[str]]:
    """The manifest, and "file: what is wrong" for all that is damaged.

    Args:
        progress: called with (pictures read, pictures in all).

    Raises:
        UserError: if there is no manifest.
        Unreachable: if the store does not answer.
    """
    manifest = read_manifest(objects)
    if manifest is None:
        raise UserError(f"{MANIFEST} is missing", where=objects.address, fix="name a packed data set")
    index, names, damaged = _listing(objects, manifest)
    ends = index["name_end"].tolist()
    begins = dict(zip(ends, [0, *ends[:-1]], strict=False))  # a damaged index has no sample

    def named(end: int) -> str:
        return names[begins[end] : end].decode("utf-8", "backslashreplace")

    starts = np.cumsum([0, *(shard.samples for shard in manifest.shards)])
    found: dict[int, list[str]] = {}
    done = 0
    with ThreadPoolExecutor(_THREADS) as pool:
        jobs = {
            pool.submit(_shard, objects, shard, index[start : start + shard.samples], named): number
            for number, (start, shard) in enumerate(zip(starts.tolist(), manifest.shards, strict=False))
        }
        for job in as_completed(jobs):
            found[jobs[job]] = job.result()
            done += manifest.shards[jobs[job]].samples
            if progress is not None:
                progress(done, manifest.samples)
    return manifest, damaged + [entry for number in sorted(found) for entry in found[number]]


def _listing(objects: Objects, manifest: Manifest) -> tuple[np.ndarray, bytes, list[str]]:
    """The index (empty if it is damaged), the names, and what is wrong with them."""
    stored, damaged = _content(objects, manifest.index)
    names, wrong = _content(objects, manifest.names)
    said = [] if manifest.captions is None else _content(objects, manifest.captions)[1]
    if damaged or wrong:
        return np.empty(0, RECORD), b"", damaged + wrong + said
    index: np.ndarray = np.load(io.BytesIO(stored))
    return index, names, said


def _content(objects: Objects, part: FilePart) -> tuple[bytes, list[str]]:
    try:
        data = objects.read(part.name)
    except FileNotFoundError:
        return b"", [f"{part.name}: is missing"]
    if len(data) != part.bytes:
        return data, [f"{part.name}: has {len(data)} bytes, not {part.bytes}"]
    if hashlib.sha256(data).hexdigest() != part.sha256:
        return data, [f"{part.name}: its SHA-256 differs"]
    return data, []


def _shard(objects: Objects, part: FilePart, records: np.ndarray, named: Callable[[int], str]) -> list[str]:
    data, damaged = _content(objects, part)
    wrong = []
    for record in records if data else ():
        start, end = int(record["offset"]), int(record["offset"] + record["bytes"])
        if zlib.crc32(data[start:end]) != record["checksum"]:
            wrong.append(named(int(record["name_end"])))
    if wrong:
        more = f" and {len(wrong) - _NAMED} more" if len(wrong) > _NAMED else ""
        damaged.append(f"{part.name}: damaged pictures: {', '.join(wrong[:_NAMED])}{more}")
    return damaged
