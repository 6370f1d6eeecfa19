"""Virtual environments with some of this one's packages and no others, as somebody else has them."""

from __future__ import annotations

import venv
from importlib.metadata import distribution
from pathlib import Path

from packaging.requirements import Requirement


def with_requirements(*names: str) -> set[str]:
    """Names of the installed distributions that `names` need, themselves included."""
    found: set[str] = set()
    waiting = list(names)
    while waiting:
        name = waiting.pop()
        if name in found:
            continue
        found.add(name)
        for text in distribution(name).requires or ():
            requirement = Requirement(text)
            if requirement.marker is None or requirement.marker.evaluate({"extra": ""}):
                waiting.append(requirement.name)
    return found


def linked_environment(folder: Path, *names: str) -> Path:
    """The Python of a new environment with `names` and what they need, linked: no download, no copy."""
    venv.create(folder, symlinks=True, with_pip=False)
    (packages,) = folder.glob("lib/python3.*/site-packages")
    for name in with_requirements(*names):
        here = distribution(name)
        for top in {file.parts[0] for file in here.files or ()} - {"..", "__pycache__"}:
            link = packages / top
            if not link.exists():
                link.symlink_to(Path(str(here.locate_file(top))))
    return folder / "bin" / "python"
