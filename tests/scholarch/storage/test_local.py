"""Atomic files, locks between processes, and checks that leave nothing behind."""

from __future__ import annotations

import hashlib
import os
import signal
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from scholarch.errors import UserError
from scholarch.storage import local

NOBODY = 65534


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


def test_a_write_is_whole_and_leaves_no_other_file(tmp_path: Path) -> None:
    local.write_text(tmp_path / "recipe.yaml", "größe: 1\n")
    local.write_bytes(tmp_path / "data", b"\x00\xff")

    assert (tmp_path / "recipe.yaml").read_bytes() == "größe: 1\n".encode()
    assert (tmp_path / "data").read_bytes() == b"\x00\xff"
    assert names(tmp_path) == ["data", "recipe.yaml"]


def test_a_failed_write_keeps_the_old_content(tmp_path: Path) -> None:
    local.write_text(tmp_path / "state", "old")

    with pytest.raises(TypeError), local.atomic(tmp_path / "state") as file:
        file.writelines([b"half of the n", "not bytes"])  # type: ignore[list-item]

    assert (tmp_path / "state").read_text() == "old"
    assert names(tmp_path) == ["state"]


def test_a_process_killed_in_mid_write_leaves_the_old_content(tmp_path: Path) -> None:
    local.write_text(tmp_path / "state", "old")
    program = (
        "import os, signal, sys; from pathlib import Path; from scholarch.storage import local\n"
        "with local.atomic(Path(sys.argv[1])) as file:\n"
        "    file.write(b'new'); file.flush(); os.kill(os.getpid(), signal.SIGKILL)\n"
    )

    code = subprocess.run([sys.executable, "-c", program, str(tmp_path / "state")], check=False).returncode

    assert code == -signal.SIGKILL
    assert (tmp_path / "state").read_text() == "old"


def test_a_full_disk_is_said_plainly_and_leaves_nothing(tmp_path: Path) -> None:
    # A limit on the size of files is the one kind of full disk that a test can make anywhere.
    program = (
        "import resource, signal, sys; from pathlib import Path; from scholarch.storage import local\n"
        "from scholarch.errors import UserError\n"
        "signal.signal(signal.SIGXFSZ, signal.SIG_IGN)\n"
        "resource.setrlimit(resource.RLIMIT_FSIZE, (1000, 1000))\n"
        "try: local.write_bytes(Path(sys.argv[1]), bytes(5000))\n"
        "except UserError as error: print(error)\n"
    )

    done = subprocess.run(
        [sys.executable, "-c", program, str(tmp_path / "big")], capture_output=True, text=True, check=True
    )

    assert "big: the disk is full" in done.stdout
    assert "fix: free some space" in done.stdout
    assert names(tmp_path) == []


def test_lines_are_appended_one_at_a_time(tmp_path: Path) -> None:
    for number in range(3):
        local.append_line(tmp_path / "log", f"line {number}")

    assert (tmp_path / "log").read_text() == "line 0\nline 1\nline 2\n"
    with pytest.raises(ValueError, match="one line"):
        local.append_line(tmp_path / "log", "two\nlines")


def test_sha256_is_that_of_the_content(tmp_path: Path) -> None:
    content = bytes(range(256)) * 5000
    (tmp_path / "file").write_bytes(content)

    assert local.sha256(tmp_path / "file") == hashlib.sha256(content).hexdigest()
    (tmp_path / "empty").write_bytes(b"")
    assert local.sha256(tmp_path / "empty").startswith("e3b0c44298fc1c14")  # FIPS 180-4, empty message


HOLD = (
    "import sys; from pathlib import Path; from scholarch.storage import local\n"
    "with local.lock(Path(sys.argv[1])):\n"
    "    print('held', flush=True); sys.stdin.read()\n"
)


@contextmanager
def holder(folder: Path) -> Iterator[subprocess.Popen[str]]:
    process = subprocess.Popen(
        [sys.executable, "-c", HOLD, str(folder)], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    )
    try:
        assert process.stdout is not None
        assert process.stdout.readline() == "held\n"
        yield process
    finally:
        process.kill()
        process.communicate()


def test_a_lock_names_its_holder_and_changes_nothing(tmp_path: Path) -> None:
    with holder(tmp_path) as process:
        before = names(tmp_path)
        with pytest.raises(UserError) as refusal, local.lock(tmp_path):
            pass
        assert f"is in use by process {process.pid} on " in str(refusal.value)
        assert str(tmp_path) in str(refusal.value)
        assert names(tmp_path) == before


def test_a_killed_holder_lets_go(tmp_path: Path) -> None:
    with holder(tmp_path) as process:
        process.kill()
        process.wait(10)
        with local.lock(tmp_path):
            assert str(os.getpid()) in (tmp_path / local.LOCK_NAME).read_text()


def test_a_lock_leaves_no_file_and_can_be_taken_again(tmp_path: Path) -> None:
    for _ in range(2):
        with local.lock(tmp_path), pytest.raises(UserError, match="in use"), local.lock(tmp_path):
            pass
        assert names(tmp_path) == []


def test_a_lock_wants_an_existing_folder(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError), local.lock(tmp_path / "missing"):
        pass
    assert names(tmp_path) == []


@pytest.fixture
def read_only_folder() -> Iterator[Path]:
    """A folder that may be entered but not written to, also where the tests run as root."""
    with tempfile.TemporaryDirectory() as folder:
        Path(folder).chmod(0o555)
        root = os.geteuid() == 0
        try:
            if root:
                os.seteuid(NOBODY)
            yield Path(folder)
        finally:
            if root:
                os.seteuid(0)
            Path(folder).chmod(0o755)


def test_a_read_only_target_is_refused_before_anything_is_made(read_only_folder: Path) -> None:
    for target in (read_only_folder, read_only_folder / "runs" / "first"):
        with pytest.raises(UserError, match="cannot be written to") as refusal:
            local.check_writable(target)
        assert str(read_only_folder) in str(refusal.value)
    with pytest.raises(UserError, match="cannot be written"):
        local.write_text(read_only_folder / "file", "text")
    assert names(read_only_folder) == []


def test_a_writable_target_passes_and_is_not_made(tmp_path: Path) -> None:
    local.check_writable(tmp_path / "runs" / "first")
    assert names(tmp_path) == []


def test_a_file_in_the_way_is_named(tmp_path: Path) -> None:
    (tmp_path / "runs").write_text("")
    with pytest.raises(UserError, match="is a file, not a folder"):
        local.check_writable(tmp_path / "runs" / "first")


def test_a_disk_with_too_little_space_is_refused(tmp_path: Path) -> None:
    local.check_free(tmp_path / "missing", 1)
    with pytest.raises(UserError, match=r"needs 931322574\.6 TiB and the disk has [\d.]+ .iB free"):
        local.check_free(tmp_path / "missing", 1024 * 10**18)
    assert names(tmp_path) == []


@pytest.mark.parametrize(
    ("size", "text"), [(0, "0 bytes"), (1023, "1023 bytes"), (1536, "1.5 KiB"), (3 << 40, "3.0 TiB")]
)
def test_sizes_are_readable(size: int, text: str) -> None:
    assert local.readable_size(size) == text


@pytest.mark.parametrize(
    ("text", "size"), [("20 GB", 20_000_000_000), ("1.5MiB", 1_572_864), ("512", 512), (" 2 kb ", 2000)]
)
def test_sizes_as_people_write_them(text: str, size: int) -> None:
    assert local.parse_size(text, "x") == size


@pytest.mark.parametrize("text", ["", "many", "-1 GB", "0", "3 parsecs"])
def test_what_is_no_size(text: str) -> None:
    with pytest.raises(UserError, match="is not a size"):
        local.parse_size(text, "x")
