"""A network is a backbone with its heads; here it is built, filled, sharded and copied.

Order (design.md section 6 and reference.md section 4.4): build on meta, then for each part:
materialise, fill with NaN, initialise, compile, shard. The whole of one part at a time is on the
host, and its values are keyed by the parameter's name, so the number of ranks changes no weight.
"""

from __future__ import annotations

import itertools
import warnings
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import nn
from torch.distributed.device_mesh import DeviceMesh
from torch.distributed.fsdp import FSDPModule, MixedPrecisionPolicy, fully_shard
from torch.distributed.tensor import DTensor

from scholarch.models import build_backbone
from scholarch.models.features import Backbone
from scholarch.models.heads import HeadOptions, ProjectionHead
from scholarch.models.initialise import check_initialised, fill_with_nan, initialise
from scholarch.models.recompute import ActivationCheckpointing

DTYPES = {"fp32": torch.float32, "bf16": torch.float32, "fp64": torch.float64}
"""dtype of the weights that the optimizer moves; bf16 is what they are cast to for computing."""
COMPILED_FORMS = 32
"""Most forms of a block that are compiled before torch runs it uncompiled."""


class Network(nn.Module):
    """A backbone and the heads on it, by name."""

    def __init__(self, backbone: Backbone, heads: Mapping[str, nn.Module]) -> None:
        super().__init__()
        self.backbone = backbone
        self.heads = nn.ModuleDict(dict(heads))

    def parts(self) -> dict[str, nn.Module]:
        """What is clipped and reported on its own: the backbone and each head."""
        return {"backbone": self.backbone} | {f"heads.{name}": head for name, head in self.heads.items()}


def build_network(model: Any, heads: Mapping[str, HeadOptions]) -> Network:
    """The network on the meta device: shapes and names, no memory."""
    with torch.device("meta"):
        backbone = build_backbone(model)
        return Network(
            backbone, {name: ProjectionHead(backbone.width, options) for name, options in heads.items()}
        )


@dataclass(frozen=True)
class Execution:
    """How networks are carried out; nothing here changes what they compute.

    Attributes:
        device: where to compute.
        precision: fp32, bf16 or fp64.
        mesh: shards over it with FSDP2; None: no sharding (one process without torch.distributed).
        compile: compile each block and head.
        activation_checkpointing: what of each block is computed again in the backward pass.
    """

    device: torch.device
    precision: str = "fp32"
    mesh: DeviceMesh | None = None
    compile: bool = False
    activation_checkpointing: ActivationCheckpointing = "none"


def materialise(
    network: Network,
    execution: Execution,
    seed: int,
    *,
    trained: bool,
    prototypes: DeviceMesh | None = None,
) -> Network:
    """Gives a meta network memory, initial weights and shards, part by part.

    Args:
        network: as `build_network` gives it.
        seed: the run's seed.
        trained: False for a teacher: no gradients, always in eval mode.
        prototypes: what the heads' prototypes are sharded over; None: the same as the rest.
    """
    done: set[nn.Module] = set()
    locked = tuple(f"backbone.{name}" for name in network.backbone.locked)
    towers = {*network.backbone.towers().values(), network.backbone}
    # A shared prefix for students and teachers: the same name means the same initial value.
    for name, unit in units(network):
        with _set_aside(unit, done):
            fill_with_nan(unit)
            unit.to(DTYPES[execution.precision])
            initialise(unit, seed, prefix=name)
            check_initialised(unit)
            unit.requires_grad_(trained and not name.startswith(locked))
        done.add(unit)
        if hasattr(unit, "checkpoint"):
            setattr(unit, "checkpoint", execution.activation_checkpointing if trained else "none")  # noqa: B010
        if execution.mesh is None:
            unit.to(execution.device)
        if execution.compile and unit not in towers:
            unit.compile()
        if isinstance(unit, ProjectionHead) and prototypes is not None:
            for layer in filter(None, (unit.last_layer, unit.last_layer2)):
                _shard(layer, replace(execution, mesh=prototypes))
        if execution.mesh is not None:
            _shard(unit, execution)
    if execution.compile:
        # All blocks share one cache: for the student, teachers, evaluation, and what gets a dynamic shape.
        torch._dynamo.config.recompile_limit = max(torch._dynamo.config.recompile_limit, COMPILED_FORMS)
    if execution.mesh is not None:
        for tower in network.backbone.towers().values():
            _prefetch(tower.in_order() if isinstance(tower, Backbone) else list(_blocks(tower)))
    return network.train(trained)


def units(network: Network) -> Iterable[tuple[str, nn.Module]]:
    """What is sharded on its own, children before parents."""
    for tower, module in network.backbone.towers().items():
        name = f"backbone.{tower}" if tower else "backbone"
        yield from ((f"{name}.blocks.{i}", block) for i, block in enumerate(_blocks(module)))
        if tower:
            yield name, module
    yield "backbone", network.backbone
    yield from ((f"heads.{name}", head) for name, head in network.heads.items())


def _blocks(tower: nn.Module) -> Sequence[nn.Module]:
    return list(getattr(tower, "blocks", ()))


@contextmanager
def _set_aside(unit: nn.Module, done: Collection[nn.Module]) -> Iterator[None]:
    """Hides those of its parts that were filled and sharded before it."""
    kept: dict[str, nn.Module] = {}
    for name, part in unit.named_modules():
        inside = any(name.startswith(f"{other}.") for other in kept)
        if part in done and not inside:
            kept[name] = part
    for name in kept:
        unit.set_submodule(name, nn.Identity())
    try:
        yield
    finally:
        for name, part in kept.items():
            unit.set_submodule(name, part)


def _shard(unit: nn.Module, execution: Execution) -> None:
    policy = MixedPrecisionPolicy()
    if execution.precision == "bf16":
        policy = MixedPrecisionPolicy(param_dtype=torch.bfloat16, reduce_dtype=torch.float32)
    # Features are split into views of one tensor; nobody changes them in place, which this warns of.
    warnings.filterwarnings("ignore", message="FSDP2-wrapped module .* returned a view tensor")
    fully_shard(unit, mesh=execution.mesh, mp_policy=policy, reshard_after_forward=True)
    if isinstance(unit, FSDPModule):
        # Losses are shares of a global mean (collectives.py): gradients are summed, not averaged.
        unit.set_gradient_divide_factor(1.0)
        unit.set_force_sum_reduction_for_comms(True)


def _prefetch(blocks: Sequence[nn.Module]) -> None:
    """Has each block's weights gathered while its neighbour computes, in both passes."""
    sharded = [block for block in blocks if isinstance(block, FSDPModule)]
    for block, following in itertools.pairwise(sharded):
        block.set_modules_to_forward_prefetch([following])
        following.set_modules_to_backward_prefetch([block])


def place(module: nn.Module, execution: Execution) -> None:
    """Brings a term's trained module to the run's dtype, device and shards; it has its values already."""
    module.to(DTYPES[execution.precision])
    if execution.mesh is None:
        module.to(execution.device)
    else:
        _shard(module, execution)


def local(tensor: torch.Tensor) -> torch.Tensor:
    """The part of a parameter that this rank holds."""
    return tensor.to_local() if isinstance(tensor, DTensor) else tensor


def paired(target: nn.Module, source: nn.Module) -> tuple[list[torch.Tensor], list[torch.Tensor]]:
    """Local parameters of `target` and of the same name in `source`, which may have more."""
    theirs = dict(source.named_parameters())
    pairs = [(local(p.detach()), local(theirs[name].detach())) for name, p in target.named_parameters()]
    return [a for a, _ in pairs], [b for _, b in pairs]


@torch.no_grad()
def copy_weights(target: nn.Module, source: nn.Module) -> None:
    """Parameters and buffers of `source` into `target`, shard by shard."""
    ours, theirs = paired(target, source)
    torch._foreach_copy_(ours, theirs)
    buffers = dict(source.named_buffers())
    for name, buffer in target.named_buffers():
        buffer.copy_(buffers[name])


@torch.no_grad()
def move_average(target: nn.Module, source: nn.Module, momentum: float) -> None:
    """target <- momentum * target + (1 - momentum) * source, parameters only (reference.md 15.2)."""
    ours, theirs = paired(target, source)
    torch._foreach_mul_(ours, momentum)
    torch._foreach_add_(ours, theirs, alpha=1 - momentum)


@torch.no_grad()
def whole_state(module: nn.Module) -> dict[str, torch.Tensor]:
    """Parameters and persistent buffers, unsharded, on the CPU; all ranks take part."""
    state = {}
    for name, tensor in module.state_dict().items():
        whole = tensor.full_tensor() if isinstance(tensor, DTensor) else tensor
        state[name] = whole.detach().cpu().clone()
    return state
