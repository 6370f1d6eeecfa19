"""A backbone as two files, without pickle: `backbone.json` (options, preprocessing) and `backbone.safetensors`.

Options are plain JSON and are validated by their own class when read; weights must fit exactly.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path

import torch
from torch import Tensor

from scholarch.errors import UserError
from scholarch.models import BACKBONES, BackboneOptions, build_backbone
from scholarch.models.alignment import AlignedBackbone
from scholarch.models.features import Backbone

FORMAT = 1
OPTIONS_NAME = "backbone.json"
WEIGHTS_NAME = "backbone.safetensors"


@dataclass(frozen=True, kw_only=True)
class Preprocessing:
    """What is done to a picture, as evaluations do it (reference.md 9.1), and to a text.

    Attributes:
        size: side of the central square in pixels; the shorter side is resized to size * 256 / 224.
        mean, std: of each channel, for values in [0, 1].
        merges: text of the byte-pair merges by which tokens are made; empty: the model reads no text.
    """

    size: int
    mean: tuple[float, ...]
    std: tuple[float, ...]
    merges: str = ""


def assemble(options: BackboneOptions, weights: Mapping[str, Tensor], merges: str = "") -> Backbone:
    """The backbone with these weights (not copied), in evaluation mode.

    Args:
        options, weights: that fit each other.
        merges: of its preprocessing, for one that reads texts.

    Raises:
        UserError: if the weights are those of another architecture.
    """
    with torch.device("meta"):
        backbone = build_backbone(options)
    try:
        backbone.load_state_dict(weights, strict=True, assign=True)
    except RuntimeError as error:
        raise UserError(
            f"the weights do not fit the model: {str(error).splitlines()[1].strip()}",
            fix="use the recipe that they were trained with",
        ) from error
    if isinstance(backbone, AlignedBackbone):
        backbone.merges = merges
    return backbone.eval().requires_grad_(False)


def save_backbone(
    folder: Path, options: BackboneOptions, weights: Mapping[str, Tensor], preprocessing: Preprocessing
) -> int:
    """Write both files into an existing folder.

    Args:
        options: as the recipe resolved them.
        weights: whole tensors (not shards) by name.
        preprocessing: what pictures need before they reach the backbone.

    Returns:
        width of its features, D.

    Raises:
        UserError: if the weights are those of another architecture.
    """
    from safetensors.torch import save_file

    backbone = assemble(options, weights)
    tensors = {name: tensor.detach().cpu().contiguous() for name, tensor in weights.items()}
    save_file(tensors, folder / WEIGHTS_NAME, metadata={"format": "pt"})
    described = {
        "format": FORMAT,
        "width": backbone.width,
        "patch": backbone.patch,
        "preprocessing": asdict(preprocessing),
        "model": asdict(options),
    }
    (folder / OPTIONS_NAME).write_text(json.dumps(described, indent=2) + "\n")
    return backbone.width


def load_backbone(folder: Path) -> tuple[Backbone, Preprocessing]:
    """The backbone of a folder that `save_backbone` wrote, on the CPU.

    Raises:
        UserError: if it is of a newer format, or files do not fit each other.
    """
    from safetensors.torch import load_file

    options, preprocessing = describe(folder)
    return assemble(options, load_file(folder / WEIGHTS_NAME), preprocessing.merges), preprocessing


def describe(folder: Path) -> tuple[BackboneOptions, Preprocessing]:
    """Options and preprocessing of a folder that `save_backbone` wrote.

    Raises:
        UserError: if it is of a newer format.
    """
    from pydantic import TypeAdapter

    described = json.loads((folder / OPTIONS_NAME).read_text())
    if described["format"] != FORMAT:
        raise UserError(
            f"is of format {described['format']}, this version reads {FORMAT}",
            where=str(folder / OPTIONS_NAME),
            fix="install a newer scholarch",
        )
    kind = BACKBONES[described["model"]["kind"]][0]
    # JSON has no tuples: validation as JSON makes them of lists.
    options: BackboneOptions = TypeAdapter(kind).validate_json(json.dumps(described["model"]))
    preprocessing = TypeAdapter(Preprocessing).validate_json(json.dumps(described["preprocessing"]))
    return options, preprocessing
