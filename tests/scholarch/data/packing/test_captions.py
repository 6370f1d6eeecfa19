"""Captions travel with their pictures into shards, from every layout, past pictures that are left out."""

from __future__ import annotations

import io
import json
import pickle
import tarfile
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow
import pyarrow.parquet
import pytest
from PIL import Image
from scholarch.cli import main
from scholarch.data.catalog import open_source
from scholarch.data.mixture import Mixture, Part
from scholarch.data.source import captions, has_captions
from scholarch.data.split import Subset
from scholarch.errors import EXIT_FAILED

SAID = [["a red square", "something red"], ["синий круг"], ["a 🔴 dot", "red dot", "dot"], ["four"], ["five"]]
BROKEN = 3


def png(number: int) -> bytes:
    if number == BROKEN:
        return b"\xff\xd8\xff\0"
    file = io.BytesIO()
    Image.new("RGB", (12, 10), (20 * number, 90, 200)).save(file, "PNG")
    return file.getvalue()


def write_tar(folder: Path) -> list[str]:
    folder.mkdir()
    with tarfile.open(folder / "part.tar", "w") as archive:
        for number, said in enumerate(SAID):
            for name, data in ((f"{number}.png", png(number)), (f"{number}.txt", "\n".join(said).encode())):
                member = tarfile.TarInfo(name)
                member.size = len(data)
                archive.addfile(member, io.BytesIO(data))
    return [str(folder)]


def write_parquet(folder: Path) -> list[str]:
    folder.mkdir()
    rows = {"image": [{"bytes": png(number)} for number in range(len(SAID))], "captions": SAID}
    pyarrow.parquet.write_table(pyarrow.table(rows), folder / "rows.parquet")
    return [str(folder)]


def write_coco(folder: Path) -> list[str]:
    (folder / "train").mkdir(parents=True)
    images, annotations = [], []
    for number, said in enumerate(SAID):
        (folder / "train" / f"{number}.png").write_bytes(png(number))
        images.append({"id": 100 - number, "file_name": f"{number}.png"})
        annotations += [{"image_id": 100 - number, "caption": text} for text in said]
    images.append({"id": 7, "file_name": "unsaid.png"})
    told = [{"id": place, **entry} for place, entry in enumerate(annotations)]
    path = folder / "captions.json"
    path.write_text(json.dumps({"images": images, "annotations": told}))
    return [str(path), "--pictures", str(folder / "train")]


@pytest.mark.parametrize("write", [write_tar, write_parquet, write_coco])
def test_captions_of_every_layout(write: Any, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    given = write(tmp_path / "given")
    target = str(tmp_path / "packed")
    assert main(["pack", *given, target, "--workers", "1", "--shard-size", "300 B", "--verify"]) == 0
    assert "with captions, 1 left out" in capsys.readouterr().err
    source = open_source(target)
    assert has_captions(source)
    expected = [said for number, said in enumerate(SAID) if number != BROKEN]
    assert [list(captions(source, index)) for index in range(len(source))] == expected
    assert source.read(2)[0, 0, 0] == 40
    there = pickle.loads(pickle.dumps(source))
    assert list(captions(there, 1)) == expected[1]
    part = Subset(source, np.array([2, 0]))
    assert list(captions(part, 0)) == expected[2]
    mixed = Mixture([Part("a", part), Part("b", source)])
    assert has_captions(mixed)
    assert list(captions(mixed, 2)) == expected[0]
    assert not has_captions(Mixture([Part("a", part), Part("b", open_source("digits"))]))


def test_other_captions_are_other_data_and_damage_is_found(tmp_path: Path) -> None:
    given = write_tar(tmp_path / "given")
    assert main(["pack", *given, str(tmp_path / "a"), "--workers", "1"]) == 0
    before = open_source(str(tmp_path / "a")).fingerprint()
    (tmp_path / "given/part.tar").unlink()
    (tmp_path / "given").rmdir()
    SAID[0][0], old = "a red box!!!", SAID[0][0]
    try:
        write_tar(tmp_path / "given")
    finally:
        SAID[0][0] = old
    assert main(["pack", *given, str(tmp_path / "b"), "--workers", "1"]) == 0
    assert open_source(str(tmp_path / "b")).fingerprint() != before
    path = tmp_path / "b/captions.arrow"
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 1
    path.write_bytes(data)
    assert main(["pack", "--verify", str(tmp_path / "b")]) == EXIT_FAILED


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (lambda data: data.pop("images"), "is no captions file: KeyError"),
        (lambda data: data["annotations"].clear(), "there is no caption in it"),
        (lambda data: data["annotations"][0].update(image_id=5), "is no captions file"),
    ],
)
def test_a_captions_file_that_is_none(
    change: Any, words: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path, *more = write_coco(tmp_path / "given")
    data = json.loads(Path(path).read_text())
    change(data)
    Path(path).write_text(json.dumps(data))
    assert main(["pack", path, *more, str(tmp_path / "t")]) == 2
    assert words in capsys.readouterr().err
    assert not (tmp_path / "t").exists() or not any((tmp_path / "t").iterdir())
    assert main(["pack", path, str(tmp_path / "t")]) == 2
    assert "--pictures" in capsys.readouterr().err


def test_captions_of_some_pictures_only_are_refused(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    SAID[4], old = [], SAID[4]
    try:
        given = write_tar(tmp_path / "given")
    finally:
        SAID[4] = old
    assert main(["pack", *given, str(tmp_path / "t")]) == 2
    assert "1 of 5 pictures have no caption" in capsys.readouterr().err
