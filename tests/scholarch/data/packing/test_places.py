"""Every kind of place gives the same pictures; what cannot be packed is told in plain words."""

from __future__ import annotations

import io
import tarfile
from pathlib import Path

import pytest
from generated_pictures import picture_files, write_pictures
from scholarch.data.packing.listing import Input
from scholarch.data.packing.places import open_input
from scholarch.errors import UserError
from scholarch.storage.objects import joined, open_objects

FILES = dict(picture_files(12, classes=3))
NAMES = sorted(FILES)


def contents(source: Input) -> dict[str, object]:
    count = len(source.listing.names)
    whole = {name.decode(): data for name, data in source.read(0, count)}
    parts = [file for start in range(0, count, 5) for file in source.read(start, min(start + 5, count))]
    told = [(name.decode(), str(data)) for name, data in parts]  # broken pictures are equal by their message
    assert told == [(name, str(data)) for name, data in whole.items()]
    return whole


def write_tar(path: Path, names: list[str], labels: bool) -> None:
    with tarfile.open(path, "w") as archive:
        for name in names:
            members = [(name, FILES[name])]
            if labels:
                members.append((name.replace(".jpg", ".cls"), name[6:7].encode()))
            for member, data in members:
                header = tarfile.TarInfo(member)
                header.size = len(data)
                archive.addfile(header, io.BytesIO(data))


def test_a_folder(tmp_path: Path) -> None:
    write_pictures(tmp_path, 12, classes=3)
    source = open_input(str(tmp_path))
    assert contents(source) == FILES
    assert [name.decode() for name in source.listing.names] == NAMES
    assert source.listing.sizes == [len(FILES[name]) for name in NAMES]
    assert source.listing.classes == ["class-0", "class-1", "class-2"]
    assert source.listing.labels == [int(name[6]) for name in NAMES]
    assert open_input(str(tmp_path), "none").listing.labels is None


def test_a_folder_with_a_lost_file(tmp_path: Path) -> None:
    write_pictures(tmp_path, 3)
    source = open_input(str(tmp_path))
    (tmp_path / "0000/0000001.jpg").unlink()
    found = [data for _, data in source.read(0, 3)]
    assert str(found[1]) == "0000/0000001.jpg: No such file or directory"


@pytest.mark.parametrize("labels", [True, False])
def test_tar_archives(tmp_path: Path, labels: bool) -> None:
    write_tar(tmp_path / "b.tar", NAMES[:5], labels)
    write_tar(tmp_path / "a.tar", NAMES[5:], labels)
    source = open_input(str(tmp_path))
    assert contents(source) == FILES
    order = NAMES[5:] + NAMES[:5]
    assert [name.decode() for name in source.listing.names] == order
    assert source.listing.labels == ([int(name[6]) for name in order] if labels else None)
    assert contents(open_input(str(tmp_path / "b.tar"))) == {name: FILES[name] for name in NAMES[:5]}


def test_tar_archives_that_hold_equal_names(tmp_path: Path) -> None:
    for name in ("a", "b"):
        write_tar(tmp_path / f"{name}.tar", NAMES[:2], labels=False)
    assert list(contents(open_input(str(tmp_path)))) == [f"{s}/{name}" for s in "ab" for name in NAMES[:2]]


def test_a_cut_archive_is_named(tmp_path: Path) -> None:
    write_tar(tmp_path / "a.tar", NAMES, labels=False)
    (tmp_path / "a.tar").write_bytes(b"not an archive at all" * 100)
    with pytest.raises(UserError, match=r"a\.tar: is no whole, uncompressed tar archive"):
        open_input(str(tmp_path))


@pytest.mark.parametrize("struct", [True, False])
def test_parquet(tmp_path: Path, struct: bool) -> None:
    import pyarrow
    from pyarrow.parquet import write_table

    for part, names in (("a", NAMES[:7]), ("b", NAMES[7:])):
        images = [{"bytes": FILES[n], "path": n} if struct else FILES[n] for n in names]
        labels = [int(n[6]) for n in names]
        write_table(
            pyarrow.table({"image": images, "label": labels}), tmp_path / f"{part}.parquet", row_group_size=3
        )
    source = open_input(str(tmp_path))
    found = contents(source)
    assert list(found.values()) == [FILES[name] for name in NAMES]
    assert next(iter(found)) == "a/00000000.jpg"
    assert list(found)[-1] == "b/00000004.jpg"
    assert source.listing.labels == [int(name[6]) for name in NAMES]
    assert source.listing.classes == ["0", "1", "2"]


def test_a_list(tmp_path: Path) -> None:
    write_pictures(tmp_path / "here", 12, classes=3)
    chosen = [NAMES[7], NAMES[2], NAMES[3]]
    (tmp_path / "some.txt").write_text("".join(f"here/{name}\tword-{name[6]}\n" for name in chosen))
    source = open_input(str(tmp_path / "some.txt"))
    assert contents(source) == {f"here/{name}": FILES[name] for name in chosen}
    words = [f"word-{name[6]}" for name in chosen]
    assert source.listing.classes == sorted(set(words))
    assert [source.listing.classes[label] for label in source.listing.labels or ()] == words


@pytest.mark.service
def test_objects_in_s3(bucket: str, tmp_path: Path) -> None:
    objects = open_objects(joined(bucket, "pictures"))
    for name, data in FILES.items():
        objects.write(name, data)
    source = open_input(joined(bucket, "pictures"))
    assert contents(source) == FILES
    assert [name.decode() for name in source.listing.names] == NAMES
    assert source.listing.labels == [int(name[6]) for name in NAMES]
    (tmp_path / "some.txt").write_text(f"{bucket}/pictures/{NAMES[4]}\n{bucket}/pictures/missing.jpg\n")
    found = list(contents(open_input(str(tmp_path / "some.txt"))).values())
    assert found[0] == FILES[NAMES[4]]
    assert "there is no such file" in str(found[1])
    write_tar(tmp_path / "a.tar", NAMES, labels=True)
    open_objects(joined(bucket, "archives")).upload("a.tar", tmp_path / "a.tar")
    for address in ("archives", "archives/a.tar"):
        assert contents(open_input(joined(bucket, address))) == FILES


def test_what_cannot_be_packed(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="no such folder"):
        open_input(str(tmp_path / "missing"))
    write_tar(tmp_path / "a.tar", NAMES[:2], labels=False)
    write_pictures(tmp_path, 2)
    with pytest.raises(UserError, match=r"holds 1 x \.tar, 2 x picture: one kind at a time"):
        open_input(str(tmp_path))
    (tmp_path / "twice.txt").write_text("0000/0000001.jpg\n0000/0000001.jpg\n")
    with pytest.raises(UserError, match="is there twice"):
        open_input(str(tmp_path / "twice.txt"))
    (tmp_path / "half.txt").write_text("0000/0000001.jpg\tcat\n0000/0000000.jpg\n")
    with pytest.raises(UserError, match="1 of 2 pictures have no label"):
        open_input(str(tmp_path / "half.txt"))
