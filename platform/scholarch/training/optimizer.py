"""AdamW's parameter groups, their schedules and the gradient's norm (reference.md section 4.1)."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass

import torch
from torch import nn
from torch.distributed.tensor import DTensor

from scholarch.collectives import all_reduce_sum, upcast
from scholarch.config.schedule import Length
from scholarch.config.schema import OptimizerSection
from scholarch.objectives.term import Trained
from scholarch.training.networks import Network, local

PATCH_EMBED = "patch_embed."
TOKENS = ("cls_token", "mask_token", "storage_tokens", "register_tokens", "pos_embed", PATCH_EMBED)
PROTOTYPES = "last_layer"


@dataclass(frozen=True, order=True)
class Group:
    """What a group of parameters multiplies the schedules by."""

    lr: float
    weight_decay: float
    prototypes: bool
    backbone: bool


def group_of(part: str, name: str, depth: int, options: OptimizerSection) -> Group:
    """The group of the parameter `name` of `part` ("backbone" or "heads.NAME").

    Tokens and the patch embedding are layer 0, block i is layer i + 1, everything else is one
    beyond the last block. Biases, LayerScale and a temperature do not decay, norms by `norm_decay`;
    tokens and positions do.
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
    decay = 1.0
    if name.endswith(("bias", "logit_scale")) or "gamma" in name:
        decay = 0.0
    elif "norm" in name or ".ln_final." in name:
        decay = options.norm_decay
    return Group(lr, decay, part != "backbone" and name.startswith(PROTOTYPES), part == "backbone")


def in_steps(length: Length, total: int) -> int:
    """A length of steps, or a share of the run, as steps."""
    return round(length * total) if isinstance(length, float) else int(length)


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
        terms: what terms train of their own, by name of the term.
        head_warmup: steps, or share of the run, in which the backbone does not move.
    """

    def __init__(
        self,
        network: Network,
        options: OptimizerSection,
        *,
        global_batch: int,
        total_steps: int,
        terms: Mapping[str, Trained] | None = None,
        head_warmup: Length = 0,
    ) -> None:
        self.network = network
        self.options = options
        self.lr = options.lr.scale(lr_factor(options, global_batch))
        self.frozen_steps = in_steps(options.freeze_prototypes, total_steps)
        self.warmup_steps = in_steps(head_warmup, total_steps)
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
        self.terms = TermOptimizer(terms, options.epsilon) if terms else None

    def rates(self, step: int) -> dict[str, float]:
        """Learning rate and weight decay at `step`, before the groups' multipliers."""
        own = {"lr": self.lr(step), "weight_decay": self.options.weight_decay(step)}
        return own | (self.terms.rates(step) if self.terms else {})

    def step(self, step: int) -> None:
        """Moves the weights by the gradients, at the rates of `step`, and forgets the gradients."""
        rates = self.rates(step)
        for group, adamw_group in zip(self.groups, self.adamw.param_groups, strict=True):
            frozen = (group.prototypes and step < self.frozen_steps) or (
                group.backbone and step < self.warmup_steps
            )
            adamw_group["lr"] = 0.0 if frozen else rates["lr"] * group.lr
            adamw_group["weight_decay"] = rates["weight_decay"] * group.weight_decay
        self.adamw.step()
        self.adamw.zero_grad(set_to_none=True)
        for name, (least, largest) in self.network.backbone.bounds.items():
            local(self.network.backbone.get_parameter(name).detach()).clamp_(least, largest)
        if self.terms:
            self.terms.step(step)

    def clip(self) -> dict[str, torch.Tensor]:
        """Clips the gradient of each part, or of each tensor, and gives the parts' L2 norms before that."""
        norms = {}
        for part, module in self.network.parts().items():
            parameters = [p for p in module.parameters() if p.grad is not None]
            norm = gradient_norm(parameters)
            if self.options.clip is not None and self.options.clip_each == "tensor":
                clip_tensors(parameters, self.options.clip)
            elif self.options.clip is not None:
                torch.nn.utils.clip_grads_with_norm_(parameters, self.options.clip, norm)
            norms[part] = norm
        return norms | (self.terms.norms() if self.terms else {})


class TermOptimizer:
    """AdamW over the parameters of terms, each with its own rates; no clipping.

    Args:
        terms: by name; at least one.
        epsilon: of AdamW.
    """

    def __init__(self, terms: Mapping[str, Trained], epsilon: float) -> None:
        self.terms = dict(terms)
        self.parameters = {
            name: [p for module in trained.modules for p in module.parameters()]
            for name, trained in self.terms.items()
        }
        self.adamw = torch.optim.AdamW(
            [
                {
                    "params": self.parameters[name],
                    "betas": trained.betas,
                    "weight_decay": trained.weight_decay,
                }
                for name, trained in self.terms.items()
            ],
            lr=0.0,
            eps=epsilon,
            fused=True,
        )

    def rates(self, step: int) -> dict[str, float]:
        """The learning rate of each term at `step`."""
        return {f"lr/{name}": trained.learning_rate(step) for name, trained in self.terms.items()}

    def step(self, step: int) -> None:
        """Moves the parameters by their gradients and forgets these; a term of weight 0 has none."""
        for trained, group in zip(self.terms.values(), self.adamw.param_groups, strict=True):
            group["lr"] = trained.learning_rate(step)
        self.adamw.step()
        self.adamw.zero_grad(set_to_none=True)

    def norms(self) -> dict[str, torch.Tensor]:
        """The gradient's L2 norm of each term."""
        return {f"terms.{name}": gradient_norm(parameters) for name, parameters in self.parameters.items()}


def gradient_norm(parameters: Iterable[nn.Parameter]) -> torch.Tensor:
    """L2 norm over all parameters and ranks; a scalar."""
    norm = torch.nn.utils.get_total_norm([p.grad for p in parameters if p.grad is not None])
    return norm.full_tensor() if isinstance(norm, DTensor) else norm


@torch.no_grad()
def clip_tensors(parameters: Iterable[nn.Parameter], largest: float) -> None:
    """Scales each gradient by largest / (its L2 norm + 1e-6) where that is below 1 (reference.md 4.3)."""
    gradients = [p.grad for p in parameters if p.grad is not None]
    if not gradients:
        return
    parts = [local(gradient) for gradient in gradients]
    squares = torch.stack([upcast(part).square().sum() for part in parts])
    if isinstance(gradients[0], DTensor):
        squares = all_reduce_sum(squares, gradients[0].device_mesh.get_group())
    factors = (largest / (squares.sqrt() + 1e-6)).clamp(max=1.0)
    for part, factor in zip(parts, factors, strict=True):
        part.mul_(factor.to(part.dtype))
