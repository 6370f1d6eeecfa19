"""What the rest of Scholarch knows of a collection of pictures."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Sequence
from typing import Any, Literal, Protocol

import numpy as np
from torch import Tensor

Labels = Literal["auto", "folders", "none"]
"""Where labels come from: `folders`: the first folder below the root names the class; `auto`: that,
when every picture lies in one of at least two such folders; `none`: there are none."""


class BrokenPicture(Exception):  # noqa: N818 - it names the thing that is found, not a failure of ours
    """A picture that cannot be used: never fatal, always named.

    Args:
        name: the picture's name within its source.
        why: what is wrong with it.
    """

    def __init__(self, name: str, why: str) -> None:
        self.name, self.why = name, why
        super().__init__(name, why)

    def __str__(self) -> str:
        return f"{self.name}: {self.why}"


class Source(Protocol):
    """Pictures by number, in an order that depends on their names alone. Picklable and stateless."""

    @property
    def classes(self) -> list[str] | None:
        """Names of the classes, in order of their label; None without labels."""
        ...

    def __len__(self) -> int: ...

    def read(self, index: int) -> Tensor:
        """[C, H, W]: uint8, or float32 in [0, 1] where the file has more than 8 bits.

        Raises:
            BrokenPicture: if it cannot be read or decoded.
        """
        ...

    def label(self, index: int) -> int | None:
        """The class of a picture, None without labels."""
        ...

    def name(self, index: int) -> str:
        """Name within the source, printable, with `/` between folders."""
        ...

    def fingerprint(self) -> str:
        """Digest of the listing (names and sizes): equal when the same samples have the same numbers."""
        ...


def expect(source: Any, indices: np.ndarray, *, afresh: bool = False) -> None:
    """Tells a source, where it cares, which pictures will be read next, in order.

    Args:
        indices: int64; they follow what was told before.
        afresh: what was told before no longer holds.
    """
    if foresees(source):
        source.expect(indices, afresh=afresh)


def foresees(source: Any) -> bool:
    """Whether a source makes use of `expect`: it then says so by a property of this name."""
    return bool(getattr(source, "foresees", False))


def has_captions(source: Source) -> bool:
    """Whether a source has captions of its pictures: it then has a method of this module's `captions`."""
    return bool(getattr(source, "captioned", hasattr(source, "captions")))


def captions(source: Source, index: int) -> Sequence[str]:
    """What is said of a picture, at least one caption; only of a source that has any."""
    found: Sequence[str] = source.captions(index)  # type: ignore[attr-defined]
    return found


def listing_fingerprint(entries: Iterable[tuple[bytes, int]]) -> str:
    """Digest, 32 hexadecimal digits, of names and sizes in order."""
    digest = hashlib.blake2b(digest_size=16)
    for name, size in entries:
        digest.update(b"%d:%s:%d;" % (len(name), name, size))
    return digest.hexdigest()
