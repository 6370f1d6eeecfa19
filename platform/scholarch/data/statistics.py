"""A look at the data before anything starts: what is broken, how large, how many channels, mean and std."""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

import numpy as np

from scholarch.data.decode import to_channels
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
        channels: number of decodable pictures by channels.
        mean, std: of each channel, over pictures (each counts the same) and their pixels, for values
            in [0, 1]; None when no number of channels was asked for or no picture is good.
    """

    pictures: int
    checked: int
    broken: list[str]
    shorter_sides: dict[int, int]
    channels: dict[int, int]
    mean: tuple[float, ...] | None
    std: tuple[float, ...] | None

    @property
    def smallest(self) -> int | None:
        """Shorter side of the smallest good picture."""
        return min(self.shorter_sides, default=None)

    def smaller_than(self, side: int) -> int:
        """How many of the checked pictures have a side shorter than `side`."""
        return sum(count for length, count in self.shorter_sides.items() if length < side)

    def require_good(self, where: str) -> None:
        """Raises UserError if not one checked picture can be used."""
        if len(self.broken) == self.checked:
            some = "; ".join(self.broken[:3])
            raise UserError(
                f"none of the {self.checked} pictures checked can be used: {some}",
                where=where,
                fix="name data that can be read, with the channels that the recipe wants",
            )


@dataclass(frozen=True)
class _Look:
    """One picture's part of the report."""

    side: int
    channels: int
    moments: tuple[np.ndarray, np.ndarray] | None  # E[x], E[x^2] by channel, float64


def _look(source: Source, index: int, channels: int | None) -> _Look | BrokenPicture:
    try:
        picture = source.read(index)
        found, side = picture.shape[0], int(min(picture.shape[1:]))
        if channels is None:
            return _Look(side, found, None)
        return _Look(side, found, moments(to_channels(picture, channels, source.name(index))))
    except BrokenPicture as broken:
        return broken


def _looks(
    source: Source, indices: np.ndarray, channels: int | None, threads: int
) -> Iterator[_Look | BrokenPicture]:
    # In slices, so that results of a large source do not pile up as futures.
    with ThreadPoolExecutor(threads) as pool:
        for start in range(0, len(indices), 64 * threads):
            part = indices[start : start + 64 * threads]
            yield from pool.map(lambda index: _look(source, int(index), channels), part)


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
        channels: as the recipe wants; a picture that cannot be brought to it counts as broken. None:
            any number, and no mean and std.
        seed: chooses the pictures when there are more than `at_most`.
        at_most: pictures that are checked; None: all.
        threads: None: up to 8, one for each core.
    """
    if (known := already_scanned(source, channels)) is not None:
        return known
    total = len(source)
    count = total if at_most is None else min(total, at_most)
    indices = np.arange(count)
    if count < total:
        indices = np.sort(Permutation(total, seed, "scan")(indices))
    sides: Counter[int] = Counter()
    seen: Counter[int] = Counter()
    broken: list[str] = []
    measured: list[tuple[np.ndarray, np.ndarray]] = []
    for look in _looks(source, indices, channels, threads or min(8, os.cpu_count() or 1)):
        if isinstance(look, BrokenPicture):
            broken.append(str(look))
            continue
        sides[look.side] += 1
        seen[look.channels] += 1
        if look.moments is not None:
            measured.append(look.moments)
    mean = std = None
    if measured:
        mean, std = mean_and_std(*np.mean(measured, axis=0))
    return ScanReport(total, count, broken, dict(sides), dict(seen), mean, std)


def already_scanned(source: Source, channels: int | None) -> ScanReport | None:
    """What a source, or the one that it is a part of, knows of its pictures; None if nothing."""
    ask: Callable[[int | None], ScanReport | None] | None = getattr(source, "scanned", None)
    return None if ask is None else ask(channels)


def channel_statistics(
    source: Source, channels: int, seed: int, at_most: int = 2048
) -> tuple[tuple[float, ...], tuple[float, ...]]:
    """Mean and std of each channel for values in [0, 1], for `mean: auto`.

    Raises:
        UserError: if no picture can be used.
    """
    report = scan(source, channels=channels, seed=seed, at_most=at_most)
    report.require_good("data")
    assert report.mean is not None
    assert report.std is not None
    return report.mean, report.std
