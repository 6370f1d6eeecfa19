"""`scholarch distill`: mistakes of its command line."""

from __future__ import annotations

from pathlib import Path

import pytest
from scholarch.cli import main


@pytest.mark.parametrize(
    ("words", "told"),
    [
        ([], "which recipe?"),
        (
            ["--recipe", "dinov3/distill-vits", "--scale", "tiny"],
            "5 students need as many processes, and there are 1",
        ),
        (["--recipe", "dinov3/distill-vits", "--student", "nobody"], "no student 'nobody'"),
        (["--recipe", "dinov3/distill-vits", "--run", "nowhere", "--resume"], "there is no run"),
    ],
)
def test_mistakes_leave_nothing_behind(
    words: list[str],
    told: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.chdir(tmp_path)
    assert main(["distill", *words]) == 2
    assert told in capsys.readouterr().err
    assert list(tmp_path.iterdir()) == []


def test_pretrain_sends_a_recipe_with_students_to_distill(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    assert main(["pretrain", "--recipe", "dinov3/distill-vits", "--scale", "tiny"]) == 2
    assert "scholarch distill" in capsys.readouterr().err
