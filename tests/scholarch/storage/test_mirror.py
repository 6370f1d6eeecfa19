"""A folder and a prefix are kept alike."""

from __future__ import annotations

from pathlib import Path

import pytest
from scholarch.storage.mirror import Mirror, copied
from scholarch.storage.objects import Objects, joined, open_objects


@pytest.fixture(params=["folder", pytest.param("s3", marks=pytest.mark.service)])
def objects(request: pytest.FixtureRequest, tmp_path: Path) -> Objects:
    if request.param == "folder":
        return open_objects(str(tmp_path / "place"))
    return open_objects(joined(request.getfixturevalue("bucket"), "some/place"))


def names(objects: Objects) -> list[str]:
    return [entry.name for entry in objects.entries()]


def test_what_changes_is_copied(objects: Objects, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = tmp_path / "work"
    for name in (
        "recipe.yaml",
        "report/a.png",
        "checkpoints/step/x",
        "mlflow/mlflow.db",
        "mlflow/run.json",
        ".lock",
    ):
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text(name)
    mirror = Mirror(folder, objects)
    mirror.push()
    assert names(objects) == ["mlflow/run.json", "recipe.yaml", "report/a.png"]
    written: list[str] = []
    write = objects.write
    monkeypatch.setattr(objects, "write", lambda name, data: (written.append(name), write(name, data)))
    (folder / "recipe.yaml").write_text("changed it is")
    (folder / "report/a.png").unlink()
    mirror.push()
    assert written == ["recipe.yaml"]
    assert objects.read("recipe.yaml") == b"changed it is"
    assert names(objects) == ["mlflow/run.json", "recipe.yaml"]


def test_what_is_there_is_pulled(objects: Objects, tmp_path: Path) -> None:
    for name in (
        "recipe.yaml",
        "stages/1/run.json",
        "checkpoints/step-000000001/manifest.json",
        "lease.json",
    ):
        objects.write(name, name.encode())
    found = copied(objects.address, tmp_path / "copies")
    assert found == tmp_path / "copies" / "place"
    files = sorted(path.relative_to(found).as_posix() for path in found.rglob("*") if path.is_file())
    assert files == ["recipe.yaml", "stages/1/run.json"]
    few = Mirror(tmp_path / "few", objects)
    few.pull(ending=".yaml")
    assert [path.name for path in (tmp_path / "few").rglob("*") if path.is_file()] == ["recipe.yaml"]
