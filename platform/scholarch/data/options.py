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
        colour: whose change of colour and grey it is: each `crop` has its own, or the whole `picture` is
            changed once, before it is cut, for all views that say so. Those must agree in `jitter`,
            `brightness`, `contrast`, `saturation`, `hue` and `grey`.
        teacher_distortions: `none`: teachers see the crops without `distortions`, the student with them.
        teacher_size: teachers see the same crops cut at this size; null: at `size`.
        within: another view; these crops are then pieces of that view's crops at their own size, the
            first ones of its first crop and so on, the same number of each, at places on the grid of
            patches. Scale, ratio and mirroring are that view's, and distortions are this view's own,
            made on the whole crop before the piece is cut.
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
    colour: Literal["crop", "picture"] = "crop"
    teacher_distortions: Literal["all", "none"] = "all"
    teacher_size: int | None = None
    within: str | None = None
    like: str | None = None

    def __post_init__(self) -> None:
        if self.count is not None and self.count < 1:
            raise ValueError(f"count must be at least 1, not {self.count}; leave the view out for none")
        if self.size < 1:
            raise ValueError(f"size must be positive, not {self.size}")
        if (self.like or self.within) and self.teacher_distortions == "none":
            raise ValueError(
                "teacher_distortions is for views with crops of their own, not like or within others"
            )
        if self.teacher_size is not None:
            self._check_teacher_size()
        if self.colour == "picture" and self.distortions == "none":
            raise ValueError("colour: picture is a distortion, and distortions are none")
        if self.like and self.within:
            raise ValueError("a view is either like another or within it")
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

    def _check_teacher_size(self) -> None:
        if self.teacher_size is None or self.teacher_size < 1:
            raise ValueError(f"teacher_size must be positive, not {self.teacher_size}")
        if self.like or self.within:
            raise ValueError("teacher_size is for views with crops of their own, not like or within others")
        if self.teacher_distortions == "none":
            raise ValueError("give teacher_size or teacher_distortions, not both")

    @property
    def fixed(self) -> bool:
        """Whether nothing is drawn: one crop, the whole of a square picture or the middle of another one."""
        chances = (*self.each("jitter"), *self.each("grey"), *self.each("blur"), *self.each("solarise"))
        plain = self.distortions == "none" or not any(chances)
        whole = self.scale == (1.0, 1.0) and self.ratio[0] == self.ratio[1] and self.flip == 0
        return self.crops == 1 and plain and whole

    def as_teachers_see(self) -> ViewOptions:
        """The view at the size of teachers."""
        return self if self.teacher_size is None else replace(self, size=self.teacher_size, teacher_size=None)

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

    def each(self, name: Literal["jitter", "grey", "blur", "solarise"]) -> tuple[float, ...]:
        """The probability called `name`, for each crop."""
        value = getattr(self, name)
        return value if isinstance(value, tuple) else (value,) * self.crops


COLOUR = ("jitter", "brightness", "contrast", "saturation", "hue", "grey")


def resolve_views(views: Mapping[str, ViewOptions]) -> dict[str, ViewOptions]:
    """`views` with every count set and all that a view shares with the one it is `like` copied.

    Raises:
        ValueError: naming the view, if `like` or `within` names no view with crops of its own, or one
            whose count or size does not fit; or if views that share a change of colour differ in it.
    """
    _check_colour(views)
    resolved = {}
    for name, options in views.items():
        original = _original(views, name, options)
        if original is None:
            resolved[name] = replace(options, count=options.crops)
            continue
        if options.within is not None:
            _check_within(name, options, original)
            resolved[name] = replace(options, count=options.crops)
            continue
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
            colour="crop",  # which one it is follows from the original
            teacher_distortions="all",
            teacher_size=None,
            like=options.like,
        )
    return resolved


def _original(views: Mapping[str, ViewOptions], name: str, options: ViewOptions) -> ViewOptions | None:
    """The view that `options` is like or within."""
    key = options.like or options.within
    if key is None:
        return None
    original = views.get(key)
    if original is None or original.like or original.within:
        roots = ", ".join(other for other, o in views.items() if not (o.like or o.within)) or "none"
        relation = "like" if options.like else "within"
        raise ValueError(
            f"view {name}: {relation} {key!r} must name a view of its own crops; there are: {roots}"
        )
    return original


def _check_within(name: str, options: ViewOptions, original: ViewOptions) -> None:
    if options.size > original.size:
        raise ValueError(
            f"view {name}: {options.size} pixels do not fit within {options.within}'s {original.size}"
        )
    if options.crops % original.crops:
        raise ValueError(
            f"view {name}: count {options.crops} is not the same number of each of {options.within}'s {original.crops}"
        )
    if options.colour != original.colour:
        raise ValueError(f"view {name}: colour must be {original.colour}, as it is of {options.within}")


def _check_colour(views: Mapping[str, ViewOptions]) -> None:
    shared = {n: o for n, o in views.items() if o.colour == "picture" and o.like is None}
    for key in COLOUR:
        if len({getattr(options, key) for options in shared.values()}) > 1:
            raise ValueError(f"{key} must be the same for {', '.join(shared)}, which share colour: picture")
