from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from model_helpers import TINY_CAPI, TINY_CONVNEXT, arrays, pictures, shaken, tiny_options, tiny_vit
from model_shapes import (
    Shapes,
    block_shapes,
    capi_shapes,
    convnext_shapes,
    dinov2_shapes,
    dinov3_shapes,
    vit_shapes,
)
from safetensors.torch import load, save
from scholarch.errors import UserError
from scholarch.models import build_backbone
from scholarch.models.capi import CapiViTOptions
from scholarch.models.convnext import ConvNeXtOptions
from scholarch.models.features import Backbone, Views
from scholarch.models.heads import HeadOptions, ProjectionHead
from scholarch.models.layouts import Layout
from scholarch.models.positions import LearnedPositionOptions
from scholarch.models.weights import (
    backbone_tensors,
    export_backbone,
    import_backbone,
    import_head,
    training_export,
)
from slow_vit import slow_positions, slow_vit
from torch import Tensor


def made(shapes: Shapes, seed: int = 3) -> dict[str, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    return {
        name: 0.3 * torch.randn(shape, generator=generator, dtype=torch.float64)
        for name, shape in shapes.items()
    }


def fresh(options: Any) -> Any:
    return build_backbone(options).double().eval()


def slow_patches(model: Any, image: Tensor, state: dict[str, Tensor], **more: Any) -> np.ndarray:
    options = model.options
    plain = {name: tensor.numpy() for name, tensor in state.items()}
    shape = options.shape
    return slow_vit(
        image.numpy(),
        plain,
        heads=shape.heads,
        patch=options.patch,
        depth=shape.depth,
        norm=options.norm,
        **more,
    )[1]


def equals(model: Any, image: Tensor, expected: np.ndarray) -> None:
    (features,) = model([Views(image[None])])
    found = torch.cat([features.cls[:, None], features.registers, features.patches], dim=1)[0]
    np.testing.assert_allclose(found.detach().numpy(), expected, rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("wrapping", ["flat", "training", "distributed"])
def test_dinov3_from_reference_names(wrapping: str) -> None:
    model = fresh(tiny_options(patch=16, norm="layernorm_bf16", ffn="swiglu", ffn_ratio=3.0))
    state = made(dinov3_shapes(16, 2, block_shapes(16, 32, ffn="split", scaled=True), head_width=8))
    state["rope_embed.periods"] = torch.tensor([1.0, 10.0])
    for i in range(2):
        state[f"blocks.{i}.attn.qkv.bias_mask"] = torch.tensor([1.0] * 16 + [0.0] * 16 + [1.0] * 16)
    checkpoint: dict[str, Any] = dict(state)
    if wrapping != "flat":
        prefix = "backbone." if wrapping == "training" else "module.backbone."
        head = {"dino_head.mlp.0.weight": torch.zeros(1)}
        checkpoint = {
            "teacher": {f"{prefix}{name}": tensor for name, tensor in state.items()} | head,
            "epoch": 3,
        }
    import_backbone(model, checkpoint)
    image = pictures(1, 32, 48)[0]
    equals(model, image, slow_patches(model, image, state))


@pytest.mark.parametrize("chunked", [False, True])
@pytest.mark.parametrize("registers", [0, 4])
@pytest.mark.parametrize("ffn", ["mlp", "fused"])
def test_dinov2_from_reference_names(chunked: bool, registers: int, ffn: str) -> None:
    grid = 37
    form: Any = "size" if registers else "scale"
    options = tiny_options(
        patch=14,
        registers=registers,
        ffn="mlp" if ffn == "mlp" else "swiglu",
        ffn_ratio=3.0,
        position="learned",
        learned=LearnedPositionOptions(grid=grid, interpolation=form),
    )
    model = fresh(options)
    hidden = 48 if ffn == "mlp" else 32
    state = made(dinov2_shapes(16, 2, block_shapes(16, hidden, ffn=ffn, scaled=True), registers))
    checkpoint = {
        (
            name.replace("blocks.", f"blocks.{name.split('.')[1]}.", 1)
            if chunked and "blocks" in name
            else name
        ): t
        for name, t in state.items()
    }
    assert chunked == ("blocks.1.1.norm1.weight" in checkpoint)
    import_backbone(model, checkpoint)
    plain = {
        name: tensor for name, tensor in state.items() if "w12" not in name and name != "register_tokens"
    }
    if registers:
        plain["storage_tokens"] = state["register_tokens"]
    for name, tensor in state.items():
        if "w12" in name:
            plain[name.replace("w12", "w1")], plain[name.replace("w12", "w2")] = (
                tensor[:hidden],
                tensor[hidden:],
            )
    image = pictures(1, 28, 42)[0]
    positions = slow_positions(state["pos_embed"].numpy(), 2, 3, form)
    equals(model, image, slow_patches(model, image, plain, positions=positions))


@pytest.mark.parametrize("layout", ["dino", "ibot", "ibot teacher"])
def test_dino_and_ibot_from_reference_names(layout: str) -> None:
    options = tiny_options(
        patch=16,
        registers=0,
        layer_scale=None,
        position="learned",
        learned=LearnedPositionOptions(grid=3, interpolation="scale"),
    )
    model = fresh(options)
    shapes = vit_shapes(16, 2, 16, block_shapes(16, 48, ffn="mlp", scaled=False)) | {"pos_embed": (1, 10, 16)}
    state = made(shapes | ({"masked_embed": (1, 16)} if layout == "ibot" else {}))
    import_backbone(model, {"state_dict": state} if "ibot" in layout else state)
    expected = state["masked_embed"] if layout == "ibot" else torch.zeros(1, 16, dtype=torch.float64)
    assert torch.equal(model.mask_token, expected)
    image = pictures(1, 48, 48)[0]
    positions = state["pos_embed"][0].numpy()
    equals(model, image, slow_patches(model, image, state, positions=positions))
    assert set(export_backbone(model, "dino")) == set(shapes)
    assert set(export_backbone(model, "ibot")) == {*shapes, "masked_embed"}


def round_trip(model: Backbone, shapes: Shapes, layout: Layout | None = None) -> None:
    exported = load(save(export_backbone(model, layout)))
    assert {name: tuple(tensor.shape) for name, tensor in exported.items()} == shapes
    again = build_backbone(model.options).double()  # type: ignore[arg-type]
    import_backbone(again, exported)
    for name, tensor in model.state_dict().items():
        assert torch.equal(again.state_dict()[name], tensor), name


def test_round_trips() -> None:
    block = block_shapes(16, 48, ffn="mlp", scaled=True)
    round_trip(tiny_vit(patch=16), dinov3_shapes(16, 2, block, head_width=8))
    learned = {"patch": 14, "position": "learned"}
    round_trip(tiny_vit(**learned), dinov2_shapes(16, 2, block, 4))
    fused = block_shapes(16, 32, ffn="fused", scaled=True)
    round_trip(tiny_vit(**learned, ffn="swiglu", registers=0), dinov2_shapes(16, 2, fused, 0), "dinov2")
    convnext = shaken(build_backbone(ConvNeXtOptions(**TINY_CONVNEXT)))
    round_trip(convnext, convnext_shapes((1, 2, 1, 1), (4, 6, 8, 10)))  # type: ignore[arg-type]
    capi = shaken(build_backbone(CapiViTOptions(**TINY_CAPI)))
    round_trip(capi, capi_shapes(24, 2, 2, 4, 8, 2))  # type: ignore[arg-type]


def test_numbering_of_convnext_and_capi() -> None:
    convnext = build_backbone(ConvNeXtOptions(**TINY_CONVNEXT)).double()
    state = made(convnext_shapes((1, 2, 1, 1), (4, 6, 8, 10)))
    state |= {f"norms.3.{part}": state[f"norm.{part}"] for part in ("weight", "bias")}
    import_backbone(convnext, state)
    ours = convnext.state_dict()
    assert torch.equal(ours["blocks.2.pwconv1.weight"], state["stages.1.1.pwconv1.weight"])
    assert torch.equal(ours["blocks.4.gamma"], state["stages.3.0.gamma"])
    state["norms.3.bias"] = state["norms.3.bias"] + 1
    with pytest.raises(UserError, match=r"extra \(1\): norms\.3\.bias"):
        import_backbone(convnext, state)
    capi = build_backbone(CapiViTOptions(**TINY_CAPI)).double()
    state = made(capi_shapes(24, 2, 2, 4, 8, 2))
    with pytest.raises(UserError, match="different rotary frequencies"):
        import_backbone(capi, state)
    state |= {name: torch.ones(2, 12) for name in state if name.endswith("freqs")}
    import_backbone(capi, {f"backbone.{name}": tensor for name, tensor in state.items()})
    ours = capi.state_dict()
    assert torch.equal(ours["blocks.3.mlp.fc1.weight"], state["decoder.blocks.1.residual2.fn.fc1.weight"])
    assert torch.equal(
        ours["blocks.1.attn.k_proj.weight"], state["encoder.blocks.1.residual1.fn.k_proj.weight"]
    )
    assert torch.equal(ours["blocks.2.norm2.weight"], state["decoder.blocks.0.residual2.norm.weight"])


def test_all_that_is_wrong_is_said_at_once() -> None:
    model = tiny_vit()
    before = arrays(model)
    state = export_backbone(model)
    del state["cls_token"], state["blocks.1.ls1.gamma"]
    state["head.weight"] = torch.zeros(2)
    state["norm.bias"] = torch.zeros(3)
    state["norm.weight"] = torch.full((16,), torch.nan)
    with pytest.raises(UserError) as caught:
        import_backbone(model, state, where="weights.pth")
    message = str(caught.value)
    assert message.startswith("weights.pth: ")
    assert "missing (2): cls_token, blocks.1.ls1.gamma" in message
    assert "extra (1): head.weight" in message
    assert "misshaped (1): norm.bias [3] for [16]" in message
    assert "not a number (1): norm.weight" in message
    for name, value in arrays(model).items():
        np.testing.assert_array_equal(value, before[name])


def test_another_architecture_lists_some_and_counts_all() -> None:
    with pytest.raises(UserError, match=r"missing \(\d+\): .* and \d+ more"):
        import_backbone(tiny_vit(depth=4), export_backbone(tiny_vit(depth=2)))
    with pytest.raises(UserError, match="missing"):
        import_backbone(tiny_vit(), export_backbone(build_backbone(ConvNeXtOptions(**TINY_CONVNEXT))))


@pytest.mark.parametrize("nothing", [{}, {"epoch": 3}, {"model": {}}, {"teacher": {"epoch": 1}}])
def test_no_tensors(nothing: dict[str, Any]) -> None:
    with pytest.raises(UserError, match="no named tensors"):
        backbone_tensors(nothing)


def test_teacher_is_taken() -> None:
    one, two = torch.zeros(1), torch.ones(1)
    checkpoint = {"student": {"module.backbone.a": one}, "teacher": {"backbone.a": two, "head.b": one}}
    assert backbone_tensors(checkpoint) == {"a": two}


def test_resized_positions() -> None:
    options = {"position": "learned", "depth": 1}
    source = tiny_vit(**options, learned=LearnedPositionOptions(grid=3))
    target = tiny_vit(**options, learned=LearnedPositionOptions(grid=5))
    with pytest.raises(UserError, match=r"pos_embed \[1, 10, 16\] for \[1, 26, 16\]"):
        import_backbone(target, export_backbone(source))
    import_backbone(target, export_backbone(source), resize_positions=True)
    expected = slow_positions(arrays(source)["pos_embed"], 5, 5, "size")
    np.testing.assert_allclose(arrays(target)["pos_embed"][0], expected, atol=1e-9)


def test_layouts_that_do_not_fit() -> None:
    with pytest.raises(UserError, match="dinov2 has no names"):
        export_backbone(tiny_vit(), "dinov2")
    with pytest.raises(UserError, match="dino has no names for storage_tokens"):
        export_backbone(tiny_vit(position="learned"), "dino")


def built_head(**options: Any) -> ProjectionHead:
    head = shaken(
        ProjectionHead(4, HeadOptions(**{"prototypes": 7, "hidden": 6, "bottleneck": 5, **options}))
    )
    assert isinstance(head, ProjectionHead)
    return head


def test_training_export() -> None:
    model, dino, ibot = tiny_vit(), built_head(), built_head()
    exported = training_export(model, {"dino_head": dino, "ibot_head": ibot})
    assert set(exported) == {"teacher"}
    names = set(exported["teacher"])
    assert {name.split(".")[0] for name in names} == {"backbone", "dino_head", "ibot_head"}
    assert {"backbone.cls_token", "dino_head.mlp.4.bias", "ibot_head.last_layer.weight"} <= names
    again, head = tiny_vit(), built_head(weight_norm="trainable")
    torch.nn.init.zeros_(again.cls_token)
    import_backbone(again, exported)
    import_head(head, exported, "dino_head")
    assert torch.equal(again.cls_token, model.cls_token)
    x = pictures(1, 2, 4)[0, 0]
    torch.testing.assert_close(head(x), dino(x))


@pytest.mark.parametrize("source", ["none", "trainable", "frozen"])
@pytest.mark.parametrize("target", ["none", "trainable", "frozen"])
def test_heads_between_forms(source: str, target: str) -> None:
    given, taken = built_head(weight_norm=source), built_head(weight_norm=target)
    checkpoint = {"teacher": {f"head.{name}": tensor for name, tensor in given.state_dict().items()}}
    x = pictures(1, 2, 4)[0, 0]
    if target == "frozen" and source != "frozen":
        with pytest.raises(UserError, match="lengths other than 1"):
            import_head(taken, checkpoint, "head")
        return
    import_head(taken, checkpoint, "head")
    torch.testing.assert_close(taken(x), given(x))


def test_wrong_heads() -> None:
    head = built_head()
    with pytest.raises(UserError, match="no head 'dino_head'"):
        import_head(head, {"teacher": {"backbone.a": torch.zeros(1)}}, "dino_head")
    checkpoint = {f"h.{name}": tensor for name, tensor in built_head(layers=2).state_dict().items()}
    with pytest.raises(UserError, match=r"missing \(2\): mlp\.4\.weight, mlp\.4\.bias"):
        import_head(head, checkpoint, "h")


def test_second_prototypes_are_imported_too() -> None:
    given = built_head(weight_norm="trainable", patches="own")
    checkpoint = {"teacher": {f"head.{name}": tensor for name, tensor in given.state_dict().items()}}
    taken = built_head(patches="own")
    import_head(taken, checkpoint, "head")
    x = pictures(1, 2, 4)[0, 0]
    torch.testing.assert_close(taken(x, patches=len(x)), given(x, patches=len(x)))
    with pytest.raises(UserError, match=r"extra \(2\): last_layer2"):
        import_head(built_head(weight_norm="trainable"), checkpoint, "head")
