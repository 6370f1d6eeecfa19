"""A backbone as a checkpoint for timm, with the program that loads it."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from torch import Tensor

from scholarch.errors import UserError
from scholarch.models import BackboneOptions
from scholarch.registry.backbone import Preprocessing, assemble
from scholarch.storage.local import write_text

TIMM_WEIGHTS = "timm.safetensors"
TIMM_NAME = "timm_model.py"


def write_timm(
    folder: Path, options: BackboneOptions, weights: Mapping[str, Tensor], preprocessing: Preprocessing
) -> bool:
    """Writes both files into an existing folder; False, and nothing, where timm lacks the architecture."""
    from safetensors.torch import save_file

    from scholarch.models.timm_names import to_timm

    try:
        found = to_timm(assemble(options, weights))
    except UserError:
        return False
    size = preprocessing.size
    save_file(found.state, folder / TIMM_WEIGHTS, metadata={"format": "pt"})
    note = (
        f"# Run it in this folder. Pictures: {len(preprocessing.mean)} channels in [0, 1], {size} x {size} pixels,\n"
        f"# then (picture - mean) / std with mean {preprocessing.mean} and std {preprocessing.std}.\n"
    )
    write_text(folder / TIMM_NAME, f"{note}{found.snippet(TIMM_WEIGHTS)}\n")
    return True
