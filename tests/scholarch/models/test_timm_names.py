from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from model_helpers import pictures, shaken, tiny_convnext, tiny_vit
from safetensors.torch import load, save, save_file
from scholarch.errors import UserError
from scholarch.models import build_backbone
from scholarch.models.capi import CapiViTOptions
from scholarch.models.features import Backbone, Views
from scholarch.models.positions import LearnedPositionOptions
from scholarch.models.rope import RopeOptions
from scholarch.models.timm_names import import_timm, to_timm
from scholarch.models.vit import ViTOptions
from torch import nn

timm = pytest.importorskip("timm")


def in_timm(backbone: Backbone) -> nn.Module:
    found = to_timm(backbone)
    model: nn.Module = timm.create_model(found.architecture, **found.arguments)
    model.double().load_state_dict(load(save(found.state)))  # strict
    return model.eval()


def close(found: torch.Tensor, expected: torch.Tensor) -> None:
    # timm keeps rotary angles in float32.
    torch.testing.assert_close(found, expected, rtol=1e-5, atol=5e-6)


def both_ways(backbone: Any, *sizes: tuple[int, int]) -> None:
    theirs = in_timm(backbone)
    again = shaken(build_backbone(backbone.options), seed=9).eval()
    import_timm(again, theirs.state_dict())  # type: ignore[arg-type]
    for size in sizes:
        images = pictures(2, *size, channels=backbone.channels)
        (features,) = backbone([Views(images)])
        with torch.no_grad():
            found = theirs.forward_features(images)  # type: ignore[operator]
            close(theirs(images), features.cls)
        torch.testing.assert_close(again([Views(images)])[0].patches, features.patches)
        if found.dim() == 3:
            prefix = 1 + features.registers.shape[1]
            close(found[:, 1:prefix], features.registers)
            close(found[:, prefix:], features.patches)


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"norm": "layernorm_bf16", "ffn": "swiglu", "ffn_ratio": 3.3},
        {"qkv_bias": False, "untie_global_and_local_cls_norm": True, "ffn_ratio": 3.37},
        {"registers": 0, "layer_scale": None, "channels": 1, "rope": RopeOptions(base=50.0)},
    ],
)
def test_rope(options: dict[str, Any]) -> None:
    both_ways(tiny_vit(**options), (16, 16), (12, 20))


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"ffn": "swiglu", "ffn_ratio": 3.3},
        {"registers": 0, "norm": "layernorm_bf16"},
        {"registers": 0, "layer_scale": None, "channels": 1},
    ],
)
def test_learned(options: dict[str, Any]) -> None:
    learned = LearnedPositionOptions(grid=4)
    both_ways(tiny_vit(position="learned", learned=learned, **options), (16, 16), (12, 20))


def test_learned_by_scale_at_its_own_grid() -> None:
    learned = LearnedPositionOptions(grid=4, interpolation="scale")
    both_ways(tiny_vit(position="learned", learned=learned), (16, 16))


def test_convnext() -> None:
    both_ways(tiny_convnext(), (64, 96))


@pytest.mark.parametrize(
    ("size", "bias", "name"),
    [
        ("small", True, "vit_small_patch16_dinov3_qkvb"),
        ("large", False, "vit_large_patch16_dinov3"),
        ("huge_plus", True, "vit_huge_plus_patch16_dinov3_qkvb"),
        ("7b", False, "vit_7b_patch16_dinov3"),
    ],
)
def test_names_of_known_sizes(size: Any, bias: bool, name: str) -> None:
    """The arguments only repeat what timm's architecture has, so it can be loaded by name alone."""
    with torch.device("meta"):
        backbone = build_backbone(ViTOptions(size=size, qkv_bias=bias, norm="layernorm_bf16"))
        found = to_timm(backbone)
        assert found.architecture == name
        plain = timm.create_model(name, num_classes=0, global_pool="token")
    shapes = {key: tensor.shape for key, tensor in found.state.items()}
    assert {key: tensor.shape for key, tensor in plain.state_dict().items()} == shapes


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"norm": "rmsnorm"}, "rmsnorm"),
        ({"untie_cls_and_patch_norms": True}, "untied norms"),
        ({"rope": RopeOptions(coordinates="max")}, "coordinates max"),
        ({"rope": RopeOptions(base=None, min_period=1.0, max_period=2.0)}, "minimum and maximum"),
        ({"masked_key_bias": False}, "key bias"),
    ],
)
def test_what_timm_lacks(options: dict[str, Any], message: str) -> None:
    with pytest.raises(UserError, match=message):
        to_timm(tiny_vit(**options))


def test_capi_is_not_in_timm() -> None:
    with torch.device("meta"):
        backbone = build_backbone(CapiViTOptions(size="tiny"))
    with pytest.raises(UserError, match="CapiViT"):
        to_timm(backbone)


def test_key_bias_of_zero_is_no_hindrance() -> None:
    model = tiny_vit(masked_key_bias=False)
    for block in model.blocks:
        with torch.no_grad():
            block.attn.qkv.bias[16:32] = 0  # type: ignore[index, union-attr]
    both_ways(model, (16, 16))


def test_snippet_runs(tmp_path: Path) -> None:
    model = tiny_vit()
    found = to_timm(model)
    path = str(tmp_path / "model.safetensors")
    save_file(found.state, path)
    scope: dict[str, Any] = {}
    exec(found.snippet(path), scope)
    images = pictures(1, 16, 16)
    with torch.no_grad():
        cls = scope["model"].double().eval()(images)
    torch.testing.assert_close(cls, model([Views(images)])[0].cls, rtol=1e-4, atol=1e-4)


def test_wrong_state_is_told() -> None:
    model = tiny_vit()
    state = dict(in_timm(model).state_dict())
    del state["norm.weight"]
    with pytest.raises(UserError, match=r"missing \(1\): norm\.weight"):
        import_timm(model, state)
