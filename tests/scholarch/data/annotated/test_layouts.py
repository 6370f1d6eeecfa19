"""Readers of standard data sets, on tiny folders made in their layout."""

from __future__ import annotations

import json
import pickle
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from scholarch.cli import main
from scholarch.data.annotated import DATA_SETS
from scholarch.data.source import BrokenPicture
from scholarch.errors import UserError
from scholarch.storage.objects import open_objects

SIDE = 8


def picture(path: Path, value: int = 100, side: int = SIDE) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(np.full((side, side, 3), value, np.uint8)).save(path)


def grey(path: Path, values: np.ndarray, palette: bool = False) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    image = Image.fromarray(values)
    if palette:
        image = image.convert("P")
        image.putdata(values.ravel().tolist())
        image.putpalette(np.random.default_rng(0).integers(0, 256, 768).tolist())
    image.save(path)


def text(path: Path, content: str) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(content)


def ade20k(root: Path) -> None:
    for folder, count in (("training", 3), ("validation", 2)):
        for number in range(count):
            picture(root / "images" / folder / f"ADE_{number}.jpg", 50 * number)
            mask = np.full((SIDE, SIDE), number, np.uint8)
            mask[0] = 150
            grey(root / "annotations" / folder / f"ADE_{number}.png", mask)


def test_ade20k_leaves_other_out_and_counts_from_zero(tmp_path: Path) -> None:
    ade20k(tmp_path)
    splits = DATA_SETS["ade20k"](str(tmp_path))
    assert (len(splits["train"]), len(splits["test"])) == (3, 2)
    mask = splits["test"].annotation(0, "mask")
    assert (set(mask[0]), set(mask[1])) == ({149}, {255})
    assert set(splits["test"].annotation(1, "mask")[1]) == {0}
    assert splits["train"].read(2).shape == (3, SIDE, SIDE)
    before = splits["test"].fingerprint()
    grey(tmp_path / "annotations/validation/ADE_0.png", np.arange(64, dtype=np.uint8).reshape(8, 8))
    assert DATA_SETS["ade20k"](str(tmp_path))["test"].fingerprint() != before


def test_voc_reads_numbers_of_the_palette(tmp_path: Path) -> None:
    mask = np.zeros((SIDE, SIDE), np.uint8)
    mask[2:4], mask[5] = 15, 255
    for stem, split in (("a", "train"), ("b", "val")):
        picture(tmp_path / "JPEGImages" / f"{stem}.jpg")
        grey(tmp_path / "SegmentationClass" / f"{stem}.png", mask, palette=True)
        text(tmp_path / "ImageSets" / "Segmentation" / f"{split}.txt", f"{stem}\n")
    splits = DATA_SETS["voc"](str(tmp_path))
    assert np.array_equal(splits["test"].annotation(0, "mask"), mask)
    assert splits["train"].name(0) == "JPEGImages/a.jpg"
    assert splits["test"].names["mask"][15] == "person"


def test_voc_boxes_count_pixels_from_zero(tmp_path: Path) -> None:
    picture(tmp_path / "JPEGImages" / "a.jpg")
    box = "<bndbox><xmin>2</xmin><ymin>3</ymin><xmax>6</xmax><ymax>8</ymax></bndbox>"
    text(tmp_path / "Annotations" / "a.xml", f"<annotation><object>{box}</object></annotation>")
    text(tmp_path / "ImageSets" / "Main" / "trainval.txt", "a\n")
    data = DATA_SETS["voc-boxes"](str(tmp_path))["test"]
    assert data.annotation(0, "boxes").tolist() == [[1, 2, 6, 8]]
    text(tmp_path / "Annotations" / "a.xml", "<annotation><obj")
    with pytest.raises(BrokenPicture, match="no XML"):
        data.annotation(0, "boxes")


def test_nyu_depth_is_in_metres(tmp_path: Path) -> None:
    for split in ("train", "test"):
        picture(tmp_path / split / "rgb_0.jpg")
        grey(tmp_path / split / "depth_0.png", np.full((SIDE, SIDE), 2500, np.uint16))
        text(
            tmp_path / f"nyu_{split}.txt",
            f"/{split}/rgb_0.jpg /{split}/depth_0.png 518.8\n/{split}/rgb_1.jpg None 518.8\n",
        )
    splits = DATA_SETS["nyu"](str(tmp_path))
    assert len(splits["test"]) == 1
    depth = splits["train"].annotation(0, "depth")
    assert depth.dtype == np.float32
    assert np.unique(depth).tolist() == [2.5]


def test_revisited_queries_are_cut_and_come_first(tmp_path: Path) -> None:
    for stem in ("q0", "g0", "g1", "g2"):
        picture(tmp_path / "jpg" / f"{stem}.jpg")
    answer = {"bbx": [1.2, 2.0, 5.1, 7.9], "easy": [2], "hard": np.array([0]), "junk": []}
    truth = {"imlist": ["g0", "g1", "g2"], "qimlist": ["q0"], "gnd": [answer]}
    (tmp_path / "gnd_roxford5k.pkl").write_bytes(pickle.dumps(truth))
    data = DATA_SETS["revisited"](str(tmp_path))["test"]
    assert len(data) == 4
    wanted = data.annotation(0, "relevance")
    assert (wanted.easy.tolist(), wanted.hard.tolist(), wanted.junk.tolist()) == ([3], [1], [])
    assert data.annotation(1, "relevance") is None
    assert data.read(0).shape == (3, 6, 4)


class Harmful:
    def __reduce__(self) -> tuple[object, tuple[str]]:
        return (print, ("run",))


def test_a_pickle_with_code_is_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    picture(tmp_path / "jpg" / "a.jpg")
    (tmp_path / "gnd_x.pkl").write_bytes(pickle.dumps({"qimlist": Harmful()}))
    with pytest.raises(UserError, match="no plain data"):
        DATA_SETS["revisited"](str(tmp_path))
    assert capsys.readouterr().out == ""


def test_davis_frames_by_video(tmp_path: Path) -> None:
    for number in range(3):
        picture(tmp_path / "JPEGImages/480p/bear" / f"{number:05d}.jpg")
    picture(tmp_path / "JPEGImages/480p/other" / "00000.jpg")
    grey(tmp_path / "Annotations/480p/bear/00000.png", np.full((SIDE, SIDE), 2, np.uint8), palette=True)
    text(tmp_path / "ImageSets/2017/val.txt", "bear\n")
    data = DATA_SETS["davis"](str(tmp_path))["test"]
    frames = [data.annotation(i, "objects") for i in range(len(data))]
    assert [frame.video for frame in frames] == ["bear"] * 3
    assert np.unique(frames[0].objects).tolist() == [2]
    assert frames[1].objects is None


def test_spair_points_and_extent(tmp_path: Path) -> None:
    for stem in ("a", "b"):
        picture(tmp_path / "JPEGImages/cat" / f"{stem}.jpg")
    note = {
        "src_imname": "a.jpg", "trg_imname": "b.jpg", "category": "cat", "src_kps": [[1, 2], [3, 4]],
        "trg_kps": [[5, 6], [7, 0]], "trg_bndbox": [1, 1, 7, 4],
    }  # fmt: skip
    text(tmp_path / "PairAnnotation/test/000-a-b.json", json.dumps(note))
    data = DATA_SETS["spair"](str(tmp_path))["test"]
    (match,) = data.annotation(0, "matches")
    assert (match.other, match.extent) == (1, 6.0)
    assert match.there.tolist() == [[5, 6], [7, 0]]
    assert data.annotation(1, "matches") == []


@pytest.mark.parametrize("split", [True, False])
def test_folders_of_classes(tmp_path: Path, split: bool) -> None:
    for part in ("train", "val") if split else ("",):
        for name in ("a", "b"):
            for number in range(5):
                picture(tmp_path / part / name / f"{number}.jpg")
    splits = DATA_SETS["folders"](str(tmp_path))
    assert (len(splits["train"]), len(splits["test"])) == ((10, 10) if split else (8, 2))
    assert [splits["test"].annotation(i, "class") for i in (0, len(splits["test"]) - 1)] == [0, 1]
    assert splits["test"].classes == ["a", "b"]


def test_digits_are_folders_too() -> None:
    assert len(DATA_SETS["folders"]("digits")["train"].classes or ()) == 10


@pytest.mark.parametrize(
    ("kind", "address", "message"),
    [
        ("ade20k", "", "data.NAME.address"),
        ("ade20k", "EMPTY", "images/validation is not in it"),
        ("davis", "EMPTY", "JPEGImages/480p is not in it"),
        ("folders", "EMPTY", "the folder is empty"),
    ],
)
def test_what_is_missing_is_told(kind: str, address: str, message: str, tmp_path: Path) -> None:
    with pytest.raises(UserError, match=message):
        DATA_SETS[kind](address.replace("EMPTY", str(tmp_path)))


def test_a_mask_that_is_missing_is_told(tmp_path: Path) -> None:
    ade20k(tmp_path)
    data = DATA_SETS["ade20k"](str(tmp_path))["test"]
    (tmp_path / "annotations/validation/ADE_0.png").unlink()
    with pytest.raises(BrokenPicture, match="no such file"):
        data.annotation(0, "mask")


@pytest.mark.service
def test_the_same_from_minio_plain_and_packed(tmp_path: Path, bucket: str) -> None:
    ade20k(tmp_path)
    plain = open_objects(f"{bucket}/plain")
    for path in tmp_path.rglob("*.*"):
        plain.upload(path.relative_to(tmp_path).as_posix(), path)
    assert main(["pack", str(tmp_path), f"{bucket}/packed", "--workers", "1"]) == 0
    expected = DATA_SETS["ade20k"](str(tmp_path))["test"]
    for name in ("plain", "packed"):
        found = DATA_SETS["ade20k"](f"{bucket}/{name}")["test"]
        assert [found.name(i) for i in range(2)] == [expected.name(i) for i in range(2)]
        for index in range(2):
            assert found.read(index).equal(expected.read(index))
            assert np.array_equal(found.annotation(index, "mask"), expected.annotation(index, "mask"))
