"""A data set that is a choice of pictures of others: what a curation gives, and `data=` takes.

selection.json   the parts, written last
PART.npy         numbers of a part's pictures, int64, by data set
"""

from __future__ import annotations

import hashlib
import io
from collections.abc import Callable
from typing import Literal

import numpy as np
from pydantic import BaseModel, ConfigDict, ValidationError

from scholarch.data.index import SELECTION
from scholarch.data.manifest import FilePart
from scholarch.data.mixture import Mixture, Part
from scholarch.data.source import Labels, Source
from scholarch.data.split import Subset
from scholarch.errors import UserError
from scholarch.storage.objects import Objects, joined

Open = Callable[[str, Labels], Source]


class _Model(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


class Piece(_Model):
    """Pictures of one data set.

    Attributes:
        source, labels: as `data.source` and `data.labels` have them.
        fingerprint: of the data set that the numbers were chosen from.
        numbers: file of the pictures' numbers.
    """

    source: str
    labels: Labels
    fingerprint: str
    numbers: FilePart


class SelectedPart(_Model):
    """A data set of the mixture; weight and homogeneous as scholarch.data.mixture.Part has them."""

    name: str
    weight: float
    homogeneous: float
    pictures: int
    pieces: tuple[Piece, ...]


class Selection(_Model):
    """The whole.

    Attributes:
        lineage: keys of the results that it was made of, by step.
    """

    format: Literal["scholarch-selection-1"] = "scholarch-selection-1"
    parts: tuple[SelectedPart, ...]
    lineage: dict[str, str]


def write_piece(
    objects: Objects, name: str, source: str, labels: Labels, fingerprint: str, numbers: np.ndarray
) -> Piece:
    """Writes the numbers of a piece's pictures."""
    file = io.BytesIO()
    np.save(file, numbers.astype(np.int64))
    data = file.getvalue()
    objects.write(f"{name}.npy", data)
    kept = FilePart(name=f"{name}.npy", bytes=len(data), sha256=hashlib.sha256(data).hexdigest())
    return Piece(source=source, labels=labels, fingerprint=fingerprint, numbers=kept)


def read_selection(objects: Objects) -> Selection | None:
    """The selection at an address; None if there is none.

    Raises:
        UserError: if it is damaged, or of a version that is not known here.
    """
    try:
        text = objects.read(SELECTION)
    except (FileNotFoundError, NotADirectoryError):
        return None
    try:
        return Selection.model_validate_json(text)
    except ValidationError as error:
        first = error.errors()[0]
        raise UserError(
            f"is no selection of pictures: {'.'.join(map(str, first['loc']))}: {first['msg']}",
            where=joined(objects.address, SELECTION),
            fix="curate again, or use the version of scholarch that wrote it",
        ) from error


def open_selection(objects: Objects, selection: Selection, open_source: Open) -> Mixture:
    """The mixture of a selection.

    Raises:
        UserError: if a data set, or the file of its numbers, is not what it was.
    """
    opened: dict[tuple[str, Labels], Source] = {}

    def one(piece: Piece) -> Subset:
        key = (piece.source, piece.labels)
        if key not in opened:
            opened[key] = open_source(*key)
        if opened[key].fingerprint() != piece.fingerprint:
            raise UserError(
                f"{piece.source} has other pictures than when they were chosen",
                where=objects.address,
                fix="curate again",
            )
        data = objects.read(piece.numbers.name)
        if hashlib.sha256(data).hexdigest() != piece.numbers.sha256:
            raise UserError(
                "is not what was written",
                where=joined(objects.address, piece.numbers.name),
                fix="curate again",
            )
        return Subset(opened[key], np.load(io.BytesIO(data)))

    parts = []
    for part in selection.parts:
        pieces = [one(piece) for piece in part.pieces]
        source: Source = pieces[0]
        if len(pieces) > 1:
            source = Mixture(Part(f"{number:03d}", piece) for number, piece in enumerate(pieces))
        parts.append(Part(part.name, source, part.weight, part.homogeneous))
    return Mixture(parts)
