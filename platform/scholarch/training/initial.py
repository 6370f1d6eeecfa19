"""What a run begins from: another run's checkpoint, or a file of released weights."""

from __future__ import annotations

import hashlib
import json
import warnings
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed import ProcessGroup
from torch.distributed.checkpoint.state_dict import StateDictOptions, set_model_state_dict
from torch.distributed.checkpoint.state_dict_loader import load

from scholarch.config.schema import DRAWN, InitSection, Recipe
from scholarch.errors import UserError
from scholarch.models.alignment import VISION, AlignedBackbone
from scholarch.models.features import Backbone
from scholarch.models.heads import ProjectionHead
from scholarch.models.positions import resample
from scholarch.models.released import RELEASED
from scholarch.models.vit import VisionTransformer
from scholarch.models.weights import has_head, has_text, import_backbone, import_head
from scholarch.storage.dcp import reader
from scholarch.storage.mirror import copies
from scholarch.storage.objects import is_s3, joined, open_objects
from scholarch.training.checkpoint import (
    MANIFEST,
    Checkpoint,
    load_optimizer,
    mismatches,
    newest_whole,
    saved_shapes,
)
from scholarch.training.learner import Learner
from scholarch.training.networks import Network
from scholarch.training.optimizer import Optimizer

STAGES = "stages"
"""Folder of a run of several stages; each in it is a run of its own, in the order of their names."""
WEIGHTS = (".pth", ".pt", ".bin", ".safetensors")
"""How the names of files of weights end."""
_WHOLE = StateDictOptions(full_state_dict=True)
_POSITIONS = "pos_embed"


def find(name: str, where: str) -> Checkpoint | Path:
    """The checkpoint or file of weights that `name` stands for.

    Args:
        name: a run (its newest whole checkpoint; of several stages, the last one's), a checkpoint
            `step-*` of one, or a file of released weights; on this machine or under `s3://`.
        where: key of the recipe, for the message.

    Raises:
        UserError: if there is no such thing, or nothing whole in it.
    """
    if is_s3(name) and name.endswith(WEIGHTS):
        return fetched(name, where)
    if Path(name).is_file():
        return Path(name)
    objects = open_objects(name)
    if objects.entry(MANIFEST):
        checkpoint = Checkpoint(objects.address, int(json.loads(objects.read(MANIFEST))["step"]))
        if damage := checkpoint.damage():
            raise UserError(f"the checkpoint {name} is damaged: {damage}", where=where, fix="use another one")
        return checkpoint
    stages = [f"{STAGES}/{stage}" for stage in sorted(objects.children(STAGES), reverse=True)]
    for run in (*stages, ""):
        if found := newest_whole(joined(objects.address, *filter(None, [run]), "checkpoints")):
            return found
    what = "does not exist"
    if there := objects.children():
        began = {STAGES, "checkpoints"} & set(there)
        what = "has no whole checkpoint" if began else "holds no run and no exported backbone"
    fix = (
        "name a run's folder, an export folder, models:/NAME@ALIAS, or a .pth or .safetensors file of weights"
    )
    if name in RELEASED:
        fix = f"that is released weights' name: name their file, {RELEASED[name].file or name}-*.pth"
    raise UserError(f"{name} {what}", where=where, fix=fix)


def fetched(name: str, where: str) -> Path:
    """A copy of a file of weights in S3, which is kept while the process lives."""
    prefix, _, last = name.rpartition("/")
    objects = open_objects(prefix)
    entry = objects.entry(last)
    if entry is None:
        raise UserError(f"{name} does not exist", where=where, fix="name a run, or a file of weights")
    path = copies() / hashlib.sha256(name.encode()).hexdigest()[:12] / last
    if not path.is_file() or path.stat().st_size != entry.bytes:
        path.parent.mkdir(exist_ok=True)
        objects.download(last, path)
    return path


def beginning(recipe: Recipe) -> Checkpoint | Path | None:
    """What the recipe's `init_from` names; None where weights are drawn.

    Raises:
        UserError: as `find`, or if a stage that must come before is not given.
    """
    init = recipe.init_from
    if init is None:
        return None
    if init.checkpoint is None:
        raise UserError(
            f"this recipe begins from a run of the stage before it ({init.stage})",
            where="init_from",
            fix="give its folder with init_from.checkpoint=RUN, or chain the stages: "
            "scholarch pretrain --recipe FIRST --recipe SECOND",
        )
    return find(init.checkpoint, "init_from.checkpoint")


@dataclass(frozen=True)
class Transfer:
    """Tensors of a module and the keys of a checkpoint that they come from."""

    module: nn.Module
    keys: Mapping[str, str]  # name in the module -> key

    def resampled(self, saved: Mapping[str, tuple[int, ...]]) -> list[str]:
        """Names of learned positions that are of another grid."""
        state = self.module.state_dict()
        return [
            name
            for name, key in self.keys.items()
            if name.endswith(_POSITIONS) and key in saved and saved[key] != tuple(state[name].shape)
        ]


Modules = Mapping[str, nn.Module]


def transfers(
    recipe: Recipe, student: nn.Module, teachers: Modules, terms: Modules, source: Checkpoint
) -> list[Transfer]:
    """What `init_from` takes from a run's checkpoint.

    Teachers by name; one that the run does not have begins as the teacher that it is a snapshot `of`,
    or else as the student. A term that the run does not have begins as new.
    """
    init: InitSection | None = recipe.init_from
    assert init is not None
    saved = saved_shapes(source)

    def there(prefix: str) -> bool:
        return any(key.startswith(prefix) for key in saved)

    own = "student" if init.student == "student" else f"teachers.{init.student}"
    if not there(f"learner.{own}."):
        known = sorted({key.split(".")[2] for key in saved if key.startswith("learner.teachers.")})
        raise UserError(
            f"there is no teacher {init.student!r} in {source.address}",
            where="init_from.student",
            fix=f"choose student or {', '.join(known)}",
        )
    origins = {"": own}
    for name, options in recipe.teachers.items():
        if options.weights == "frozen":
            continue
        candidates = [name, *([options.of] if options.weights == "snapshot" else [])]
        origins[name] = next((f"teachers.{c}" for c in candidates if there(f"learner.teachers.{c}.")), own)
    parts = tuple(f"{part}." for part in init.what if part != "terms")
    found = []
    for name, origin in origins.items():
        module = teachers[name] if name else student
        names = [n for n in module.state_dict() if n.startswith(parts)]
        keys = {n: f"learner.{origin}.{n}" for n in names}
        if not name and _takes_a_backbone(student) and not there(f"learner.{origin}.backbone.{VISION}."):
            inner = f"backbone.{VISION}."
            keys = {
                n: f"learner.{origin}.backbone.{n.removeprefix(inner)}" for n in names if n.startswith(inner)
            }
        found.append(Transfer(module, keys))
    if "terms" in init.what:
        found += [
            Transfer(term, {n: f"learner.terms.{name}.{n}" for n in term.state_dict()})
            for name, term in terms.items()
            if there(f"learner.terms.{name}.")
        ]
    return found


def _takes_a_backbone(network: nn.Module) -> bool:
    """Whether a network begins from a backbone that it locks."""
    return isinstance(network, Network) and isinstance(network.backbone, AlignedBackbone)


def frozen_transfer(recipe: Recipe, name: str, teacher: nn.Module) -> Transfer:
    """What a frozen teacher takes from a run's checkpoint: the teacher `of` there."""
    origin = recipe.teachers[name].of
    return Transfer(teacher, {n: f"learner.teachers.{origin}.{n}" for n in teacher.state_dict()})


def check_transfers(found: list[Transfer], source: Checkpoint, where: str, resize_positions: bool) -> None:
    """Compares names and shapes; nothing is loaded.

    Raises:
        UserError: listing the keys that are missing or of another shape.
    """
    saved = saved_shapes(source)
    wanted: dict[str, tuple[int, ...]] = {}
    for transfer in found:
        passed = transfer.resampled(saved) if resize_positions else []
        state = transfer.module.state_dict()
        wanted |= {key: tuple(state[n].shape) for n, key in transfer.keys.items() if n not in passed}
    if lines := mismatches({key: shape for key, shape in saved.items() if key in wanted}, wanted):
        raise UserError(
            f"{source.address} does not fit this recipe\n{lines}",
            where=where,
            fix="give the teacher the model and heads of that run, or name the run's folder, which tells them"
            if where.startswith("teachers.")
            else "begin from a run with the same model and heads, or take less with init_from.what=[backbone]",
        )


def check_file(path: Path, network: nn.Module, where: str, resize_positions: bool = False) -> None:
    """Compares a file of weights with a backbone, or a network with its heads, on the meta device.

    Raises:
        UserError: listing the keys that are missing, extra, misshaped or hold NaN.
    """
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message=".*is a no-op.*")  # into the meta device, as is meant
        weights, where = read_weights(path), f"{where}={path}"
        backbone = network.backbone if isinstance(network, Network) else network
        assert isinstance(backbone, Backbone)
        import_backbone(backbone, weights, where=where, resize_positions=resize_positions)
        if isinstance(network, Network):
            for name, head in network.heads.items():
                assert isinstance(head, ProjectionHead)
                import_head(head, weights, _name_in_file(name, network, weights, where), where=where)


def _name_in_file(head: str, network: Network, weights: Mapping[str, Any], where: str) -> str:
    """`dino_head` in files of DINOv2 and DINOv3; `head` in those of DINO and iBOT, which have one."""
    for name in (f"{head}_head", head, *(["head"] if len(network.heads) == 1 else [])):
        if has_head(weights, name):
            return name
    raise UserError(
        f"terms read the head {head!r} of this teacher, and the file holds none",
        where=where,
        fix="use a run, whose checkpoints hold its heads, or a file of a whole teacher",
    )


def read_weights(path: Path) -> Mapping[str, Any]:
    """Tensors of a .safetensors or .pth file, mapped from the disk where the format allows.

    Raises:
        UserError: if it is neither.
    """
    try:
        if path.suffix == ".safetensors":
            from safetensors.torch import load_file

            tensors: dict[str, Tensor] = load_file(path)
            return tensors
        found = torch.load(path, map_location="cpu", weights_only=True, mmap=True)
    except Exception as error:
        reason = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise UserError(
            f"this is no file of weights: {reason}", where=str(path), fix="give a .pth or .safetensors file"
        ) from None
    if not isinstance(found, Mapping):
        raise UserError("there are no named tensors in this file", where=str(path))
    return found


def begin(recipe: Recipe, learner: Learner, optimizer: Optimizer, members: ProcessGroup | None = None) -> int:
    """Fills a new run's networks as `init_from` says; all `members` take part.

    Returns:
        the finished steps: 0, or those of the checkpoint where `continue` is set.

    Raises:
        UserError: if it does not fit.
    """
    source, init = beginning(recipe), recipe.init_from
    if source is None or init is None:
        return 0
    moving = {name: t for name, t in learner.teachers.items() if name not in learner.frozen}
    if isinstance(source, Path):
        for network in (learner.student, *moving.values()):
            _fill_backbone(network, source, init.resize_positions)
        return 0
    found = transfers(recipe, learner.student, moving, dict(learner.terms.items()), source)
    check_transfers(found, source, "init_from.checkpoint", init.resize_positions)
    for transfer in found:
        _carry_out(transfer, source, members)
    if not init.goes_on:
        return 0
    load_optimizer(source, learner, optimizer, members)
    return source.step


def load_frozen(recipe: Recipe, learner: Learner) -> None:
    """Fills the frozen teachers from their own checkpoints; all ranks take part.

    Raises:
        UserError: if one is not there, or does not fit.
    """
    for name, where, path in frozen_sources(recipe):
        source, teacher = find(path, where), learner.teachers[name]
        if isinstance(source, Path):
            _fill_backbone(teacher, source, False)
            _fill_heads(teacher, source)
        else:
            _carry_out(frozen_transfer(recipe, name, teacher), source)


def frozen_sources(recipe: Recipe) -> Iterator[tuple[str, str, str]]:
    """(teacher, key of the recipe, checkpoint) of each frozen teacher whose weights are not drawn.

    Raises:
        UserError: if one has no checkpoint.
    """
    for name, options in recipe.teachers.items():
        where = f"teachers.{name}.checkpoint"
        if options.weights != "frozen" or options.checkpoint == DRAWN:
            continue
        if options.checkpoint is None:
            raise UserError(
                "a frozen teacher needs `checkpoint`",
                where=where,
                fix=f"name a run, an export, models:/NAME@ALIAS or a file of weights, such as {where}=RUN",
            )
        yield name, where, options.checkpoint


def _fill_backbone(network: nn.Module, path: Path, resize_positions: bool) -> None:
    from scholarch.models import build_backbone

    assert isinstance(network, Network)
    weights = read_weights(path)
    filled: nn.Module = network.backbone
    if isinstance(filled, AlignedBackbone) and not has_text(weights):
        filled = filled.vision
    options: Any = filled.options
    whole = build_backbone(options)
    import_backbone(whole, weights, where=str(path), resize_positions=resize_positions)
    set_model_state_dict(filled, whole.state_dict(), options=_WHOLE)


def _fill_heads(network: nn.Module, path: Path) -> None:
    assert isinstance(network, Network)
    for name, head in network.heads.items():
        assert isinstance(head, ProjectionHead)
        whole, weights = ProjectionHead(network.backbone.width, head.options), read_weights(path)
        import_head(whole, weights, _name_in_file(name, network, weights, str(path)), where=str(path))
        set_model_state_dict(head, whole.state_dict(), options=_WHOLE)


def _carry_out(transfer: Transfer, source: Checkpoint, members: ProcessGroup | None = None) -> None:
    """Loads one module's tensors, in shards where it is sharded."""
    saved = saved_shapes(source)
    state = transfer.module.state_dict()
    other_grid = transfer.resampled(saved)
    tensors: dict[str, Any] = {
        key.removeprefix("learner."): torch.empty(saved[key], dtype=state[name].dtype)
        if name in other_grid
        else state[name]
        for name, key in transfer.keys.items()
    }
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="torch.distributed is disabled")
        load(
            {"learner": tensors},
            storage_reader=reader(source.data()),
            process_group=members,
            no_dist=not dist.is_initialized(),
        )
    state |= {name: tensors[key.removeprefix("learner.")] for name, key in transfer.keys.items()}
    resized: dict[str, Any] = {}
    for name in other_grid:
        backbone = transfer.module.get_submodule(name.rpartition(".")[0])
        assert isinstance(backbone, VisionTransformer)
        learned = backbone.options.learned
        resized[name] = resample(state.pop(name), learned.grid, learned.grid, learned.interpolation)
    transfer.module.load_state_dict(state, strict=not resized)
    if resized:
        set_model_state_dict(
            transfer.module, resized, options=StateDictOptions(full_state_dict=True, strict=False)
        )
