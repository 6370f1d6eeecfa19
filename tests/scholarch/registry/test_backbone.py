"""A backbone as two plain files: what comes back computes the same."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from scholarch.errors import UserError
from scholarch.models import build_backbone
from scholarch.models.features import Views
from scholarch.models.initialise import initialise
from scholarch.models.rope import RopeOptions
from scholarch.models.vit import ViTOptions
from scholarch.registry.backbone import (
    OPTIONS_NAME,
    WEIGHTS_NAME,
    Preprocessing,
    load_backbone,
    save_backbone,
)

OPTIONS = ViTOptions(
    size=None, embed_dim=16, depth=2, heads=2, ffn="swiglu", ffn_ratio=2, patch=4, channels=2,
    registers=1, rope=RopeOptions(base=10.0),
)  # fmt: skip
SEEN = Preprocessing(size=8, mean=(0.5, 0.25), std=(0.2, 0.1))


def make() -> torch.nn.Module:
    backbone = build_backbone(OPTIONS)
    initialise(backbone, seed=3)
    return backbone.eval()


def test_a_saved_backbone_computes_the_same(tmp_path: Path) -> None:
    backbone = make()
    images = torch.rand(2, 2, 8, 12, generator=torch.Generator().manual_seed(0))

    save_backbone(tmp_path, OPTIONS, backbone.state_dict(), SEEN)
    loaded, preprocessing = load_backbone(tmp_path)

    with torch.no_grad():
        (wanted,), (found,) = backbone([Views(images)]), loaded([Views(images)])
    assert torch.equal(found.cls, wanted.cls)
    assert torch.equal(found.patches, wanted.patches)
    assert preprocessing == SEEN
    assert not loaded.training
    assert not any(tensor.is_meta for tensor in [*loaded.parameters(), *loaded.buffers()])
    assert sorted(path.name for path in tmp_path.iterdir()) == [OPTIONS_NAME, WEIGHTS_NAME]


def test_options_are_readable_json(tmp_path: Path) -> None:
    save_backbone(tmp_path, OPTIONS, make().state_dict(), SEEN)

    described = json.loads((tmp_path / OPTIONS_NAME).read_text())
    assert (described["width"], described["patch"], described["format"]) == (16, 4, 1)
    assert described["model"]["rope"]["base"] == 10.0
    assert described["preprocessing"] == {"size": 8, "mean": [0.5, 0.25], "std": [0.2, 0.1], "merges": ""}


def test_weights_of_another_architecture_are_refused_before_a_file_is_written(tmp_path: Path) -> None:
    weights = {**make().state_dict(), "blocks.0.extra": torch.zeros(1)}

    with pytest.raises(UserError, match=r"do not fit the model: .*blocks\.0\.extra"):
        save_backbone(tmp_path, OPTIONS, weights, SEEN)
    assert list(tmp_path.iterdir()) == []


def test_a_newer_format_is_refused(tmp_path: Path) -> None:
    save_backbone(tmp_path, OPTIONS, make().state_dict(), SEEN)
    path = tmp_path / OPTIONS_NAME
    path.write_text(path.read_text().replace('"format": 1', '"format": 2'))

    with pytest.raises(UserError, match="format 2, this version reads 1"):
        load_backbone(tmp_path)
