"""Models under evaluation, by what a person names: those of `sources`, and backbones of timm."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from typing import NamedTuple

import torch
from torch import Tensor

from scholarch.cli.sources import find_model, opened
from scholarch.errors import UserError
from scholarch.evaluation.store import Subject
from scholarch.models.foreign import TimmBackbone
from scholarch.registry.backbone import assemble
from scholarch.storage.results import EvaluatedModel

TIMM = "timm:"


class Found(NamedTuple):
    """A model, ready, and what it was found to be."""

    subject: Subject
    model: EvaluatedModel


def open_subject(name: str, device: torch.device) -> Found:
    """The model that `name` stands for.

    Args:
        name: as `find_model` has it; or `timm:NAME`, pretrained weights as timm finds them, or
            `timm:NAME:FILE`, a checkpoint of that architecture on this machine.

    Raises:
        UserError: if there is no such thing, or it is damaged.
    """
    if name.startswith(TIMM):
        return _of_timm(name, device)
    place = find_model(name)
    model, digest = opened(place), place.sha256()
    seen = model.preprocessing
    backbone = assemble(model.options, model.weights, seen.merges).float().to(device)
    subject = Subject(backbone, digest, seen.size, seen.mean, seen.std, device)
    return Found(subject, EvaluatedModel(address=place.name, origin=place.origin, sha256=digest))


def _of_timm(name: str, device: torch.device) -> Found:
    try:
        import timm
    except ImportError:
        raise UserError("timm is not installed", where=name, fix="pip install timm") from None
    architecture, _, path = name.removeprefix(TIMM).partition(":")
    if not timm.is_model(architecture.partition(".")[0]):
        near = timm.list_models(f"*{architecture.partition('.')[0]}*")[:3]
        raise UserError(
            f"timm has no {architecture!r}",
            where=name,
            fix=f"did you mean {' or '.join(near)}?" if near else "look at timm.list_models()",
        )
    try:
        model = timm.create_model(architecture, pretrained=not path, checkpoint_path=path, num_classes=0)
    except Exception as error:  # a file of another architecture, no network, no such weights
        raise UserError(
            f"timm cannot load it: {str(error).splitlines()[0][:300]}",
            where=name,
            fix="name its checkpoint: timm:NAME:FILE",
        ) from error
    known = timm.data.resolve_model_data_config(model)
    backbone = TimmBackbone(model).float().eval().requires_grad_(False).to(device)
    digest = _digest(model.state_dict())
    subject = Subject(backbone, digest, known["input_size"][-1], known["mean"], known["std"], device)
    return Found(subject, EvaluatedModel(address=name, origin=f"{architecture} of timm", sha256=digest))


def _digest(state: Mapping[str, Tensor]) -> str:
    """Of all tensors by name."""
    found = hashlib.sha256()
    for key, tensor in sorted(state.items()):
        found.update(f"{key}:{tuple(tensor.shape)}:{tensor.dtype};".encode())
        found.update(tensor.detach().cpu().contiguous().flatten().view(torch.uint8).numpy().tobytes())
    return found.hexdigest()
