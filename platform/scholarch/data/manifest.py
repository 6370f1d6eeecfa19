"""What packed pictures say of themselves: `manifest.json`, and the index of the samples.

shard-000000.tar ...   plain tar archives of picture files, as WebDataset and `tar` read them
index.npy              one RECORD for each sample, in order of the sample's number
names.bin              the samples' names, one after the other
captions.arrow         where there are captions, a list of them for each sample
manifest.json          written last: what makes the data set exist
"""

from __future__ import annotations

import hashlib
from typing import Literal

import numpy as np
from pydantic import BaseModel, ConfigDict, ValidationError

from scholarch.data.index import MANIFEST
from scholarch.data.moments import mean_and_std
from scholarch.data.statistics import ScanReport
from scholarch.errors import UserError
from scholarch.storage.objects import Objects, joined


class _Part(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


class FilePart(_Part):
    """A file of the data set: its name, size and SHA-256."""

    name: str
    bytes: int
    sha256: str


class ShardPart(FilePart):
    """A shard, and how many samples it holds."""

    samples: int


class Moments(_Part):
    """Mean and std of the pictures with one number of channels, each picture counting the same."""

    pictures: int
    mean: tuple[float, ...]
    std: tuple[float, ...]


class Lineage(_Part):
    """Where the pictures came from, when, and by what.

    Attributes:
        plan: digest of the listing and of the options.
    """

    source: str
    packed: str
    scholarch: str
    command: str
    plan: str


class FeaturesPart(_Part):
    """What the samples are, where they are no pictures: tokens of a locked backbone.

    Attributes:
        tokens: T, of each picture: CLS, registers, patches.
        width: D.
        dtype: torch's name of their numbers.
    """

    tokens: int
    width: int
    dtype: Literal["float32", "bfloat16", "float64"]


class Manifest(_Part):
    """The data set as a whole.

    Attributes:
        samples: pictures in all shards.
        bytes: of the picture files.
        fingerprint: as of a folder with the same names and sizes (scholarch.data.source).
        classes: names in order of their label; None without labels.
        moments: by number of channels.
        shorter_sides: number of pictures by length of the shorter side.
        broken: "name: reason" of what was left out.
        shards: in order of their samples.
        index, names: the other files.
        captions: None without.
        features: None: the samples are pictures.
    """

    format: Literal["scholarch-shards-1"] = "scholarch-shards-1"
    samples: int
    bytes: int
    fingerprint: str
    classes: tuple[str, ...] | None
    moments: dict[int, Moments]
    shorter_sides: dict[int, int]
    broken: tuple[str, ...]
    lineage: Lineage
    index: FilePart
    names: FilePart
    captions: FilePart | None = None
    features: FeaturesPart | None = None
    shards: tuple[ShardPart, ...]

    @property
    def parts(self) -> tuple[FilePart, ...]:
        """All files but the shards."""
        return (self.index, self.names, *([self.captions] if self.captions else []))

    def digest(self) -> str:
        """Equal for equal contents, whenever they were packed."""
        told = "".join(part.sha256 for part in (*self.parts, *self.shards))
        return hashlib.sha256(told.encode()).hexdigest()[:16]

    def scanned(self, channels: int | None) -> ScanReport | None:
        """What a scan of all pictures would find; None if they must be looked at to know.

        Args:
            channels: as `scholarch.data.statistics.scan` takes them.
        """
        counts = {number: part.pictures for number, part in self.moments.items()}
        channels = channels or max(counts)
        # Grey becomes colour by repetition; any other change of channels needs the pixels.
        if set(self.moments) - ({1, 3} if channels == 3 else {channels}):
            return None
        first, second = np.zeros(channels), np.zeros(channels)
        for part in self.moments.values():
            average = np.broadcast_to(part.mean, channels)
            first += part.pictures * average
            second += part.pictures * (average**2 + np.broadcast_to(part.std, channels) ** 2)
        mean, std = mean_and_std(first / self.samples, second / self.samples)
        return ScanReport(
            pictures=self.samples,
            checked=self.samples,
            broken=[],
            shorter_sides=self.shorter_sides,
            channels=counts,
            wanted=channels,
            mean=mean,
            std=std,
        )


def read_manifest(objects: Objects) -> Manifest | None:
    """The manifest of the data set at an address; None if there is none.

    Raises:
        UserError: if it is damaged, or of a version that is not known here.
        Unreachable: if the store does not answer.
    """
    try:
        text = objects.read(MANIFEST)
    except (FileNotFoundError, NotADirectoryError):
        return None
    try:
        return Manifest.model_validate_json(text)
    except ValidationError as error:
        first = error.errors()[0]
        raise UserError(
            f"is no manifest of packed pictures: {'.'.join(map(str, first['loc']))}: {first['msg']}",
            where=joined(objects.address, MANIFEST),
            fix="pack the pictures again, or use the version of scholarch that packed them",
        ) from error
