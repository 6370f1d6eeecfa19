"""Names and shapes of released state dicts, written down from reference.md 1.4 to 1.6 and 3.8."""

from __future__ import annotations

Shapes = dict[str, tuple[int, ...]]


def block_shapes(width: int, hidden: int, *, ffn: str, scaled: bool, bias: bool = True) -> Shapes:
    """Names and shapes of one block (reference.md 1.4 and 1.5)."""
    shapes: Shapes = {f"norm{n}.{part}": (width,) for n in (1, 2) for part in ("weight", "bias")}
    shapes |= {"attn.qkv.weight": (3 * width, width)} | ({"attn.qkv.bias": (3 * width,)} if bias else {})
    shapes |= {"attn.proj.weight": (width, width), "attn.proj.bias": (width,)}
    layers = {
        "mlp": {"fc1": (hidden, width), "fc2": (width, hidden)},
        "split": {"w1": (hidden, width), "w2": (hidden, width), "w3": (width, hidden)},
        "fused": {"w12": (2 * hidden, width), "w3": (width, hidden)},
    }[ffn]
    for name, (outputs, inputs) in layers.items():
        shapes |= {f"mlp.{name}.weight": (outputs, inputs), f"mlp.{name}.bias": (outputs,)}
    return shapes | ({"ls1.gamma": (width,), "ls2.gamma": (width,)} if scaled else {})


def vit_shapes(width: int, depth: int, patch: int, block: Shapes) -> Shapes:
    shapes: Shapes = {
        "cls_token": (1, 1, width),
        "patch_embed.proj.weight": (width, 3, patch, patch),
        "patch_embed.proj.bias": (width,),
        "norm.weight": (width,),
        "norm.bias": (width,),
    }
    return shapes | {f"blocks.{i}.{name}": shape for i in range(depth) for name, shape in block.items()}


def dinov3_shapes(width: int, depth: int, block: Shapes, *, head_width: int, masked: bool = True) -> Shapes:
    shapes = vit_shapes(width, depth, 16, block)
    shapes |= {"storage_tokens": (1, 4, width), "mask_token": (1, width)}
    shapes |= {"rope_embed.periods": (head_width // 4,)}
    return shapes | ({f"blocks.{i}.attn.qkv.bias_mask": (3 * width,) for i in range(depth)} if masked else {})


def dinov2_shapes(width: int, depth: int, block: Shapes, registers: int) -> Shapes:
    shapes = vit_shapes(width, depth, 14, block)
    shapes |= {"pos_embed": (1, 1 + 37**2, width), "mask_token": (1, width)}
    return shapes | ({"register_tokens": (1, registers, width)} if registers else {})


def convnext_shapes(depths: tuple[int, ...], widths: tuple[int, ...]) -> Shapes:
    shapes: Shapes = {}

    def norm(name: str, width: int) -> Shapes:
        return {f"{name}.weight": (width,), f"{name}.bias": (width,)}

    for s, (depth, width) in enumerate(zip(depths, widths, strict=True)):
        before = 3 if s == 0 else widths[s - 1]
        conv, side = ("0", 4) if s == 0 else ("1", 2)
        name = f"downsample_layers.{s}"
        shapes |= {f"{name}.{conv}.weight": (width, before, side, side), f"{name}.{conv}.bias": (width,)}
        shapes |= norm(f"{name}.{'1' if s == 0 else '0'}", width if s == 0 else before)
        for b in range(depth):
            block = f"stages.{s}.{b}"
            shapes |= {f"{block}.gamma": (width,), f"{block}.dwconv.weight": (width, 1, 7, 7)}
            shapes |= {f"{block}.dwconv.bias": (width,)} | norm(f"{block}.norm", width)
            shapes |= {f"{block}.pwconv1.weight": (4 * width, width), f"{block}.pwconv1.bias": (4 * width,)}
            shapes |= {f"{block}.pwconv2.weight": (width, 4 * width), f"{block}.pwconv2.bias": (width,)}
    return shapes | norm("norm", widths[-1]) | norm("norms.3", widths[-1])


def capi_shapes(width: int, depth: int, predictor: int, patch: int, registers: int, heads: int) -> Shapes:
    shapes: Shapes = {
        "patch_embed.weight": (width, 3, patch, patch),
        "patch_embed.bias": (width,),
        "registers": (1, registers, width),
        "mask_token": (1, width),
    }
    for stem, count in (("encoder", depth), ("decoder", predictor)):
        for i in range(count):
            block = f"{stem}.blocks.{i}.residual"
            shapes |= {f"{block}{n}.norm.weight": (width,) for n in (1, 2)}
            shapes |= {
                f"{block}1.fn.{part}.weight": (width, width)
                for part in ("q_proj", "k_proj", "v_proj", "proj")
            }
            shapes |= {f"{block}1.fn.rope.freqs": (2, width // heads)}
            shapes |= {
                f"{block}2.fn.fc1.weight": (4 * width, width),
                f"{block}2.fn.fc2.weight": (width, 4 * width),
            }
    return shapes
