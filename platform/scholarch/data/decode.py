"""From the bytes of a picture file to a tensor, whatever the format and depth.

Pillow reads all common formats. Two kinds it cannot: TIFF with many channels (tifffile), and PNG
with 16 bits and colour (torchvision, whose other decoders are slower here and deprecated). Ordinary
JPEG files go to simplejpeg, which is faster (docs/decisions/0003-decoder.md).
"""

from __future__ import annotations

import io
import math
import warnings

import numpy as np
import simplejpeg
import torch
from PIL import Image, ImageOps, UnidentifiedImageError
from torch import Tensor

from scholarch.data.source import BrokenPicture

_COMMON = frozenset({".jpg", ".jpeg", ".jpe", ".jfif", ".png", ".webp", ".avif", ".gif", ".bmp", ".jp2"})
SUFFIXES = _COMMON | {".ppm", ".pgm", ".pbm", ".pnm", ".tif", ".tiff", ".npy"}
"""Endings, in lower case, of the files that are taken for pictures."""

_JPEG_MODES = {"Gray": "GRAY", "YCbCr": "RGB", "RGB": "RGB"}
_KEPT_MODES = frozenset({"L", "RGB", "I;16", "I;16L", "I;16B", "I", "F"})
_GREY_MODES = frozenset({"1", "LA", "La"})


def decode(data: bytes, name: str) -> Tensor:
    """The first picture in a file, upright (EXIF), without alpha.

    The format is told by the content, not by the name.

    Args:
        data: the whole file.
        name: for the message only.

    Returns:
        [C, H, W]: uint8 for up to 8 bits; float32 in [0, 1] for 16-bit (divided by 65,535) and float.
        CMYK, palette and the like become RGB; one-bit becomes 0 and 255.

    Raises:
        BrokenPicture: with the reason, for anything that cannot be decoded.
    """
    if not data:
        raise BrokenPicture(name, "the file is empty")
    try:
        pixels = _pixels(data)  # [H, W, C]
    except Exception as error:  # decoders raise whatever they like on broken input
        reason = str(error).strip().split("\n")[0] or type(error).__name__
        if isinstance(error, UnidentifiedImageError):
            reason = "not a picture in a known format"
        raise BrokenPicture(name, reason) from error
    if pixels.size == 0:
        raise BrokenPicture(name, f"it has no pixels: shape {pixels.shape}")
    return torch.from_numpy(_to_range(pixels, name)).permute(2, 0, 1)


def _pixels(data: bytes) -> np.ndarray:
    if data[:4] in (b"II*\0", b"MM\0*", b"II+\0", b"MM\0+"):
        return _tiff(data)
    if data[:6] == b"\x93NUMPY":
        return _numpy(data)
    # IHDR: bit depth at byte 24, colour type (2: RGB, 4: grey with alpha, 6: RGBA) at byte 25.
    if data[:8] == b"\x89PNG\r\n\x1a\n" and len(data) > 25 and data[24] == 16 and data[25] in (2, 4, 6):
        return _deep_png(data)
    if data[:3] == b"\xff\xd8\xff":
        pixels = _jpeg(data)
        if pixels is not None:
            return pixels
    return _pillow(data)


def _jpeg(data: bytes) -> np.ndarray | None:
    """An ordinary JPEG file; None for what Pillow shall read, or say what is wrong with."""
    try:
        height, width, colours, _ = simplejpeg.decode_jpeg_header(data)
        if colours not in _JPEG_MODES or height * width > (Image.MAX_IMAGE_PIXELS or math.inf):
            return None
        if b"Exif\0\0" in data[: 1 << 16]:
            with warnings.catch_warnings(), Image.open(io.BytesIO(data)) as opened:
                warnings.simplefilter("ignore")
                if opened.getexif().get(0x0112, 1) != 1:
                    return None
        # strict: a damaged file raises.
        pixels: np.ndarray = simplejpeg.decode_jpeg(data, _JPEG_MODES[colours], strict=True)
    except Exception:  # whatever it is, Pillow decides
        return None
    return pixels


def _pillow(data: bytes) -> np.ndarray:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # odd metadata is not the user's concern
        with Image.open(io.BytesIO(data)) as opened:
            picture: Image.Image = opened
            if picture.getexif().get(0x0112, 1) != 1:
                picture = ImageOps.exif_transpose(picture)
            if picture.mode not in _KEPT_MODES:
                picture = picture.convert("L" if picture.mode in _GREY_MODES else "RGB")
            pixels = np.array(picture)
    if pixels.dtype == np.int32:  # mode I: a 16-bit file in a 32-bit container
        if pixels.min() < 0 or pixels.max() > 65535:
            raise ValueError(
                f"32-bit values from {pixels.min()} to {pixels.max()}; supported: 8, 16 bits, float"
            )
        pixels = pixels.astype(np.uint16)
    return pixels[:, :, None] if pixels.ndim == 2 else pixels


def _deep_png(data: bytes) -> np.ndarray:
    from torchvision.io import ImageReadMode, decode_image

    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)
        encoded = torch.frombuffer(bytearray(data), dtype=torch.uint8)
        picture = decode_image(encoded, mode=ImageReadMode.UNCHANGED, apply_exif_orientation=True)
    pixels: np.ndarray = picture.permute(1, 2, 0).numpy()
    return pixels[:, :, : 1 if pixels.shape[2] == 2 else 3]


def _tiff(data: bytes) -> np.ndarray:
    import tifffile

    with tifffile.TiffFile(io.BytesIO(data)) as file:
        series = file.series[0]
        page = series.keyframe
        try:
            pixels: np.ndarray = series.asarray()
        except ValueError as error:
            # LZW, JPEG and the like need the optional imagecodecs; Pillow has them for plain pictures.
            if "imagecodecs" not in str(error):
                raise
            if len(series.shape) > 3 or page.samplesperpixel not in (1, 3, 4) or len(file.pages) > 1:
                raise ValueError(
                    f"TIFF compression {page.compression.name} needs `pip install imagecodecs`"
                ) from None
            return _pillow(data)
        axes, alpha = series.axes, [int(kind) for kind in page.extrasamples]
        white_is_zero = page.photometric == 0
        if page.photometric == 3:  # palette
            return _pillow(data)
    keep = [i for i, (axis, n) in enumerate(zip(axes, pixels.shape, strict=True)) if n > 1 or axis in "YX"]
    pixels, axes = pixels.reshape([pixels.shape[i] for i in keep]), "".join(axes[i] for i in keep)
    channel_axes = [axis for axis in axes if axis not in "YX"]
    if "Y" not in axes or "X" not in axes or len(channel_axes) > 1:
        raise ValueError(
            f"TIFF with axes {axes} and shape {pixels.shape}: one picture with channels is wanted"
        )
    pixels = np.moveaxis(pixels, (axes.index("Y"), axes.index("X")), (0, 1))
    pixels = pixels[:, :, None] if pixels.ndim == 2 else pixels
    if channel_axes == ["S"] and alpha and alpha[-1] in (1, 2):  # associated or unassociated alpha
        pixels = pixels[:, :, :-1]
    if white_is_zero and pixels.dtype.kind in "bu":
        pixels = ~pixels
    return pixels


def _numpy(data: bytes) -> np.ndarray:
    pixels: np.ndarray = np.load(io.BytesIO(data), allow_pickle=False)
    if pixels.ndim not in (2, 3):
        raise ValueError(f"array of shape {pixels.shape}; wanted: [H, W] or [H, W, C]")
    return pixels[:, :, None] if pixels.ndim == 2 else pixels


def _to_range(pixels: np.ndarray, name: str) -> np.ndarray:
    """uint8 as it is, all else as float32 in [0, 1]."""
    kind, size = pixels.dtype.kind, pixels.dtype.itemsize
    if kind == "b":
        return np.ascontiguousarray(pixels) * np.uint8(255)
    if kind == "u" and size == 1:
        return np.ascontiguousarray(pixels)
    if kind == "u" and size == 2:
        return pixels.astype(np.float32) / np.float32(65535)
    if kind == "f":
        low, high = float(pixels.min()), float(pixels.max())
        # NaN fails the comparison too. A little overshoot is what resampling in float leaves.
        if not (low >= -1e-3 and high <= 1 + 1e-3):
            raise BrokenPicture(name, f"float values from {low:g} to {high:g}; they must lie in [0, 1]")
        return np.clip(pixels.astype(np.float32), 0, 1)
    raise BrokenPicture(name, f"values are {pixels.dtype}; supported: uint8, uint16 and float in [0, 1]")


def to_channels(picture: Tensor, channels: int, name: str = "picture") -> Tensor:
    """`picture` [C, H, W] with as many channels as the recipe wants.

    Grey becomes 3 equal channels, RGB becomes grey by luma (ITU-R 601).

    Raises:
        BrokenPicture: for any other mismatch: channels with a meaning are never dropped.
    """
    found = picture.shape[0]
    if found == channels:
        return picture
    if found == 1 and channels == 3:
        return picture.expand(3, -1, -1)
    if found == 3 and channels == 1:
        luma = (picture * torch.tensor([0.299, 0.587, 0.114]).view(3, 1, 1)).sum(0, keepdim=True)
        return luma if picture.is_floating_point() else luma.round_().to(picture.dtype)
    raise BrokenPicture(name, f"has {found} channels, the recipe wants {channels}")
