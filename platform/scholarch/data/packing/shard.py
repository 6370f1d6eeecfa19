"""One shard: a plain tar archive of picture files, and what the index and the manifest need of it."""

from __future__ import annotations

import hashlib
import io
import json
import tarfile
import zlib
from collections import Counter
from dataclasses import dataclass, field

import numpy as np
from PIL import Image, ImageOps

from scholarch.data.decode import decode
from scholarch.data.index import RECORD
from scholarch.data.moments import moments
from scholarch.data.packing.listing import Input
from scholarch.data.source import BrokenPicture

_BLOCK = 512
_KEPT_FORMATS = frozenset({"JPEG", "PNG", "WEBP"})


@dataclass
class Packed:
    """A finished shard without its bytes.

    Attributes:
        size, sha256: of the archive; bytes and hexadecimal.
        records: RECORD of each sample; `name_end` counts from this shard's first name.
        names: the samples' names, joined.
        broken: "name: reason" of what was left out.
        sides: number of pictures by length of the shorter side.
        kept: number of each sample within the shard's part of the listing, int64.
        moments: by number of channels: pictures, and sums of E[x] and E[x^2] of each channel.
    """

    size: int = 0
    sha256: str = ""
    records: np.ndarray = field(default_factory=lambda: np.empty(0, RECORD))
    names: bytes = b""
    kept: np.ndarray = field(default_factory=lambda: np.empty(0, np.int64))
    broken: list[str] = field(default_factory=list)
    sides: Counter[int] = field(default_factory=Counter)
    moments: dict[int, tuple[int, np.ndarray, np.ndarray]] = field(default_factory=dict)

    def to_bytes(self) -> bytes:
        """As it is kept until the whole data set is packed."""
        told = {
            "size": self.size,
            "sha256": self.sha256,
            "broken": self.broken,
            "sides": self.sides,
            "moments": {
                c: (n, first.tolist(), second.tolist()) for c, (n, first, second) in self.moments.items()
            },
        }
        file = io.BytesIO()
        names = np.frombuffer(self.names, np.uint8)
        np.savez(
            file,
            records=self.records,
            names=names,
            kept=self.kept,
            told=np.frombuffer(json.dumps(told).encode(), np.uint8),
        )
        return file.getvalue()

    @classmethod
    def from_bytes(cls, data: bytes) -> Packed:
        """The reverse of `to_bytes`."""
        with np.load(io.BytesIO(data)) as file:
            told = json.loads(file["told"].tobytes())
            return cls(
                size=told["size"],
                sha256=told["sha256"],
                records=file["records"],
                names=file["names"].tobytes(),
                kept=file["kept"],
                broken=told["broken"],
                sides=Counter({int(side): count for side, count in told["sides"].items()}),
                moments={
                    int(c): (n, np.array(first), np.array(second))
                    for c, (n, first, second) in told["moments"].items()
                },
            )

    def add(self, picture: bytes, name: bytes) -> None:
        """Measures a picture file.

        Raises:
            BrokenPicture: if it cannot be decoded.
        """
        pixels = decode(picture, name.decode("utf-8", "backslashreplace"))
        channels = pixels.shape[0]
        first, second = moments(pixels)
        count, firsts, seconds = self.moments.get(channels, (0, np.zeros(channels), np.zeros(channels)))
        self.moments[channels] = count + 1, firsts + first, seconds + second
        self.sides[int(min(pixels.shape[1:]))] += 1


def make_shard(
    source: Input, start: int, stop: int, resize: int | None, for_broken: bytes | None = None
) -> tuple[bytes, Packed]:
    """The archive of the pictures numbered start..stop-1, without the broken ones.

    The same pictures make the same bytes: times and owners are left out.

    Args:
        for_broken: what stands in the place of each broken one, where samples are features of pictures.
    """
    archive, packed, rows, names, kept = io.BytesIO(), Packed(), [], [], []
    labels, name_end = source.listing.labels, 0
    for index, (name, file) in enumerate(source.read(start, stop), start):
        try:
            if isinstance(file, BrokenPicture):
                raise file
            data = file if resize is None else resized(file, resize)
            if for_broken is None:
                packed.add(data, name)
        except BrokenPicture as broken:
            packed.broken.append(str(broken))
            if for_broken is None:
                continue
            data = for_broken
        header = tarfile.TarInfo(name.decode("utf-8", "surrogateescape"))
        header.size = len(data)
        archive.write(header.tobuf(tarfile.PAX_FORMAT, "utf-8", "surrogateescape"))
        name_end += len(name)
        label = -1 if labels is None else labels[index]
        rows.append((archive.tell(), name_end, 0, len(data), zlib.crc32(data), label))
        names.append(name)
        kept.append(index - start)
        archive.write(data)
        archive.write(bytes(-len(data) % _BLOCK))
    archive.write(bytes(2 * _BLOCK))
    content = archive.getvalue()
    packed.size, packed.sha256 = len(content), hashlib.sha256(content).hexdigest()
    packed.records, packed.names = np.array(rows, RECORD), b"".join(names)
    packed.kept = np.array(kept, np.int64)
    return content, packed


def resized(data: bytes, side: int) -> bytes:
    """A JPEG, PNG or WebP whose shorter side is at most `side`, upright; other files as they are."""
    try:
        with Image.open(io.BytesIO(data)) as opened:
            kind = opened.format
            if kind not in _KEPT_FORMATS or min(opened.size) <= side or opened.mode not in ("L", "RGB"):
                return data
            picture = ImageOps.exif_transpose(opened)
            scale = side / min(picture.size)
            size = (max(round(picture.width * scale), side), max(round(picture.height * scale), side))
            file = io.BytesIO()
            picture.resize(size, Image.Resampling.LANCZOS).save(file, kind, quality=95)
            return file.getvalue()
    except Exception:  # decoders raise whatever they like: `decode` will name the reason
        return data
