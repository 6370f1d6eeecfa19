"""Every format and depth against values that NumPy knows before they are written."""

import io

import numpy as np
import pytest
import tifffile
import torch
from PIL import Image
from scholarch.data.decode import decode, to_channels
from scholarch.data.source import BrokenPicture

HEIGHT, WIDTH = 24, 36


def ramp(channels: int) -> np.ndarray:
    """[H, W, C] uint8, smooth, different in each direction and channel."""
    y, x = np.mgrid[0:HEIGHT, 0:WIDTH]
    planes = [(40 + 3 * y * (c + 1) // 2 + 2 * x) % 256 for c in range(channels)]
    return np.stack(planes, axis=2).astype(np.uint8)


def encoded(picture: Image.Image, kind: str, **options: object) -> bytes:
    buffer = io.BytesIO()
    picture.save(buffer, kind, **options)
    return buffer.getvalue()


def tiff(pixels: np.ndarray, **options: object) -> bytes:
    buffer = io.BytesIO()
    tifffile.imwrite(buffer, pixels, **options)
    return buffer.getvalue()


def npy(pixels: np.ndarray) -> bytes:
    buffer = io.BytesIO()
    np.save(buffer, pixels)
    return buffer.getvalue()


def png16(pixels: np.ndarray) -> bytes:
    """A 16-bit PNG written by hand: no filter, big-endian samples."""
    import struct
    import zlib

    height, width, channels = pixels.shape
    rows = b"".join(b"\0" + row.astype(">u2").tobytes() for row in pixels)

    def chunk(name: bytes, body: bytes) -> bytes:
        return struct.pack(">I", len(body)) + name + body + struct.pack(">I", zlib.crc32(name + body))

    header = struct.pack(">IIBBBBB", width, height, 16, {1: 0, 2: 4, 3: 2, 4: 6}[channels], 0, 0, 0)
    return (
        b"\x89PNG\r\n\x1a\n"
        + chunk(b"IHDR", header)
        + chunk(b"IDAT", zlib.compress(rows))
        + chunk(b"IEND", b"")
    )


def as_array(picture: torch.Tensor) -> np.ndarray:
    return picture.permute(1, 2, 0).numpy()


@pytest.mark.parametrize("kind", ["PNG", "BMP", "PPM", "TIFF", "WEBP"])
def test_lossless_colour_is_exact(kind: str) -> None:
    options = {"lossless": True} if kind == "WEBP" else {}
    picture = decode(encoded(Image.fromarray(ramp(3)), kind, **options), "x")
    assert picture.dtype == torch.uint8
    np.testing.assert_array_equal(as_array(picture), ramp(3))


@pytest.mark.parametrize("kind", ["PNG", "TIFF", "GIF"])
def test_grey_is_exact(kind: str) -> None:
    grey = ramp(1)
    picture = decode(encoded(Image.fromarray(grey[:, :, 0]), kind), "x")
    expected = grey if picture.shape[0] == 1 else grey.repeat(3, axis=2)  # a GIF has a palette
    np.testing.assert_array_equal(as_array(picture), expected)


@pytest.mark.parametrize("kind", ["JPEG", "JPEG2000", "AVIF"])
def test_lossy_is_near(kind: str) -> None:
    picture = decode(
        encoded(Image.fromarray(ramp(3)), kind, quality=95)
        if kind != "JPEG2000"
        else encoded(Image.fromarray(ramp(3)), kind),
        "x",
    )
    assert np.abs(as_array(picture).astype(int) - ramp(3)).mean() < 3


def test_alpha_is_dropped_and_palette_is_colour() -> None:
    rgba = np.concatenate([ramp(3), np.full((HEIGHT, WIDTH, 1), 7, np.uint8)], axis=2)
    np.testing.assert_array_equal(as_array(decode(encoded(Image.fromarray(rgba), "PNG"), "x")), ramp(3))
    grey_alpha = Image.fromarray(ramp(1)[:, :, 0]).convert("LA")
    np.testing.assert_array_equal(as_array(decode(encoded(grey_alpha, "PNG"), "x")), ramp(1))
    palette = Image.fromarray(ramp(3)).quantize(8)
    picture = decode(encoded(palette, "PNG", transparency=0), "x")
    np.testing.assert_array_equal(as_array(picture), np.asarray(palette.convert("RGB")))


def test_cmyk_jpeg_is_colour() -> None:
    flat = np.full((16, 16, 4), (0, 255, 255, 0), np.uint8)  # no cyan, all magenta and yellow: red
    picture = as_array(decode(encoded(Image.fromarray(flat, mode="CMYK"), "JPEG", quality=100), "x"))
    assert picture.shape == (16, 16, 3)
    assert np.abs(picture.astype(int) - (255, 0, 0)).max() <= 4


def test_one_bit_is_black_and_white() -> None:
    bits = Image.fromarray((ramp(1)[:, :, 0] > 90).astype(np.uint8) * 255).convert("1")
    assert set(decode(encoded(bits, "PNG"), "x").unique().tolist()) == {0, 255}


@pytest.mark.parametrize("orientation", range(1, 9))
def test_orientation_is_applied(orientation: int) -> None:
    exif = Image.Exif()
    exif[0x0112] = orientation
    stored = ramp(3)
    upright = {
        1: stored,
        2: stored[:, ::-1],
        3: stored[::-1, ::-1],
        4: stored[::-1],
        5: stored.transpose(1, 0, 2),
        6: stored.transpose(1, 0, 2)[:, ::-1],
        7: stored[::-1, ::-1].transpose(1, 0, 2),
        8: stored.transpose(1, 0, 2)[::-1],
    }[orientation]
    picture = decode(encoded(Image.fromarray(stored), "PNG", exif=exif), "x")
    np.testing.assert_array_equal(as_array(picture), upright)


@pytest.mark.parametrize("channels", [1, 2, 3, 4])
def test_deep_png(channels: int) -> None:
    deep = ramp(channels).astype(np.uint16) * 257 + 3
    kept = {1: 1, 2: 1, 3: 3, 4: 3}[channels]
    picture = decode(png16(deep), "x")
    assert picture.dtype == torch.float32
    np.testing.assert_allclose(as_array(picture), deep[:, :, :kept] / 65535, rtol=0, atol=1e-7)


@pytest.mark.parametrize("layout", ["contig", "separate", "pages"])
def test_deep_tiff_with_seven_channels(layout: str) -> None:
    deep = ramp(7).astype(np.uint16) * 200
    if layout == "contig":
        data = tiff(deep, photometric="minisblack", planarconfig="contig")
    elif layout == "separate":
        data = tiff(np.moveaxis(deep, 2, 0), photometric="minisblack", planarconfig="separate")
    else:
        data = tiff(np.moveaxis(deep, 2, 0), photometric="minisblack")
    np.testing.assert_allclose(as_array(decode(data, "x")), deep / 65535, rtol=0, atol=1e-7)


def test_tiff_compressed_and_alpha_and_float() -> None:
    deep = ramp(5).astype(np.uint16) * 200
    data = tiff(deep, photometric="minisblack", planarconfig="contig", compression="deflate")
    np.testing.assert_allclose(as_array(decode(data, "x")), deep / 65535, rtol=0, atol=1e-7)
    rgba = np.concatenate([ramp(3), ramp(1)], axis=2)
    np.testing.assert_array_equal(
        as_array(decode(tiff(rgba, photometric="rgb", extrasamples=["unassalpha"]), "x")), ramp(3)
    )
    four_bands = tiff(rgba, photometric="rgb", extrasamples=["unspecified"])
    np.testing.assert_array_equal(as_array(decode(four_bands, "x")), rgba)
    share = (ramp(1)[:, :, 0] / 255).astype(np.float32)
    np.testing.assert_allclose(as_array(decode(tiff(share), "x"))[:, :, 0], share)
    inverted = tiff(255 - ramp(1)[:, :, 0], photometric="miniswhite")
    np.testing.assert_array_equal(as_array(decode(inverted, "x")), ramp(1))


def test_tiff_lzw_colour_is_read_without_optional_packages() -> None:
    data = encoded(Image.fromarray(ramp(3)), "TIFF", compression="tiff_lzw")
    np.testing.assert_array_equal(as_array(decode(data, "x")), ramp(3))


@pytest.mark.parametrize("shape", [(HEIGHT, WIDTH), (HEIGHT, WIDTH, 5)])
@pytest.mark.parametrize("kind", [np.uint8, np.uint16, np.float64, np.bool_])
def test_npy(shape: tuple[int, ...], kind: type) -> None:
    values = ramp(5)[..., : 5 if len(shape) == 3 else 1].reshape(shape)
    stored = {
        np.uint8: values,
        np.uint16: values.astype(np.uint16) * 257,
        np.float64: values / 255,
        np.bool_: values > 99,
    }
    picture = as_array(decode(npy(stored[kind]), "x"))
    expected = values / 255 if kind != np.bool_ else (values > 99).astype(float)
    found = picture / 255 if picture.dtype == np.uint8 else picture
    np.testing.assert_allclose(found, expected.reshape(HEIGHT, WIDTH, -1), rtol=0, atol=1e-6)


JPEG = encoded(Image.fromarray(ramp(3)), "JPEG")


@pytest.mark.parametrize(
    ("data", "why"),
    [
        (b"", "empty"),
        (b"this is a text, not a picture\n" * 9, "not a picture"),
        (JPEG[: len(JPEG) // 2], "runcated"),
        (encoded(Image.fromarray(ramp(3)), "PNG")[:60], ""),
        (tiff(ramp(3), photometric="rgb")[:200], ""),
        (png16(ramp(3).astype(np.uint16))[:100], ""),
        (npy(ramp(3))[:300], ""),
        (npy(np.array(["a picture"], dtype=object)), "allow_pickle"),
        (npy(ramp(3)[0, 0]), "shape (3,)"),
        (npy(np.zeros((0, 4))), "no pixels"),
        (npy(ramp(3) * 1.0), "from 40 to"),
        (npy(np.full((4, 4), np.nan)), "nan"),
        (npy(ramp(3).astype(np.int64)), "int64"),
        (tiff(np.zeros((3, 4, 8, 8), np.uint8), photometric="minisblack"), "one picture"),
    ],
)
def test_broken_is_named_with_a_reason(data: bytes, why: str) -> None:
    with pytest.raises(BrokenPicture) as caught:
        decode(data, "folder/bad.jpg")
    assert caught.value.name == "folder/bad.jpg"
    assert why in caught.value.why
    assert "\n" not in str(caught.value)


def test_to_channels() -> None:
    grey, colour = (
        torch.full((1, 2, 2), 9, dtype=torch.uint8),
        torch.tensor([200, 100, 50], dtype=torch.uint8),
    )
    assert to_channels(grey, 3).tolist() == [[[9, 9], [9, 9]]] * 3
    luma = to_channels(colour.view(3, 1, 1), 1)
    assert luma.dtype == torch.uint8
    assert luma.item() == round(0.299 * 200 + 0.587 * 100 + 0.114 * 50)
    assert to_channels(colour.view(3, 1, 1) / 255, 1).item() == pytest.approx(
        (0.299 * 200 + 58.7 + 5.7) / 255
    )
    with pytest.raises(BrokenPicture, match=r"a\.tif: has 5 channels, the recipe wants 3"):
        to_channels(torch.zeros(5, 2, 2), 3, "a.tif")


def test_decoded_pixels_can_be_written_to() -> None:
    for data in (JPEG, npy(ramp(3)), tiff(ramp(3), photometric="rgb")):
        decode(data, "x").add_(1)


def jpegs() -> dict[str, bytes]:
    colour, grey = Image.fromarray(ramp(3)), Image.fromarray(ramp(1)[:, :, 0])
    turned = Image.Exif()
    turned[0x0112] = 6
    upright = Image.Exif()
    upright[0x010E] = "a note"
    whole = encoded(colour, "JPEG", quality=90)
    return {
        "colour": whole,
        "coarse colour": encoded(colour, "JPEG", subsampling=2, quality=60),
        "progressive": encoded(colour, "JPEG", progressive=True),
        "grey": encoded(grey, "JPEG"),
        "cmyk": encoded(colour.convert("CMYK"), "JPEG"),
        "turned": encoded(colour, "JPEG", exif=turned),
        "upright": encoded(colour, "JPEG", exif=upright),
        "trailing bytes": whole + bytes(50),
        "cut": whole[: len(whole) // 2],
        "header alone": whole[:20],
        "damaged": whole[:400] + bytes(60) + whole[460:],
    }


@pytest.mark.parametrize("name", jpegs())
def test_fast_jpeg_equals_pillow(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    data = jpegs()[name]

    def outcome() -> torch.Tensor | str:
        try:
            return decode(data, "a.jpg")
        except BrokenPicture as problem:
            return str(problem)

    found = outcome()
    calls: list[bytes] = []
    monkeypatch.setattr("scholarch.data.decode._jpeg", lambda data: calls.append(data))
    expected = outcome()
    assert calls == [data]
    if isinstance(expected, str) or isinstance(found, str):
        assert found == expected
    else:
        assert torch.equal(found, expected)


def test_fast_jpeg_is_taken(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("scholarch.data.decode._pillow", None)
    for name in ("colour", "coarse colour", "progressive", "grey", "upright"):
        assert decode(jpegs()[name], name).shape[1:] == (HEIGHT, WIDTH)
