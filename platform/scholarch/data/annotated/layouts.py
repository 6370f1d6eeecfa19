"""Standard data sets from the folders that they are published in; docs/evaluation.md shows each."""

from __future__ import annotations

import io
import json
import pickle
import xml.etree.ElementTree as ElementTree
from collections import defaultdict
from pathlib import PurePosixPath
from typing import Any

import numpy as np

from scholarch.data.annotated.face import IGNORED, Annotated, Frame, Match, Relevance, SplitName
from scholarch.data.annotated.files import (
    Files,
    NamedPictures,
    content,
    fingerprint_of,
    lines,
    numbers,
    open_files,
    pictures_below,
)
from scholarch.data.catalog import open_source
from scholarch.data.source import BrokenPicture, Source
from scholarch.data.split import Subset, holdout
from scholarch.errors import UserError
from scholarch.storage.objects import is_s3, joined, open_objects

VOC_CLASSES = (
    "background", "aeroplane", "bicycle", "bird", "boat", "bottle", "bus", "car", "cat", "chair", "cow",
    "diningtable", "dog", "horse", "motorbike", "person", "pottedplant", "sheep", "sofa", "train", "tvmonitor",
)  # fmt: skip
ADE_CLASSES = 150
MILLIMETRES = 1000.0


def folders(address: str) -> dict[SplitName, Annotated]:
    """Class folders: `train` and `val` (each a folder, or packed), or one set of which a fifth is the test split.

    Also what `data=` of a recipe names, such as `digits`.
    """
    below = open_objects(address).children() if address and (is_s3(address) or "/" in address) else []
    if {"train", "val"} <= set(below):
        train, test = (open_source(joined(address, name), "folders") for name in ("train", "val"))
        if train.classes != test.classes:
            raise UserError(
                "train and val have other classes", where=address, fix="use the same class folders"
            )
    else:
        source = open_source(address, "auto")
        if source.classes is None:
            raise UserError("has no labels", where=address, fix="put each class into a folder of its own")
        first, second = holdout(source, 0.2, 0)
        train, test = Subset(source, first), Subset(source, second)
    return {"train": _classed(train), "test": _classed(test)}


def _classed(source: Source) -> Annotated:
    return Annotated(source, {"class": source.label}, {"class": source.classes or []})


def ade20k(address: str) -> dict[SplitName, Annotated]:
    """ADE20K as in ADEChallengeData2016: `images` and `annotations` with `training` and `validation`.

    0 (other) is left out, and 1 to 150 become 0 to 149.
    """
    files = open_files(address, "images/validation", "annotations/validation")

    def split(folder: str) -> Annotated:
        names = pictures_below(files, f"images/{folder}")
        masks = [f"annotations/{folder}/{PurePosixPath(name).stem}.png" for name in names]

        def mask(index: int) -> np.ndarray:
            found = numbers(files, masks[index])
            return np.where(found == 0, IGNORED, found - 1)

        classes = [str(number) for number in range(1, ADE_CLASSES + 1)]
        return Annotated(
            NamedPictures(files, names),
            {"mask": mask},
            {"mask": classes},
            fingerprint_of(files, [*names, *masks]),
        )

    found: dict[SplitName, Annotated] = {"test": split("validation")}
    if pictures_below(files, "images/training"):
        found["train"] = split("training")
    return found


def voc(address: str) -> dict[SplitName, Annotated]:
    """PASCAL VOC's segmentation (a folder such as VOC2012): lists `ImageSets/Segmentation/train` and `val`."""
    files = open_files(address, "JPEGImages", "SegmentationClass")

    def split(name: str) -> Annotated:
        stems = lines(files, f"ImageSets/Segmentation/{name}.txt")
        names = [f"JPEGImages/{stem}.jpg" for stem in stems]
        masks = [f"SegmentationClass/{stem}.png" for stem in stems]
        return Annotated(
            NamedPictures(files, names),
            {"mask": lambda index: numbers(files, masks[index])},
            {"mask": VOC_CLASSES},
            fingerprint_of(files, [*names, *masks]),
        )

    return {"train": split("train"), "test": split("val")}


def voc_boxes(address: str) -> dict[SplitName, Annotated]:
    """PASCAL VOC's objects, list `ImageSets/Main/trainval`, as object discovery takes it: nothing is learnt."""
    files = open_files(address, "JPEGImages", "Annotations")
    stems = [line.split()[0] for line in lines(files, "ImageSets/Main/trainval.txt")]
    names = [f"JPEGImages/{stem}.jpg" for stem in stems]
    notes = [f"Annotations/{stem}.xml" for stem in stems]

    def boxes(index: int) -> np.ndarray:
        root = _xml(content(files, notes[index]), notes[index])
        found = [
            [float(one.findtext(f"bndbox/{edge}", "nan")) for edge in ("xmin", "ymin", "xmax", "ymax")]
            for one in root.iter("object")
        ]
        array = np.array(found, dtype=np.float32).reshape(-1, 4)
        if not np.isfinite(array).all():
            raise BrokenPicture(notes[index], "an object has no whole bndbox")
        # Pixels are counted from 1, and the last one is inside.
        return array - np.array([1, 1, 0, 0], dtype=np.float32)

    return {
        "test": Annotated(
            NamedPictures(files, names), {"boxes": boxes}, fingerprint=fingerprint_of(files, [*names, *notes])
        )
    }


def _xml(data: bytes, name: str) -> ElementTree.Element:
    try:
        return ElementTree.fromstring(data)
    except ElementTree.ParseError as error:
        raise BrokenPicture(name, f"is no XML: {error}") from error


def nyu(address: str) -> dict[SplitName, Annotated]:
    """NYU depth with lists `nyu_train.txt` and `nyu_test.txt`: picture, depth (16-bit PNG, mm) and focal length."""
    files = open_files(address, "nyu_test.txt")

    def split(listing: str) -> Annotated:
        pairs = [[part.lstrip("/") for part in line.split()[:2]] for line in lines(files, listing)]
        pairs = [pair for pair in pairs if len(pair) == 2 and pair[1] != "None"]
        names = [pair[0] for pair in pairs]

        def depth(index: int) -> np.ndarray:
            return (numbers(files, pairs[index][1]) / MILLIMETRES).astype(np.float32)

        every = [name for pair in pairs for name in pair]
        return Annotated(
            NamedPictures(files, names), {"depth": depth}, fingerprint=fingerprint_of(files, every)
        )

    found: dict[SplitName, Annotated] = {"test": split("nyu_test.txt")}
    if "nyu_train.txt" in files.sizes:
        found["train"] = split("nyu_train.txt")
    return found


class _Plain(pickle.Unpickler):
    """Reads lists, numbers and NumPy arrays, and refuses everything else: a pickle can hold any code."""

    def find_class(self, module: str, name: str) -> Any:
        root = module.partition(".")[0]
        if root == "numpy" and name in ("_reconstruct", "ndarray", "dtype", "scalar"):
            return super().find_class(module, name)
        raise pickle.UnpicklingError(f"holds {module}.{name}, which is no plain data")


def revisited(address: str) -> dict[SplitName, Annotated]:
    """ROxford or RParis: `gnd_*.pkl` and `jpg`. Queries, cut to their boxes, and then the gallery."""
    files = open_files(address, "jpg")
    notes = sorted(name for name in files.sizes if name.startswith("gnd_") and name.endswith(".pkl"))
    if len(notes) != 1:
        raise UserError(
            f"holds {len(notes)} files gnd_*.pkl, not one",
            where=address,
            fix="name the folder of one data set",
        )
    try:
        truth = _Plain(io.BytesIO(files.read(notes[0]))).load()
        queries, gallery, answers = truth["qimlist"], truth["imlist"], truth["gnd"]
        wanted = [_relevance(one, len(queries)) for one in answers]
        boxes = {i: _box(one["bbx"]) for i, one in enumerate(answers)}
    except (pickle.UnpicklingError, KeyError, TypeError, ValueError, EOFError) as error:
        raise UserError(
            f"is no ground truth of ROxford or RParis: {error}",
            where=f"{address}/{notes[0]}",
            fix="fetch it again",
        ) from error
    names = [f"jpg/{stem}.jpg" for stem in (*queries, *gallery)]
    return {
        "test": Annotated(
            NamedPictures(files, names, boxes),
            {"relevance": lambda index: wanted[index] if index < len(wanted) else None},
            fingerprint=fingerprint_of(files, [*names, *notes]),
        )
    }


def _relevance(answer: Any, queries: int) -> Relevance:
    easy, hard, junk = (
        np.asarray(answer[level], dtype=np.int64).reshape(-1) + queries for level in ("easy", "hard", "junk")
    )
    return Relevance(easy, hard, junk)


def _box(edges: Any) -> tuple[int, int, int, int]:
    left, top, right, bottom = (round(float(edge)) for edge in edges)
    return left, top, right, bottom


def davis(address: str) -> dict[SplitName, Annotated]:
    """DAVIS 2017: `JPEGImages/480p`, `Annotations/480p` and the list `ImageSets/2017/val.txt`."""
    files = open_files(address, "JPEGImages/480p", "Annotations/480p")
    names = [
        name
        for video in lines(files, "ImageSets/2017/val.txt")
        for name in pictures_below(files, f"JPEGImages/480p/{video}")
    ]
    masks = [f"Annotations/480p/{n.removeprefix('JPEGImages/480p/').rpartition('.')[0]}.png" for n in names]

    def objects(index: int) -> Frame:
        there = masks[index] in files.sizes
        found = numbers(files, masks[index]).astype(np.uint8) if there else None
        return Frame(PurePosixPath(names[index]).parent.name, found)

    return {
        "test": Annotated(
            NamedPictures(files, names),
            {"objects": objects},
            fingerprint=fingerprint_of(files, [*names, *masks]),
        )
    }


def spair(address: str) -> dict[SplitName, Annotated]:
    """SPair-71k: `JPEGImages/CATEGORY` and `PairAnnotation/test`."""
    files = open_files(address, "JPEGImages", "PairAnnotation/test")
    notes = [n for n in files.sizes if n.startswith("PairAnnotation/test/") and n.endswith(".json")]
    pairs = [_pair(files, name) for name in notes]
    names = sorted({name for pair in pairs for name in pair[:2]})
    number = {name: index for index, name in enumerate(names)}
    matches: dict[int, list[Match]] = defaultdict(list)
    for here, there, points, answer, extent in pairs:
        matches[number[here]].append(Match(number[there], points, answer, extent))
    return {
        "test": Annotated(
            NamedPictures(files, names),
            {"matches": lambda index: matches.get(index, [])},
            fingerprint=fingerprint_of(files, [*names, *notes]),
        )
    }


def _pair(files: Files, name: str) -> tuple[str, str, np.ndarray, np.ndarray, float]:
    try:
        note = json.loads(files.read(name))
        folder = f"JPEGImages/{note['category']}"
        points, answer = (
            np.array(note[key], dtype=np.float32).reshape(-1, 2) for key in ("src_kps", "trg_kps")
        )
        left, top, right, bottom = (float(edge) for edge in note["trg_bndbox"])
        here, there = (f"{folder}/{note[key]}" for key in ("src_imname", "trg_imname"))
    except (ValueError, KeyError, TypeError) as error:
        raise UserError(
            f"is no pair of SPair-71k: {error!r}", where=f"{files.address}/{name}", fix="fetch it again"
        ) from error
    return here, there, points, answer, max(right - left, bottom - top)
