"""The experiment on Gram and registers runs to its end, and its scenes and points are what it says."""

from __future__ import annotations

import json
import os
import shlex
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

FOLDER = Path(__file__).parents[2] / "benchmarks" / "experiments" / "gram_and_registers"
TINY = shlex.split(
    "--seeds 3 --steps 4 --early 2 --branch 2 --every 2 --scenes 20 --probe-scenes 10 --override "
    "model.depth=1 --override training.global_batch=4 --override terms.koleo.group=4"
)


@pytest.fixture(autouse=True)
def _folder_first(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(str(FOLDER))


def test_runs_to_its_end_and_keeps_what_is_done(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    work, results = tmp_path / "work", tmp_path / "results"
    done = subprocess.run(
        [sys.executable, FOLDER, *TINY, "--work", work, "--results", results],
        capture_output=True,
        text=True,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
        timeout=280,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.count("mIoU") == 7  # steps 0, 2 and 4 of two runs, and the one of `gram`
    names = {path.name.removeprefix("gram_and_registers") for path in results.glob("*")}
    assert names == {".md", ".json", "_curves.png", "_maps.png", "_norms.png"}
    found = json.loads((results / "gram_and_registers.json").read_text())
    runs = found["seeds"]["3"]
    assert list(runs["gram"]["measured"]) == ["4"]
    assert runs["plain"]["measured"]["2"]["gram_difference"] == pytest.approx(0, abs=1e-6)
    assert runs["gram"]["measured"]["4"] != runs["plain"]["measured"]["4"]
    assert runs["gram"]["losses"]["gram"][0][0] == 3  # the first step after the branch

    import collect
    import measure
    import report
    import scenes
    import train

    course = train.Course(steps=4, early=2, branch=2, every=2)
    probes = measure.Probes(scenes.compose(2, 1, test=False), scenes.compose(2, 1, test=True))
    collect.measure(work / "seed-3", course, probes)
    assert capsys.readouterr().out == "", "what is measured is not measured again"
    page = results / "gram_and_registers.md"
    page.write_text(f"words before\n{page.read_text()}words after\n")
    report.write_page(page, found, course)
    assert page.read_text().startswith("words before\n<!-- figures")
    assert page.read_text().endswith("end of figures -->\nwords after\n")
    assert page.read_text().count("| dense mIoU |") == 1


def test_scenes_are_the_same_again_and_their_labels_cover_every_patch() -> None:
    import scenes

    one, again, other = (scenes.compose(6, 0, test=test) for test in (False, False, True))
    np.testing.assert_array_equal(one.images, again.images)
    assert one.images.shape == (6, 48, 48, 3)
    assert one.patches.shape == (6, 8, 8)
    assert one.patches.min() >= 0
    assert one.patches.max() < len(scenes.CLASSES)
    assert (one.patches == 2 + one.large[:, None, None]).any(axis=(1, 2)).all()
    assert not np.array_equal(one.images, other.images)


def test_a_patch_is_the_digits_where_a_quarter_is_ink() -> None:
    import scenes

    owner = np.ones((12, 12), dtype=np.int64)
    owner[:3, :3] = 2 + 7  # the first patch: 9 of 36 pixels are ink
    owner[:2, 6:10] = 2 + 7  # the second: 8 of 36
    assert scenes.patch_labels(owner).tolist() == [[9, 1], [1, 1]]


def test_a_scene_is_found_again_by_its_own_corner_alone() -> None:
    import measure
    import torch

    first = torch.eye(4)
    assert measure.found_again(torch.stack([first, 2 * first])) == 1
    assert measure.found_again(torch.stack([first, first[[1, 0, 2, 3]]])) == 0.5
