"""A look at the data before anything starts: what is broken, how large, how many channels, mean and std."""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field, replace

import numpy as np
import torch

from scholarch.data.decode import to_channels
from scholarch.data.mixture import Mixture
from scholarch.data.moments import mean_and_std, moments
from scholarch.data.source import BrokenPicture, Source
from scholarch.data.stream import Permutation
from scholarch.errors import UserError


@dataclass(frozen=True)
class ScanReport:
    """What was found in a source.

    Attributes:
        pictures: pictures in the source.
        checked: pictures that were decoded: all, or a random part drawn from the seed.
        broken: "name: reason" of those that cannot be used, in order of the source.
        shorter_sides: number of good pictures by length of the shorter side.
        channels: number of decodable pictures by their own channels.
        wanted: channels that pictures are brought to; 0 when none can be decoded.
        mean, std: of each channel, over pictures and their pixels, for values in [0, 1]. Each picture
            counts the same; in a mixture, each data set as much as its share. None without good pictures.
        unusable: data sets of a mixture of which no picture checked is good, each with the channels of
            the first that could be decoded; 0 where none could.
    """

    pictures: int
    checked: int
    broken: list[str]
    shorter_sides: dict[int, int]
    channels: dict[int, int]
    wanted: int
    mean: tuple[float, ...] | None
    std: tuple[float, ...] | None
    unusable: dict[str, int] = field(default_factory=dict)

    @property
    def smallest(self) -> int | None:
        """Shorter side of the smallest good picture."""
        return min(self.shorter_sides, default=None)

    def smaller_than(self, side: int) -> int:
        """How many of the checked pictures have a side shorter than `side`."""
        return sum(count for length, count in self.shorter_sides.items() if length < side)

    def require_good(self, where: str) -> None:
        """Raises UserError if not one checked picture can be used, of the source or of a data set in it."""
        if len(self.broken) == self.checked:
            some = "; ".join(self.broken[:3])
            raise UserError(
                f"none of the {self.checked} pictures checked can be used: {some}",
                where=where,
                fix="name data that can be read, with the channels that the recipe wants",
            )
        for name, channels in self.unusable.items():
            if channels:
                raise UserError(
                    f"pictures of {name} have {channels} channels, and {self.wanted} are wanted of all data sets",
                    where=f"data.sources.{name}",
                    fix="mix data sets of equal channels (grey and RGB go together), or leave this one out",
                )
            some = next(entry for entry in self.broken if entry.startswith(f"{name}/"))
            raise UserError(
                f"none of the pictures of {name} that were checked can be used, such as {some}",
                where=f"data.sources.{name}",
                fix="name data that can be read",
            )


_Moments = tuple[np.ndarray, np.ndarray]
"""E[x] and E[x^2] by channel, float64."""


@dataclass(frozen=True)
class _Look:
    """One picture's part of the report.

    Attributes:
        broken: "name: reason" of a picture that cannot be used.
        channels: its own; 0 if it could not be decoded.
        moments: of its own channels, or of those asked for; None if it is broken.
    """

    broken: str = ""
    side: int = 0
    channels: int = 0
    moments: _Moments | None = None


def _look(source: Source, index: int, channels: int | None) -> _Look:
    found = side = 0
    try:
        picture = source.read(index)
        found, side = picture.shape[0], int(min(picture.shape[1:]))
        if channels is not None:
            picture = to_channels(picture, channels, source.name(index))
    except BrokenPicture as broken:
        return _Look(str(broken), side, found)
    return _Look("", side, found, moments(picture))


def _looks(source: Source, indices: np.ndarray, channels: int | None, threads: int) -> Iterator[_Look]:
    # In slices, so that results of a large source do not pile up as futures.
    with ThreadPoolExecutor(threads) as pool:
        for start in range(0, len(indices), 64 * threads):
            part = indices[start : start + 64 * threads]
            yield from pool.map(lambda index: _look(source, int(index), channels), part)


def _brought_to(look: _Look, channels: int, name: str) -> _Look:
    """As if the picture had been brought to `channels`, which are no fewer than its own."""
    if look.moments is None or look.channels == channels:
        return look
    try:
        # The rule of `to_channels` on pictures of one pixel: only grey into colour can happen here.
        first, second = (
            to_channels(torch.from_numpy(values)[:, None, None], channels, name)[:, 0, 0].numpy()
            for values in look.moments
        )
    except BrokenPicture as broken:
        return replace(look, broken=str(broken), moments=None)
    return replace(look, moments=(first, second))


def _chosen(source: Source, at_most: int | None, seed: int, *key: str) -> np.ndarray:
    """Numbers of the pictures that are checked, sorted."""
    total = len(source)
    count = total if at_most is None else min(total, at_most)
    indices = np.arange(count)
    return indices if count == total else np.sort(Permutation(total, seed, "scan", *key)(indices))


def scan(
    source: Source,
    *,
    channels: int | None = None,
    seed: int = 0,
    at_most: int | None = 2048,
    threads: int | None = None,
) -> ScanReport:
    """Decodes pictures of `source` and reports what is found; the same for any number of threads.

    Packed pictures were all looked at when they were packed, and are not read again.

    Args:
        channels: as the recipe wants; a picture that cannot be brought to it counts as broken. None: the
            most that a checked picture has: grey pictures among coloured ones are made coloured.
        seed: chooses the pictures when there are more than `at_most`.
        at_most: pictures that are checked, in a mixture the same number of each data set; None: all.
        threads: None: up to 8, one for each core.
    """
    if (known := already_scanned(source, channels)) is not None:
        return known
    threads = threads or min(8, os.cpu_count() or 1)
    if isinstance(source, Mixture):
        each = None if at_most is None else -(-at_most // len(source.parts))
        chosen = [
            start + _chosen(part.source, each, seed, part.name)
            for start, part in zip(source.starts, source.parts, strict=True)
        ]
    else:
        chosen = [_chosen(source, at_most, seed)]
    every = np.concatenate(chosen)
    looks = list(_looks(source, every, channels, threads))
    wanted = channels or max((look.channels for look in looks), default=0)
    looks = [
        _brought_to(look, wanted, source.name(index))
        for look, index in zip(looks, every.tolist(), strict=True)
    ]
    ends = np.cumsum([len(indices) for indices in chosen])
    parts = [looks[end - len(indices) : end] for end, indices in zip(ends, chosen, strict=True)]
    mean, std = _statistics(parts, source.shares if isinstance(source, Mixture) else [1.0])
    return ScanReport(
        pictures=len(source),
        checked=len(looks),
        broken=[look.broken for look in looks if look.broken],
        shorter_sides=dict(Counter(look.side for look in looks if not look.broken)),
        channels=dict(Counter(look.channels for look in looks if look.channels)),
        wanted=wanted,
        mean=mean,
        std=std,
        unusable=_unusable(source, parts) if isinstance(source, Mixture) else {},
    )


def _statistics(
    parts: Sequence[Sequence[_Look]], shares: Sequence[float]
) -> tuple[tuple[float, ...], tuple[float, ...]] | tuple[None, None]:
    """Mean and std of each channel over data sets in their shares."""
    known = [[look.moments for look in looks if look.moments is not None] for looks in parts]
    weights = [share for share, moments in zip(shares, known, strict=True) if moments]
    if not weights:
        return None, None
    means = [np.mean(moments, axis=0) for moments in known if moments]
    return mean_and_std(*(means[0] if len(means) == 1 else np.average(means, axis=0, weights=weights)))


def already_scanned(source: Source, channels: int | None) -> ScanReport | None:
    """What a source, or the one that it is a part of, knows of its pictures; None if nothing."""
    ask: Callable[[int | None], ScanReport | None] | None = getattr(source, "scanned", None)
    return None if ask is None else ask(channels)


def _unusable(mixture: Mixture, parts: Sequence[Sequence[_Look]]) -> dict[str, int]:
    return {
        part.name: next((look.channels for look in looks if look.channels), 0)
        for part, looks in zip(mixture.parts, parts, strict=True)
        if all(look.broken for look in looks)
    }
