"""Each mistake gets one message without a traceback, exit code 2, and leaves no file."""

from __future__ import annotations

import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from PIL import Image
from scholarch.cli import main
from tiny_training import TINY

QUICK = (*TINY, "training.steps=2", "training.workers=0", "evaluation.every=2")


def folder_of(path: Path, *names: str, side: int = 64) -> Path:
    path.mkdir(parents=True)
    for number, name in enumerate(names):
        Image.new("RGB", (side, side), (number * 20, 90, 30)).save(path / name)
    return path


def broken_folder(path: Path) -> Path:
    path.mkdir()
    for number in range(3):
        (path / f"{number}.jpg").write_bytes(b"no picture")
    return path


def grey(path: Path) -> Path:
    path.mkdir()
    (path / "notes.txt").write_text("no picture here")
    return path


@pytest.fixture(autouse=True)
def _here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)


def refused(capsys: pytest.CaptureFixture[str], *words: str) -> str:
    """The message of a command that must fail as a user's mistake and leave everything as it was."""
    before = sorted(Path().rglob("*"))
    code = main(list(words))
    text = capsys.readouterr().err
    assert code == 2, text
    assert text.count("scholarch: ") == 1
    assert "Traceback" not in text
    assert sorted(Path().rglob("*")) == before
    return text


DIGITS = ("pretrain", "--recipe", "demo/digits", "--run", "run")

CASES: dict[str, tuple[Callable[[], object] | None, tuple[str, ...], str]] = {
    "missing folder": (None, ("pretrain", "data=nowhere"), "nowhere"),
    "empty folder": (lambda: Path("empty").mkdir(), ("pretrain", "data=empty"), "the folder is empty"),
    "folder without pictures": (lambda: grey(Path("texts")), ("pretrain", "data=texts"), "no picture"),
    "only broken pictures": (
        lambda: broken_folder(Path("broken")),
        ("pretrain", "data=broken"),
        "none of the 3 pictures",
    ),
    "data of another scheme": (None, ("pretrain", "data=gs://bucket/x"), "gs:// is not supported"),
    "unknown recipe": (None, ("pretrain", "--recipe", "demo/digit"), "did you mean demo/digits?"),
    "unknown key": (None, (*DIGITS, "trainin.steps=3"), "did you mean `training`?"),
    "value out of range": (None, (*DIGITS, "training.steps=0"), "greater than or equal to 1"),
    "wrong type": (None, (*DIGITS, "training.steps=soon"), "valid integer"),
    "no override": (None, (*DIGITS, "steps"), "is no override"),
    "crop no multiple of the patch": (
        None,
        (*DIGITS, "views.global.size=26"),
        "do not divide into patches of 4",
    ),
    "batch too small for koleo": (
        None,
        (*DIGITS, "training.global_batch=1", "terms.dino=null", "terms.ibot=null"),
        "too small for the term koleo",
    ),
    "batch too small for sinkhorn": (
        None,
        (*DIGITS, "training.global_batch=1", "terms.koleo=null"),
        "too small for the term dino",
    ),
    "groups that do not divide": (None, (*DIGITS, "training.global_batch=24"), "groups of 16"),
    "grain that breaks groups": (None, (*DIGITS, "training.grain=8"), "whole groups of 16"),
    "grain in bf16": (None, (*DIGITS, "training.grain=16", "training.precision=bf16"), "training.grain"),
    "channels that data has not": (
        lambda: folder_of(Path("colour"), "a.png", "b.png"),
        ("pretrain", "data=colour", "data.channels=5"),
        "none of the 2 pictures",
    ),
    "mean of another length": (None, (*DIGITS, "data.mean=[0.1, 0.2]"), "2 values for pictures of 1 channel"),
    "resume without a run": (None, (*DIGITS, "--resume"), "no run to resume"),
    "evaluate what is no run": (None, ("evaluate", "nowhere"), "does not exist"),
    "evaluate without labels": (
        lambda: folder_of(Path("plain"), "a.png", "b.png"),
        ("evaluate", "plain"),
        "holds no run",
    ),
    "export what is no run": (None, ("export", "nowhere", "--to", "out"), "does not exist"),
    "show which recipe": (None, ("recipes", "show"), "which recipe?"),
}


@pytest.mark.parametrize("name", CASES)
def test_a_mistake_is_refused(name: str, capsys: pytest.CaptureFixture[str]) -> None:
    prepare, words, message = CASES[name]
    if prepare is not None:
        prepare()
    assert message in refused(capsys, *words)


@pytest.fixture
def mounted(tmp_path: Path) -> Iterator[Callable[[str], Path]]:
    """Mounts a small file system; only root can."""
    points: list[Path] = []

    def mount(options: str) -> Path:
        point = tmp_path / "mounted"
        point.mkdir()
        done = subprocess.run(
            ["mount", "-t", "tmpfs", "-o", options, "tmpfs", str(point)], capture_output=True, check=False
        )
        if done.returncode:
            point.rmdir()
            pytest.skip(f"cannot mount: {done.stderr.decode().strip()}")
        points.append(point)
        return point

    yield mount
    for point in points:
        subprocess.run(["umount", str(point)], check=True)


def test_full_disk_is_refused(mounted: Callable[[str], Path], capsys: pytest.CaptureFixture[str]) -> None:
    disk = mounted("size=1m")
    assert "free some space" in refused(capsys, "pretrain", "--recipe", "demo/digits", "--run", f"{disk}/run")


def test_read_only_target_is_refused(
    mounted: Callable[[str], Path], capsys: pytest.CaptureFixture[str]
) -> None:
    disk = mounted("ro,size=1g")
    assert "cannot be written to" in refused(
        capsys, "pretrain", "--recipe", "demo/digits", "--run", f"{disk}/run"
    )


@pytest.fixture(scope="module")
def a_run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A finished run of two steps."""
    run = tmp_path_factory.mktemp("runs") / "tiny"
    with pytest.MonkeyPatch.context() as patch:
        patch.delenv("MLFLOW_TRACKING_URI", raising=False)
        assert main(["pretrain", "--recipe", "demo/digits", "--run", str(run), *QUICK]) == 0
    return run


def test_a_folder_that_holds_a_run_is_refused(a_run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert "already holds a run" in refused(
        capsys, "pretrain", "--recipe", "demo/digits", "--run", str(a_run), *QUICK
    )


def test_a_changed_recipe_is_refused_on_resume(a_run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    text = refused(capsys, "pretrain", "--run", str(a_run), "--resume", "training.steps=9", "seed=3")
    assert "training.steps: 2 -> 9" in text
    assert "seed: 0 -> 3" in text


def test_a_run_in_use_is_refused(a_run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    code = (
        "import sys, pathlib\nfrom scholarch.storage.local import lock\n"
        "with lock(pathlib.Path(sys.argv[1])):\n    print('held', flush=True)\n    sys.stdin.read()\n"
    )
    holder = subprocess.Popen(
        [sys.executable, "-c", code, str(a_run)], stdin=subprocess.PIPE, stdout=subprocess.PIPE
    )
    try:
        assert holder.stdout is not None
        assert holder.stdout.readline() == b"held\n"
        assert f"in use by process {holder.pid}" in refused(
            capsys, "pretrain", "--run", str(a_run), "--resume"
        )
    finally:
        assert holder.stdin is not None
        holder.stdin.close()
        holder.wait(10)


def test_a_checkpoint_of_another_architecture_is_refused(
    a_run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run = tmp_path / "wider"
    shutil.copytree(a_run, run)
    recipe = run / "recipe.yaml"
    recipe.write_text(recipe.read_text().replace("embed_dim: 24", "embed_dim: 32"))
    text = refused(capsys, "evaluate", str(run))
    assert "another architecture" in text
    assert "cls_token: [1, 1, 24], not [1, 1, 32]" in text


def test_a_damaged_checkpoint_is_passed_over_and_named(
    a_run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run = tmp_path / "damaged"
    shutil.copytree(a_run, run)
    newest = sorted((run / "checkpoints").iterdir())[-1]
    shard = next(newest.glob("*/*.distcp"))
    data = bytearray(shard.read_bytes())
    data[len(data) // 2] ^= 1
    shard.write_bytes(bytes(data))
    assert main(["evaluate", str(run)]) == 0
    out, err = capsys.readouterr()
    assert "another checksum" in err
    assert "step 1" in out


def test_small_pictures_are_enlarged_and_counted(capsys: pytest.CaptureFixture[str]) -> None:
    folder_of(Path("small"), *(f"{n}.png" for n in range(12)), side=10)
    words = ["pretrain", "--recipe", "demo/digits", "--run", "run", "data=small", *QUICK]
    assert main(words) == 0
    assert "12 of 12 pictures checked are smaller than 16 px" in capsys.readouterr().err
