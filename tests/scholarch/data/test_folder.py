"""Listings: order, labels, links, odd names; and each way a folder can be wrong."""

import os
import pickle
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from scholarch.data.folder import FolderSource
from scholarch.data.source import BrokenPicture
from scholarch.errors import UserError


def write(path: Path, value: int = 0) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(np.full((4, 5, 3), value, np.uint8)).save(path, "PNG")


@contextmanager
def as_nobody() -> Iterator[None]:
    """Without root's right to read everything."""
    user = os.geteuid()
    if user == 0:
        os.seteuid(65534)
    try:
        yield
    finally:
        if user == 0:
            os.seteuid(0)


def names(source: FolderSource) -> list[str]:
    return [source.name(i) for i in range(len(source))]


def test_nested_names_are_sorted_whatever_order_they_were_made_in(tmp_path: Path) -> None:
    made = ["b/2.png", "a/z.PNG", "top.jpg", "b/inner/deeper/1.png", "ü/日本.png", "a b/c d.png"]
    for root, order in (("one", made), ("two", made[::-1])):
        for value, name in enumerate(sorted(order)):
            write(tmp_path / root / name, value)
    one, two = FolderSource(tmp_path / "one"), FolderSource(tmp_path / "two")
    assert names(one) == names(two) == sorted(made, key=os.fsencode)
    assert one.fingerprint() == two.fingerprint()
    for index, name in enumerate(names(one)):
        assert one.read(index)[0, 0, 0] == sorted(made).index(name)


def test_hidden_and_other_files_are_left_out(tmp_path: Path) -> None:
    for name in ("x.png", ".hidden.png", ".git/y.png", "._x.png"):
        write(tmp_path / name)
    (tmp_path / "notes.txt").write_text("text")
    assert names(FolderSource(tmp_path)) == ["x.png"]


def test_links_are_followed_once(tmp_path: Path) -> None:
    write(tmp_path / "data/real/x.png")
    write(tmp_path / "outside/y.png")
    (tmp_path / "data/a-link").symlink_to(tmp_path / "data/real")  # already there under its own name
    (tmp_path / "data/b-link").symlink_to(tmp_path / "outside")
    (tmp_path / "data/c-link").symlink_to(tmp_path / "outside")
    (tmp_path / "outside/loop").symlink_to(tmp_path / "data")
    (tmp_path / "data/gone.png").symlink_to(tmp_path / "nowhere.png")
    source = FolderSource(tmp_path / "data")
    assert len(source) == 3
    assert names(source)[0] in ("b-link/y.png", "c-link/y.png")
    assert names(source)[1:] == ["gone.png", "real/x.png"]
    with pytest.raises(BrokenPicture, match=r"gone\.png: No such file"):
        source.read(1)


def test_a_name_that_is_no_unicode_is_printable(tmp_path: Path) -> None:
    write(tmp_path / "x.png")
    (tmp_path / "x.png").rename(os.fsdecode(os.fsencode(tmp_path) + b"/\xff.png"))
    source = FolderSource(tmp_path)
    assert source.name(0) == "\\xff.png"
    assert source.read(0).shape == (3, 4, 5)


def test_fingerprint_sees_names_and_sizes(tmp_path: Path) -> None:
    write(tmp_path / "x.png")
    before = FolderSource(tmp_path).fingerprint()
    assert FolderSource(tmp_path).fingerprint() == before
    (tmp_path / "x.png").write_bytes((tmp_path / "x.png").read_bytes() + b"\0")
    longer = FolderSource(tmp_path).fingerprint()
    (tmp_path / "x.png").rename(tmp_path / "y.png")
    assert len({before, longer, FolderSource(tmp_path).fingerprint()}) == 3


def test_a_pickled_source_reads_the_same(tmp_path: Path) -> None:
    write(tmp_path / "cat/x.png", 7)
    write(tmp_path / "dog/y.png", 8)
    source = FolderSource(tmp_path)
    copy = pickle.loads(pickle.dumps(source))
    assert (names(copy), copy.classes, copy.label(1)) == (names(source), ["cat", "dog"], 1)
    assert copy.read(1).equal(source.read(1))


@pytest.mark.parametrize(
    ("files", "expected"),
    [
        (["cat/1.png", "dog/2.png", "dog/old/3.png"], ["cat", "dog"]),
        (["cat/1.png", "cat/2.png"], None),
        (["cat/1.png", "dog/2.png", "3.png"], None),
        (["train/cat/1.png", "val/cat/2.png"], None),
        (["1.png"], None),
    ],
)
def test_labels_auto(tmp_path: Path, files: list[str], expected: list[str] | None) -> None:
    for name in files:
        write(tmp_path / name)
    source = FolderSource(tmp_path, "auto")
    assert source.classes == expected
    labels = [source.label(i) for i in range(len(source))]
    if expected is None:
        assert labels == [None] * len(files)
    else:
        assert [expected[label] for label in labels if label is not None] == [
            n.split("/")[0] for n in names(source)
        ]
    assert FolderSource(tmp_path, "none").classes is None


@pytest.mark.parametrize(
    ("files", "said"), [(["a/1.png", "2.png"], "2.png"), (["a/1.png"], "there is one: a")]
)
def test_labels_folders_says_what_is_in_the_way(tmp_path: Path, files: list[str], said: str) -> None:
    for name in files:
        write(tmp_path / name)
    with pytest.raises(UserError, match=said):
        FolderSource(tmp_path, "folders")


def test_missing_folder_names_the_nearest(tmp_path: Path) -> None:
    (tmp_path / "pictures").mkdir()
    with pytest.raises(UserError, match=r"no such folder(.|\n)*did you mean .*/pictures\?"):
        FolderSource(tmp_path / "pictuers")
    with pytest.raises(UserError, match=r"did you mean .*/pictures\?"):
        FolderSource(tmp_path / "picture/train")
    with pytest.raises(UserError, match="exists; check what follows"):
        FolderSource(tmp_path / "unlike")


def test_empty_or_without_pictures(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="the folder is empty"):
        FolderSource(tmp_path)
    for name in ("a.dcm", "b.dcm", "c.csv"):
        (tmp_path / name).write_text("x")
    with pytest.raises(UserError, match=r"no pictures, only 2 x \.dcm, 1 x \.csv"):
        FolderSource(tmp_path)
    with pytest.raises(UserError, match="this is a file"):
        FolderSource(tmp_path / "a.dcm")


@pytest.mark.parametrize("closed", ["pictures", "pictures/in"])
def test_unreadable_folder(closed: str) -> None:
    with tempfile.TemporaryDirectory() as folder:
        root = Path(folder)
        write(root / "pictures/in/x.png")
        root.chmod(0o755)
        (root / closed).chmod(0)
        with (
            as_nobody(),
            pytest.raises(UserError, match=f"{closed}: the folder cannot be read: Permission denied"),
        ):
            FolderSource(root / "pictures")
        (root / closed).chmod(0o700)


def test_folder_in_an_unreadable_one() -> None:
    with tempfile.TemporaryDirectory() as folder:
        write(Path(folder) / "in/x.png")
        Path(folder).chmod(0)
        with as_nobody(), pytest.raises(UserError, match="the folder cannot be read: Permission denied"):
            FolderSource(Path(folder) / "in")
        Path(folder).chmod(0o700)


def test_a_link_in_a_circle_is_a_broken_picture(tmp_path: Path) -> None:
    (tmp_path / "x.png").symlink_to(tmp_path / "x.png")
    with pytest.raises(BrokenPicture, match=r"x\.png: .*symbolic links"):
        FolderSource(tmp_path).read(0)
