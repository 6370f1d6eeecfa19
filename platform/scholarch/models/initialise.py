"""Initial weights as a function of the seed and each module's name alone.

A model is built on the meta device, its tensors are made and filled with NaN, and then each module
is initialised by a generator of its own. So the order of modules, sharding and the number of
processes change nothing, and a forgotten initialiser shows as NaN (reference.md section 0.7).
"""

from __future__ import annotations

import math
from collections.abc import Iterator

import torch
from torch import Tensor, nn

from scholarch.draws import torch_generator


def normal_(tensor: Tensor, std: float, generator: torch.Generator) -> None:
    """Fills `tensor` from N(0, std)."""
    _fill(tensor, torch.empty(tensor.shape, dtype=torch.float32).normal_(0, std, generator=generator))


def trunc_normal_(tensor: Tensor, std: float, generator: torch.Generator) -> None:
    """Fills `tensor` from N(0, std), redrawn outside [-2, 2] (absolute, as torch has it)."""
    drawn = torch.empty(tensor.shape, dtype=torch.float32)
    _fill(tensor, nn.init.trunc_normal_(drawn, std=std, generator=generator))


def uniform_(tensor: Tensor, limit: float, generator: torch.Generator) -> None:
    """Fills `tensor` from U(-limit, limit)."""
    _fill(tensor, torch.empty(tensor.shape, dtype=torch.float32).uniform_(-limit, limit, generator=generator))


def _fill(tensor: Tensor, drawn: Tensor) -> None:
    # Drawn in float32 on the CPU whatever the tensor is, so that dtype and device change no draw.
    with torch.no_grad():
        tensor.copy_(drawn)


def init_linear(layer: nn.Linear, generator: torch.Generator, std: float = 0.02) -> None:
    """Truncated normal weights, bias 0."""
    trunc_normal_(layer.weight, std, generator)
    if layer.bias is not None:
        nn.init.zeros_(layer.bias)


def init_conv(layer: nn.Conv2d, generator: torch.Generator) -> None:
    """Weight and bias uniform within 1 / sqrt(inputs of one output) (reference.md 1.2)."""
    limit = 1 / math.sqrt(math.prod(layer.weight.shape[1:]))
    uniform_(layer.weight, limit, generator)
    if layer.bias is not None:
        uniform_(layer.bias, limit, generator)


def _init_module(module: nn.Module, name: str, generator: torch.Generator) -> None:
    own = getattr(module, "init_weights", None)
    if own is not None:
        own(generator)
    elif isinstance(module, nn.Linear):
        init_linear(module, generator)
    elif isinstance(module, nn.Conv2d):
        init_conv(module, generator)
    elif isinstance(module, (nn.LayerNorm, nn.RMSNorm)):
        nn.init.ones_(module.weight)
        if isinstance(module, nn.LayerNorm) and module.bias is not None:
            nn.init.zeros_(module.bias)
    else:
        raise TypeError(
            f"{name or 'the root module'} ({type(module).__name__}) has tensors of its own and no initialiser: "
            "give it `init_weights(generator)`"
        )


def initialise(module: nn.Module, seed: int, prefix: str = "") -> None:
    """Fills every parameter and buffer of `module`.

    A module with tensors of its own is filled by its `init_weights(generator)`, which must fill
    these and nothing of its children, or by the rules above for linear, convolution and norm
    layers.

    Args:
        module: on any device but meta, in any floating dtype.
        seed: the run's seed.
        prefix: qualified name of `module` in the whole model: a part that is initialised alone
            gets what it gets as part of the whole.

    Raises:
        TypeError: naming a module that has tensors and no initialiser.
    """
    for inner, child in module.named_modules():
        if [*child.parameters(recurse=False), *child.buffers(recurse=False)]:
            name = ".".join(part for part in (prefix, inner) if part)
            _init_module(child, name, torch_generator(seed, "init", name))


def fill_with_nan(module: nn.Module, device: torch.device | str = "cpu") -> None:
    """Makes the tensors of a module built on the meta device, filled with NaN or the largest integer."""
    module.to_empty(device=device)
    with torch.no_grad():
        for _, tensor in _tensors(module):
            if tensor.dtype != torch.bool:
                tensor.fill_(torch.nan if tensor.is_floating_point() else torch.iinfo(tensor.dtype).max)


def check_initialised(module: nn.Module) -> None:
    """Checks that `fill_with_nan` left no trace.

    Raises:
        RuntimeError: listing the tensors that still hold NaN or the largest integer.
    """
    forgotten = [name for name, tensor in _tensors(module) if _looks_forgotten(tensor)]
    if forgotten:
        raise RuntimeError(f"not initialised: {', '.join(forgotten)}")


def _looks_forgotten(tensor: Tensor) -> bool:
    if tensor.dtype == torch.bool:
        return False
    if tensor.is_floating_point():
        return bool(tensor.isnan().any())
    return bool((tensor == torch.iinfo(tensor.dtype).max).any())


def _tensors(module: nn.Module) -> Iterator[tuple[str, Tensor]]:
    yield from module.named_parameters()
    yield from module.named_buffers()
