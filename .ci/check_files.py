"""Names the given files that are too large to commit or are YAML that does not parse."""

from __future__ import annotations

import sys
from pathlib import Path

import yaml

LARGEST = 1_500_000  # bytes; uv.lock is the largest file that belongs here


def problem(path: Path) -> str | None:
    """What is wrong with the file, if anything."""
    size = path.stat().st_size
    if size > LARGEST:
        return f"{size} bytes, more than {LARGEST}"
    # Helm templates are YAML only once they are rendered.
    if path.suffix in (".yaml", ".yml") and "templates" not in path.parts:
        try:
            list(yaml.safe_load_all(path.read_text()))
        except yaml.YAMLError as error:
            return f"no YAML: {error}"
    return None


def main(names: list[str]) -> int:
    """Writes one line for each bad file; returns the exit code."""
    found = [f"{name}: {text}" for name in names if (text := problem(Path(name)))]
    sys.stderr.writelines(f"{line}\n" for line in found)
    return 1 if found else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
