"""The shape of the repository: folders that must not be packages, and budgets of size."""

from __future__ import annotations

import ast
import platform
from pathlib import Path
from statistics import median

import pytest

ROOT = Path(__file__).parents[1]
SOURCES = ("platform", "jobs", "operators", ".ci", "benchmarks")
LONGEST_FILE, MEDIAN_FILE, LONGEST_FUNCTION = 600, 150, 80


def files(*folders: str) -> list[Path]:
    return [path for folder in folders for path in sorted((ROOT / folder).rglob("*.py"))]


def lines(path: Path) -> int:
    return path.read_text().count("\n")


@pytest.mark.parametrize("folder", ["platform", "jobs", "operators"])
def test_plain_folders_are_no_packages(folder: str) -> None:
    assert (ROOT / folder).is_dir()
    assert not (ROOT / folder / "__init__.py").exists()


def test_python_finds_its_own_platform_module() -> None:
    assert platform.python_version().startswith("3.")


def test_tests_are_no_packages() -> None:
    assert not list((ROOT / "tests").rglob("__init__.py"))


def test_files_are_short() -> None:
    lengths = {path.relative_to(ROOT): lines(path) for path in files(*SOURCES, "tests")}
    assert len(lengths) > 20, "the folders moved"
    assert {path: length for path, length in lengths.items() if length > LONGEST_FILE} == {}
    assert median(lines(path) for path in files(*SOURCES)) < MEDIAN_FILE


def test_functions_are_short() -> None:
    too_long = [
        f"{path.relative_to(ROOT)}:{node.lineno} {node.name}"
        for path in files(*SOURCES, "tests")
        for node in ast.walk(ast.parse(path.read_text()))
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef)
        and (node.end_lineno or node.lineno) - node.lineno >= LONGEST_FUNCTION
    ]
    assert too_long == []


def test_tests_have_the_tree_of_the_sources() -> None:
    """Each folder of tests is a folder of sources; not each file, as one may be tested through another."""
    sources = {"scholarch": "platform", "scholarch_jobs": "jobs", "scholarch_operator": "operators"}
    for folder in (ROOT / "tests").rglob("*"):
        relative = folder.relative_to(ROOT / "tests")
        if any(folder.glob("*.py")) and relative.parts[0] in sources:
            assert (ROOT / sources[relative.parts[0]] / relative).is_dir(), folder
