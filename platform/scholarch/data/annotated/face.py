"""A source of pictures together with what is known of them: labels, masks, depth, boxes, relations, objects."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
from torch import Tensor

from scholarch.data.source import Source, expect, foresees

Kind = Literal["class", "mask", "depth", "boxes", "relevance", "matches", "objects", "captions"]
"""What may be known of a sample, and the type of `annotation(index, kind)`:

    class      int
    mask       [H, W] int64, class of each pixel; 255: left out
    depth      [H, W] float32, metres; 0: not measured
    boxes      [k, 4] float32, left, top, right, bottom of each object in pixels, right and bottom outside
    relevance  Relevance, or None for a sample that is no query
    matches    list of Match
    objects    Frame
    captions   sequence of str, at least one
"""
SplitName = Literal["train", "test"]
IGNORED = 255


@dataclass(frozen=True)
class Relevance:
    """What a query should find among the other samples, as numbers of samples [k] int64.

    Attributes:
        easy, hard: that show the same thing, clearly or not.
        junk: that count neither as found nor as missed.
    """

    easy: np.ndarray
    hard: np.ndarray
    junk: np.ndarray


@dataclass(frozen=True)
class Match:
    """The same points in this picture and in another one.

    Attributes:
        other: number of the other sample.
        here, there: [k, 2] float32, x and y in pixels of each picture.
        extent: pixels of the other picture that a distance is measured by (the longer side of the object).
    """

    other: int
    here: np.ndarray
    there: np.ndarray
    extent: float


@dataclass(frozen=True)
class Frame:
    """A frame of a video; frames of one video are consecutive samples.

    Attributes:
        video: its name.
        objects: [H, W] uint8, number of the object at each pixel, 0: none; None: not annotated.
    """

    video: str
    objects: np.ndarray | None


class Annotated:
    """One split of an evaluation's data; a Source as well.

    Args:
        source: the pictures.
        known: how each kind of annotation is read, by number of the sample.
        names: of the classes, by kind: `class` and `mask` have such.
        fingerprint: digest of pictures and annotations.
    """

    def __init__(
        self,
        source: Source,
        known: Mapping[Kind, Callable[[int], Any]],
        names: Mapping[Kind, Sequence[str]] | None = None,
        fingerprint: str = "",
    ) -> None:
        self.source, self.known, self.names = source, known, dict(names or {})
        self._fingerprint = fingerprint or source.fingerprint()

    @property
    def classes(self) -> list[str] | None:
        return list(self.names["class"]) if "class" in self.names else None

    @property
    def kinds(self) -> frozenset[Kind]:
        """What is known of every sample."""
        return frozenset(self.known)

    def __len__(self) -> int:
        return len(self.source)

    def read(self, index: int) -> Tensor:
        return self.source.read(index)

    def label(self, index: int) -> int | None:
        return int(self.known["class"](index)) if "class" in self.known else None

    def name(self, index: int) -> str:
        return self.source.name(index)

    def fingerprint(self) -> str:
        return self._fingerprint

    def annotation(self, index: int, kind: Kind) -> Any:
        """What is known of a sample; see Kind.

        Raises:
            BrokenPicture: if the annotation cannot be read.
            KeyError: if this is not known.
        """
        return self.known[kind](index)

    @property
    def foresees(self) -> bool:
        """Whether what is read next is worth telling."""
        return foresees(self.source)

    def expect(self, indices: np.ndarray, *, afresh: bool = False) -> None:
        """Tells the source what will be read next; see scholarch.data.source.expect."""
        expect(self.source, indices, afresh=afresh)
