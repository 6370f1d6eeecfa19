"""Activation checkpointing: what of a block is kept for the backward pass, what is computed again."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any, Literal

import torch
import torch.nn.attention.varlen  # makes its operation known
from torch import Tensor
from torch.utils.checkpoint import checkpoint, create_selective_checkpoint_contexts

ActivationCheckpointing = Literal["none", "selective", "full"]
"""`full` computes the whole inside of a block again, `selective` all but products and attention."""

_aten = torch.ops.aten
KEPT_OPERATIONS: list[Any] = [
    _aten.mm.default,
    _aten.addmm.default,
    _aten.bmm.default,
    _aten._scaled_mm.default,
    _aten.convolution.default,
    _aten._scaled_dot_product_flash_attention.default,
    _aten._scaled_dot_product_flash_attention_for_cpu.default,
    _aten._scaled_dot_product_efficient_attention.default,
    _aten._scaled_dot_product_cudnn_attention.default,
    torch.ops.torch_attn._varlen_attn.default,
]
"""Whose outputs `selective` keeps (reference.md section 4.4)."""


def checkpointed(how: ActivationCheckpointing, function: Callable[..., Tensor], *arguments: Any) -> Tensor:
    """`function(*arguments)`, in which nothing may be random, with what `how` says kept."""
    if how == "none":
        return function(*arguments)
    # Nothing random happens inside: no generator state to restore.
    run = partial(checkpoint, function, *arguments, use_reentrant=False, preserve_rng_state=False)
    result: Tensor = run(context_fn=_contexts) if how == "selective" else run()
    return result


def _contexts() -> Any:
    return create_selective_checkpoint_contexts(KEPT_OPERATIONS)  # type: ignore[no-untyped-call]
