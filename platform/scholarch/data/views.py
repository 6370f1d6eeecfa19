"""From a picture to the crops that a network sees."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torchvision.transforms.v2 import InterpolationMode, functional

from scholarch import draws
from scholarch.data.decode import to_channels
from scholarch.data.distort import (
    DISTORTION_DRAWS,
    GEOMETRY_DRAWS,
    change_colour,
    crop_box,
    distort,
    mirrored,
)
from scholarch.data.options import ViewOptions, resolve_views

IMAGENET_MEAN = (0.485, 0.456, 0.406)
IMAGENET_STD = (0.229, 0.224, 0.225)
SATELLITE_MEAN = (0.430, 0.411, 0.296)
SATELLITE_STD = (0.213, 0.156, 0.143)
"""reference.md section 1.4."""


def _resize(picture: Tensor, height: int, width: int, interpolation: str) -> Tensor:
    """[C, H, W] to [C, height, width], antialiased; uint8 stays so, float stays in [0, 1]."""
    if picture.shape[1:] == (height, width):
        return picture
    mode = InterpolationMode(interpolation)
    resized: Tensor = functional.resize_image(picture, [height, width], interpolation=mode, antialias=True)
    # A bicubic kernel overshoots at edges.
    return resized.clamp_(0, 1) if resized.is_floating_point() else resized


def _to_float(picture: Tensor) -> Tensor:
    """Contiguous float32 in [0, 1]."""
    if picture.dtype == torch.uint8:
        return picture.to(torch.float32, memory_format=torch.contiguous_format).mul_(1 / 255)
    return picture.contiguous()


class _Normalise:
    def __init__(self, mean: Sequence[float], std: Sequence[float]) -> None:
        if len(mean) != len(std) or not all(s > 0 for s in std):
            raise ValueError(f"mean and std must be equally many and std positive, not {mean}, {std}")
        self.channels = len(mean)
        self._mean = torch.tensor(mean, dtype=torch.float32).view(-1, 1, 1)
        self._std = torch.tensor(std, dtype=torch.float32).view(-1, 1, 1)

    def __call__(self, picture: Tensor, out: Tensor | None = None) -> Tensor:
        """(picture - mean) / std, [C, H, W], into `out` where given."""
        return torch.sub(picture, self._mean, out=out).div_(self._std)


TEACHER = "{}/teacher"
"""Name of the crops that teachers see in place of a view's, where they differ."""


AS_CUT: dict[str, Any] = {"distortions": "none", "teacher_distortions": "all", "colour": "crop"}


def for_teachers(views: Mapping[str, ViewOptions]) -> dict[str, ViewOptions]:
    """The views that teachers see at a size of their own, at that size."""
    return {name: view.as_teachers_see() for name, view in views.items() if view.teacher_size is not None}


class MultiCrop:
    """Cuts, distorts and normalises the crops of every view of a picture.

    Order: crop and mirror, colour, blur, solarise, normalise; colour comes first where the picture has
    one for all. Views that are `like` another come from the same crop, made at the largest of their
    sizes (reference.md section 5.1, "Gram crops"): without distortions in any of them, each size is cut
    from the undistorted crop and the original's is distorted after; where they share distortions, these
    come first and the resizes after them. Views `within` another are cut from its undistorted crop.

    Args:
        views: options by name.
        mean, std: of the channels, for values in [0, 1].
        patch: pixels between the places of views that are `within` another.

    Raises:
        ValueError: from `resolve_views`, or for a std that is not positive.
    """

    def __init__(
        self, views: Mapping[str, ViewOptions], mean: Sequence[float], std: Sequence[float], patch: int = 1
    ) -> None:
        self.views = resolve_views(views)
        self.patch = patch
        self._normalise = _Normalise(mean, std)
        # What is made: the views, and what teachers see of them, which is as a view like them.
        self._made = {
            **self.views,
            **{
                TEACHER.format(name): replace(options, like=name, **AS_CUT)
                for name, options in self.views.items()
                if options.teacher_distortions == "none" and options.distortions == "all"
            },
        }
        self._families = {
            root: [name for name, other in self._made.items() if other.like == root]
            for root, options in self.views.items()
            if options.like is None and options.within is None
        }
        self._pieces_of = {
            root: [name for name, other in self.views.items() if other.within == root]
            for root in self._families
        }
        self._shared = next((o for o in self.views.values() if o.colour == "picture"), None)
        # By itself, so that these crops are those of a student whose own size that is.
        resized = for_teachers(self.views)
        self._resized = MultiCrop(resized, mean, std, patch) if resized else None

    @property
    def channels(self) -> int:
        """Channels that a picture must have."""
        return self._normalise.channels

    def fitting(self, picture: Tensor, name: str) -> Tensor:
        """The picture in these channels; raises BrokenPicture with its name if it has none that fit."""
        return to_channels(picture, self.channels, name)

    @property
    def largest(self) -> int:
        """Side of the largest crop: a picture whose shorter side is less gets upscaled."""
        return max(options.size for options in self.views.values())

    def empty(self, samples: int) -> dict[str, Tensor]:
        """Room for the crops of `samples` pictures, float32 [V, samples, C, size, size] by view."""
        room = {
            name: torch.empty(options.crops, samples, self.channels, options.size, options.size)
            for name, options in self._made.items()
        }
        if self._resized is not None:
            room |= {TEACHER.format(name): crops for name, crops in self._resized.empty(samples).items()}
        return room

    def __call__(self, picture: Tensor, seed: int, step: int, position: int) -> dict[str, Tensor]:
        """Crops of the picture at a position of a step's global batch.

        Args:
            picture: [C, H, W], uint8 or float in [0, 1].

        Returns:
            By view: float32 [V, C, size, size], normalised; as VIEW/teacher what teachers see instead.
        """
        batch = self.empty(1)
        self.fill(batch, 0, picture, seed, step, position)
        return {name: crops[:, 0] for name, crops in batch.items()}

    def fill(
        self, batch: Mapping[str, Tensor], row: int, picture: Tensor, seed: int, step: int, position: int
    ) -> None:
        """The same, written to `batch[name][:, row]`; `batch` as from `empty`."""
        if picture.shape[0] != self.channels:
            raise ValueError(f"picture has {picture.shape[0]} channels, mean and std {self.channels}")
        if self._resized is not None:
            of_teachers = {name: batch[TEACHER.format(name)] for name in self._resized.views}
            self._resized.fill(of_teachers, row, picture, seed, step, position)
        place = (seed, "step", step, position)
        recoloured = picture
        if self._shared is not None:
            uniform = draws.generator(*place, "colour of the picture").random(DISTORTION_DRAWS).tolist()
            recoloured = change_colour(_to_float(picture), self._shared, uniform)
        for root, family in self._families.items():
            options = self.views[root]
            geometry = draws.generator(*place, "crop", root).random((options.crops, GEOMETRY_DRAWS)).tolist()
            colour = self._colour_draws(place, root)
            own = recoloured if options.colour == "picture" else picture
            bases = [self._base(own, root, family, geometry[number]) for number in range(options.crops)]
            for number, base in enumerate(bases):
                for name, crop in self._crops(base, root, family, number, colour[number]).items():
                    self._normalise(crop, out=batch[name][number, row])
            for name in self._pieces_of[root]:
                offsets = self.offsets(name, seed, step, position)
                pieces = self._pieces(bases, name, offsets, self._colour_draws(place, name))
                for number, piece in enumerate(pieces):
                    self._normalise(piece, out=batch[name][number, row])

    def _colour_draws(self, place: tuple[int, str, int, int], view: str) -> list[list[float]]:
        size = (self.views[view].crops, DISTORTION_DRAWS)
        drawn: list[list[float]] = draws.generator(*place, "colour", view).random(size).tolist()
        return drawn

    def offsets(self, view: str, seed: int, step: int, position: int) -> np.ndarray:
        """Top and left, int64 [V, 2], of the crops of a view that is `within` another, in pixels of it.

        All places on the grid of patches are as likely; reference.md section 5.1.
        """
        options = self.views[view]
        assert options.within is not None
        places = (self.views[options.within].size - options.size) // self.patch + 1
        drawn = draws.generator(seed, "step", step, position, "within", view).random((options.crops, 2))
        return (drawn * places).astype(np.int64) * self.patch

    def _pieces(
        self, bases: Sequence[Tensor], name: str, offsets: np.ndarray, colour: Sequence[Sequence[float]]
    ) -> Iterator[Tensor]:
        """The crops of a view within another's, before normalisation."""
        options = self.views[name]
        assert options.within is not None
        side, each = self.views[options.within].size, options.crops // len(bases)
        for number, (top, left) in enumerate(offsets.tolist()):
            base = _resize(bases[number // each], side, side, options.interpolation)
            whole = self._distort(base, name, number, colour[number])
            yield whole[:, top : top + options.size, left : left + options.size]

    def _base(self, picture: Tensor, root: str, family: Sequence[str], geometry: Sequence[float]) -> Tensor:
        """A crop of a view as float, mirrored or not, at the largest size that is made of it."""
        options = self.views[root]
        top, left, height, width = crop_box(
            picture.shape[1], picture.shape[2], options.scale, options.ratio, geometry
        )
        side = max(self._made[name].size for name in (root, *family))
        base = picture[:, top : top + height, left : left + width]
        base = _resize(base, side, side, options.interpolation)
        return _to_float(base.flip(-1) if mirrored(options, geometry) else base)

    def _crops(
        self, base: Tensor, root: str, family: Sequence[str], number: int, colour: Sequence[float]
    ) -> dict[str, Tensor]:
        """Crop `number` of a view and of those that are like it, before normalisation."""
        options = self.views[root]
        shared = [name for name in family if self._made[name].distortions == "all"]
        small = base
        if not shared:
            small = _resize(base, options.size, options.size, options.interpolation)
        distorted = self._distort(small, root, number, colour)
        crops = {root: distorted}
        for name in family:
            other = self._made[name]
            crops[name] = _resize(
                distorted if name in shared else base, other.size, other.size, other.interpolation
            )
        crops[root] = _resize(distorted, options.size, options.size, options.interpolation)
        return crops

    def _distort(self, crop: Tensor, root: str, number: int, colour: Sequence[float]) -> Tensor:
        options = self.views[root]
        return crop if options.distortions == "none" else distort(crop, options, number, colour)


class EvaluationView:
    """The fixed view of a picture for evaluation: the shorter side to size * 256 / 224, bicubic, and the
    central square of `size` (reference.md section 9.1).

    Args:
        size: side of the result in pixels.
        mean, std: of the channels, for values in [0, 1].
    """

    def __init__(self, size: int, mean: Sequence[float], std: Sequence[float]) -> None:
        self.size = size
        self._normalise = _Normalise(mean, std)

    @property
    def channels(self) -> int:
        """Channels that a picture must have."""
        return self._normalise.channels

    def __call__(self, picture: Tensor) -> Tensor:
        """[C, H, W], uint8 or float in [0, 1], to float32 [C, size, size], normalised."""
        height, width = picture.shape[1:]
        short = round(self.size * 256 / 224)
        # The longer side is cut down, as torchvision does, and so by less than a pixel off the ratio.
        tall = height > width
        long = int(short * max(height, width) / min(height, width))
        picture = _resize(picture, long if tall else short, short if tall else long, "bicubic")
        height, width = picture.shape[1:]
        top, left = round((height - self.size) / 2), round((width - self.size) / 2)
        return self._normalise(_to_float(picture[:, top : top + self.size, left : left + self.size]))


class WholeView:
    """A whole picture in its own ratio, as near as patches allow.

    Args:
        size: pixels of the shorter side, a multiple of `patch`.
        patch: side of a patch in pixels; the longer side becomes the nearest multiple of it.
        mean, std: of the channels, for values in [0, 1].
    """

    def __init__(self, size: int, patch: int, mean: Sequence[float], std: Sequence[float]) -> None:
        self.size, self.patch = size, patch
        self._normalise = _Normalise(mean, std)

    @property
    def channels(self) -> int:
        """Channels that a picture must have."""
        return self._normalise.channels

    def __call__(self, picture: Tensor) -> Tensor:
        """[C, H, W], uint8 or float in [0, 1], to float32 [C, h * patch, w * patch], normalised."""
        shorter = min(picture.shape[1:])
        height, width = (
            max(round(side / shorter * self.size / self.patch), 1) * self.patch for side in picture.shape[1:]
        )
        return self._normalise(_to_float(_resize(picture, height, width, "bicubic")))
