"""Neighbours, duplicates and retrieval against slow loops."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image, ImageEnhance
from scholarch.curation import neighbours as module
from scholarch.curation.duplicates import (
    Pairs,
    components,
    difference_hashes,
    kept_of,
    pairs_of,
    same_hash,
    seen_in_evaluation,
)
from scholarch.curation.neighbours import NeighbourOptions, Neighbours, neighbours
from scholarch.curation.retrieval import by_cluster, by_sample
from scholarch.curation.vectors import ArrayVectors


def vectors(count: int, width: int = 8, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).normal(size=(count, width)).astype(np.float32)


def cosines(one: np.ndarray, other: np.ndarray) -> np.ndarray:
    one, other = one.astype(np.float64), other.astype(np.float64)
    products = one @ other.T
    return products / np.linalg.norm(one, axis=1)[:, None] / np.linalg.norm(other, axis=1)


def test_exact_neighbours(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "DATA_BLOCK", 32)
    monkeypatch.setattr(module, "QUERY_BLOCK", 10)
    asked, held = vectors(25), vectors(150, seed=1)
    found = neighbours(ArrayVectors(asked), ArrayVectors(held), NeighbourOptions(k=7))
    wanted = cosines(asked, held)
    assert found.numbers.tolist() == np.argsort(-wanted, axis=1)[:, :7].tolist()
    np.testing.assert_allclose(found.similarities, -np.sort(-wanted, axis=1)[:, :7], atol=1e-6)


def test_no_vector_is_its_own_neighbour() -> None:
    held = np.repeat(vectors(4), 3, axis=0)  # duplicates of duplicates
    found = neighbours(ArrayVectors(held), ArrayVectors(held), NeighbourOptions(k=2), itself=True)
    assert found.numbers.tolist() == [
        [j for j in range(i // 3 * 3, i // 3 * 3 + 3) if j != i] for i in range(12)
    ]
    np.testing.assert_allclose(found.similarities, 1, atol=1e-6)


def test_fewer_vectors_than_neighbours_and_a_zero() -> None:
    held = vectors(3)
    held[2] = 0
    found = neighbours(ArrayVectors(held), ArrayVectors(held), NeighbourOptions(k=5), itself=True)
    assert found.numbers.shape == (3, 5)
    assert (found.numbers[:, 2:] == -1).all()
    assert np.isneginf(found.similarities[:, 2:]).all()
    assert found.similarities[0, found.numbers[0] == 2].tolist() == [0]
    with pytest.raises(ValueError, match="queries have 8 numbers, vectors 5"):
        neighbours(ArrayVectors(held), ArrayVectors(vectors(3, 5)), NeighbourOptions())


def test_the_compressed_index_finds_nearly_all() -> None:
    centres = vectors(60, 16)
    held = np.repeat(centres, 50, axis=0) + 0.3 * vectors(3000, 16, seed=1)
    options = {"k": 10, "lists": 20, "probes": 8, "code_bytes": 8}
    asked = ArrayVectors(held[:200])
    exact = neighbours(asked, ArrayVectors(held), NeighbourOptions(k=10))
    rough = neighbours(asked, ArrayVectors(held), NeighbourOptions(index="ivf-pq", **options))  # type: ignore[arg-type]
    shared = [
        len(set(a) & set(b)) for a, b in zip(exact.numbers.tolist(), rough.numbers.tolist(), strict=True)
    ]
    assert np.mean(shared) > 8
    wanted = cosines(held[:200], held)
    np.testing.assert_allclose(rough.similarities, np.take_along_axis(wanted, rough.numbers, 1), atol=1e-5)
    with pytest.raises(ValueError, match="code_bytes 5 does not divide"):
        neighbours(asked, asked, NeighbourOptions(index="ivf-pq", code_bytes=5))


def test_pairs_come_once() -> None:
    found = Neighbours(
        np.array([[1, 2], [0, -1], [3, 0], [2, 1]]),
        np.array([[0.9, 0.7], [0.9, -np.inf], [0.8, 0.7], [0.8, 0.1]], np.float32),
    )
    pairs = pairs_of(found, 0.7)
    assert list(zip(pairs.first, pairs.second, strict=True)) == [(0, 1), (0, 2), (2, 3)]
    assert len(pairs.above(0.8).first) == 1  # exactly the threshold is no duplicate


def slow_components(edges: list[tuple[int, int]], total: int) -> list[int]:
    owner = list(range(total))
    for _ in range(total):
        for one, other in edges:
            owner[one] = owner[other] = min(owner[one], owner[other])
    return owner


def test_components_are_those_of_a_slow_loop() -> None:
    rng = np.random.default_rng(0)
    for _ in range(20):
        edges = rng.integers(0, 30, (18, 2))
        found = components(edges[:, 0], edges[:, 1], 30)
        assert found.tolist() == slow_components([tuple(edge) for edge in edges.tolist()], 30)
    assert components(np.empty(0, np.int64), np.empty(0, np.int64), 3).tolist() == [0, 1, 2]


def test_the_largest_file_of_a_component_stays() -> None:
    component = np.array([0, 0, 2, 0, 2, 5])
    assert np.flatnonzero(kept_of(component)).tolist() == [0, 2, 5]
    assert np.flatnonzero(kept_of(component, np.array([5, 9, 3, 9, 4, 0]))).tolist() == [1, 4, 5]


def test_whole_components_that_touch_an_evaluation_go() -> None:
    pairs = Pairs(np.array([0, 1, 3]), np.array([1, 2, 4]), np.array([0.5, 0.46, 0.45], np.float32))
    near = np.zeros((6, 1), np.float32)
    near[2], near[3], near[5] = 0.6, 0.5, 0.45
    dropped = seen_in_evaluation(pairs, Neighbours(np.zeros((6, 1), np.int64), near), 0.45, 6)
    assert dropped.tolist() == [True, True, True, True, False, False]


def hashes_of(*pictures: Image.Image) -> list[int]:
    pixels = [torch.from_numpy(np.asarray(picture.resize((48, 48))).copy()) for picture in pictures]
    return [int(one) for one in difference_hashes(torch.stack(pixels).permute(0, 3, 1, 2).float())]


def test_a_hash_survives_recompression_and_size() -> None:
    noise = np.random.default_rng(0).integers(0, 255, (2, 6, 6, 3), dtype=np.uint8)
    one, other = (Image.fromarray(pixels).resize((96, 96), Image.Resampling.BICUBIC) for pixels in noise)
    changed = ImageEnhance.Brightness(one.resize((64, 80))).enhance(0.8)
    first, second, third = hashes_of(one, changed, other)
    assert (first ^ second).bit_count() <= 3
    assert (first ^ third).bit_count() > 10
    ramp = Image.linear_gradient("L").convert("RGB")
    assert hashes_of(Image.new("RGB", (20, 20), "red"), ramp, ramp.rotate(90)) == [0, 0, 2**64 - 1]


@pytest.mark.parametrize("bits", [0, 3])
def test_hashes_are_paired_as_by_a_slow_loop(bits: int) -> None:
    rng = np.random.default_rng(0)
    hashes = rng.integers(0, 2**64, 60, dtype=np.uint64)
    for number in range(30, 60):  # some bits of another one
        hashes[number] = hashes[number - 30]
        for bit in rng.integers(0, 64, number % 5).tolist():
            hashes[number] ^= np.uint64(1 << bit)
    hashes[:3] = 0  # plain pictures
    pairs = same_hash(hashes, bits)
    found = components(pairs.first, pairs.second, 60)
    wanted = [
        (i, j)
        for i in range(60)
        for j in range(i)
        if int(hashes[i] ^ hashes[j]).bit_count() <= bits and hashes[i] and hashes[j]
    ]
    assert found.tolist() == slow_components(wanted, 60)
    assert len(wanted) > 5


FOUND = Neighbours(
    np.array([[7, 5, 3], [7, 5, 2], [9, 7, -1]]),
    np.array([[0.9, 0.8, 0.5], [0.95, 0.7, 0.6], [0.4, 0.3, -np.inf]], np.float32),
)


def test_retrieval_by_sample() -> None:
    assert by_sample(FOUND, 1).tolist() == [7, 9]
    assert by_sample(FOUND, 1, collisions="next").tolist() == [5, 7, 9]
    assert by_sample(FOUND, 2, collisions="next").tolist() == [2, 3, 5, 7, 9]
    assert by_sample(FOUND, 5).tolist() == [2, 3, 5, 7, 9]
    sources = np.array([0, 0, 1])
    assert by_sample(FOUND, 2, sources=sources, cap=1).tolist() == [7, 9]


def test_retrieval_by_cluster() -> None:
    pool = np.repeat([0, 1, 2], [50, 5, 30])
    queries = np.array([0, 0, 0, 0, 1, 1, 1, 1, 2, 2, 2])
    chosen = by_cluster(pool, queries, 3, 10, 0)
    assert np.bincount(pool[chosen], minlength=3).tolist() == [10, 5, 0]
    sources = np.array([0] * 8 + [1] * 3)
    more: Any = {"more_than": 2, "sources": sources}
    assert np.bincount(pool[by_cluster(pool, queries, 3, 10, 0, cap=8, **more)]).tolist() == [4, 4, 8]
    assert by_cluster(pool, queries[:0], 3, 10, 0).tolist() == []
