"""What the documentation points to exists: linked files, make targets, named paths."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
DOCUMENTS = [*ROOT.glob("*.md"), *(ROOT / "docs").rglob("*.md"), *(ROOT / "charts").rglob("*.md")]
TARGETS = set(re.findall(r"^([a-z][a-z-]*):", (ROOT / "Makefile").read_text(), flags=re.MULTILINE))


@pytest.fixture(params=DOCUMENTS, ids=lambda path: str(path.relative_to(ROOT)))
def document(request: pytest.FixtureRequest) -> Path:
    path: Path = request.param
    return path


def test_linked_files_exist(document: Path) -> None:
    targets = re.findall(r"\]\(([^)#\s]+)[^)]*\)", document.read_text())
    missing = [link for link in targets if "://" not in link and not (document.parent / link).exists()]
    assert missing == []


def test_make_targets_exist(document: Path) -> None:
    named = re.findall(
        r"(?:^|`)make ([a-z][a-z-]*(?: [a-z][a-z-]*)*)", document.read_text(), flags=re.MULTILINE
    )
    assert {target for names in named for target in names.split()} <= TARGETS


def test_named_paths_exist(document: Path) -> None:
    """Paths in backquotes that begin with a folder of this repository and have no placeholder."""
    if document.name == "CHANGELOG.md":
        return
    folders = "|".join(["platform", "jobs", "operators", "tests", "docs", "benchmarks", r"\.ci"])
    named = re.findall(rf"`((?:{folders})/[\w./-]*)`", document.read_text())
    assert [path for path in named if not re.search("[A-Z]{2}", path) and not (ROOT / path).exists()] == []


def test_the_checks_see_something() -> None:
    assert {"demo", "test", "check", "help"} <= TARGETS
    assert len(DOCUMENTS) > 4
