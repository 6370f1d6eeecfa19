"""Weights in and out: released checkpoints of the DINO family by their key names.

Nothing is loaded in part: whatever is missing, extra or misshaped is said in one message. Weights of
timm are in `timm_names`, the released architectures in `released`.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from typing import Any

import torch
from torch import Tensor, nn

from scholarch.errors import UserError
from scholarch.models import layouts
from scholarch.models.alignment import VISION, AlignedBackbone
from scholarch.models.capi import CapiViT
from scholarch.models.convnext import ConvNeXt
from scholarch.models.features import Backbone
from scholarch.models.heads import ProjectionHead
from scholarch.models.layouts import Layout, State
from scholarch.models.positions import resample
from scholarch.models.vit import VisionTransformer

_WRAPPERS = ("teacher", "model", "state_dict")
_LISTED = 8
_SCALE = "logit_scale"


def tensors_of(checkpoint: Mapping[str, Any]) -> State:
    """The named tensors of a checkpoint, taken out of its wrappings.

    The teacher's where there are several networks; prefixes that data parallelism or compilation put
    before names are taken away.

    Args:
        checkpoint: what `torch.load` or safetensors gives.

    Raises:
        UserError: if there are no named tensors in it.
    """
    inner: Any = checkpoint
    for wrapper in _WRAPPERS:
        if isinstance(inner, Mapping) and isinstance(inner.get(wrapper), Mapping):
            inner = inner[wrapper]
    state = {
        str(name).replace("module.", "").replace("_orig_mod.", ""): tensor
        for name, tensor in (inner.items() if isinstance(inner, Mapping) else ())
        if isinstance(tensor, Tensor)
    }
    if not state:
        raise UserError("this checkpoint has no named tensors in it", fix="give a file of model weights")
    return state


def backbone_tensors(checkpoint: Mapping[str, Any]) -> State:
    """Those of the backbone: all, or those under `backbone.` without it.

    Raises:
        UserError: as `tensors_of`.
    """
    state = tensors_of(checkpoint)
    prefix = "backbone."
    inner = {name.removeprefix(prefix): tensor for name, tensor in state.items() if name.startswith(prefix)}
    return inner or state


def import_backbone(
    backbone: Backbone, checkpoint: Mapping[str, Any], *, where: str = "", resize_positions: bool = False
) -> None:
    """Fills `backbone` from a released or exported checkpoint, whose layout its key names tell.

    Takes DINO, iBOT, DINOv2 (with registers or without, in chunks or not), DINOv3 (ViT and
    ConvNeXt), CAPI, and our own. An aligned backbone takes those of dino.txt too, whole; of any other
    checkpoint, the locked backbone in it is filled and the rest left as it is.

    Args:
        backbone: with memory, not sharded; tensors are cast to its dtype.
        checkpoint: what `torch.load` or safetensors gives.
        where: the file, for the message.
        resize_positions: whether learned positions of another grid are resampled to the model's.

    Raises:
        UserError: naming all keys that are missing, extra, misshaped or hold NaN.
    """
    if isinstance(backbone, AlignedBackbone):
        whole = tensors_of(checkpoint)
        if _SCALE not in whole:
            import_backbone(backbone.vision, whole, where=where, resize_positions=resize_positions)
            return
        load_strictly(backbone, _aligned_to_ours(backbone, whole), where)
        return
    state = _to_ours(backbone, backbone_tensors(checkpoint))
    stored = state.get("pos_embed")
    square = (
        stored is not None
        and stored.dim() == 3
        and math.isqrt(stored.shape[1] - 1) ** 2 == stored.shape[1] - 1
    )
    if resize_positions and stored is not None and square and isinstance(backbone, VisionTransformer):
        learned = backbone.options.learned
        state["pos_embed"] = resample(stored, learned.grid, learned.grid, learned.interpolation)
    load_strictly(backbone, state, where)


def import_text_part(backbone: AlignedBackbone, checkpoint: Mapping[str, Any], *, where: str = "") -> None:
    """Fills all of an aligned backbone but the locked one, from a file of dino.txt that leaves that out.

    Raises:
        UserError: naming all keys that are missing, extra, misshaped or hold NaN.
    """
    there = {f"{VISION}.{name}": tensor for name, tensor in backbone.vision.state_dict().items()}
    load_strictly(backbone, there | _aligned_to_ours(backbone, tensors_of(checkpoint)), where)


def _aligned_to_ours(backbone: AlignedBackbone, state: State) -> State:
    """The scale is a number in some files; a locked backbone may be in any layout."""
    prefix = f"{VISION}."
    inner = {name.removeprefix(prefix): x for name, x in state.items() if name.startswith(prefix)}
    rest = {name: tensor for name, tensor in state.items() if not name.startswith(prefix)}
    if _SCALE in rest and rest[_SCALE].numel() == 1:
        rest[_SCALE] = rest[_SCALE].reshape(1)
    ours = _to_ours(backbone.vision, inner) if inner else {}
    return rest | {f"{prefix}{name}": tensor for name, tensor in ours.items()}


def export_backbone(backbone: Backbone, layout: Layout | None = None) -> State:
    """The backbone's tensors under the names of a released layout.

    Args:
        backbone: not sharded.
        layout: None: DINOv3 (ViT with rope, ConvNeXt), DINOv2 (learned positions) or CAPI. Of an aligned
            backbone that of the locked one; all else has dino.txt's names.

    Raises:
        UserError: if the layout has no names for this architecture.
    """
    if isinstance(backbone, AlignedBackbone):
        inner = export_backbone(backbone.vision, layout)
        rest = {
            name: tensor.detach()
            for name, tensor in backbone.state_dict().items()
            if not name.startswith(f"{VISION}.")
        }
        return rest | {f"{VISION}.{name}": tensor for name, tensor in inner.items()}
    state = {name: tensor.detach() for name, tensor in backbone.state_dict().items()}
    known: tuple[Layout, ...]
    if isinstance(backbone, ConvNeXt):
        known = ("convnext",)
    elif isinstance(backbone, CapiViT):
        known = ("capi",)
    else:
        known = ("dinov2", "ibot", "dino") if "pos_embed" in state else ("dinov3",)
    layout = layout or known[0]
    if layout not in known:
        raise UserError(f"{layout} has no names for this architecture", fix=f"export as {' or '.join(known)}")
    if isinstance(backbone, ConvNeXt):
        return layouts.ours_to_convnext(state, backbone.options.shape.depths)
    if isinstance(backbone, CapiViT):
        return layouts.ours_to_capi(state, backbone.depth)
    return state if layout == "dinov3" else layouts.ours_to_learned(state, layout)


def _to_ours(backbone: Backbone, state: State) -> State:
    layout = layouts.detect(state)
    if layout in ("dinov2", "ibot", "dino"):
        return layouts.learned_to_ours(state)
    if layout == "convnext" and isinstance(backbone, ConvNeXt):
        return layouts.convnext_to_ours(state, backbone.options.shape.depths)
    if layout == "capi" and isinstance(backbone, CapiViT):
        return layouts.capi_to_ours(state, backbone.depth)
    return state


def has_text(checkpoint: Mapping[str, Any]) -> bool:
    """Whether a checkpoint is of an aligned backbone."""
    return _SCALE in tensors_of(checkpoint)


def has_head(checkpoint: Mapping[str, Any], name: str) -> bool:
    """Whether a training checkpoint holds a head of this name."""
    return any(key.startswith(f"{name}.") for key in tensors_of(checkpoint))


def import_head(head: ProjectionHead, checkpoint: Mapping[str, Any], name: str, *, where: str = "") -> None:
    """Fills a head from a training checkpoint, weight-normed prototypes becoming plain ones and back.

    Args:
        head: with memory, not sharded.
        checkpoint: what `torch.load` gives.
        name: of the head in it: `dino_head`, `ibot_head`; DINO and iBOT: `head`.
        where: the file, for the message.

    Raises:
        UserError: naming all keys that are missing, extra, misshaped or hold NaN, or if lengths of
            prototypes would have to be dropped.
    """
    prefix = f"{name}."
    state = {
        key.removeprefix(prefix): tensor
        for key, tensor in tensors_of(checkpoint).items()
        if key.startswith(prefix)
    }
    if not state:
        raise UserError(f"there is no head {name!r} in this checkpoint", where=where)
    state = layouts.renamed(
        state, {"mlp.weight": "mlp.0.weight", "mlp.bias": "mlp.0.bias"}
    )  # of a single layer
    for layer in ("last_layer", "last_layer2"):
        _convert_prototypes(head, state, layer, where)
    load_strictly(head, state, where)


def _convert_prototypes(head: ProjectionHead, state: State, layer: str, where: str) -> None:
    """Weight-normed to plain and back, in place."""
    length, direction = state.pop(f"{layer}.weight_g", None), state.pop(f"{layer}.weight_v", None)
    if length is not None and direction is not None:
        plain = length * direction / direction.norm(dim=1, keepdim=True)
    else:
        plain = state.pop(f"{layer}.weight", None)
    if plain is not None and head.options.weight_norm == "none":
        state[f"{layer}.weight"] = plain
    elif plain is not None:
        state[f"{layer}.weight_v"] = plain if direction is None else direction
        lengths = plain.norm(dim=1, keepdim=True) if length is None else length
        if head.options.weight_norm == "frozen" and not torch.allclose(lengths, torch.ones_like(lengths)):
            raise UserError(
                "prototypes have lengths other than 1", where=where, fix="set weight_norm: trainable"
            )
        state[f"{layer}.weight_g"] = lengths


def training_export(backbone: Backbone, heads: Mapping[str, ProjectionHead]) -> dict[str, State]:
    """The layout of training checkpoints: {"teacher": {"backbone.*", "NAME.*" of each head}}."""
    state = {f"backbone.{name}": tensor for name, tensor in export_backbone(backbone).items()}
    for name, head in heads.items():
        state |= {f"{name}.{key}": tensor.detach() for key, tensor in head.state_dict().items()}
    return {"teacher": state}


def load_strictly(module: nn.Module, state: Mapping[str, Tensor], where: str = "") -> None:
    """Fills every tensor of `module` from `state`, or none.

    Raises:
        UserError: naming all keys that are missing, extra, misshaped or hold NaN.
    """
    wanted = module.state_dict()
    shared = [name for name in wanted if name in state]
    problems = [
        *_listed("missing", (name for name in wanted if name not in state)),
        *_listed("extra", (name for name in state if name not in wanted)),
        *_listed(
            "misshaped",
            (
                f"{name} {list(state[name].shape)} for {list(wanted[name].shape)}"
                for name in shared
                if state[name].shape != wanted[name].shape
            ),
        ),
        *_listed("not a number", (name for name in shared if state[name].isnan().any())),
    ]
    if problems:
        raise UserError(
            "these weights are of another architecture:\n  " + "\n  ".join(problems),
            where=where,
            fix="choose the model that the weights were made with",
        )
    module.load_state_dict(dict(state))


def _listed(what: str, names: Iterable[str]) -> list[str]:
    found = list(names)
    if not found:
        return []
    more = f" and {len(found) - _LISTED} more" if len(found) > _LISTED else ""
    return [f"{what} ({len(found)}): {', '.join(found[:_LISTED])}{more}"]
