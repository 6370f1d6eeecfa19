"""Packs generated pictures to a MinIO of its own and streams them by 2 and by 3 processes.

    make bench, or: .venv/bin/python benchmarks/stream_from_minio.py --pictures 100000 --write

Shows that every picture comes once in a pass, that the cache (a tenth of the data) keeps its bound,
and how quick it is against local files and against decoding alone.
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
from pathlib import Path

import numpy as np

ROOT = Path(__file__).parents[1]
RESULT = ROOT / "benchmarks/results/stream_from_minio.md"
BATCH = 100
SEED = 7
RATED = 2000
"""Pictures read for a speed."""
TRAINED = 150
"""Steps of a run whose wait for data is measured."""
SHARD_SHARE = 12
"""Bytes of a shard for each picture of the whole: about a hundred shards."""


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


def measure(pictures: int, side: int, train: bool, place: Path) -> list[tuple[str, str]]:
    """Rows of the table."""
    from generated_pictures import write_pictures
    from minio_server import MinioServer
    from scholarch.data.manifest import read_manifest
    from scholarch.storage.objects import open_objects

    folder, cache = place / "pictures", place / "cache"
    began = time.monotonic()
    write_pictures(folder, pictures, side)
    made = time.monotonic() - began
    with MinioServer(place / "minio") as server:
        os.environ.update(server.environment)
        address = f"{server.make_bucket('bench')}/pictures"
        packing = scholarch("pack", str(folder), address, "--shard-size", str(pictures * SHARD_SHARE))
        verifying = scholarch("pack", "--verify", address)
        manifest = read_manifest(open_objects(address))
        assert manifest is not None
        size = sum(shard.bytes for shard in manifest.shards)
        bound = size // 10 + manifest.index.bytes + manifest.names.bytes
        os.environ.update(SCHOLARCH_CACHE=str(cache), SCHOLARCH_CACHE_SIZE=str(bound))
        rows = [
            (
                "generated",
                f"{pictures:,} JPEGs of {side} x {side}, {manifest.bytes / pictures:,.0f} bytes each, in {made:.0f} s",
            ),
            (
                "packed",
                f"{len(manifest.shards)} shards, {size / 1e6:.0f} MB, {pictures / packing:,.0f} pictures/s",
            ),
            ("verified", f"{pictures / verifying:,.0f} pictures/s"),
        ]
        for world in (2, 3):
            shutil.rmtree(cache, ignore_errors=True)
            cache.mkdir()
            with watched(cache) as largest:
                seconds = one_pass(address, pictures, world, place)
            if largest[0] > bound:
                sys.exit(f"the cache held {largest[0]} bytes, more than {bound}")
            held = f"cache at most {largest[0] / 1e6:.2f} of {bound / 1e6:.2f} MB"
            found = f"every picture once, {pictures / seconds:,.0f} pictures/s, {held}"
            rows.append((f"streamed by {world} processes", found))
        limit = decode_limit(str(folder))
        rows += [
            ("one process: decoding from memory (the limit)", f"{limit:,.0f} pictures/s"),
            *(
                (f"one process: {what}", f"{found:,.0f} pictures/s, {found / limit:.2f} of the limit")
                for what, found in (
                    ("local files, decoded", speed(str(folder), True, False)),
                    ("MinIO ahead of the known order, decoded", speed(address, True, True)),
                    ("MinIO without looking ahead, decoded", speed(address, True, False)),
                    ("MinIO ahead of the known order, bytes alone", speed(address, False, True)),
                )
            ),
        ]
        if train:
            for what, data in (("MinIO", address), ("local files", str(folder))):
                last, first = data_wait(data, place / f"run from {what}")
                found = (
                    f"{last:.1%} of the time over steps {TRAINED - 49} to {TRAINED}, {first:.1%} over 1 to 50"
                )
                rows.append((f"data wait of training from {what}", found))
    return rows


def main() -> None:
    """Measures, prints and, if asked, writes the result."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--pictures", type=int, default=5000, help="a multiple of 100 (default: 5000)")
    parser.add_argument("--side", type=int, default=48, help="of the pictures, in pixels (default: 48)")
    parser.add_argument("--train", action="store_true", help="measure the data wait of a training run too")
    parser.add_argument("--write", action="store_true", help=f"write {RESULT.relative_to(ROOT)}")
    arguments = parser.parse_args()
    load = os.getloadavg()[0]
    with tempfile.TemporaryDirectory() as place:
        rows = measure(arguments.pictures, arguments.side, arguments.train, Path(place))
    cpus = Path("/proc/cpuinfo").read_text().splitlines()
    model = next((line.partition(":")[2].strip() for line in cpus if line.startswith("model name")), "?")
    words = " ".join(word for word in sys.argv[1:] if word != "--write")
    how = (
        f"`python benchmarks/stream_from_minio.py {words}`, {time.strftime('%Y-%m-%d')}. {os.cpu_count()} cores, "
        f"{model}; MinIO, its disk and the readers on this machine; load when it began: {load:.1f}."
    )
    text = "\n".join(
        [
            "# Streaming from MinIO",
            "",
            how,
            "",
            "| what | found |",
            "| --- | --- |",
            *(f"| {what} | {found} |" for what, found in rows),
            "",
        ]
    )
    print(text)
    if arguments.write:
        RESULT.write_text(text)


sys.path[:0] = [str(ROOT / "tests"), str(ROOT / "platform")]
if __name__ == "__main__":
    main()
