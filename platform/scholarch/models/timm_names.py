"""Backbones as timm has them, where it does (written against timm 1.0.31, which is never imported).

ViT with rope is timm's `Eva` in its DINOv3 form, ViT with learned positions its `VisionTransformer` in
DINOv2's, ConvNeXt its `ConvNeXt`. A training-only part (mask token, norm of local crops) stays behind.
"""

from __future__ import annotations

import functools
import itertools
from collections.abc import Mapping
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from scholarch.errors import UserError
from scholarch.models import convnext
from scholarch.models.convnext import ConvNeXt
from scholarch.models.features import Backbone
from scholarch.models.layouts import State, backwards, fuse, renamed, replace_part, replaced, split_fused
from scholarch.models.vit import SIZES, Size, VisionTransformer
from scholarch.models.weights import load_strictly

_EVA = {
    ".ls1.gamma": ".gamma_1",
    ".ls2.gamma": ".gamma_2",
    ".mlp.w1.": ".mlp.fc1_g.",
    ".mlp.w2.": ".mlp.fc1_x.",
    ".mlp.w3.": ".mlp.fc2.",
}
_EVA_SIZES: tuple[Size, ...] = ("tiny", "small", "small_plus", "base", "large", "huge_plus", "7b")
_FUSED = {".mlp.w3.": ".mlp.fc2.", ".mlp.w12.": ".mlp.fc1."}
_CONVNEXT = {
    ".dwconv.": ".conv_dw.",
    ".pwconv1.": ".mlp.fc1.",
    ".pwconv2.": ".mlp.fc2.",
}


class TimmModel(NamedTuple):
    """What `timm.create_model(architecture, **arguments)` and its `load_state_dict(state)` want.

    Attributes:
        architecture: a name timm knows.
        arguments: to `create_model`; the model then gives CLS after the final norm [B, D].
        state: tensors under timm's names.
    """

    architecture: str
    arguments: dict[str, Any]
    state: State

    def snippet(self, path: str) -> str:
        """Python that loads `state` saved as safetensors at `path`."""
        arguments = "".join(f",\n    {name}={_source(value)}" for name, value in self.arguments.items())
        lines = ["import timm"]
        if any(isinstance(value, functools.partial) for value in self.arguments.values()):
            lines = ["from functools import partial", "", "import timm", "import torch"]
        return "\n".join(
            [
                *lines,
                "",
                f"model = timm.create_model(\n    {self.architecture!r},\n    checkpoint_path={path!r}{arguments},\n)",
            ]
        )


def _source(value: Any) -> str:
    if isinstance(value, functools.partial):
        return f"partial(torch.nn.LayerNorm, eps={value.keywords['eps']})"
    return repr(value)


def to_timm(backbone: Backbone) -> TimmModel:
    """The backbone for timm.

    With learned positions and `interpolation: scale`, timm agrees at the stored grid alone: at others
    it resamples as `size` does. timm computes the rotary periods again; released DINOv3 weights hold
    them rounded to bfloat16, which differs by about 1e-3 in the outputs.

    Args:
        backbone: not sharded.

    Raises:
        UserError: if timm has no such architecture, saying what it lacks.
    """
    if isinstance(backbone, ConvNeXt):
        return _to_convnext(backbone)
    vit = _known_to_timm(backbone)
    if vit.pos_embed is not None:
        return _to_vit(vit)
    if vit.options.qkv_bias and not vit.options.masked_key_bias and _key_bias(vit):
        raise _no_model("rope and a key bias")
    return _to_eva(vit)


def import_timm(backbone: Backbone, state: Mapping[str, Tensor], *, where: str = "") -> None:
    """Fills `backbone` from the state of the timm model that `to_timm` names for it.

    What timm has not gets its first value: mask token and key bias 0, the norm of local crops that of
    all.

    Raises:
        UserError: naming all keys that are missing, extra, misshaped or hold NaN, or as `to_timm`.
    """
    if isinstance(backbone, ConvNeXt):
        found = _from_convnext(state)
    else:
        vit = _known_to_timm(backbone)
        found = _from_eva(vit, state) if vit.pos_embed is None else _from_vit(state)
        found["mask_token"] = torch.zeros(1, vit.width)
        if not vit.options.layer_scale:
            found = {n: t for n, t in found.items() if not n.endswith(".gamma") or bool((t != 1).any())}
        if vit.local_cls_norm is not None:
            found |= {f"local_cls_{n}": t for n, t in found.items() if n in ("norm.weight", "norm.bias")}
    load_strictly(backbone, found, where)


def _no_model(*lacking: str) -> UserError:
    return UserError(
        f"timm has no model with {', '.join(lacking)}",
        fix="export as safetensors under our own names instead",
    )


def _known_to_timm(backbone: Backbone) -> VisionTransformer:
    """The backbone, if timm has its architecture."""
    if not isinstance(backbone, VisionTransformer):
        raise _no_model(f"the architecture {type(backbone).__name__}")
    options = backbone.options
    lacking = []
    if options.norm == "rmsnorm":
        lacking.append("norm rmsnorm")
    if options.untie_cls_and_patch_norms:
        lacking.append("untied norms of CLS and patches")
    if options.position == "rope":
        if options.rope.base is None:
            lacking.append("rope periods by minimum and maximum")
        if options.rope.coordinates != "separate":
            lacking.append(f"rope coordinates {options.rope.coordinates}")
    if lacking:
        raise _no_model(*lacking)
    return backbone


def _key_bias(backbone: VisionTransformer) -> bool:
    width = backbone.width
    biases = [tensor for name, tensor in backbone.state_dict().items() if name.endswith("qkv.bias")]
    return any(bool(bias[width : 2 * width].any()) for bias in biases)


def _state(backbone: Backbone) -> State:
    """Without what serves training alone, and without constants; with LayerScale in any case.

    timm cannot be told to leave LayerScale out of these architectures: factors of 1 change nothing.
    """
    left_out = ("mask_token", "local_cls_norm.", "rope_embed.")
    state = {
        name: tensor.detach()
        for name, tensor in backbone.state_dict().items()
        if not name.startswith(left_out) and not name.endswith("bias_mask")
    }
    if isinstance(backbone, VisionTransformer) and not backbone.options.layer_scale:
        one = state["cls_token"].new_ones
        blocks = range(len(backbone.blocks))
        state |= {f"blocks.{b}.ls{n}.gamma": one(backbone.width) for b in blocks for n in (1, 2)}
    return state


def _common(backbone: VisionTransformer, hidden: int, eps_of_timm: float) -> dict[str, Any]:
    """Arguments that both of timm's classes take; `hidden` is what it calls the hidden width."""
    options, shape = backbone.options, backbone.options.shape
    ratio = hidden / shape.embed_dim
    if int(shape.embed_dim * ratio) != hidden:  # timm rounds down
        ratio = (hidden + 0.5) / shape.embed_dim
    arguments: dict[str, Any] = {
        "num_classes": 0,
        "global_pool": "token",
        "dynamic_img_size": True,
        "patch_size": options.patch,
        "in_chans": options.channels,
        "embed_dim": shape.embed_dim,
        "depth": shape.depth,
        "num_heads": shape.heads,
        "mlp_ratio": ratio,
        "qkv_bias": options.qkv_bias,
    }
    eps = 1e-6 if options.norm == "layernorm" else 1e-5
    if eps != eps_of_timm:
        arguments["norm_layer"] = functools.partial(nn.LayerNorm, eps=eps)
    return arguments


def _hidden(backbone: VisionTransformer) -> int:
    state = backbone.state_dict()
    name = "fc1" if "blocks.0.mlp.fc1.weight" in state else "w1"
    return int(state[f"blocks.0.mlp.{name}.weight"].shape[0])


def _to_eva(backbone: VisionTransformer) -> TimmModel:
    options, gated = backbone.options, backbone.options.shape.ffn != "mlp"
    assert options.rope.base is not None
    fitting = [name for name in _EVA_SIZES if SIZES[name] == options.shape]
    size = fitting[0] if fitting else "small_plus" if gated else "small"
    # timm has tiny with biases alone and 7b without alone; the argument decides in the end.
    with_bias = size == "tiny" or (options.qkv_bias and size != "7b")
    architecture = f"vit_{size}_patch16_dinov3{'_qkvb' if with_bias else ''}"
    arguments = _common(backbone, _hidden(backbone), 1e-5)
    arguments |= {"num_reg_tokens": options.registers, "rope_temperature": float(options.rope.base)}
    state: State = {}
    for name, tensor in _state(backbone).items():
        if name.endswith("qkv.bias"):
            queries, _, values = (part.clone() for part in tensor.chunk(3))
            state |= {name.replace("qkv.bias", "q_bias"): queries, name.replace("qkv.bias", "v_bias"): values}
        else:
            state[name] = tensor
    return TimmModel(architecture, arguments, renamed(replaced(state, _EVA), {"storage_tokens": "reg_token"}))


def _from_eva(backbone: VisionTransformer, state: Mapping[str, Tensor]) -> State:
    found: State = {}
    for name, tensor in replaced(renamed(state, {"reg_token": "storage_tokens"}), backwards(_EVA)).items():
        if name.endswith("attn.q_bias"):
            values = state[name.replace("q_bias", "v_bias")]
            found[name.replace("q_bias", "qkv.bias")] = torch.cat([tensor, torch.zeros_like(tensor), values])
        elif not name.endswith("attn.v_bias"):
            found[name] = tensor
    # With one name for both, the last layer of an MLP was taken for SwiGLU's.
    if any(".mlp.fc1." in name for name in found):
        found = replaced(found, {".mlp.w3.": ".mlp.fc2."})
    # Constants of the architecture.
    ours = backbone.state_dict()
    return found | {n: t for n, t in ours.items() if n == "rope_embed.periods" or n.endswith("bias_mask")}


def _to_vit(backbone: VisionTransformer) -> TimmModel:
    options, gated = backbone.options, backbone.options.shape.ffn != "mlp"
    registers = "_reg4" if options.registers else ""
    architecture = f"vit_{'giant' if gated else 'small'}_patch14{registers}_dinov2"
    arguments = _common(backbone, _hidden(backbone) * (2 if gated else 1), 1e-6)
    arguments["img_size"] = options.patch * options.learned.grid
    state = _state(backbone)
    if registers:
        arguments |= {"reg_tokens": options.registers, "no_embed_class": True}
        positions = state["pos_embed"]
        state["cls_token"] = state["cls_token"] + positions[:, :1]
        state["pos_embed"] = positions[:, 1:].clone()
        state = renamed(state, {"storage_tokens": "reg_token"})
    return TimmModel(
        architecture, arguments, replaced(fuse(state, "w12", "w1", "w2"), _FUSED if gated else {})
    )


def _from_vit(state: Mapping[str, Tensor]) -> State:
    found = dict(state)
    if "reg_token" in found:
        found["storage_tokens"] = found.pop("reg_token")
        # The place of CLS is in its token already.
        found["pos_embed"] = torch.cat([torch.zeros_like(found["cls_token"]), found["pos_embed"]], dim=1)
    first, last = (found.get(f"blocks.0.mlp.{name}.weight") for name in ("fc1", "fc2"))
    if first is not None and last is not None and first.shape[0] == 2 * last.shape[1]:
        found = split_fused(replaced(found, backwards(_FUSED)), "w12", "w1", "w2")
    return found


def _to_convnext(backbone: ConvNeXt) -> TimmModel:
    depths, widths = backbone.options.shape
    places = [
        f"stages.{stage}.blocks.{block}" for stage, depth in enumerate(depths) for block in range(depth)
    ]
    state: State = {}
    for name, tensor in _state(backbone).items():
        head, number, rest = (*name.split(".", 2), "")[:3]
        if head == "blocks":
            name = replace_part(f"{places[int(number)]}.{rest}", _CONVNEXT)
        elif head == "downsample_layers":
            name = f"stem.{rest}" if number == "0" else f"stages.{number}.downsample.{rest}"
        elif head == "norm":
            name = f"head.{name}"
        state[name] = tensor
    arguments: dict[str, Any] = {"num_classes": 0, "depths": depths, "dims": widths}
    size = next((name for name, shape in convnext.SIZES.items() if shape == (depths, widths)), "tiny")
    return TimmModel(f"convnext_{size}", arguments | {"in_chans": backbone.channels}, state)


def _from_convnext(state: Mapping[str, Tensor]) -> State:
    found: State = {}
    counts = [len({n.split(".")[3] for n in state if n.startswith(f"stages.{s}.blocks.")}) for s in range(4)]
    starts = [0, *itertools.accumulate(counts)]
    for name, tensor in replaced(state, backwards(_CONVNEXT)).items():
        parts = name.split(".", 4)
        if parts[0] == "stem":
            name = "downsample_layers.0." + name.removeprefix("stem.")
        elif parts[0] == "stages" and parts[2] == "downsample":
            name = f"downsample_layers.{parts[1]}." + name.split(".", 3)[3]
        elif parts[0] == "stages" and parts[2] == "blocks":
            name = f"blocks.{starts[int(parts[1])] + int(parts[3])}.{parts[4]}"
        found[name.removeprefix("head.")] = tensor
    return found
