"""AdamW's parameter groups, their schedules and the gradient's norm (reference.md section 4.1)."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass

import torch
from torch import nn
from torch.distributed.tensor import DTensor

from scholarch.config.schema import OptimizerSection
from scholarch.training.networks import Network

PATCH_EMBED = "patch_embed."
TOKENS = ("cls_token", "mask_token", "storage_tokens", "register_tokens", "pos_embed", PATCH_EMBED)
PROTOTYPES = "last_layer."


@dataclass(frozen=True, order=True)
class Group:
    """What a group of parameters multiplies the schedules by."""

    lr: float
    weight_decay: float
    prototypes: bool


def group_of(part: str, name: str, depth: int, options: OptimizerSection) -> Group:
    """The group of the parameter `name` of `part` ("backbone" or "heads.NAME").

    Tokens and the patch embedding are layer 0, block i is layer i + 1, everything else is one
    beyond the last block. Biases, norms and LayerScale do not decay; tokens and positions do.
    """
    layer = depth + 1
    if part == "backbone":
        if name.startswith(TOKENS):
            layer = 0
        elif name.startswith("blocks."):
            layer = int(name.split(".")[1]) + 1
    lr = options.layer_decay ** (depth + 1 - layer) if part == "backbone" else 1.0
    if name.startswith(PATCH_EMBED):
        lr *= options.patch_embed_lr
    decays = not (name.endswith("bias") or "norm" in name or "gamma" in name)
    return Group(lr, float(decays), part != "backbone" and name.startswith(PROTOTYPES))


def lr_factor(options: OptimizerSection, global_batch: int) -> float:
    """What the global batch multiplies the learning rate by."""
    ratio = global_batch / options.lr_scaling.reference_batch
    return {"none": 1.0, "sqrt": math.sqrt(ratio), "linear": ratio}[options.lr_scaling.rule]


class Optimizer:
    """AdamW over a network, with every group's rates rewritten at each step.

    Args:
        network: materialised, and sharded where it will be.
        options: the recipe's section, its schedules in steps.
        global_batch: samples of a step, for the scaling of the learning rate.
        total_steps: length of the run, for `freeze_prototypes` as a share.
    """

    def __init__(
        self, network: Network, options: OptimizerSection, *, global_batch: int, total_steps: int
    ) -> None:
        self.network = network
        self.options = options
        self.lr = options.lr.scale(lr_factor(options, global_batch))
        frozen = options.freeze_prototypes
        self.frozen_steps = round(frozen * total_steps) if isinstance(frozen, float) else int(frozen)
        depth = len(getattr(network.backbone, "blocks", ()))
        groups: dict[Group, list[nn.Parameter]] = {}
        for part, module in network.parts().items():
            for name, parameter in module.named_parameters():
                if parameter.requires_grad:
                    groups.setdefault(group_of(part, name, depth, options), []).append(parameter)
        self.groups = sorted(groups)
        self.adamw = torch.optim.AdamW(
            [{"params": groups[group]} for group in self.groups],
            lr=0.0,
            betas=options.betas,
            eps=options.epsilon,
            fused=True,
        )

    def rates(self, step: int) -> dict[str, float]:
        """Learning rate and weight decay at `step`, before the groups' multipliers."""
        return {"lr": self.lr(step), "weight_decay": self.options.weight_decay(step)}

    def step(self, step: int) -> None:
        """Moves the weights by the gradients, at the rates of `step`, and forgets the gradients."""
        rates = self.rates(step)
        for group, adamw_group in zip(self.groups, self.adamw.param_groups, strict=True):
            frozen = group.prototypes and step < self.frozen_steps
            adamw_group["lr"] = 0.0 if frozen else rates["lr"] * group.lr
            adamw_group["weight_decay"] = rates["weight_decay"] * group.weight_decay
        self.adamw.step()
        self.adamw.zero_grad(set_to_none=True)

    def clip(self) -> dict[str, torch.Tensor]:
        """Clips each part's gradient to its L2 norm and gives the norms before clipping."""
        norms = {}
        for part, module in self.network.parts().items():
            parameters = [p for p in module.parameters() if p.grad is not None]
            norm = gradient_norm(parameters)
            if self.options.clip is not None:
                torch.nn.utils.clip_grads_with_norm_(parameters, self.options.clip, norm)
            norms[part] = norm
        return norms


def gradient_norm(parameters: Iterable[nn.Parameter]) -> torch.Tensor:
    """L2 norm over all parameters and ranks; a scalar."""
    norm = torch.nn.utils.get_total_norm([p.grad for p in parameters if p.grad is not None])
    return norm.full_tensor() if isinstance(norm, DTensor) else norm


def finite_or_names(norms: Mapping[str, torch.Tensor]) -> list[str]:
    """The parts whose gradient norm is not a finite number."""
    return [part for part, norm in norms.items() if not bool(torch.isfinite(norm))]
