"""Names of tensors in released checkpoints, and in ours (reference.md sections 1.4 to 1.6 and 3.8).

Our names for vision transformers are DINOv3's. Each function maps a whole state, names to tensors,
without looking at shapes: what is missing, extra or misshaped is found afterwards, all at once.
"""

from __future__ import annotations

import itertools
import re
from collections.abc import Mapping, Sequence
from typing import Literal

import torch
from torch import Tensor

from scholarch.errors import UserError

State = dict[str, Tensor]
Layout = Literal["dinov3", "dinov2", "dino", "ibot", "convnext", "capi"]

_CHUNKED = re.compile(r"^blocks\.\d+\.(\d+)\.")  # blocks.{chunk}.{global index}.
_CAPI = {
    "residual1.norm.": "norm1.",
    "residual1.fn.": "attn.",
    "residual2.norm.": "norm2.",
    "residual2.fn.": "mlp.",
}


def renamed(state: Mapping[str, Tensor], pairs: Mapping[str, str]) -> State:
    """The state with each whole name that `pairs` has replaced."""
    return {pairs.get(name, name): tensor for name, tensor in state.items()}


def replaced(state: Mapping[str, Tensor], pairs: Mapping[str, str]) -> State:
    """The state with each part of a name that `pairs` has replaced, the first that fits."""
    return {replace_part(name, pairs): tensor for name, tensor in state.items()}


def replace_part(name: str, pairs: Mapping[str, str]) -> str:
    """The name with the first part of it that `pairs` has replaced."""
    for old, new in pairs.items():
        if old in name:
            return name.replace(old, new)
    return name


def backwards(pairs: Mapping[str, str]) -> dict[str, str]:
    """The pairs the other way round."""
    return {new: old for old, new in pairs.items()}


def split_fused(state: Mapping[str, Tensor], fused: str, gate: str, value: str) -> State:
    """Cuts the fused first layer of SwiGLU in two: the first half is the gate."""
    found: State = {}
    for name, tensor in state.items():
        if f".{fused}." in name:
            halves = tensor.chunk(2)
            found |= {
                name.replace(fused, part): half for part, half in zip((gate, value), halves, strict=True)
            }
        else:
            found[name] = tensor
    return found


def fuse(state: Mapping[str, Tensor], fused: str, gate: str, value: str) -> State:
    """The reverse of `split_fused`."""
    found: State = {}
    for name, tensor in state.items():
        if f".{gate}." in name:
            found[name.replace(gate, fused)] = torch.cat([tensor, state[name.replace(gate, value)]])
        elif f".{value}." not in name:
            found[name] = tensor
    return found


def detect(state: Mapping[str, Tensor]) -> Layout:
    """Whose names a backbone's state has; DINOv3's where nothing says otherwise."""
    if any(name.startswith("downsample_layers.") for name in state):
        return "convnext"
    if any(name.startswith("encoder.blocks.") for name in state):
        return "capi"
    if "pos_embed" not in state:
        return "dinov3"
    if any(name.endswith("ls1.gamma") for name in state):
        return "dinov2"
    return "ibot" if "masked_embed" in state else "dino"


def learned_to_ours(state: Mapping[str, Tensor]) -> State:
    """DINO, iBOT and DINOv2, chunked or not."""
    found = renamed(state, {"register_tokens": "storage_tokens", "masked_embed": "mask_token"})
    found = {_CHUNKED.sub(r"blocks.\1.", name): tensor for name, tensor in found.items()}
    found = split_fused(found, "w12", "w1", "w2")
    scaled = any(name.endswith("ls1.gamma") for name in found)
    if "mask_token" not in found and "cls_token" in found and not scaled:
        # DINO has none, and iBOT's teacher drops it: nothing was ever masked with it.
        found["mask_token"] = torch.zeros_like(found["cls_token"][0])
    return found


def ours_to_learned(state: Mapping[str, Tensor], layout: Layout) -> State:
    """DINO, iBOT or DINOv2, not chunked.

    Raises:
        UserError: if the layout has no name for a tensor.
    """
    if layout == "dinov2":
        return renamed(fuse(state, "w12", "w1", "w2"), {"storage_tokens": "register_tokens"})
    foreign = [
        name for name in state if name == "storage_tokens" or ".w1." in name or name.endswith("ls1.gamma")
    ]
    if foreign:
        raise UserError(f"{layout} has no names for {', '.join(foreign[:3])}", fix="export as dinov2")
    found = renamed(state, {"mask_token": "masked_embed"})
    if layout == "dino":
        del found["masked_embed"]
    return found


def convnext_to_ours(state: Mapping[str, Tensor], depths: Sequence[int]) -> State:
    """Blocks are numbered through; the second name of the last norm is left out."""
    starts = [0, *itertools.accumulate(depths)]
    found: State = {}
    for name, tensor in state.items():
        if name.startswith("norms.3.") and _equal(tensor, state.get(name.replace("norms.3", "norm"))):
            continue
        parts = name.split(".", 3)
        if parts[0] == "stages" and len(parts) == 4 and int(parts[1]) < len(depths):
            # Past the end of its stage a block must not pass for one of the next stage.
            inside = int(parts[2]) < depths[int(parts[1])]
            name = f"blocks.{starts[int(parts[1])] + int(parts[2])}.{parts[3]}" if inside else name
        found[name] = tensor
    return found


def ours_to_convnext(state: Mapping[str, Tensor], depths: Sequence[int]) -> State:
    """With both names of the last norm."""
    places = [(stage, block) for stage, depth in enumerate(depths) for block in range(depth)]
    found: State = {}
    for name, tensor in state.items():
        parts = name.split(".", 2)
        if parts[0] == "blocks":
            stage, block = places[int(parts[1])]
            name = f"stages.{stage}.{block}.{parts[2]}"
        found[name] = tensor
        if parts[0] == "norm":
            found[f"norms.3.{parts[1]}"] = tensor.clone()  # safetensors refuses shared memory
    return found


def _equal(a: Tensor, b: Tensor | None) -> bool:
    return b is not None and a.shape == b.shape and torch.equal(a, b)


def capi_to_ours(state: Mapping[str, Tensor], depth: int) -> State:
    """Encoder and predictor in one list of blocks; one table of frequencies for all of them.

    Raises:
        UserError: if blocks have different frequencies.
    """
    found: State = {}
    for name, tensor in state.items():
        stem, _, rest = name.partition(".blocks.")
        if stem in ("encoder", "decoder") and rest:
            number, _, rest = rest.partition(".")
            if rest == "residual1.fn.rope.freqs":
                if not _equal(tensor, found.setdefault("rope.freqs", tensor)):
                    raise UserError("blocks have different rotary frequencies", where=name)
                continue
            block = int(number) + (depth if stem == "decoder" else 0)
            name = f"blocks.{block}.{replace_part(rest, _CAPI)}"
        found[name] = tensor
    return renamed(found, {"registers": "register_tokens"})


def ours_to_capi(state: Mapping[str, Tensor], depth: int) -> State:
    """The reverse of `capi_to_ours`."""
    found: State = {}
    for name, tensor in renamed(state, {"register_tokens": "registers"}).items():
        if name == "rope.freqs":
            continue
        parts = name.split(".", 2)
        if parts[0] == "blocks":
            number = int(parts[1])
            stem = f"encoder.blocks.{number}" if number < depth else f"decoder.blocks.{number - depth}"
            name = f"{stem}.{replace_part(parts[2], backwards(_CAPI))}"
            found[f"{stem}.residual1.fn.rope.freqs"] = state["rope.freqs"].clone()
        found[name] = tensor
    return found
