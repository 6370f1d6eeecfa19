"""kubectl and helm, whose words end up in the message of a test that fails."""

from __future__ import annotations

import json
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

Manifest = dict[str, Any]


def run(*command: str, stdin: str | None = None, seconds: float = 300, check: bool = True) -> str:
    """A command's output; fails the test with what it wrote."""
    done = subprocess.run(command, input=stdin, capture_output=True, text=True, timeout=seconds, check=False)
    if check and done.returncode:
        raise AssertionError(
            f"{' '.join(command)} ended with {done.returncode}:\n{done.stdout}\n{done.stderr}"
        )
    return done.stdout


def objects(*arguments: str) -> list[Manifest]:
    """What `kubectl get ARGUMENTS` finds."""
    found = run("kubectl", "get", *arguments, "-o", "json", "--ignore-not-found")
    parsed = json.loads(found) if found.strip() else {"items": []}
    items: list[Manifest] = parsed.get("items", [parsed])
    return items


@contextmanager
def followed(file: Path, *arguments: str) -> Iterator[None]:
    """Writes into a file what `kubectl get ARGUMENTS --watch` says meanwhile."""
    command = ["kubectl", "get", *arguments, "--watch"]
    with file.open("w") as out, subprocess.Popen(command, stdout=out) as process:
        try:
            yield
        finally:
            process.kill()


def state_of(namespace: str) -> str:
    """Objects, events and logs of a namespace, for a test that failed."""
    in_it = ("-n", namespace)
    parts = [
        run("kubectl", "get", "trainingruns,jobs,pods,pvc", *in_it, "-o", "wide", check=False),
        run("kubectl", "get", "events", *in_it, "--sort-by=.lastTimestamp", check=False)[-6000:],
    ]
    for pod in run("kubectl", "get", "pods", *in_it, "-o", "name", check=False).split():
        log = run("kubectl", "logs", *in_it, pod, "--all-containers", "--tail=60", check=False)
        parts.append(f"--- {pod}\n{log}")
    return "\n".join(parts)
