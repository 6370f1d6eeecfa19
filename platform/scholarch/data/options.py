"""Options of views: how crops are cut and distorted (reference.md section 5.1)."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Literal


@dataclass(frozen=True, kw_only=True)
class ViewOptions:
    """The crops of one name, for example the global ones.

    Probabilities given as a tuple have one entry for each of the `count` crops.

    Attributes:
        count: crops of each picture; None: 1, or as many as the view that this one is `like`.
        size: side of the square crop, in pixels.
        scale: range of the crop's share of the picture's area.
        ratio: range of width over height before resizing, drawn evenly on a logarithmic scale.
        interpolation: of the resize, always antialiased.
        flip: probability of a mirror image.
        jitter: probability of the change of colour.
        brightness, contrast, saturation: factors are drawn from 1 - x to 1 + x.
        hue: turn of the colour circle, drawn from -x to x.
        grey: probability that colour is taken away (3 channels only).
        blur: probability, as it takes effect: the published code inverts what it is given.
        blur_sigma: range of the blur's standard deviation, in pixels.
        blur_kernel: side of the blur's window, odd.
        solarise: probability that what is brighter than the threshold is inverted.
        solarise_threshold: as a share of white.
        distortions: `all` of the above, or `none` but cropping and mirroring.
        like: another view whose crops these are, at another size. Scale, ratio, mirroring and,
            with `all`, distortions are then those of that view.
    """

    count: int | None = None
    size: int = 224
    scale: tuple[float, float] = (0.32, 1.0)
    ratio: tuple[float, float] = (3 / 4, 4 / 3)
    interpolation: Literal["bicubic", "bilinear"] = "bicubic"
    flip: float = 0.5
    jitter: float = 0.8
    brightness: float = 0.4
    contrast: float = 0.4
    saturation: float = 0.2
    hue: float = 0.1
    grey: float = 0.2
    blur: float | tuple[float, ...] = 0.5  # globals: (0.0, 0.9)
    blur_sigma: tuple[float, float] = (0.1, 2.0)
    blur_kernel: int = 9
    solarise: float | tuple[float, ...] = 0.0  # globals: (0.0, 0.2)
    solarise_threshold: float = 128 / 255
    distortions: Literal["all", "none"] = "all"
    like: str | None = None

    def __post_init__(self) -> None:
        if self.count is not None and self.count < 1:
            raise ValueError(f"count must be at least 1, not {self.count}; leave the view out for none")
        if self.size < 1:
            raise ValueError(f"size must be positive, not {self.size}")
        for name in ("flip", "jitter", "grey", "blur", "solarise"):
            self._check_probability(name)
        if not 0 < self.scale[0] <= self.scale[1] <= 1:
            raise ValueError(f"scale must be low, high with 0 < low <= high <= 1, not {self.scale}")
        for name in ("ratio", "blur_sigma"):
            low, high = getattr(self, name)
            if not 0 < low <= high:
                raise ValueError(f"{name} must be low, high with 0 < low <= high, not {(low, high)}")
        for name, most in (("brightness", 1), ("contrast", 1), ("saturation", 1), ("hue", 0.5)):
            if not 0 <= getattr(self, name) <= most:
                raise ValueError(f"{name} must lie in 0 to {most}, not {getattr(self, name)}")
        if not 0 <= self.solarise_threshold <= 1:
            raise ValueError(f"solarise_threshold must lie in 0 to 1, not {self.solarise_threshold}")
        if self.blur_kernel < 1 or self.blur_kernel % 2 == 0:
            raise ValueError(f"blur_kernel must be odd and positive, not {self.blur_kernel}")
        if self.blur_kernel // 2 >= self.size and any(self.each("blur")) and self.distortions == "all":
            raise ValueError(
                f"blur_kernel {self.blur_kernel} does not fit crops of {self.size}; make it smaller"
            )

    def _check_probability(self, name: str) -> None:
        value = getattr(self, name)
        if isinstance(value, tuple) and self.like is None and len(value) != self.crops:
            raise ValueError(
                f"{name} has {len(value)} entries for {self.crops} crops; give one for each, or a number"
            )
        for entry in value if isinstance(value, tuple) else (value,):
            if not 0 <= entry <= 1:
                raise ValueError(f"{name} is a probability, 0 to 1, not {entry}")

    @property
    def crops(self) -> int:
        """Crops of each picture; 1 when `count` is left open."""
        return 1 if self.count is None else self.count

    def each(self, name: Literal["blur", "solarise"]) -> tuple[float, ...]:
        """The probability called `name`, for each crop."""
        value = getattr(self, name)
        return value if isinstance(value, tuple) else (value,) * self.crops


def resolve_views(views: Mapping[str, ViewOptions]) -> dict[str, ViewOptions]:
    """`views` with every count set and all that a view shares with the one it is `like` copied.

    Raises:
        ValueError: naming the view, if `like` names no view, one that is itself like another, or
            one with another count.
    """
    resolved = {}
    for name, options in views.items():
        if options.like is None:
            resolved[name] = replace(options, count=options.crops)
            continue
        original = views.get(options.like)
        if original is None or original.like is not None:
            roots = ", ".join(other for other, o in views.items() if o.like is None) or "none"
            raise ValueError(
                f"view {name}: like {options.like!r} must name a view of its own crops; there are: {roots}"
            )
        if options.count not in (None, original.crops):
            raise ValueError(
                f"view {name}: count {options.count} differs from {options.like}'s {original.crops}"
            )
        resolved[name] = replace(
            original,
            count=original.crops,
            size=options.size,
            interpolation=options.interpolation,
            distortions=options.distortions,
            like=options.like,
        )
    return resolved
