"""The look at the data: counts, and mean and std against NumPy."""

import io
from pathlib import Path

import numpy as np
import pytest
import tifffile
from PIL import Image
from scholarch.data.catalog import open_source
from scholarch.data.statistics import channel_statistics, scan
from scholarch.errors import UserError


def test_digits_against_numpy() -> None:
    source = open_source("digits")
    values = np.stack([source.read(i).numpy() for i in range(len(source))]) / 255
    mean, std = channel_statistics(source, 1, 0)
    assert mean == pytest.approx([values.mean()])
    assert std == pytest.approx([values.std()])
    assert channel_statistics(source, 3, 0)[0] == pytest.approx([values.mean()] * 3)


def test_photos_against_numpy() -> None:
    values = np.stack([open_source("photos").read(i).numpy() for i in range(2)]) / 255
    mean, std = channel_statistics(open_source("photos"), 3, 0)
    assert mean == pytest.approx(values.mean((0, 2, 3)))
    assert std == pytest.approx(values.std((0, 2, 3)))


def test_float_pictures_of_different_sizes_count_the_same(tmp_path: Path) -> None:
    generator = np.random.default_rng(0)
    pictures = [generator.random((6 + 3 * i, 9, 5)) * (i + 1) / 4 for i in range(4)]
    for i, picture in enumerate(pictures):
        np.save(tmp_path / f"{i}.npy", picture)
    mean, std = channel_statistics(open_source(str(tmp_path)), 5, 0)
    first = np.mean([p.mean((0, 1)) for p in pictures], axis=0)
    second = np.mean([(p**2).mean((0, 1)) for p in pictures], axis=0)
    assert mean == pytest.approx(first, rel=1e-5)
    assert std == pytest.approx(np.sqrt(second - first**2), rel=1e-5)


def test_a_constant_channel_has_a_std_to_divide_by(tmp_path: Path) -> None:
    np.save(tmp_path / "x.npy", np.full((4, 4), 9, np.uint8))
    assert channel_statistics(open_source(str(tmp_path)), 1, 0) == (pytest.approx((9 / 255,)), (1 / 255,))


@pytest.fixture
def mixed(tmp_path: Path) -> Path:
    for i, side in enumerate((8, 20, 30)):
        Image.fromarray(np.full((side, side + 5, 3), 40 * i, np.uint8)).save(tmp_path / f"{i}.png")
    buffer = io.BytesIO()
    tifffile.imwrite(
        buffer, np.zeros((12, 12, 5), np.uint16), photometric="minisblack", planarconfig="contig"
    )
    (tmp_path / "deep.tif").write_bytes(buffer.getvalue())
    (tmp_path / "empty.jpg").touch()
    (tmp_path / "text.jpg").write_text("not a picture")
    return tmp_path


def test_scan_counts(mixed: Path) -> None:
    report = scan(open_source(str(mixed)), threads=2)
    assert (report.pictures, report.checked, report.smallest) == (6, 6, 8)
    assert report.channels == {3: 3, 5: 1}
    assert [entry.split(":")[0] for entry in report.broken] == ["empty.jpg", "text.jpg"]
    assert [report.smaller_than(side) for side in (8, 9, 21, 31)] == [0, 1, 3, 4]
    assert report.mean is None


def test_scan_with_channels_names_what_does_not_fit(mixed: Path) -> None:
    report = scan(open_source(str(mixed)), channels=3, threads=1)
    assert "deep.tif: has 5 channels, the recipe wants 3" in report.broken
    assert report.mean == pytest.approx([40 / 255] * 3)
    assert report == scan(open_source(str(mixed)), channels=3, threads=4)


def test_scan_of_a_part() -> None:
    source = open_source("digits")
    parts = [scan(source, channels=1, seed=seed, at_most=100) for seed in (0, 0, 1)]
    assert parts[0] == parts[1]
    assert parts[0].mean != parts[2].mean
    assert (parts[0].pictures, parts[0].checked) == (1797, 100)
    assert parts[0].mean == pytest.approx(scan(source, channels=1, at_most=None).mean, rel=0.05)


def test_only_broken_pictures(tmp_path: Path) -> None:
    for name in "abcd":
        (tmp_path / f"{name}.jpg").touch()
    with pytest.raises(UserError, match=r"none of the 4 pictures .*: a\.jpg: the file is empty; b\.jpg"):
        scan(open_source(str(tmp_path))).require_good(f"data={tmp_path}")
    with pytest.raises(UserError, match="none of the 4"):
        channel_statistics(open_source(str(tmp_path)), 3, 0)
