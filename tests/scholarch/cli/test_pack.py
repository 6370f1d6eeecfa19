"""`scholarch pack` as a person uses it."""

from __future__ import annotations

from pathlib import Path

import pytest
from generated_pictures import write_pictures
from scholarch.cli import main


def test_pack_verify_and_what_is_said(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    write_pictures(tmp_path / "pictures", 20, classes=2)
    (tmp_path / "pictures/class-0/half.jpg").write_bytes(b"\xff\xd8\xff")
    source, target = str(tmp_path / "pictures"), str(tmp_path / "packed")
    command = ["pack", source, target, "--shard-size", "5 kB", "--workers", "1", "--verify"]
    assert main(command) == 0
    said = capsys.readouterr()
    assert "left out: class-0/half.jpg: not a picture in a known format" in said.err
    assert "2 classes, 1 left out" in said.err
    assert f"next: scholarch pretrain data={target}" in said.out
    assert main(command) == 0  # again: nothing to do

    shard = tmp_path / "packed/shard-000001.tar"
    data = shard.read_bytes()
    shard.write_bytes(data[:800] + b"\0\0\0\0" + data[804:])
    capsys.readouterr()
    assert main(["pack", "--verify", target]) == 1
    said = capsys.readouterr()
    assert "damaged: shard-000001.tar: its SHA-256 differs" in said.out
    assert "restore these files" in said.err


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["here"], "names no target"),
        (["--verify", "here"], "manifest.json is missing"),
        (["missing", "there"], "no such folder"),
        (["here", "there", "--shard-size", "big"], "'big' is not a size"),
        (["here", "there", "--resize", "0"], "0 is no number of pixels"),
    ],
)
def test_mistakes_end_with_2(
    words: list[str],
    message: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "here").mkdir()
    assert main(["pack", *words]) == 2
    said = capsys.readouterr().err
    assert message in said
    assert "Traceback" not in said
    assert not (tmp_path / "there").exists()
