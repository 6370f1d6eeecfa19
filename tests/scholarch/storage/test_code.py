"""Code as an archive named by its SHA-256: the same for the same files, and nothing else is ever unpacked."""

from __future__ import annotations

import hashlib
import io
import os
import tarfile
from pathlib import Path

import pytest
from scholarch.errors import UserError
from scholarch.storage import code


@pytest.fixture
def packages(tmp_path: Path) -> Path:
    folder = tmp_path / "packages"
    (folder / "mine").mkdir(parents=True)
    (folder / "mine" / "__init__.py").write_text("VALUE = 1\n")
    (folder / "mine" / "__pycache__").mkdir()
    (folder / "mine" / "__pycache__" / "__init__.pyc").write_bytes(b"compiled")
    (folder / ".git").mkdir()
    (folder / ".git" / "config").write_text("secret")
    return folder


def test_name_follows_from_the_files_alone(packages: Path) -> None:
    name, data = code.pack(packages)
    assert name == f"{hashlib.sha256(data).hexdigest()}.tar.gz"
    os.utime(packages / "mine" / "__init__.py", (0, 0))
    (packages / "mine" / "other.pyc").write_bytes(b"compiled")
    assert code.pack(packages) == (name, data)
    (packages / "mine" / "__init__.py").write_text("VALUE = 2\n")
    assert code.pack(packages)[0] != name


def test_brought_as_it_was_packed(packages: Path, tmp_path: Path) -> None:
    name, data = code.pack(packages)
    address = f"{tmp_path}/kept/{name}"
    code.send(address, data)
    code.send(address, b"not written again")
    folder = code.bring(address, tmp_path / "here")
    files = [path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file()]
    assert files == ["mine/__init__.py"]
    assert (folder / "mine" / "__init__.py").read_text() == "VALUE = 1\n"
    assert code.bring(address, tmp_path / "here") == folder


def test_another_content_is_not_unpacked(packages: Path, tmp_path: Path) -> None:
    name, data = code.pack(packages)
    address = f"{tmp_path}/kept/{name}"
    code.send(address, data[:-1] + b"x")
    with pytest.raises(UserError, match="the archive has SHA-256"):
        code.bring(address, tmp_path / "here")
    with pytest.raises(UserError, match="no such archive"):
        code.bring(f"{tmp_path}/none/{name}", tmp_path / "here")
    assert not (tmp_path / "here").exists()


@pytest.mark.parametrize("name", ["../outside", "/outside"])
def test_nothing_is_unpacked_elsewhere(tmp_path: Path, name: str) -> None:
    content = io.BytesIO()
    with tarfile.open(fileobj=content, mode="w:gz") as archive:
        archive.addfile(tarfile.TarInfo(name), io.BytesIO())
    data = content.getvalue()
    address = f"{tmp_path}/kept/{hashlib.sha256(data).hexdigest()}.tar.gz"
    code.send(address, data)
    with pytest.raises(UserError, match="no file of a package"):
        code.bring(address, tmp_path / "here")
    assert list((tmp_path / "here").iterdir()) == []


def test_what_is_no_code(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(UserError, match="no such folder"):
        code.pack(tmp_path / "none")
    (tmp_path / ".hidden").write_text("a")
    with pytest.raises(UserError, match="empty"):
        code.pack(tmp_path)
    (tmp_path / "pictures.bin").write_bytes(os.urandom(4096))
    monkeypatch.setattr(code, "LARGEST_BYTES", 1024)
    with pytest.raises(UserError, match="MiB of files"):
        code.pack(tmp_path)
