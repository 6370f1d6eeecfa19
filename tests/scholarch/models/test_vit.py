from __future__ import annotations

import itertools
from typing import Any

import numpy as np
import pytest
import torch
from model_helpers import (
    TINY,
    TINY_CAPI,
    TINY_CONVNEXT,
    arrays,
    parameters,
    pictures,
    shaken,
    tiny_options,
    tiny_vit,
)
from scholarch.errors import UserError
from scholarch.models import build_backbone
from scholarch.models.capi import CapiViTOptions
from scholarch.models.convnext import ConvNeXtOptions
from scholarch.models.features import Features, Views
from scholarch.models.positions import LearnedPositionOptions
from scholarch.models.rope import RopeOptions
from scholarch.models.vit import ViTOptions
from slow_vit import slow_positions, slow_vit


def close(found: torch.Tensor, expected: np.ndarray, tolerance: float = 1e-9) -> None:
    np.testing.assert_allclose(found.detach().double().numpy(), expected, rtol=tolerance, atol=tolerance)


def check_against_slow(
    model: Any, images: torch.Tensor, masks: torch.Tensor | None = None, **slow: Any
) -> None:
    options = model.options
    (features,) = model([Views(images, masks)])
    prefix = 1 + options.registers
    for i, image in enumerate(images):
        prenorm, normed, _ = slow_vit(
            image.numpy(),
            arrays(model),
            heads=options.shape.heads,
            patch=options.patch,
            depth=options.shape.depth,
            mask=None if masks is None else masks[i].numpy(),
            norm=options.norm,
            masked_key_bias=options.masked_key_bias and options.position == "rope",
            **slow,
        )
        close(features.prenorm[i], prenorm)
        close(features.cls[i], normed[0])
        close(features.registers[i], normed[1:prefix])
        close(features.patches[i], normed[prefix:])


COUNTS = {
    "small": 21_601_152,
    "small_plus": 28_697_472,
    "base": 85_669_632,
    "large": 303_154_176,
    "large_plus": 403_915_776,
    "so400m": 415_411_200,
    "huge_plus": 840_633_600,
    "giant": 1_134_577_152,
}


@pytest.mark.parametrize("size", COUNTS)
def test_parameter_counts(size: Any) -> None:
    with torch.device("meta"):
        assert parameters(build_backbone(ViTOptions(size=size))) == COUNTS[size]


def test_parameter_count_7b() -> None:
    with torch.device("meta"):
        model = build_backbone(ViTOptions(size="7b", qkv_bias=False, untie_global_and_local_cls_norm=True))
    assert parameters(model) == 6_716_043_264
    assert not any("bias_mask" in name or name.endswith("qkv.bias") for name in model.state_dict())


DINOV2_COUNTS = {
    ("small", 0): 22_056_576,
    ("small", 4): 22_058_112,
    ("base", 0): 86_580_480,
    ("base", 4): 86_583_552,
    ("large", 0): 304_368_640,
    ("large", 4): 304_372_736,
    ("giant", 0): 1_136_480_768,
    ("giant", 4): 1_136_486_912,
}


@pytest.mark.parametrize(("size", "registers"), DINOV2_COUNTS)
def test_parameter_counts_dinov2(size: Any, registers: int) -> None:
    ffn: Any = "swiglu" if size == "giant" else "mlp"
    with torch.device("meta"):
        model = build_backbone(
            ViTOptions(size=size, registers=registers, patch=14, position="learned", ffn=ffn)
        )
    assert parameters(model) == DINOV2_COUNTS[size, registers]


def test_state_keys() -> None:
    model = tiny_vit(depth=1, untie_cls_and_patch_norms=True, untie_global_and_local_cls_norm=True)
    shapes = {name: tuple(value.shape) for name, value in model.state_dict().items()}
    assert shapes == {
        "cls_token": (1, 1, 16),
        "storage_tokens": (1, 4, 16),
        "mask_token": (1, 16),
        "patch_embed.proj.weight": (16, 3, 4, 4),
        "patch_embed.proj.bias": (16,),
        "rope_embed.periods": (2,),
        "blocks.0.norm1.weight": (16,),
        "blocks.0.norm1.bias": (16,),
        "blocks.0.attn.qkv.weight": (48, 16),
        "blocks.0.attn.qkv.bias": (48,),
        "blocks.0.attn.qkv.bias_mask": (48,),
        "blocks.0.attn.proj.weight": (16, 16),
        "blocks.0.attn.proj.bias": (16,),
        "blocks.0.ls1.gamma": (16,),
        "blocks.0.norm2.weight": (16,),
        "blocks.0.norm2.bias": (16,),
        "blocks.0.mlp.fc1.weight": (48, 16),
        "blocks.0.mlp.fc1.bias": (48,),
        "blocks.0.mlp.fc2.weight": (16, 48),
        "blocks.0.mlp.fc2.bias": (16,),
        "blocks.0.ls2.gamma": (16,),
        **{
            f"{norm}.{part}": (16,)
            for norm in ("norm", "cls_norm", "local_cls_norm")
            for part in ("weight", "bias")
        },
    }


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"norm": "layernorm_bf16", "masked_key_bias": False},
        {"norm": "rmsnorm", "qkv_bias": False},
        {"ffn": "swiglu", "ffn_ratio": 2.0, "registers": 0},
        {"rope": RopeOptions(coordinates="max"), "layer_scale": None},
        {"rope": RopeOptions(coordinates="min"), "channels": 1},
    ],
)
def test_forward_equals_slow_forward(options: dict[str, Any]) -> None:
    model = tiny_vit(**options)
    images = pictures(2, 12, 20, channels=options.get("channels", 3))  # 3 x 5 patches: odd and not square
    masks = torch.zeros(2, 15, dtype=torch.bool)
    masks[0, [0, 3, 7]] = True  # the second picture has none
    coordinates = options.get("rope", RopeOptions()).coordinates
    check_against_slow(model, images, masks, coordinates=coordinates)
    check_against_slow(model, images, coordinates=coordinates)


@pytest.mark.parametrize("interpolation", ["size", "scale"])
@pytest.mark.parametrize("grid", [(3, 5), (2, 2), (4, 4), (7, 6)])
def test_learned_positions_equal_slow_forward(interpolation: Any, grid: tuple[int, int]) -> None:
    model = tiny_vit(
        position="learned", learned=LearnedPositionOptions(grid=4, interpolation=interpolation), depth=1
    )
    positions = slow_positions(arrays(model)["pos_embed"], *grid, interpolation)
    images = pictures(1, 4 * grid[0], 4 * grid[1])
    masks = torch.zeros(1, grid[0] * grid[1], dtype=torch.bool)
    masks[0, 1] = True
    check_against_slow(model, images, masks, positions=positions)


def test_equal_count_but_not_square_is_resampled() -> None:
    model = tiny_vit(position="learned", learned=LearnedPositionOptions(grid=4), depth=1)
    positions = slow_positions(arrays(model)["pos_embed"], 2, 8, "size")
    check_against_slow(model, pictures(1, 8, 32), positions=positions)


def test_tiny_activations_show_the_epsilon() -> None:
    images = pictures(1) * 1e-4
    for norm in ("layernorm", "layernorm_bf16"):
        model = tiny_vit(norm=norm, registers=0)
        with torch.no_grad():
            for parameter in (model.patch_embed.proj.bias, model.cls_token):
                parameter.mul_(1e-4)
        check_against_slow(model, images)


def test_masked_key_bias_changes_nothing() -> None:
    model = tiny_vit()
    before = model([Views(pictures(2))])[0].patches
    for block in model.blocks:
        with torch.no_grad():
            block.attn.qkv.bias[16:32] += 5.0  # type: ignore[union-attr, index]
    assert torch.equal(model([Views(pictures(2))])[0].patches, before)
    model([Views(pictures(2))])[0].patches.sum().backward()
    gradient = model.blocks[0].attn.qkv.bias.grad  # type: ignore[union-attr]
    assert torch.equal(gradient[16:32], torch.zeros(16, dtype=torch.float64))  # type: ignore[index]
    assert gradient[:16].abs().max() > 0  # type: ignore[index]
    unmasked = tiny_vit(masked_key_bias=False)
    before = unmasked([Views(pictures(2))])[0].patches
    with torch.no_grad():
        unmasked.blocks[0].attn.qkv.bias[16:32] += 5.0  # type: ignore[union-attr, index]
    assert not torch.allclose(unmasked([Views(pictures(2))])[0].patches, before)


def norms_used(features: Features, expected: str, model: Any) -> None:
    """Which norm made CLS and registers; patches are always the work of `norm`."""
    prefix = 1 + model.registers
    norm = getattr(model, expected)
    assert torch.allclose(features.cls, norm(features.prenorm[:, 0]))
    assert torch.allclose(features.registers, norm(features.prenorm[:, 1:prefix]))
    assert torch.allclose(features.patches, model.norm(features.prenorm[:, prefix:]))


def test_untied_norms() -> None:
    both = {"untie_cls_and_patch_norms": True, "untie_global_and_local_cls_norm": True}
    for options, while_global, while_local in (
        ({}, "norm", "norm"),
        ({"untie_cls_and_patch_norms": True}, "cls_norm", "cls_norm"),
        ({"untie_global_and_local_cls_norm": True}, "norm", "local_cls_norm"),
        (both, "cls_norm", "local_cls_norm"),
    ):
        model = tiny_vit(**options)
        views = [Views(pictures(2, 16, 16)), Views(pictures(3, 8, 8), local=True, name="local")]
        for train in (True, False):
            on_global, on_local = model.train(train)(views)
            norms_used(on_global, while_global, model)
            norms_used(on_local, while_local if train else while_global, model)


@pytest.mark.parametrize("local", [False, True])
def test_every_parameter_gets_a_gradient(local: bool) -> None:
    model = tiny_vit(untie_cls_and_patch_norms=True, untie_global_and_local_cls_norm=True).train()
    (features,) = model([Views(pictures(2), local=local)])
    (features.cls.sum() + features.patches.sum()).backward()
    assert [name for name, p in model.named_parameters() if p.grad is None] == []
    assert model.mask_token.grad is not None
    assert not model.mask_token.grad.any()


def test_intermediate_layers() -> None:
    model = tiny_vit(depth=3)
    images = pictures(2, 8, 12)
    one, two, three = model.intermediate_layers(images, 3)
    assert torch.equal(three.patches, model([Views(images)])[0].patches)
    picked, last = model.intermediate_layers(images, [0, 2])
    assert torch.equal(picked.patches, one.patches)
    assert torch.equal(last.cls, three.cls)
    assert torch.allclose(two.cls, model.norm(two.prenorm[:, 0]))
    (raw,) = model.intermediate_layers(images, [1], norm=False)
    assert torch.equal(raw.patches, two.prenorm[:, 5:])
    with pytest.raises(ValueError, match="no such layer"):
        model.intermediate_layers(images, [3])
    with pytest.raises(ValueError, match="no such layer"):
        model.intermediate_layers(images, 4)


def test_last_attention() -> None:
    model = tiny_vit()
    images = pictures(2)
    found = model.last_attention(images)
    assert found.cls.shape == (2, 2, 1 + 4 + 6)
    for i, image in enumerate(images):
        rows = slow_vit(image.numpy(), arrays(model), heads=2, patch=4, depth=2)[2]
        close(found.cls[i], rows[:, 0])
    assert found.projections.keys.shape == (2, 2, 11, 8)


@pytest.mark.parametrize(
    ("shape", "message"),
    [
        ((1, 3, 8, 10), "8x10 pixels"),
        ((1, 3, 9, 8), "9x8 pixels"),
        ((1, 1, 8, 8), "1 channels"),
        ((1, 3, 0, 8), "0x8"),
    ],
)
def test_wrong_pictures(shape: tuple[int, ...], message: str) -> None:
    with pytest.raises(UserError, match=message):
        tiny_vit()([Views(torch.zeros(shape))])


def test_wrong_masks() -> None:
    with pytest.raises(ValueError, match="masks"):
        tiny_vit()([Views(pictures(2), torch.zeros(2, 5, dtype=torch.bool))])


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"size": None, "embed_dim": 16}, "depth, heads, ffn, ffn_ratio"),
        ({"embed_dim": 100}, "multiple of heads"),
        ({"embed_dim": 12, "heads": 2}, "multiple of 4 x heads"),
        ({"patch": 0}, "patch must be positive"),
        ({"registers": -1}, "registers"),
        ({"stochastic_depth": 1.0}, r"\[0, 1\)"),
    ],
)
def test_wrong_options(wrong: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        ViTOptions(**wrong)


def test_size_is_overridden() -> None:
    assert ViTOptions(size="tiny", depth=3).shape == (192, 3, 3, "mlp", 4)
    assert tiny_options(heads=4).shape.heads == 4


def test_bf16() -> None:
    model = tiny_vit()
    expected = model([Views(pictures(2))])[0].patches
    found = model.bfloat16()([Views(pictures(2).bfloat16())])[0].patches
    assert found.dtype == torch.bfloat16
    difference = (found.double() - expected).abs().max().item()
    assert 0 < difference < 0.2


def test_no_pictures() -> None:
    model = tiny_vit().train()
    (features,) = model([Views(torch.zeros(0, 3, 8, 8, dtype=torch.float64))])
    assert features.patches.shape == (0, 4, 16)
    (features.cls.sum() + features.patches.sum()).backward()
    assert all(p.grad is not None and not p.grad.any() for p in model.parameters())


@pytest.mark.parametrize("options", [ViTOptions, ConvNeXtOptions, CapiViTOptions])
def test_checkpointed_blocks_run_again_in_the_backward_pass(options: Any) -> None:
    tiny = {ViTOptions: TINY, ConvNeXtOptions: TINY_CONVNEXT, CapiViTOptions: TINY_CAPI}[options]
    model = shaken(build_backbone(options(**tiny))).train()
    block = model.blocks[0]  # type: ignore[index]
    runs: list[None] = []
    inner = block.norm if options is ConvNeXtOptions else block.norm1  # type: ignore[union-attr]
    inner.register_forward_hook(lambda *_: runs.append(None))  # type: ignore[operator, union-attr]
    for checkpointed, expected in (("none", 1), ("selective", 2), ("full", 2)):
        block.checkpoint = checkpointed  # type: ignore[assignment, union-attr]
        runs.clear()
        model([Views(pictures(1, 32, 32))])[0].patches.sum().backward()
        assert len(runs) == expected


def test_compiled_and_checkpointed_blocks_change_nothing() -> None:
    images = pictures(2)
    reference = tiny_vit().train()
    reference([Views(images)])[0].patches.square().sum().backward()
    expected = {name: p.grad for name, p in reference.named_parameters()}
    for compiled, how in itertools.product((False, True), ("selective", "full")):
        model = tiny_vit().train()
        for block in model.blocks:
            block.checkpoint = how  # type: ignore[assignment]
            if compiled:
                block.compile(backend="eager")
        model([Views(images)])[0].patches.square().sum().backward()
        for name, parameter in model.named_parameters():
            torch.testing.assert_close(parameter.grad, expected[name])
