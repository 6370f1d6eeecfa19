"""Packing: the same shards however it is done, resumed after a kill, readable by others, verified."""

from __future__ import annotations

import hashlib
import os
import signal
import subprocess
import sys
import tarfile
import time
from pathlib import Path

import numpy as np
import pytest
from generated_pictures import write_pictures
from PIL import Image
from scholarch import draws
from scholarch.data.catalog import open_source
from scholarch.data.manifest import Manifest
from scholarch.data.packing.pack import STATE, borders, pack
from scholarch.data.packing.places import open_input
from scholarch.data.packing.verify import verify
from scholarch.data.statistics import scan
from scholarch.errors import UserError
from scholarch.storage.objects import joined, open_objects

SHARD = 9000
BROKEN = "class-1/broken.jpg"


@pytest.fixture(scope="module")
def pictures(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("pictures")
    write_pictures(folder, 60, classes=3)
    (folder / BROKEN).write_bytes(b"\xff\xd8\xff\0")
    return folder


def packed(source: Path, target: str, workers: int = 1, resize: int | None = None) -> Manifest:
    return pack(
        open_input(str(source)),
        open_objects(target),
        address=str(source),
        command="scholarch pack",
        shard_bytes=SHARD,
        workers=workers,
        resize=resize,
    )


def digests(folder: Path) -> dict[str, str]:
    """Of all files but the manifest, which tells the time."""
    return {
        path.name: hashlib.sha256(path.read_bytes()).hexdigest()
        for path in folder.iterdir()
        if path.name != "manifest.json"
    }


def test_borders() -> None:
    assert borders([5, 5, 5, 5, 5], 10) == (0, 2, 4, 5)
    assert borders([50, 5, 5], 10) == (0, 1, 3)
    assert borders([1], 10) == (0, 1)


def test_any_number_of_workers_makes_the_same_shards(pictures: Path, tmp_path: Path) -> None:
    manifests = [packed(pictures, str(tmp_path / str(n)), n) for n in (1, 2)]
    assert len(manifests[0].shards) > 4
    assert digests(tmp_path / "1") == digests(tmp_path / "2")
    assert manifests[0].digest() == manifests[1].digest()
    assert manifests[0].broken == (f"{BROKEN}: not a picture in a known format",)
    assert not list((tmp_path / "1").glob(f"{STATE}*"))
    again = packed(pictures, str(tmp_path / "1"))
    assert again == manifests[0]


def test_what_the_manifest_says(pictures: Path, tmp_path: Path) -> None:
    manifest = packed(pictures, str(tmp_path / "t"))
    files = sorted(path for path in pictures.glob("*/0*.jpg"))
    assert manifest.samples == len(files) == sum(shard.samples for shard in manifest.shards) == 60
    assert manifest.bytes == sum(path.stat().st_size for path in files)
    assert manifest.classes == ("class-0", "class-1", "class-2")
    assert manifest.shorter_sides == {48: 60}
    values = np.stack([np.asarray(Image.open(path), np.float64) for path in files]) / 255
    assert manifest.moments[3].mean == pytest.approx(values.mean((0, 1, 2)), rel=1e-12)
    assert manifest.moments[3].std == pytest.approx(values.std((0, 1, 2)), rel=1e-9)
    assert manifest.moments[3].pictures == 60
    assert manifest.lineage.source == str(pictures)


def test_shards_are_plain_archives_of_the_files_as_they_are(pictures: Path, tmp_path: Path) -> None:
    packed(pictures, str(tmp_path / "t"))
    found = {}
    for shard in sorted((tmp_path / "t").glob("*.tar")):
        with tarfile.open(shard, "r:") as archive:
            for member in archive:
                content = archive.extractfile(member)
                assert content is not None
                found[member.name] = content.read()
    files = {str(p.relative_to(pictures)): p.read_bytes() for p in pictures.glob("*/*.jpg")}
    del files[BROKEN]
    assert found == files
    assert list(found) == sorted(files)
    # They can be packed again: the same names, labels by folders are gone.
    assert [n.decode() for n in open_input(str(tmp_path / "t")).listing.names] == sorted(files)


def test_statistics_come_from_the_manifest(pictures: Path, tmp_path: Path) -> None:
    packed(pictures, str(tmp_path / "t"))
    for shard in (tmp_path / "t").glob("*.tar"):
        shard.write_bytes(bytes(shard.stat().st_size))  # nothing can be read
    known = scan(open_source(str(tmp_path / "t")), channels=3, at_most=4)
    (pictures / BROKEN).rename(tmp_path / "away")
    try:
        looked = scan(open_source(str(pictures)), channels=3, at_most=None)
    finally:
        (tmp_path / "away").rename(pictures / BROKEN)
    assert known.mean == pytest.approx(looked.mean, rel=1e-12)
    assert known.std == pytest.approx(looked.std, rel=1e-9)
    assert (known.pictures, known.shorter_sides, known.channels) == (60, {48: 60}, {3: 60})


def test_grey_among_coloured_pictures(tmp_path: Path) -> None:
    write_pictures(tmp_path / "s", 4)
    Image.fromarray(np.full((20, 30), 51, np.uint8)).save(tmp_path / "s/grey.png")
    manifest = packed(tmp_path / "s", str(tmp_path / "t"))
    looked = scan(open_source(str(tmp_path / "s")), channels=3, at_most=None)
    known = manifest.scanned(3)
    assert known is not None
    assert known.mean == pytest.approx(looked.mean, rel=1e-12)
    assert known.std == pytest.approx(looked.std, rel=1e-9)
    assert manifest.scanned(1) is None  # luma needs the pixels


def test_resizing(tmp_path: Path) -> None:
    write_pictures(tmp_path / "s", 3, side=60)
    Image.fromarray(np.zeros((20, 90), np.uint8)).save(tmp_path / "s/flat.png")
    manifest = packed(tmp_path / "s", str(tmp_path / "t"), resize=32)
    assert manifest.shorter_sides == {32: 3, 20: 1}
    assert [len(open_source(str(tmp_path / "t")).read(i)) for i in range(4)] == [3, 3, 3, 1]


def test_a_target_with_something_else_is_refused(pictures: Path, tmp_path: Path) -> None:
    (tmp_path / "full").mkdir()
    (tmp_path / "full/letter.txt").write_text("dear")
    with pytest.raises(UserError, match=r"is not empty: it holds letter\.txt"):
        packed(pictures, str(tmp_path / "full"))
    packed(pictures, str(tmp_path / "t"))
    with pytest.raises(UserError, match="holds other packed pictures"):
        packed(pictures, str(tmp_path / "t"), resize=10)
    (tmp_path / "bad").mkdir()
    (tmp_path / "bad/x.jpg").write_bytes(b"?")
    with pytest.raises(UserError, match=r"none of the 1 pictures can be used: x\.jpg"):
        packed(tmp_path / "bad", str(tmp_path / "nothing"))


@pytest.mark.service
def test_a_killed_pack_goes_on_without_doing_finished_shards_again(pictures: Path, bucket: str) -> None:
    target = joined(bucket, "t")
    objects = open_objects(target)
    command = [
        sys.executable, "-m", "scholarch.cli", "pack", str(pictures), target, "--shard-size", "4000", "--workers", "1"
    ]  # fmt: skip
    environment = {**os.environ, "PYTHONPATH": str(Path(draws.__file__).parents[1])}
    process = subprocess.Popen(command, env=environment, stderr=subprocess.DEVNULL, start_new_session=True)
    while process.poll() is None and len(list(objects.entries(STATE))) < 4:
        time.sleep(0.01)
    os.killpg(process.pid, signal.SIGKILL)
    process.wait()
    assert objects.entry("manifest.json") is None
    with pytest.raises(UserError, match=r"manifest\.json is missing"):
        open_source(target)
    before = {entry.name for entry in objects.entries(STATE)}
    assert len(before) >= 4
    done: list[int] = []
    manifest = pack(
        open_input(str(pictures)),
        objects,
        address="",
        command="",
        shard_bytes=4000,
        workers=1,
        progress=lambda _, total, __: done.append(total),
    )
    assert done[0] < 61
    assert manifest.samples == 60
    assert verify(objects) == (manifest, [])
    assert not list(objects.entries(STATE))


def test_verify_names_what_is_damaged(pictures: Path, tmp_path: Path) -> None:
    objects = open_objects(str(tmp_path / "t"))
    manifest = packed(pictures, str(tmp_path / "t"))
    assert verify(objects) == (manifest, [])
    for number, change in ((0, "flip"), (1, "cut"), (2, "lose")):
        path = tmp_path / "t" / manifest.shards[number].name
        data = bytearray(path.read_bytes())
        data[700] ^= 1
        path.write_bytes(bytes(data) if change == "flip" else bytes(data[:-1]))
        if change == "lose":
            path.unlink()
    _, damaged = verify(objects)
    assert damaged == [
        "shard-000000.tar: its SHA-256 differs",
        "shard-000000.tar: damaged pictures: class-0/0000000.jpg",
        f"shard-000001.tar: has {manifest.shards[1].bytes - 1} bytes, not {manifest.shards[1].bytes}",
        f"shard-000001.tar: damaged pictures: {open_source_name(pictures, manifest.shards[0].samples)}",
        "shard-000002.tar: is missing",
    ]


def open_source_name(pictures: Path, number: int) -> str:
    return sorted(str(path.relative_to(pictures)) for path in pictures.glob("*/0*.jpg"))[number]
