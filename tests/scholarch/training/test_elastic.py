"""An elastic run with real launchers, a store outside and real signals: the short version of benchmarks/elastic."""

from __future__ import annotations

import signal
import subprocess
import sys
from pathlib import Path

import pytest

sys.path.append(str(Path(__file__).parents[3] / "benchmarks" / "elastic"))

import nodes
import scenarios

pytestmark = pytest.mark.gloo


@pytest.mark.parametrize("name", ["shrink-first", "drain"])
def test_scenario(name: str, tmp_path: Path) -> None:
    """The node of rank 0 is killed; a node is asked to leave."""
    found = scenarios.run(name, tmp_path, None)
    assert "failed" not in found, found
    assert found["exit_codes"] == [0, 0]
    assert found["lost_steps"] <= (scenarios.SAVE_EVERY if name == "shrink-first" else 0)


def test_store_ends_with_0(tmp_path: Path) -> None:
    store = nodes.Store(tmp_path / "log")
    second = subprocess.run(
        [sys.executable, "-m", "scholarch.training.store", "--port", str(store.port)],
        capture_output=True, text=True, timeout=60, check=False,
    )  # fmt: skip
    assert second.returncode == 1
    assert second.stderr.startswith(f"error: no store at port {store.port}")
    store.signal(signal.SIGTERM)
    assert store.end(60) == 0


def test_asked_to_end_when_the_store_is_gone_it_ends(tmp_path: Path) -> None:
    """As on Kubernetes, where the pods of a run that is deleted go at the same time."""
    cluster = scenarios.Cluster(tmp_path / "job", "1:2", None, ("--join", "600"))
    try:
        cluster.start(0)
        cluster.until(1)
        cluster.store.kill()
        node = cluster.began[0]
        node.signal(signal.SIGTERM)
        assert node.end(90) == 75, node.text
    finally:
        cluster.close()
