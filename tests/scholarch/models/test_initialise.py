from __future__ import annotations

import math

import pytest
import torch
from model_helpers import tiny_options
from scholarch.models import build_backbone
from scholarch.models.features import Backbone
from scholarch.models.heads import HeadOptions, ProjectionHead
from scholarch.models.initialise import check_initialised, fill_with_nan, initialise
from scholarch.models.rope import RopeOptions
from torch import nn


def fresh(**options: object) -> Backbone:
    with torch.device("meta"):
        model = build_backbone(tiny_options(**options))
    fill_with_nan(model)
    return model


@pytest.mark.parametrize(
    "options",
    [
        {"untie_cls_and_patch_norms": True, "untie_global_and_local_cls_norm": True},
        {"norm": "rmsnorm", "ffn": "swiglu"},
        {"position": "learned"},
        {"rope": RopeOptions(base=None, min_period=1.0, max_period=9.0)},
    ],
)
def test_every_tensor_is_initialised(options: dict[str, object]) -> None:
    model = fresh(**options)
    with pytest.raises(RuntimeError, match=r"cls_token.*blocks\.1\.attn\.qkv\.weight"):
        check_initialised(model)
    initialise(model, 0)
    check_initialised(model)


def test_parts_get_what_the_whole_gets() -> None:
    whole, parts = fresh(), fresh()
    initialise(whole, 5, "backbone")
    for name in ("norm", "blocks.1", "blocks.0", "patch_embed", "rope_embed"):
        initialise(parts.get_submodule(name), 5, f"backbone.{name}")
    for name, value in parts.state_dict().items():
        if "token" not in name:
            assert torch.equal(value, whole.state_dict()[name]), name
    other = fresh()
    initialise(other, 6, "backbone")
    assert not torch.equal(other.state_dict()["cls_token"], whole.state_dict()["cls_token"])
    assert not torch.equal(
        whole.state_dict()["blocks.0.attn.qkv.weight"], whole.state_dict()["blocks.1.attn.qkv.weight"]
    )


@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16])
def test_values_do_not_depend_on_dtype(dtype: torch.dtype) -> None:
    single, other = fresh(), fresh().to(dtype)
    initialise(single, 0)
    initialise(other, 0)
    for name, value in single.state_dict().items():
        assert torch.allclose(other.state_dict()[name].float(), value, rtol=1e-2), name
        if dtype == torch.float64 and "periods" not in name:
            assert torch.equal(other.state_dict()[name].float(), value), name


def test_distributions() -> None:
    model = build_backbone(tiny_options(embed_dim=64, heads=1))
    initialise(model, 0)
    state = model.state_dict()
    limit = 1 / math.sqrt(3 * 4 * 4)
    for name in ("patch_embed.proj.weight", "patch_embed.proj.bias"):
        assert limit * 0.9 < state[name].abs().max() <= limit
    assert state["patch_embed.proj.weight"].std().item() == pytest.approx(limit / math.sqrt(3), rel=0.05)
    for name in ("blocks.0.attn.qkv.weight", "blocks.1.mlp.fc2.weight", "storage_tokens"):
        assert state[name].std().item() == pytest.approx(0.02, rel=0.15)
    for name in ("mask_token", "blocks.0.attn.qkv.bias", "blocks.0.mlp.fc1.bias", "norm.bias"):
        assert not state[name].any()
    assert (state["blocks.0.norm1.weight"] == 1).all()
    assert (state["blocks.0.ls2.gamma"] == 1e-5).all()
    assert state["blocks.0.attn.qkv.bias_mask"].tolist() == [1.0] * 64 + [0.0] * 64 + [1.0] * 64


def test_learned_distributions() -> None:
    model = fresh(position="learned")
    initialise(model, 0)
    state = model.state_dict()
    assert state["pos_embed"].std().item() == pytest.approx(0.02, rel=0.05)
    assert 0 < state["cls_token"].std().item() < 1e-5


def test_forgotten_initialiser_shows() -> None:
    class Forgetful(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.scale = nn.Parameter(torch.empty(3))
            self.register_buffer("count", torch.zeros((), dtype=torch.int64))
            self.register_buffer("flag", torch.zeros((), dtype=torch.bool))

        def init_weights(self, generator: torch.Generator) -> None:
            pass

    with torch.device("meta"):
        model = nn.Sequential(nn.Linear(2, 2), Forgetful())
    fill_with_nan(model)
    initialise(model, 0)
    with pytest.raises(RuntimeError, match=r"not initialised: 1\.scale, 1\.count$"):
        check_initialised(model)


def test_module_without_initialiser_is_named() -> None:
    with pytest.raises(TypeError, match=r"head\.1 \(Bilinear\)"):
        initialise(nn.Sequential(nn.Linear(2, 2), nn.Bilinear(1, 1, 1)), 0, "head")


@pytest.mark.parametrize("weight_norm", ["none", "trainable", "frozen"])
def test_heads_are_initialised(weight_norm: str) -> None:
    options = HeadOptions(prototypes=7, hidden=6, bottleneck=5, weight_norm=weight_norm)  # type: ignore[arg-type]
    with torch.device("meta"):
        head = ProjectionHead(4, options)
    fill_with_nan(head)
    initialise(head, 0, "dino_head")
    check_initialised(head)
