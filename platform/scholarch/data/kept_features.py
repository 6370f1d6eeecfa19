"""Pictures as the tokens that a locked backbone made of them, kept in shards (docs/text.md, "Features computed once").

Legend: b samples, T tokens of a picture (CLS, registers, patches), D width of the backbone.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import torch
from torch import Tensor

from scholarch.data.manifest import FeaturesPart, read_manifest
from scholarch.data.shards import ShardSource
from scholarch.data.source import BrokenPicture
from scholarch.storage.objects import Objects

BROKEN = b"\0"
"""Stands in the place of a picture that could not be read, so that numbers stay those of the pictures."""


def to_bytes(tokens: Tensor) -> bytes:
    """[T, D] as it is kept: its own bytes."""
    return tokens.detach().cpu().contiguous().view(torch.uint8).numpy().tobytes()


class KeptFeatures:
    """Tokens of a data set's pictures by the pictures' numbers; picklable.

    Args:
        objects: where they are kept, whole.
        view: name of the view that the pictures were seen in.

    Raises:
        UserError: if something is missing there, or is not what was written.
        Unreachable: if the store does not answer.
    """

    def __init__(self, objects: Objects, view: str) -> None:
        manifest = read_manifest(objects)
        assert manifest is not None
        assert manifest.features is not None
        self.shards = ShardSource(objects, "none", manifest=manifest, features=True)
        self.view, self.what = view, manifest.features

    def read(self, index: int) -> Tensor:
        """[T, D] of a picture, in the dtype that they were computed in.

        Raises:
            BrokenPicture: if the picture could not be read when its tokens were to be made.
        """
        data = self.shards.encoded(index)
        if data == BROKEN:
            raise BrokenPicture(self.shards.name(index), "could not be read when features were computed")
        rows = torch.frombuffer(bytearray(data), dtype=getattr(torch, self.what.dtype))
        return rows.view(self.what.tokens, self.what.width)

    def rows(self) -> FeatureRows:
        """What puts them in the rows of a batch."""
        return FeatureRows(self.view, self.what)

    @property
    def foresees(self) -> bool:
        """See scholarch.data.source."""
        return self.shards.foresees

    def expect(self, indices: np.ndarray, *, afresh: bool = False) -> None:
        """See scholarch.data.source."""
        self.shards.expect(indices, afresh=afresh)


class FeatureRows:
    """Stands where MultiCrop stands: nothing is cut, tokens are put in their row.

    Attributes:
        largest: side below which a picture counts as enlarged: none does.
    """

    largest = 0

    def __init__(self, view: str, what: FeaturesPart) -> None:
        self.view, self.what = view, what

    def fitting(self, tokens: Tensor, name: str) -> Tensor:  # noqa: ARG002
        """As they are."""
        return tokens

    def empty(self, samples: int) -> dict[str, Tensor]:
        """Room for a batch: [1, b, T, D]."""
        size = (1, samples, self.what.tokens, self.what.width)
        return {self.view: torch.empty(size, dtype=getattr(torch, self.what.dtype))}

    def fill(self, batch: Mapping[str, Tensor], row: int, tokens: Tensor, *_drawn_by: Any) -> None:
        """Writes a picture's tokens to `batch[view][0, row]`."""
        batch[self.view][0, row] = tokens
