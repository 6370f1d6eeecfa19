"""k-means of random vectors: ours against faiss and against plain torch as ratios, and a tree of clusters at size.

python benchmarks/kmeans.py                                  ratios, about a minute
python benchmarks/kmeans.py --points 10000000 --work FOLDER  clusters and samples so many, on two Ray workers
"""

from __future__ import annotations

import argparse
import os
import statistics
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import faiss
import numpy as np
import psutil
import torch
from scholarch.curation.estimate import estimate
from scholarch.curation.hierarchy import hierarchical_kmeans, tree_of
from scholarch.curation.kmeans import KMeansOptions, lloyd_step, seed_centroids, trials_of
from scholarch.curation.sampling import sample
from scholarch.curation.vectors import ArrayVectors, Chosen, FileVectors, UnitVectors
from scholarch.curation.workers import ray_engine

sys.path.insert(0, str(Path(__file__).parent / "parts"))

from machine import machine, write
from turns import ratios, spread

WIDTH, ITERATIONS, FILE_POINTS = 256, 5, 1 << 16


def by_faiss(points: np.ndarray, start: np.ndarray) -> None:
    """Lloyd's iterations from given centroids."""
    clustering = faiss.Clustering(points.shape[1], len(start))
    clustering.niter, clustering.max_points_per_centroid = ITERATIONS, len(points)
    faiss.copy_array_to_vector(start.ravel(), clustering.centroids)
    clustering.train(points, faiss.IndexFlatL2(points.shape[1]))


def by_torch(points: np.ndarray, start: np.ndarray) -> None:
    """What one writes first: distances in pieces, index_add."""
    values, centroids = torch.from_numpy(points), torch.from_numpy(start).clone()
    for _ in range(ITERATIONS):
        sums, counts = torch.zeros_like(centroids), torch.zeros(len(centroids))
        for piece in values.split(8192):
            owners = torch.cdist(piece, centroids).argmin(1)
            sums.index_add_(0, owners, piece)
            counts.index_add_(0, owners, torch.ones(len(piece)))
        filled = counts > 0
        centroids[filled] = sums[filled] / counts[filled, None]


def by_us(points: np.ndarray, start: np.ndarray) -> None:
    """In this process."""
    vectors = ArrayVectors(points)
    for _ in range(ITERATIONS):
        start = lloyd_step(vectors, start)


def compare(count: int, clusters: int, threads: int, repeats: int) -> None:
    """Each side takes turns; writes results/kmeans.md."""
    where = machine()
    torch.set_num_threads(threads)
    faiss.omp_set_num_threads(threads)
    points = np.random.default_rng(0).standard_normal((count, WIDTH), np.float32)
    start = points[:clusters].copy()
    sides: dict[str, Callable[[np.ndarray, np.ndarray], None]]
    sides = {"ours": by_us, "faiss": by_faiss, "plain torch": by_torch}
    took: dict[str, list[float]] = {name: [] for name in sides}
    for number in range(repeats + 1):
        for name, work in sides.items():
            seconds = processor_seconds(lambda work=work: work(points, start))
            if number:  # the first round warms up
                took[name].append(seconds)
    lines = [
        (
            f"{count:,} random vectors of {WIDTH} numbers, {clusters:,} clusters, {ITERATIONS} of Lloyd's "
            f"iterations from the same centroids, float32, {threads} thread(s), {repeats} rounds by turns. Processor "
            "seconds, which leave out what other programs took: median (lowest to highest). A ratio below 1 means "
            "that ours is faster. Ours adds in float64, the others in float32."
        ),
        "",
        "| side | processor seconds | vectors a second in an iteration | ours / side |",
        "|---|---|---|---|",
    ]
    for name, seconds in took.items():
        rate = count * ITERATIONS / statistics.median(seconds)
        compared = "1" if name == "ours" else spread(ratios(took["ours"], seconds))
        lines.append(f"| {name} | {spread(seconds)} | {rate:,.0f} | {compared} |")
    where |= {"faiss": faiss.__version__, "load after": "{:.1f} {:.1f} {:.1f}".format(*os.getloadavg())}
    medians = {name: statistics.median(ratios(took["ours"], took[name])) for name in ("faiss", "plain torch")}
    found = rates()
    lines += [
        "",
        (
            f"What `scholarch plan curate` counts with, of one core: {found['comparisons']:.3g} FLOP/s of distances, "
            f"{found['reading']:.3g} bytes/s of vectors that are read from float16 files, made of length 1 and added, "
            f"{found['seeding']:.3g} FLOP/s of k-means++."
        ),
    ]
    data = {"processor seconds": took, "ours / side": medians, "rates": found}
    write("kmeans", "k-means: ours, faiss, plain torch", "\n".join(lines), data, where)


def rates() -> dict[str, float]:
    """What the plan counts with, by least squares over some shapes, in float32 bytes and operations."""
    rows, seconds = [], []
    with tempfile.TemporaryDirectory() as folder:
        for width in (128, 256, 768):
            vectors = UnitVectors(stored(FILE_POINTS, Path(folder) / str(width), width))
            for clusters in (4, 1000, 4000):
                start = vectors.read(0, clusters)
                rows.append((2 * FILE_POINTS * clusters * width, 4 * FILE_POINTS * width))
                seconds.append(
                    min(processor_seconds(lambda v=vectors, s=start: lloyd_step(v, s)) for _ in range(2))
                )
        points = UnitVectors(stored(FILE_POINTS, Path(folder) / str(WIDTH), WIDTH))
        clusters = 300
        rng = np.random.default_rng(0)
        seeding = processor_seconds(lambda: seed_centroids(points, clusters, rng))
    # Relative errors: the quick shapes count as much as the slow ones.
    weights = np.array(rows) / np.array(seconds)[:, None]
    operation, byte = np.linalg.lstsq(weights, np.ones(len(rows)), rcond=None)[0]
    operations = 2 * FILE_POINTS * clusters * trials_of(clusters) * WIDTH
    return {"comparisons": 1 / operation, "reading": 1 / byte, "seeding": operations / seeding}


def processor_seconds(work: Callable[[], object]) -> float:
    """Of this process."""
    began = time.process_time()
    work()
    return time.process_time() - began


class Watch:
    """Peak memory and processor seconds of this process and all below it.

    Memory is what is resident, shared pages counted once, mapped files included.
    """

    def __init__(self) -> None:
        self.peak = self.leader = 0
        self.seconds: dict[int, float] = {}
        self._end = threading.Event()

    def _look(self) -> None:
        total = 0
        for process in [own := psutil.Process(), *own.children(recursive=True)]:
            try:
                used, times = process.memory_full_info().pss, process.cpu_times()
            except psutil.Error:
                continue
            total += used
            self.leader = max(self.leader, used if process == own else 0)
            self.seconds[process.pid] = times.user + times.system
        self.peak = max(self.peak, total)

    def _go_on(self) -> None:
        while not self._end.wait(1):
            self._look()

    @contextmanager
    def watching(self) -> Iterator[None]:
        thread = threading.Thread(target=self._go_on, daemon=True)
        thread.start()
        try:
            yield
        finally:
            self._look()
            self._end.set()
            thread.join()


def stored(count: int, folder: Path, width: int) -> FileVectors:
    """Random vectors in float16, in files."""
    folder.mkdir(parents=True, exist_ok=True)
    paths = []
    for start in range(0, count, FILE_POINTS):
        rows = min(FILE_POINTS, count - start)
        path = folder / f"{start}-{rows}.npy"
        if not path.exists():
            values = np.random.default_rng(start).standard_normal((rows, width), np.float32)
            np.save(path, values.astype(np.float16))
        paths.append(path)
    return FileVectors.of(paths)


def at_size(count: int, levels: list[KMeansOptions], workers: int, work: Path) -> None:
    """A tree over vectors on disk, as the step `cluster` makes it, and a tenth sampled from it."""
    # Ray gives way to whatever else runs on the machine; here its work is what is measured.
    os.environ.setdefault("RAY_worker_niceness", "0")
    where = machine()
    vectors = Chosen(UnitVectors(stored(count, work / "vectors", WIDTH)), np.arange(count))
    watch, rounds = Watch(), []
    began = time.perf_counter()

    def after_round(level: int, turn: int, _: np.ndarray) -> None:
        rounds.append(f"round {turn} of level {level} after {time.perf_counter() - began:.0f} s")
        print(rounds[-1], flush=True)

    with watch.watching(), ray_engine("", workers, 1 << 30) as engine:
        found = hierarchical_kmeans(vectors, levels, 0, engine.map, after_round=after_round)
        clustered = time.perf_counter() - began
        chosen = sample(tree_of(found), count // 10, 0)
        took = time.perf_counter() - began
    told = estimate(count, WIDTH, levels, workers, "float16")
    planned = told.seconds(workers)
    worked = sum(watch.seconds.values())
    sizes = np.bincount(found[0].clusters, minlength=levels[0].clusters)
    tree = ", ".join(
        f"{o.clusters:,} clusters ({o.iterations} iterations, {o.rounds} further rounds)" for o in levels
    )
    rows = {
        "clustered": f"{clustered:.0f} s",
        "sampled": f"{len(chosen):,} pictures in {took - clustered:.1f} s",
        "processor seconds, all processes": f"{worked:.0f}",
        "peak memory, all processes": f"{watch.peak / 2**30:.2f} GiB",
        "of it the process that leads, at most": f"{watch.leader / 2**30:.2f} GiB",
        "planned, on cores with nothing else to do": f"{planned:.0f} s",
        "planned, processor seconds": f"{told.seconds(1):.0f}",
        "planned memory of the process that leads": f"{told.leader / 2**30:.2f} GiB",
        "planned memory of a worker": f"{told.worker / 2**30:.2f} GiB",
        "pictures of a cluster": f"{sizes.min():,} to {sizes.max():,}",
        "rounds": "; ".join(rounds),
    }
    text = [
        f"{count:,} random vectors of {WIDTH} numbers, float16 on disk, {workers} Ray workers: {tree}.",
        "",
        "| what | figure |",
        "|---|---|",
        *(f"| {name} | {value} |" for name, value in rows.items()),
        "",
        "Memory is resident memory, shared pages counted once, mapped vectors included, looked at every second.",
    ]
    where["load after"] = "{:.1f} {:.1f} {:.1f}".format(*os.getloadavg())
    data = {
        "seconds": clustered,
        "planned": planned,
        "processor seconds": worked,
        "peak bytes": watch.peak,
        "leader bytes": watch.leader,
        "estimate": told._asdict(),
    }
    write(f"kmeans_{count // 1_000_000}m", "k-means and a sample, at size", "\n".join(text), data, where)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--points", type=int, help="cluster so many from disk; without it: compare")
    parser.add_argument("--clusters", type=int, default=1000, help="of the finest level")
    parser.add_argument("--iterations", type=int, default=6)
    parser.add_argument("--rounds", type=int, default=1, help="further ones")
    parser.add_argument("--workers", type=int, default=2)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--work", type=Path, default=Path("runs/kmeans"), help="for the vectors")
    asked = parser.parse_args()
    if asked.points:
        tree = [
            KMeansOptions(
                clusters=asked.clusters,
                iterations=asked.iterations,
                rounds=asked.rounds,
                sample=10,
                seeding_points=32,
            ),
            KMeansOptions(
                clusters=max(asked.clusters // 20, 1), iterations=10, rounds=asked.rounds, sample=5
            ),
        ]
        at_size(asked.points, tree, asked.workers, asked.work)
    else:
        compare(100_000, asked.clusters, asked.threads, asked.repeats)
