"""Packs generated pictures to a MinIO of its own and streams them by 2 and by 3 processes.

Shows that every picture comes once in a pass, that the cache (a tenth of the data) keeps its bound, how long
a small training run waits for its data, and how quick reading is against local files and against decoding
alone: for the many small pictures, where requests are the cost, and for some as large as photographs.
"""

from __future__ import annotations

import argparse
import json
import multiprocessing
import os
import shutil
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import numpy as np

sys.path.insert(0, str(Path(__file__).parent / "parts"))
sys.path.insert(0, str(Path(__file__).parents[1] / "tests"))

from machine import machine, write
from photographs import write_photographs

BATCH = 100
SEED = 7
RATED = 2000
"""Pictures read for a speed, at most."""
TRAINED = 150
"""Steps of a run whose wait for data is measured."""
SHARDS = 100
"""About so many."""
CACHED = 10
"""The data are so many times as large as the cache."""
PHOTOGRAPH = (375, 500)
"""Height and width in pixels."""


def stream(rank: int, world: int, address: str, pictures: int, to: Path) -> None:
    """One process of a pass: its share of every step, its ids and its time in a file."""
    from scholarch.data.catalog import open_source
    from scholarch.data.loader import Cut, StepLoader, StreamDataset
    from scholarch.data.options import ViewOptions
    from scholarch.data.stream import SampleStream
    from scholarch.data.views import MultiCrop

    options = ViewOptions(count=1, size=32, distortions="none")
    data = StreamDataset(
        open_source(address),
        SampleStream(pictures, BATCH, SEED),
        Cut(MultiCrop({"global": options}, (0.5,) * 3, (0.25,) * 3)),
    )
    loader = StepLoader(data, start_step=0, end_step=pictures // BATCH, rank=rank, world=world)
    began = time.monotonic()
    ids = np.concatenate([batch.sample_ids.numpy() for (batch,) in loader])
    np.savez(to, ids=ids, seconds=time.monotonic() - began)


@contextmanager
def watched(folder: Path) -> Iterator[list[int]]:
    """The largest number of bytes that a folder held meanwhile, looked at 20 times a second."""
    largest, done = [0], threading.Event()

    def look() -> None:
        while not done.wait(0.05):
            held = 0
            for path in folder.rglob("*"):
                try:
                    held += path.stat().st_size if path.is_file() else 0
                except FileNotFoundError:
                    continue
            largest[0] = max(largest[0], held)

    thread = threading.Thread(target=look)
    thread.start()
    try:
        yield largest
    finally:
        done.set()
        thread.join()


def one_pass(address: str, pictures: int, world: int, folder: Path) -> float:
    """Seconds of a pass, without the start of the processes; fails unless every picture came exactly once."""
    context = multiprocessing.get_context("spawn")
    files = [folder / f"{rank}.npz" for rank in range(world)]
    ranks = [
        context.Process(target=stream, args=(rank, world, address, pictures, file))
        for rank, file in enumerate(files)
    ]
    for rank in ranks:
        rank.start()
    for rank in ranks:
        rank.join()
    if any(rank.exitcode for rank in ranks):
        sys.exit("a process failed")
    found = [np.load(file) for file in files]
    if not np.array_equal(np.sort(np.concatenate([part["ids"] for part in found])), np.arange(pictures)):
        sys.exit(f"{world} processes: the ids are not every picture once")
    return max(float(part["seconds"]) for part in found)


def speed(address: str, decoded: bool, ahead: bool) -> float:
    """Pictures a second of one process that reads in random order."""
    from scholarch.data.catalog import open_source
    from scholarch.data.decode import decode
    from scholarch.data.folder import FolderSource
    from scholarch.data.shards import ShardSource
    from scholarch.data.source import expect

    source = open_source(address)
    assert isinstance(source, FolderSource | ShardSource)
    order = np.random.default_rng(1).permutation(len(source))[:RATED]
    began = time.monotonic()
    if ahead:
        expect(source, order)
    for index in order.tolist():
        data = source.encoded(index)
        if decoded:
            decode(data, "")
    return len(order) / (time.monotonic() - began)


def decode_limit(folder: str) -> float:
    """Pictures a second of one process that decodes from memory."""
    from scholarch.data.catalog import open_source
    from scholarch.data.decode import decode
    from scholarch.data.folder import FolderSource

    source = open_source(folder)
    assert isinstance(source, FolderSource)
    files = [source.encoded(index) for index in range(min(RATED, len(source)))]
    began = time.monotonic()
    for file in files:
        decode(file, "")
    return len(files) / (time.monotonic() - began)


def data_wait(address: str, folder: Path) -> tuple[float, float]:
    """Share of its time that a small real run waits for data: over the last 50 steps, and over the first 50.

    A record's share is of the last 50 steps or of all there were: the first 50 hold the start of the worker.
    """
    command = [
        sys.executable,
        "-m",
        "scholarch.cli",
        "pretrain",
        "--recipe",
        "demo/pictures",
        f"data={address}",
    ]
    command += [
        "--run",
        str(folder),
        f"training.steps={TRAINED}",
        "training.workers=1",
        "evaluation.every=1000",
    ]
    subprocess.run(command, check=True, stderr=subprocess.DEVNULL, stdout=subprocess.DEVNULL)
    records = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    waits = {record["step"]: float(record["data_wait"]) for record in records if "data_wait" in record}
    return waits[TRAINED], waits[50]


def scholarch(*words: str) -> float:
    """Seconds of a command."""
    began = time.monotonic()
    subprocess.run([sys.executable, "-m", "scholarch.cli", *words], check=True)
    return time.monotonic() - began


@dataclass(frozen=True)
class Packed:
    """A data set that `scholarch pack` wrote.

    Attributes:
        address: in MinIO.
        folder: the same pictures as local files.
        shards: how many.
        bytes: of all shards.
        bound: bytes that the cache may hold: its share of the shards, the index and the names.
        seconds: that packing took.
    """

    address: str
    folder: Path
    shards: int
    bytes: int
    bound: int
    seconds: float


def pack(folder: Path, address: str) -> Packed:
    """Packs a folder into about `SHARDS` shards."""
    from scholarch.data.manifest import read_manifest
    from scholarch.storage.objects import open_objects

    held = sum(path.stat().st_size for path in folder.rglob("*.jpg"))
    seconds = scholarch("pack", str(folder), address, "--shard-size", str(held // SHARDS))
    manifest = read_manifest(open_objects(address))
    assert manifest is not None
    size = sum(shard.bytes for shard in manifest.shards)
    bound = size // CACHED + manifest.index.bytes + manifest.names.bytes
    return Packed(address, folder, len(manifest.shards), size, bound, seconds)


@contextmanager
def cached(packed: Packed, cache: Path) -> Iterator[None]:
    """An empty cache, bounded for this data set."""
    shutil.rmtree(cache, ignore_errors=True)
    cache.mkdir()
    os.environ.update(SCHOLARCH_CACHE=str(cache), SCHOLARCH_CACHE_SIZE=str(packed.bound))
    with watched(cache) as largest:
        yield
    if largest[0] > packed.bound:
        sys.exit(f"the cache held {largest[0]} bytes, more than {packed.bound}")
    print(f"  cache: at most {largest[0]:,} of {packed.bound:,} bytes", flush=True)


def speeds(packed: Packed, cache: Path) -> dict[str, float]:
    """Pictures a second of one process."""
    local, remote = str(packed.folder), packed.address
    found = {
        "decoding from memory (the limit)": decode_limit(local),
        "local files, decoded": speed(local, True, False),
    }
    for what, decoded, ahead in (
        ("MinIO ahead of the known order, decoded", True, True),
        ("MinIO without looking ahead, decoded", True, False),
        ("MinIO ahead of the known order, bytes alone", False, True),
    ):
        with cached(packed, cache):
            found[what] = speed(remote, decoded, ahead)
        print(f"  {what}: {found[what]:,.0f} a second", flush=True)
    return found


def measure(pictures: int, side: int, photographs: int, place: Path) -> dict[str, dict[str, float]]:
    """Figures of the page."""
    from generated_pictures import write_pictures
    from minio_server import MinioServer

    write_pictures(place / "small", pictures, side)
    write_photographs(place / "photographs", photographs, *PHOTOGRAPH)
    cache = place / "cache"
    with MinioServer(place / "minio") as server:
        os.environ.update(server.environment)
        bucket = server.make_bucket("bench")
        small = pack(place / "small", f"{bucket}/small")
        large = pack(place / "photographs", f"{bucket}/photographs")
        verified = pictures / scholarch("pack", "--verify", small.address)
        streamed = dict[str, float]()
        for world in (2, 3):
            with cached(small, cache):
                streamed[f"{world} processes"] = pictures / one_pass(small.address, pictures, world, place)
        waits = dict[str, float]()
        for what, data in (("MinIO", small.address), ("local files", str(small.folder))):
            with cached(small, cache):
                waits[what], waits[f"{what}, at first"] = data_wait(data, place / f"run from {what}")
        return {
            "small": {
                "bytes": small.bytes,
                "shards": small.shards,
                "packed a second": pictures / small.seconds,
            },
            "photographs": {"bytes": large.bytes, "shards": large.shards},
            "verified": {"a second": verified},
            "streamed": streamed,
            "waits": waits,
            "speeds, small": speeds(small, cache),
            "speeds, photographs": speeds(large, cache),
        }


def page(found: dict[str, dict[str, float]], pictures: int, side: int, photographs: int) -> str:
    """The tables."""
    small, large, waits = found["small"], found["photographs"], found["waits"]
    limits = {kind: next(iter(found[f"speeds, {kind}"].values())) for kind in ("small", "photographs")}
    steps = f"steps {TRAINED - 49} to {TRAINED}"
    each = small["bytes"] / pictures, large["bytes"] / photographs / 2**10
    intro = (
        f"{pictures:,} JPEGs of {side} x {side}, {each[0]:,.0f} bytes each, in {small['shards']:.0f} shards; "
        f"{photographs:,} of {PHOTOGRAPH[0]} x {PHOTOGRAPH[1]}, {each[1]:,.0f} KiB each, in {large['shards']:.0f}. "
        "MinIO, its disk and the readers are on this machine. The cache may hold a tenth of the shards, with index and "
        "names besides, and kept within; pictures are read in random order, so that most reads ask MinIO."
    )
    lines = [
        intro,
        "",
        "| small pictures | found |",
        "| --- | --- |",
        f"| packed | {small['packed a second']:,.0f} pictures/s |",
        f"| verified | {found['verified']['a second']:,.0f} pictures/s |",
        *(
            f"| streamed by {who} | every picture once, {rate:,.0f} pictures/s |"
            for who, rate in found["streamed"].items()
        ),
        *(
            f"| data wait of training from {what} | {waits[what]:.1%} of the time over {steps}, "
            f"{waits[f'{what}, at first']:.1%} over 1 to 50, with the start of its worker |"
            for what in ("MinIO", "local files")
        ),
        "",
        "| one process, pictures/s | small | of the limit | photographs | of the limit |",
        "| --- | ---: | ---: | ---: | ---: |",
    ]
    for what, rate in found["speeds, small"].items():
        other = found["speeds, photographs"][what]
        shares = rate / limits["small"], other / limits["photographs"]
        lines.append(f"| {what} | {rate:,.0f} | {shares[0]:.2f} | {other:,.0f} | {shares[1]:.2f} |")
    return "\n".join(lines)


def main() -> None:
    """Measures, and writes results/stream_from_minio.md and .json."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--pictures", type=int, default=100_000, help="small ones, a multiple of 100")
    parser.add_argument("--side", type=int, default=48, help="of the small ones, in pixels")
    parser.add_argument("--photographs", type=int, default=1000)
    arguments, where = parser.parse_args(), machine()
    with tempfile.TemporaryDirectory() as place:
        found = measure(arguments.pictures, arguments.side, arguments.photographs, Path(place))
    where["load after"] = "{:.1f} {:.1f} {:.1f}".format(*os.getloadavg())
    text = page(found, arguments.pictures, arguments.side, arguments.photographs)
    write("stream_from_minio", "Streaming from MinIO", text, found, where)


if __name__ == "__main__":
    main()
