"""Objects in a folder and in a real MinIO behave alike; every fault has one plain message."""

from __future__ import annotations

import pickle
import socket
import threading
import time
from pathlib import Path

import pytest
from minio_server import MinioServer
from scholarch.errors import UserError
from scholarch.storage import s3
from scholarch.storage.objects import Entry, Objects, Unreachable, joined, open_objects


@pytest.fixture(params=["folder", pytest.param("s3", marks=pytest.mark.service)])
def objects(request: pytest.FixtureRequest, tmp_path: Path) -> Objects:
    if request.param == "folder":
        return open_objects(str(tmp_path / "place"))
    return open_objects(joined(request.getfixturevalue("bucket"), "some/place"))


def test_what_was_written_is_read(objects: Objects, tmp_path: Path) -> None:
    objects.write("a/b.bin", b"0123456789")
    assert objects.read("a/b.bin") == b"0123456789"
    assert objects.read("a/b.bin", 2, 3) == b"234"
    assert objects.read("a/b.bin", 7) == b"789"
    assert objects.read("a/b.bin", 3, 0) == b""
    objects.write("a/b.bin", b"new")
    assert objects.read("a/b.bin") == b"new"
    big = tmp_path / "big"
    big.write_bytes(bytes(range(256)) * 1000)
    objects.upload("c", big)
    objects.download("c", tmp_path / "back")
    assert (tmp_path / "back").read_bytes() == big.read_bytes()


def test_listing_and_removal(objects: Objects) -> None:
    assert list(objects.entries()) == []
    for name in ("b/2", "a", "b/1", "bc"):
        objects.write(name, name.encode())
    assert list(objects.entries()) == [Entry("a", 1), Entry("b/1", 3), Entry("b/2", 3), Entry("bc", 2)]
    assert [entry.name for entry in objects.entries("b/")] == ["b/1", "b/2"]
    objects.remove("b/1")
    objects.remove("b/1")
    assert objects.entry("b/1") is None
    assert objects.entry("bc") == Entry("bc", 2)


def test_what_is_not_there(objects: Objects, tmp_path: Path) -> None:
    objects.write("short", b"123")
    with pytest.raises(FileNotFoundError):
        objects.read("missing")
    with pytest.raises(FileNotFoundError):
        objects.download("missing", tmp_path / "x")
    assert not (tmp_path / "x").exists()
    with pytest.raises(EOFError):
        objects.read("short", 1, 5)
    with pytest.raises(EOFError):
        objects.read("short", 7, 1)


def test_survives_pickling(objects: Objects) -> None:
    objects.write("x", b"y")
    assert pickle.loads(pickle.dumps(objects)).read("x") == b"y"


@pytest.mark.parametrize("name", ["../x", "/etc/passwd", ""])
def test_a_name_stays_within_the_folder(tmp_path: Path, name: str) -> None:
    with pytest.raises(ValueError, match="not a name within"):
        open_objects(str(tmp_path)).write(name, b"")


@pytest.mark.service
def test_wrong_bucket_and_credentials(bucket: str, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(UserError, match="no such bucket"):
        open_objects("s3://there-is-none/x").check()
    with pytest.raises(UserError, match="names no bucket"):
        open_objects("s3:///x")
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "wrong")
    with pytest.raises(UserError, match="refuses these credentials"):
        open_objects(bucket).check()
    monkeypatch.setenv("AWS_SESSION_TOKEN", "long-expired")
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "scholarch-tests-secret")
    with pytest.raises(UserError, match="expired"):
        open_objects(bucket).read("x")
    monkeypatch.delenv("AWS_ACCESS_KEY_ID")
    monkeypatch.setenv("HOME", "/nonexistent")
    with pytest.raises(UserError, match="no credentials"):
        open_objects(bucket).check()


def test_a_store_that_does_not_answer(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", "x")
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "y")
    monkeypatch.setenv("AWS_ENDPOINT_URL", "http://127.0.0.1:9")
    objects = s3.S3Objects("bucket", "", retry_seconds=0.5)
    with pytest.raises(Unreachable, match="could not be reached"):
        objects.read("x")
    with pytest.raises(UserError, match="could not be reached"):
        objects.check()
    monkeypatch.setenv("AWS_ENDPOINT_URL", "127.0.0.1:9")
    with pytest.raises(UserError, match="not a URL"):
        s3.S3Objects("bucket", "", retry_seconds=0.5).check()


@pytest.mark.service
def test_an_outage_passes_unnoticed(own_minio: MinioServer) -> None:
    objects = open_objects(own_minio.make_bucket("outage"))
    objects.write("x", b"before")
    own_minio.stop()
    again = threading.Timer(2.0, own_minio.start)
    again.start()
    assert objects.read("x") == b"before"
    objects.write("y", b"after")
    again.join()
    assert objects.read("y") == b"after"


def test_a_truncated_answer_is_asked_for_again(monkeypatch: pytest.MonkeyPatch) -> None:
    answers = [
        b"HTTP/1.1 200 OK\r\nContent-Length: 10\r\n\r\n0123",
        b"HTTP/1.1 200 OK\r\nContent-Length: 10\r\nConnection: close\r\n\r\n0123456789",
    ]
    with socket.create_server(("127.0.0.1", 0)) as server:

        def serve() -> None:
            for answer in answers:
                connection, _ = server.accept()
                with connection:
                    connection.recv(65536)
                    connection.sendall(answer)
                    time.sleep(0.05)

        thread = threading.Thread(target=serve, daemon=True)
        thread.start()
        monkeypatch.setenv("AWS_ACCESS_KEY_ID", "x")
        monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "y")
        monkeypatch.setenv("AWS_ENDPOINT_URL", f"http://127.0.0.1:{server.getsockname()[1]}")
        assert s3.S3Objects("bucket", "").read("x") == b"0123456789"
        thread.join(timeout=5)
