"""`scholarch inspect` on an exported backbone, a released file, and what is wrong."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from PIL import Image
from scholarch.cli import main
from scholarch.models import build_backbone
from scholarch.models.initialise import initialise
from scholarch.models.released import RELEASED, Released
from scholarch.models.vit import ViTOptions
from scholarch.registry.backbone import Preprocessing, save_backbone

OPTIONS = ViTOptions(
    size=None, embed_dim=16, depth=2, heads=2, ffn="mlp", ffn_ratio=2.0, patch=8, registers=2
)
PREPROCESSING = Preprocessing(size=32, mean=(0.5, 0.5, 0.5), std=(0.25, 0.25, 0.25))
FIGURES = ["attention.png", "index.html", "norms.png", "similarity.png", "sizes.png"]


@pytest.fixture(autouse=True)
def _here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    Image.linear_gradient("L").resize((60, 40)).convert("RGB").save("picture.png")
    Path("model").mkdir()
    save_backbone(Path("model"), OPTIONS, weights(), PREPROCESSING)


def weights() -> dict[str, torch.Tensor]:
    backbone = build_backbone(OPTIONS)
    initialise(backbone, 0)
    return backbone.state_dict()


def test_an_exported_backbone(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["inspect", "model", "picture.png", "--point", "59,0"]) == 0
    assert sorted(path.name for path in Path("inspect-picture").iterdir()) == FIGURES
    assert "index.html" in capsys.readouterr().out
    page = Path("inspect-picture/index.html").read_text()
    assert "row 0, column 5" in page  # 32 x 48 pixels of patch 8
    assert "48 x 32, 96 x 64, 144 x 96" in page


def test_a_released_file(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(RELEASED, "tiny", Released(OPTIONS, "tiny_pretrain"))
    torch.save(weights(), "tiny_pretrain-0123abcd.pth")
    assert (
        main(["inspect", "tiny_pretrain-0123abcd.pth", "picture.png", "--sizes", "32", "--out", "there"]) == 0
    )
    assert sorted(path.name for path in Path("there").iterdir()) == FIGURES


@pytest.mark.parametrize(
    ("words", "expected"),
    [
        (("model", "nowhere.png"), "there is no such picture"),
        (("nowhere", "picture.png"), "does not exist"),
        (("model", "model/backbone.json"), "scholarch: model/backbone.json: not a picture"),
        (("model", "picture.png", "--point", "60,0"), "X below 60"),
        (("model", "picture.png", "--point", "middle"), "no whole numbers"),
        (("model", "picture.png", "--sizes", "33"), "multiples of the patch, 8"),
        (("picture.png", "picture.png"), "cannot tell the architecture"),
    ],
)
def test_mistakes(words: tuple[str, ...], expected: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["inspect", *words]) == 2
    assert expected in capsys.readouterr().err
    assert not list(Path().glob("inspect-*"))
