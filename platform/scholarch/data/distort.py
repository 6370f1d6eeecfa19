"""The random part of a crop: where it is cut, how it is distorted (reference.md section 5.1).

Each decision has a fixed slot in a list of uniform numbers, so that changing one option changes
no other decision.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
import torch.nn.functional
from torch import Tensor
from torchvision.transforms.v2 import functional

from scholarch.data.options import ViewOptions

TRIES = 10
GEOMETRY_DRAWS = 2 * TRIES + 3
DISTORTION_DRAWS = 13
_CHANNEL_ANGLES = (5.0, 3.0, 1.0)  # red, green, blue, in sixths of the circle


def crop_box(
    height: int, width: int, scale: tuple[float, float], ratio: tuple[float, float], uniform: Sequence[float]
) -> tuple[int, int, int, int]:
    """Top, left, height and width of a random crop: up to ten draws of area and ratio, the first that
    fits; else the largest central crop within `ratio` (as torchvision's RandomResizedCrop).

    Args:
        uniform: GEOMETRY_DRAWS numbers from U(0, 1).
    """
    logs = math.log(ratio[0]), math.log(ratio[1])
    for area, shape in zip(uniform[:TRIES], uniform[TRIES : 2 * TRIES], strict=True):
        target = height * width * (scale[0] + (scale[1] - scale[0]) * area)
        aspect = math.exp(logs[0] + (logs[1] - logs[0]) * shape)
        w, h = round(math.sqrt(target * aspect)), round(math.sqrt(target / aspect))
        if 0 < w <= width and 0 < h <= height:
            top = int(uniform[2 * TRIES] * (height - h + 1))
            left = int(uniform[2 * TRIES + 1] * (width - w + 1))
            return top, left, h, w
    aspect = min(max(width / height, ratio[0]), ratio[1])
    w = min(width, max(1, round(height * aspect)))
    h = min(height, max(1, round(width / aspect)))
    return (height - h) // 2, (width - w) // 2, h, w


def mirrored(options: ViewOptions, uniform: Sequence[float]) -> bool:
    """Whether the crop is flipped; `uniform` as for `crop_box`."""
    return uniform[2 * TRIES + 2] < options.flip


def distort(crop: Tensor, options: ViewOptions, number: int, uniform: Sequence[float]) -> Tensor:
    """Colour and grey (unless the picture had them), blur and solarisation, each or none, of crop
    `number` of its view.

    What needs colour is left out unless there are 3 channels; with other than 1 or 3 channels,
    contrast is about each channel's own mean.

    Args:
        crop: [C, H, W] float in [0, 1].
        uniform: DISTORTION_DRAWS numbers from U(0, 1).
    """
    if options.colour == "crop":
        crop = change_colour(crop, options, uniform)
    if uniform[10] < options.each("blur")[number]:
        low, high = options.blur_sigma
        crop = blur(crop, options.blur_kernel, low + (high - low) * uniform[11])
    if uniform[12] < options.each("solarise")[number]:
        crop = functional.solarize_image(crop, options.solarise_threshold)
    return crop


def change_colour(crop: Tensor, options: ViewOptions, uniform: Sequence[float]) -> Tensor:
    """The part of `distort` that is about colour, for a crop or a whole picture."""
    if uniform[0] < options.jitter:
        crop = _jitter(crop, options, uniform[1:5], uniform[5:9])
    if crop.shape[0] == 3 and uniform[9] < options.grey:
        crop = functional.rgb_to_grayscale_image(crop, num_output_channels=3)
    return crop


def _jitter(crop: Tensor, options: ViewOptions, amounts: Sequence[float], order: Sequence[float]) -> Tensor:
    strengths = (options.brightness, options.contrast, options.saturation)
    factors = [1 + strength * (2 * u - 1) for strength, u in zip(strengths, amounts, strict=False)]
    colour = crop.shape[0] == 3
    for change in sorted(range(4), key=lambda i: order[i]):
        if change == 0 and options.brightness:
            crop = (crop * factors[0]).clamp_(0, 1)
        elif change == 1 and options.contrast:
            crop = _contrast(crop, factors[1])
        elif change == 2 and options.saturation and colour:
            crop = functional.adjust_saturation_image(crop, factors[2])
        elif change == 3 and options.hue and colour:
            crop = turn_hue(crop, options.hue * (2 * amounts[3] - 1))
    return crop


def _contrast(crop: Tensor, factor: float) -> Tensor:
    if crop.shape[0] == 3:
        adjusted: Tensor = functional.adjust_contrast_image(crop, factor)
        return adjusted
    mean = crop.mean((1, 2), keepdim=True)
    return torch.lerp(mean, crop, factor).clamp_(0, 1)


def turn_hue(crop: Tensor, turn: float) -> Tensor:
    """Hue moved by `turn` of the colour circle, value and saturation kept.

    The same as torchvision's `adjust_hue`, which goes through a picture in HSV, in half the time or
    less: the angle suffices, for each channel is the largest one less a part of the spread.

    Args:
        crop: [3, H, W] in [0, 1].
    """
    low, high = torch.aminmax(crop, dim=0)
    spread = high - low
    red, green, blue = crop.unbind(0)
    divisor = torch.where(spread == 0, 1.0, spread)
    # Angle in sixths of the circle, from red.
    by_green = torch.where(high == green, (blue - red) / divisor + 2, (red - green) / divisor + 4)
    angle = torch.where(high == red, (green - blue) / divisor, by_green)
    sixth = (angle.add_(6 * turn) + crop.new_tensor(_CHANNEL_ANGLES).view(3, 1, 1)).remainder_(6)
    part = torch.minimum(sixth, 4 - sixth).clamp_(0, 1)
    return torch.addcmul(high, part, spread, value=-1)


def blur(crop: Tensor, kernel: int, sigma: float) -> Tensor:
    """Gaussian blur, mirrored at the border, as two passes of one dimension each: torchvision's is the
    same in one pass of two, up to eight times slower on small crops."""
    channels = crop.shape[0]
    reach = kernel // 2
    weights = [math.exp(-0.5 * (i / sigma) ** 2) for i in range(-reach, reach + 1)]
    window = torch.tensor(weights, dtype=crop.dtype) / sum(weights)
    padded = torch.nn.functional.pad(crop.unsqueeze(0), (reach, reach, reach, reach), mode="reflect")
    rows = torch.nn.functional.conv2d(
        padded.view(channels, 1, *padded.shape[2:]), window.view(1, 1, kernel, 1)
    )
    return torch.nn.functional.conv2d(rows, window.view(1, 1, 1, kernel)).squeeze(1)
