"""The look at the data: counts, and mean and std against NumPy."""

import io
from pathlib import Path

import numpy as np
import pytest
import tifffile
from PIL import Image
from scholarch.data.builtin import DigitsSource, PhotosSource
from scholarch.data.catalog import open_source
from scholarch.data.mixture import Mixture, Part
from scholarch.data.source import Source
from scholarch.data.statistics import scan
from scholarch.errors import UserError


def channel_statistics(source: Source, channels: int) -> tuple[object, object]:
    report = scan(source, channels=channels)
    return report.mean, report.std


def test_digits_against_numpy() -> None:
    source = open_source("digits")
    values = np.stack([source.read(i).numpy() for i in range(len(source))]) / 255
    mean, std = channel_statistics(source, 1)
    assert mean == pytest.approx([values.mean()])
    assert std == pytest.approx([values.std()])
    assert channel_statistics(source, 3)[0] == pytest.approx([values.mean()] * 3)


def test_photos_against_numpy() -> None:
    values = np.stack([open_source("photos").read(i).numpy() for i in range(2)]) / 255
    mean, std = channel_statistics(open_source("photos"), 3)
    assert mean == pytest.approx(values.mean((0, 2, 3)))
    assert std == pytest.approx(values.std((0, 2, 3)))


def test_float_pictures_of_different_sizes_count_the_same(tmp_path: Path) -> None:
    generator = np.random.default_rng(0)
    pictures = [generator.random((6 + 3 * i, 9, 5)) * (i + 1) / 4 for i in range(4)]
    for i, picture in enumerate(pictures):
        np.save(tmp_path / f"{i}.npy", picture)
    mean, std = channel_statistics(open_source(str(tmp_path)), 5)
    first = np.mean([p.mean((0, 1)) for p in pictures], axis=0)
    second = np.mean([(p**2).mean((0, 1)) for p in pictures], axis=0)
    assert mean == pytest.approx(first, rel=1e-5)
    assert std == pytest.approx(np.sqrt(second - first**2), rel=1e-5)


def test_a_constant_channel_has_a_std_to_divide_by(tmp_path: Path) -> None:
    np.save(tmp_path / "x.npy", np.full((4, 4), 9, np.uint8))
    assert channel_statistics(open_source(str(tmp_path)), 1) == (pytest.approx((9 / 255,)), (1 / 255,))


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
    assert (report.pictures, report.checked, report.smallest) == (6, 6, 12)
    assert report.channels == {3: 3, 5: 1}
    assert report.wanted == 5
    assert [entry.split(":")[0] for entry in report.broken] == [
        "0.png",
        "1.png",
        "2.png",
        "empty.jpg",
        "text.jpg",
    ]
    coloured = scan(open_source(str(mixed)), channels=3)
    assert coloured.channels == {3: 3, 5: 1}
    assert [coloured.smaller_than(side) for side in (8, 9, 21, 31)] == [0, 1, 2, 3]


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


def test_grey_among_colour_without_channels_asked_for(tmp_path: Path) -> None:
    Image.fromarray(np.full((5, 5), 51, np.uint8)).save(tmp_path / "a.png")
    Image.fromarray(np.full((5, 5, 3), (0, 51, 153), np.uint8)).save(tmp_path / "b.png")
    found, told = (scan(open_source(str(tmp_path)), channels=channels) for channels in (None, 3))
    assert found == told
    assert (found.wanted, found.broken) == (3, [])
    assert found.mean == pytest.approx([0.1, 0.2, 0.4])


def test_a_mixture_counts_data_sets_by_their_share(tmp_path: Path) -> None:
    for name, values in (("a", (0, 51)), ("b", (102, 102, 102, 153))):
        (tmp_path / name).mkdir()
        for i, value in enumerate(values):
            np.save(tmp_path / name / f"{i}.npy", np.full((4, 4), value, np.uint8))
    parts = [("a", 3.0, 0.2), ("b", 1.0, 0.0)]
    mixture = Mixture(Part(n, open_source(str(tmp_path / n)), w, h) for n, w, h in parts)
    shares = (0.2 + 0.8 * 0.75, 0.8 * 0.25)
    values = np.array([0, 51, 102, 102, 102, 153]) / 255
    weights = np.array([shares[0] / 2] * 2 + [shares[1] / 4] * 4)
    report = scan(mixture)
    assert report.mean == pytest.approx([(weights * values).sum()])
    assert report.std == pytest.approx([np.sqrt((weights * values**2).sum() - (weights * values).sum() ** 2)])
    assert (report.pictures, report.checked, report.unusable) == (6, 6, {})


def test_a_large_data_set_does_not_hide_a_small_one() -> None:
    mixture = Mixture([Part("many", DigitsSource()), Part("few", PhotosSource())])
    report = scan(mixture, at_most=100)
    assert report.channels == {1: 50, 3: 2}
    report.require_good("data")


def test_data_sets_that_do_not_mix(tmp_path: Path) -> None:
    for name, picture in (("deep", np.zeros((4, 4, 5), np.uint8)), ("torn", None)):
        (tmp_path / name).mkdir()
        if picture is None:
            (tmp_path / name / "x.jpg").touch()
        else:
            np.save(tmp_path / name / "x.npy", picture)
    deep, torn = (Part(name, open_source(str(tmp_path / name))) for name in ("deep", "torn"))
    photos = Part("photos", PhotosSource())
    with pytest.raises(UserError, match=r"data\.sources\.photos: .*have 3 channels, and 5 are wanted"):
        scan(Mixture([deep, photos])).require_good("data")
    with pytest.raises(UserError, match=r"data\.sources\.deep: .*have 5 channels, and 3 are wanted"):
        scan(Mixture([deep, photos]), channels=3).require_good("data")
    with pytest.raises(UserError, match=r"none of the pictures of torn .* torn/x\.jpg: the file is empty"):
        scan(Mixture([photos, torn])).require_good("data")
