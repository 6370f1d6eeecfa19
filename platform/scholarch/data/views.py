"""From a picture to the crops that a network sees."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor
from torchvision.transforms.v2 import InterpolationMode, functional

from scholarch import draws
from scholarch.data.distort import DISTORTION_DRAWS, GEOMETRY_DRAWS, crop_box, distort, mirrored
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


class MultiCrop:
    """Cuts, distorts and normalises the crops of every view of a picture.

    Order: crop and mirror, colour, blur, solarise, normalise. Views that are `like` another come from
    the same crop, made at the largest of their sizes (reference.md section 5.1, "Gram crops"): without
    distortions in any of them, each size is cut from the undistorted crop and the original's is
    distorted after; where they share distortions, these come first and the resizes after them.

    Args:
        views: options by name.
        mean, std: of the channels, for values in [0, 1].

    Raises:
        ValueError: from `resolve_views`, or for a std that is not positive.
    """

    def __init__(self, views: Mapping[str, ViewOptions], mean: Sequence[float], std: Sequence[float]) -> None:
        self.views = resolve_views(views)
        self._normalise = _Normalise(mean, std)
        self._families = {
            root: [name for name, other in self.views.items() if other.like == root]
            for root, options in self.views.items()
            if options.like is None
        }

    @property
    def channels(self) -> int:
        """Channels that a picture must have."""
        return self._normalise.channels

    @property
    def largest(self) -> int:
        """Side of the largest crop: a picture whose shorter side is less gets upscaled."""
        return max(options.size for options in self.views.values())

    def empty(self, samples: int) -> dict[str, Tensor]:
        """Room for the crops of `samples` pictures, float32 [V, samples, C, size, size] by view."""
        return {
            name: torch.empty(options.crops, samples, self.channels, options.size, options.size)
            for name, options in self.views.items()
        }

    def __call__(self, picture: Tensor, seed: int, step: int, position: int) -> dict[str, Tensor]:
        """Crops of the picture at a position of a step's global batch.

        Args:
            picture: [C, H, W], uint8 or float in [0, 1].

        Returns:
            By view: float32 [V, C, size, size], normalised.
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
        place = (seed, "step", step, position)
        for root, family in self._families.items():
            count = self.views[root].crops
            geometry = draws.generator(*place, "crop", root).random((count, GEOMETRY_DRAWS)).tolist()
            colour = draws.generator(*place, "colour", root).random((count, DISTORTION_DRAWS)).tolist()
            for number in range(count):
                crops = self._crops(picture, root, family, number, geometry[number], colour[number])
                for name, crop in crops.items():
                    self._normalise(crop, out=batch[name][number, row])

    def _crops(
        self,
        picture: Tensor,
        root: str,
        family: Sequence[str],
        number: int,
        geometry: Sequence[float],
        colour: Sequence[float],
    ) -> dict[str, Tensor]:
        """Crop `number` of a view and of those that are like it, before normalisation."""
        options = self.views[root]
        top, left, height, width = crop_box(
            picture.shape[1], picture.shape[2], options.scale, options.ratio, geometry
        )
        side = max(self.views[name].size for name in (root, *family))
        base = picture[:, top : top + height, left : left + width]
        base = _resize(base, side, side, options.interpolation)
        if mirrored(options, geometry):
            base = base.flip(-1)
        base = _to_float(base)
        shared = [name for name in family if self.views[name].distortions == "all"]
        if not shared and side != options.size:
            distorted = self._distort(
                _resize(base, options.size, options.size, options.interpolation), root, number, colour
            )
        else:
            distorted = self._distort(base, root, number, colour)
        crops = {root: distorted}
        for name in family:
            other = self.views[name]
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

    def __call__(self, picture: Tensor) -> Tensor:
        """[C, H, W], uint8 or float in [0, 1], to float32 [C, h * patch, w * patch], normalised."""
        shorter = min(picture.shape[1:])
        height, width = (
            max(round(side / shorter * self.size / self.patch), 1) * self.patch for side in picture.shape[1:]
        )
        return self._normalise(_to_float(_resize(picture, height, width, "bicubic")))
