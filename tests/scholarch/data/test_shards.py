"""Packed pictures are read at random, checked, cached within a bound, in the folder's order."""

from __future__ import annotations

import os
import pickle
import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from generated_pictures import write_pictures
from minio_server import MinioServer
from scholarch.data.cache import Cache
from scholarch.data.catalog import open_source
from scholarch.data.folder import FolderSource
from scholarch.data.loader import Cut, StepLoader, StreamDataset
from scholarch.data.manifest import Manifest
from scholarch.data.options import ViewOptions
from scholarch.data.packing.pack import pack
from scholarch.data.packing.places import open_input
from scholarch.data.shards import ShardSource
from scholarch.data.source import Source, expect
from scholarch.data.split import Subset, holdout
from scholarch.data.stream import SampleStream
from scholarch.data.views import MultiCrop
from scholarch.errors import EXIT_INTERRUPTED, UserError
from scholarch.storage import s3
from scholarch.storage.objects import Unreachable, joined, open_objects

COUNT = 60


@pytest.fixture(scope="module")
def pictures(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("pictures")
    write_pictures(folder, COUNT, classes=3)
    return folder


def packed(pictures: Path, target: str) -> Manifest:
    source, objects = open_input(str(pictures)), open_objects(target)
    return pack(source, objects, address="", command="", shard_bytes=9000, workers=1)


@pytest.fixture
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[[str], Path]:
    def bounded(size: str) -> Path:
        monkeypatch.setenv("SCHOLARCH_CACHE", str(tmp_path / "cache"))
        monkeypatch.setenv("SCHOLARCH_CACHE_SIZE", size)
        return tmp_path / "cache"

    return bounded


def cached_bytes(folder: Path) -> int:
    return sum(path.stat().st_size for path in folder.rglob("*") if path.is_file())


def same(one: Source, other: Source) -> None:
    assert one.classes == other.classes
    assert one.fingerprint() == other.fingerprint()
    assert len(one) == len(other)
    for index in np.random.default_rng(0).permutation(len(one)).tolist():
        assert one.name(index) == other.name(index)
        assert one.label(index) == other.label(index)
        assert one.read(index).equal(other.read(index))


def test_a_packed_folder_is_the_folder(pictures: Path, tmp_path: Path) -> None:
    packed(pictures, str(tmp_path / "t"))
    same(open_source(str(tmp_path / "t")), FolderSource(pictures))
    assert open_source(str(tmp_path / "t"), "none").classes is None


@pytest.mark.service
def test_packed_in_s3_is_the_folder_with_any_cache(
    pictures: Path, bucket: str, cache: Callable[[str], Path]
) -> None:
    manifest = packed(pictures, joined(bucket, "t"))
    first = manifest.index.bytes + manifest.names.bytes + manifest.shards[0].bytes
    for bound, shards in ((first - 1, 0), (first, 1), (10**9, len(manifest.shards))):
        folder = cache(str(bound))
        source = open_source(joined(bucket, "t"))
        assert isinstance(source, ShardSource)
        copy = pickle.loads(pickle.dumps(source))
        order = np.random.default_rng(1).permutation(COUNT)
        expect(copy, order)
        for index in order.tolist():
            assert copy.encoded(index) == (pictures / copy.name(index)).read_bytes()
        assert copy.cache is not None
        copy._fill()  # unless the thread has begun with it
        with copy.cache.adding(wait=True):
            assert len(list(folder.glob("*/*.tar"))) == shards
            assert cached_bytes(folder) <= bound
        same(source, FolderSource(pictures))


def batches(
    source: Source, world: int, workers: int, steps: int
) -> dict[tuple[int, int], list[torch.Tensor]]:
    crops = MultiCrop({"global": ViewOptions(size=16)}, (0.3,) * 3, (0.4,) * 3)
    data = StreamDataset(source, SampleStream(len(source), 12, 4), Cut(crops))
    found = {}
    for rank in range(world):
        loader = StepLoader(
            data, start_step=0, end_step=steps, micro_batches=2, rank=rank, world=world, workers=workers
        )
        for step, parts in enumerate(loader):
            for batch in parts:
                for row, position in enumerate(batch.positions.tolist()):
                    found[step, position] = [batch.sample_ids[row], batch.views["global"][:, row]]
    return found


@pytest.mark.service
@pytest.mark.parametrize(("world", "workers"), [(1, 0), (2, 0), (3, 0), (2, 2)])
def test_batches_are_those_of_the_folder_and_cover_each_picture_once(
    pictures: Path, bucket: str, cache: Callable[[str], Path], world: int, workers: int
) -> None:
    cache("20 kB")
    packed(pictures, joined(bucket, "t"))
    steps = 2 * COUNT // 12
    expected = batches(FolderSource(pictures), 1, 0, steps)
    found = batches(open_source(joined(bucket, "t")), world, workers, steps)
    assert found.keys() == expected.keys()
    for key, tensors in found.items():
        assert all(t.equal(e) for t, e in zip(tensors, expected[key], strict=True))
    for number in range(2):  # each pass
        ids = [int(tensors[0]) for (step, _), tensors in found.items() if step // (steps // 2) == number]
        assert sorted(ids) == list(range(COUNT))


@pytest.mark.service
def test_read_ahead_asks_once_for_neighbours(
    pictures: Path, bucket: str, cache: Callable[[str], Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    cache("5 kB")
    manifest = packed(pictures, joined(bucket, "t"))
    source = open_source(joined(bucket, "t"))
    asked: list[str] = []
    read = s3.S3Objects.read

    def counted(self: s3.S3Objects, name: str, start: int = 0, length: int | None = None) -> bytes:
        asked.append(name)
        return read(self, name, start, length)

    monkeypatch.setattr(s3.S3Objects, "read", counted)
    train, held = holdout(source, 0.2, 0)
    assert len(held)
    part = Subset(source, train)
    order = np.random.default_rng(1).permutation(len(part))
    expect(part, order)
    for index in order.tolist():
        assert part.read(index).shape == (3, 48, 48)
    assert sorted(asked) == [shard.name for shard in manifest.shards]
    expect(part, order[:3], afresh=True)
    expect(part, order[:2], afresh=True)
    assert part.read(int(order[0])).shape == part.read(int(order[5])).shape


def test_a_changed_shard_is_refused(pictures: Path, tmp_path: Path) -> None:
    manifest = packed(pictures, str(tmp_path / "t"))
    path = tmp_path / "t" / manifest.shards[1].name
    whole = path.read_bytes()
    first = manifest.shards[0].samples
    source = open_source(str(tmp_path / "t"))
    path.write_bytes(whole[:700] + bytes([whole[700] ^ 1]) + whole[701:])
    with pytest.raises(UserError, match=r"shard-000001\.tar: is not what was packed: the checksum of class-"):
        source.read(first)
    source.read(first - 1)
    path.write_bytes(whole[:-1])
    with pytest.raises(
        UserError, match=r"shard-000001\.tar has \d+ bytes, not \d+: it is not what was packed"
    ):
        open_source(str(tmp_path / "t"))
    path.unlink()
    with pytest.raises(UserError, match=r"shard-000001\.tar: is not what was packed"):
        source.read(first)
    with pytest.raises(UserError, match=r"shard-000001\.tar is missing"):
        open_source(str(tmp_path / "t"))
    path.write_bytes(whole)
    (tmp_path / "t/manifest.json").write_text("{}")
    with pytest.raises(UserError, match=r"manifest\.json: is no manifest of packed pictures"):
        open_source(str(tmp_path / "t"))


@pytest.mark.service
@pytest.mark.parametrize("workers", [0, 1])
def test_a_changed_object_is_refused_from_loader_workers_too(
    pictures: Path, bucket: str, cache: Callable[[str], Path], workers: int
) -> None:
    cache("5 kB")
    manifest = packed(pictures, joined(bucket, "t"))
    source, objects = open_source(joined(bucket, "t")), open_objects(joined(bucket, "t"))
    for shard in manifest.shards:
        objects.write(shard.name, bytes(shard.bytes))
    with pytest.raises(UserError, match="is not what was packed: the checksum of") as caught:
        batches(source, 1, workers, 1)
    assert "Traceback" not in str(caught.value)
    assert "pack --verify s3://" in caught.value.fix


@pytest.mark.service
def test_what_is_damaged_in_the_cache_is_fetched_again(
    pictures: Path, bucket: str, cache: Callable[[str], Path]
) -> None:
    folder = cache("1 GB")
    packed(pictures, joined(bucket, "t"))
    source = open_source(joined(bucket, "t"))
    assert isinstance(source, ShardSource)
    source._fill()
    damaged = sorted(folder.glob("*/*.tar"))
    for path in damaged:
        path.write_bytes(bytes(path.stat().st_size))
    same(source, FolderSource(pictures))
    assert not any(path.exists() for path in damaged)


@pytest.mark.service
def test_a_store_that_goes_away(
    pictures: Path, own_minio: MinioServer, cache: Callable[[str], Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    cache("5 kB")
    bucket = own_minio.make_bucket("pictures")
    packed(pictures, joined(bucket, "t"))
    source = open_source(joined(bucket, "t"))
    assert isinstance(source, ShardSource)
    assert isinstance(source.objects, s3.S3Objects)
    source.objects.retry_seconds = 0.5
    own_minio.stop()
    with pytest.raises(Unreachable, match=r"s3://pictures/t/shard.* could not be reached") as caught:
        batches(source, 1, 0, 1)
    assert caught.value.exit_code == EXIT_INTERRUPTED
    own_minio.start()
    monkeypatch.setenv("AWS_SESSION_TOKEN", "expired-long-ago")
    source = pickle.loads(pickle.dumps(source))
    with pytest.raises(UserError, match="the credentials have expired"):
        batches(source, 1, 0, 1)


def test_the_cache_keeps_its_bound_and_evicts_only_what_nobody_uses(tmp_path: Path) -> None:
    def fetch(size: int) -> Callable[[Path], None]:
        return lambda path: path.write_bytes(bytes(size)) and None

    old = Cache("old", tmp_path / "cache", 100)
    assert old.fill(iter([(str(i), 30, fetch(30)) for i in range(5)]))
    assert old.used() == 90
    new = Cache("new", tmp_path / "cache", 100)
    with pytest.raises(UserError, match="are too few for the index"):
        new.required("index", 20, fetch(20))
    new.required("index", 10, fetch(10))
    assert (old.used(), len(list(old.folder.glob("?")))) == (100, 3)
    os.utime(old.folder / ".used", (0, 0))
    assert new.fill(iter([("a", 40, fetch(40)), ("b", 60, fetch(60))]))
    assert not old.folder.exists()
    assert new.used() == 50
    with new.adding(wait=True):
        assert not Cache("third", tmp_path / "cache", 100).fill(iter([]))
    (new.folder / "x.part").touch()
    new.fill(iter([]))
    assert not (new.folder / "x.part").exists()


def test_a_cache_that_cannot_be_written(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(UserError, match="the cache of packed data is a file") as caught:
        Cache("x", tmp_path / "file")
    assert "SCHOLARCH_CACHE" in caught.value.fix


def test_a_full_disk_ends_filling_quietly(
    pictures: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    packed(pictures, str(tmp_path / "t"))
    source = ShardSource(open_objects(str(tmp_path / "t")))

    def full(*_: object) -> None:
        raise OSError(28, "No space left on device")

    source.cache = Cache("x", tmp_path / "cache", 10**9)
    monkeypatch.setattr(source, "_download", full)
    source._fill()
    assert source.cache.used() == 0
    shutil.rmtree(tmp_path / "cache")
    assert source.read(0).shape == (3, 48, 48)
