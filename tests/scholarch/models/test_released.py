from __future__ import annotations

import pytest
import torch
from model_helpers import parameters
from model_shapes import (
    Shapes,
    block_shapes,
    capi_shapes,
    convnext_shapes,
    dinov2_shapes,
    dinov3_shapes,
    vit_shapes,
)
from scholarch.models import build_backbone
from scholarch.models.released import RELEASED, released_by_file
from scholarch.models.weights import export_backbone

# Widths, depths and hidden widths of reference.md 1.1, 1.5 and 1.6.
DINOV3 = {
    "vits16": (384, 12, 1536, "mlp", 21_601_152),
    "vits16plus": (384, 12, 1536, "split", 28_697_472),
    "vitb16": (768, 12, 3072, "mlp", 85_669_632),
    "vitl16": (1024, 24, 4096, "mlp", 303_154_176),
    "vitl16_sat493m": (1024, 24, 4096, "mlp", 303_154_176 + 2048),
    "vitl16plus": (1024, 24, 4096, "split", 403_915_776),
    "vith16plus": (1280, 32, 5120, "split", 840_633_600),
    "vit7b16": (4096, 40, 8192, "split", 6_716_043_264),
    "vit7b16_sat493m": (4096, 40, 8192, "split", 6_716_043_264),
}
DINOV2 = {"s": (384, 12, 1536), "b": (768, 12, 3072), "l": (1024, 24, 4096), "g": (1536, 40, 4096)}
DINO = {"s": (384, 12), "b": (768, 12), "l": (1024, 24)}
CONVNEXT = {
    "tiny": ((3, 3, 9, 3), (96, 192, 384, 768)),
    "small": ((3, 3, 27, 3), (96, 192, 384, 768)),
    "base": ((3, 3, 27, 3), (128, 256, 512, 1024)),
    "large": ((3, 3, 27, 3), (192, 384, 768, 1536)),
}


def expected_shapes(name: str) -> Shapes:
    family, _, rest = name.partition("_")
    if family == "dinov3" and rest in DINOV3:
        width, depth, hidden, ffn, _ = DINOV3[rest]
        is_7b = "7b" in rest
        block = block_shapes(width, hidden, ffn=ffn, scaled=True, bias=not is_7b)
        shapes = dinov3_shapes(width, depth, block, head_width=128 if is_7b else 64, masked=not is_7b)
        untied = is_7b or "sat" in rest
        return shapes | ({f"local_cls_norm.{p}": (width,) for p in ("weight", "bias")} if untied else {})
    if family == "dinov3":
        return convnext_shapes(*CONVNEXT[rest.removeprefix("convnext_")])
    if family == "dinov2":
        width, depth, hidden = DINOV2[rest[3]]
        block = block_shapes(width, hidden, ffn="fused" if rest[3] == "g" else "mlp", scaled=True)
        return dinov2_shapes(width, depth, block, 4 if rest.endswith("reg") else 0)
    if family == "capi":
        return capi_shapes(1024, 24, 12, 14, 16, 16)
    width, depth = DINO[rest[3]]
    patch = int(rest[4:])
    block = block_shapes(width, 4 * width, ffn="mlp", scaled=False)
    return vit_shapes(width, depth, patch, block) | {"pos_embed": (1, 1 + (224 // patch) ** 2, width)}


@pytest.mark.parametrize("name", RELEASED)
def test_names_and_shapes(name: str) -> None:
    with torch.device("meta"):
        model = build_backbone(RELEASED[name].options)
    layout = "dino" if name.startswith(("dino_", "ibot_")) else None
    exported = export_backbone(model, layout)  # type: ignore[arg-type]
    assert {key: tuple(tensor.shape) for key, tensor in exported.items()} == expected_shapes(name)
    known = DINOV3.get(name.removeprefix("dinov3_"))
    if known is not None:
        assert parameters(model) == known[-1]


def test_files() -> None:
    for file, name in (
        ("dinov3_vits16_pretrain_lvd1689m-08c60483.pth", "dinov3_vits16"),
        ("dinov3_vits16plus_pretrain_lvd1689m-4057cbaa.pth", "dinov3_vits16plus"),
        ("dinov3_vitl16_pretrain_sat493m-eadcf0ff.pth", "dinov3_vitl16_sat493m"),
        ("dinov3_convnext_tiny_pretrain_lvd1689m-21b726bb.pth", "dinov3_convnext_tiny"),
        ("dinov2_vitg14_reg4_pretrain.pth", "dinov2_vitg14_reg"),
        ("dinov2_vitg14_pretrain.pth", "dinov2_vitg14"),
        ("dino_deitsmall16_pretrain.pth", "dino_vits16"),
        ("capi_vitl14_i22k.pth", "capi_vitl14_in22k"),
        ("checkpoint.pth", None),
    ):
        assert released_by_file(file) == name


def test_normalisation() -> None:
    assert RELEASED["dinov3_vit7b16_sat493m"].mean == (0.430, 0.411, 0.296)
    assert RELEASED["dinov3_vit7b16"].std == (0.229, 0.224, 0.225)
