"""k nearest neighbours by cosine: exact, or by a compressed index whose candidates are compared exactly.

faiss, Johnson et al., "Billion-scale similarity search with GPUs" (2017). DINOv2 uses k = 64 and IVF-PQ
(reference.md section 8.1).
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np

from scholarch.curation.vectors import Mapper, Vectors, in_process, normalised, spans
from scholarch.draws import generator

QUERY_BLOCK = 1 << 14
DATA_BLOCK = 1 << 16
_TRAINING_POINTS = 64
"""Vectors for each list that the compressed index is trained on; faiss warns below 39."""


@dataclass(frozen=True)
class Neighbours:
    """Of each query its nearest vectors, the nearest first, the lowest number among equals.

    Attributes:
        numbers: int64 [q, k]; -1 where there are fewer.
        similarities: cosine, float32 [q, k].
    """

    numbers: np.ndarray
    similarities: np.ndarray


@dataclass(frozen=True, kw_only=True)
class NeighbourOptions:
    """How neighbours are found.

    Attributes:
        k: of each vector.
        index: `exact`, or `ivf-pq` for millions: misses some neighbours.
        lists: cells of the compressed index; None: 4 times the root of the number of vectors.
        probes: cells that a query looks into.
        code_bytes: of a compressed vector; must divide its length.
    """

    k: int = 64
    index: Literal["exact", "ivf-pq"] = "exact"
    lists: int | None = None
    probes: int = 32
    code_bytes: int = 32

    def __post_init__(self) -> None:
        if min(self.k, self.probes, self.code_bytes, self.lists or 1) < 1:
            raise ValueError("k, lists, probes and code_bytes must be at least 1")


def neighbours(
    queries: Vectors,
    vectors: Vectors,
    options: NeighbourOptions,
    seed: int = 0,
    mapper: Mapper = in_process,
    *,
    itself: bool = False,
) -> Neighbours:
    """The k nearest `vectors` of each query.

    Args:
        itself: the queries are the vectors, and none is its own neighbour.

    Raises:
        ValueError: if their lengths differ, or `code_bytes` does not divide them.
    """
    if queries.shape[1] != vectors.shape[1]:
        raise ValueError(f"queries have {queries.shape[1]} numbers, vectors {vectors.shape[1]}")
    blocks = spans(queries.shape[0], QUERY_BLOCK)
    if options.index == "exact":
        shared: tuple[Any, ...] = (queries, vectors, options, itself)
        found = list(mapper(_search_exactly, shared, blocks))
    else:
        shared = (queries, vectors, options, itself, _compressed(vectors, options, seed))
        found = list(mapper(_search_compressed, shared, blocks))
    if not found:
        return Neighbours(np.empty((0, options.k), np.int64), np.empty((0, options.k), np.float32))
    return Neighbours(np.concatenate([n for n, _ in found]), np.concatenate([s for _, s in found]))


def _search_exactly(shared: tuple[Any, ...], span: tuple[int, int]) -> tuple[np.ndarray, np.ndarray]:
    import faiss

    queries, vectors, options, itself = shared
    asked = normalised(queries.read(*span))
    # One more is searched for, as the query itself is among them.
    wanted = options.k + itself
    numbers = np.empty((len(asked), 0), np.int64)
    similarities = np.empty((len(asked), 0), np.float32)
    for start, stop in spans(vectors.shape[0], DATA_BLOCK):
        block = normalised(vectors.read(start, stop))
        near, places = faiss.knn(asked, block, min(wanted, stop - start), metric=faiss.METRIC_INNER_PRODUCT)
        numbers = np.concatenate([numbers, places + start], axis=1)
        similarities = np.concatenate([similarities, near], axis=1)
        numbers, similarities = _best(numbers, similarities, wanted)
    return _finished(numbers, similarities, options.k, span if itself else None)


def _best(numbers: np.ndarray, similarities: np.ndarray, k: int) -> tuple[np.ndarray, np.ndarray]:
    """The k most similar in each row, the lowest number among equals."""
    order = np.lexsort((numbers, -similarities), axis=1)[:, :k]
    return np.take_along_axis(numbers, order, 1), np.take_along_axis(similarities, order, 1)


def _finished(
    numbers: np.ndarray, similarities: np.ndarray, k: int, own: tuple[int, int] | None
) -> tuple[np.ndarray, np.ndarray]:
    """Sorted, without the query itself, filled up to k."""
    similarities = similarities.copy()
    if own is not None:
        similarities[numbers == np.arange(*own)[:, None]] = -np.inf
    similarities[numbers < 0] = -np.inf
    numbers, similarities = _best(numbers, similarities, k)
    missing = k - numbers.shape[1]
    numbers = np.pad(numbers, ((0, 0), (0, missing)), constant_values=-1)
    similarities = np.pad(similarities, ((0, 0), (0, missing)), constant_values=-np.inf)
    numbers[np.isneginf(similarities)] = -1
    return numbers, similarities


def _compressed(vectors: Vectors, options: NeighbourOptions, seed: int) -> np.ndarray:
    """A trained and filled index, as bytes that travel."""
    import faiss

    total, width = vectors.shape
    if width % options.code_bytes:
        raise ValueError(f"code_bytes {options.code_bytes} does not divide the vectors' {width} numbers")
    lists = options.lists or max(1, round(4 * math.sqrt(total)))
    lists = min(lists, max(total // 39, 1))
    count = min(total, max(lists, 256) * _TRAINING_POINTS)
    chosen = np.sort(generator(seed, "index").choice(total, count, replace=False))
    # A code has 256 values: too many where there are fewer vectors.
    bits = min(8, max(int(math.log2(max(total // 39, 2))), 1))
    index = faiss.index_factory(
        width, f"IVF{lists},PQ{options.code_bytes}x{bits}", faiss.METRIC_INNER_PRODUCT
    )
    index.train(normalised(vectors.take(chosen)))
    for start, stop in spans(total, DATA_BLOCK):
        index.add(normalised(vectors.read(start, stop)))
    found: np.ndarray = faiss.serialize_index(index)
    return found


def _search_compressed(shared: tuple[Any, ...], span: tuple[int, int]) -> tuple[np.ndarray, np.ndarray]:
    import faiss

    queries, vectors, options, itself, stored = shared
    index: Any = faiss.deserialize_index(stored)
    index.nprobe = min(options.probes, index.nlist)
    asked = normalised(queries.read(*span))
    # Twice as many candidates, since compressed similarities order them roughly.
    _, numbers = index.search(asked, min(2 * (options.k + itself), vectors.shape[0]))
    similarities = np.empty(numbers.shape, np.float32)
    for start, stop in spans(len(asked), 256):
        there, places = np.unique(np.maximum(numbers[start:stop], 0), return_inverse=True)
        values = normalised(vectors.take(there))[places.reshape(stop - start, -1)]
        similarities[start:stop] = np.einsum("qd,qkd->qk", asked[start:stop], values)
    return _finished(numbers, similarities, options.k, span if itself else None)
