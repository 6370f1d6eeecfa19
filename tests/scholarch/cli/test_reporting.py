"""The report's figures of one held-out picture, for every kind of backbone."""

from __future__ import annotations

from pathlib import Path

import pytest
import yaml
from scholarch.cli import main
from tiny_training import CAPI, TINY

QUICK = ("training.workers=0", "training.steps=2", "evaluation.at_most=16")
CONVNEXT = {
    "extends": "demo/digits",
    "model": {
        "kind": "convnext",
        "size": None,
        "depths": [1, 1, 1, 1],
        "widths": [4, 4, 8, 8],
        **dict.fromkeys(("embed_dim", "depth", "heads", "ffn", "ffn_ratio", "patch", "registers"), None),
    },
    "views": {"global": {"size": 64}, "local": {"size": 32}},
}
FIGURES = {"norms.png", "similarity.png", "sizes.png", "features.png"}


def recipe_of(kind: str) -> list[str]:
    if kind == "vit":
        return ["demo/digits", *TINY]
    if kind == "convnext":
        small = [word for word in TINY if word.startswith(("heads", "training", "terms"))]
        Path("convnext.yaml").write_text(yaml.safe_dump(CONVNEXT))
        return ["convnext.yaml", *small]
    Path("capi.yaml").write_text(CAPI)
    return ["capi.yaml"]


@pytest.mark.parametrize("kind", ["vit", "convnext", "capi"])
def test_the_report_looks_at_one_picture(kind: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    name, *overrides = recipe_of(kind)
    assert main(["pretrain", "--recipe", name, "--run", "run", *overrides, *QUICK]) == 0
    found = {path.name for path in Path("run/report").iterdir()}
    assert found >= FIGURES
    assert ("attention.png" in found) == (kind == "vit")
    page = Path("run/report/index.html").read_text()
    assert ("no CLS token attends" in page) == (kind != "vit")
    assert "Picture inspected" in page
