"""The source's form of the exchange (reference.md 6.3): every process gets all pixels and all features of all."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import NamedTuple

import torch
import torch.distributed as dist
from torch import Tensor


class Gathered(NamedTuple):
    """What an exchange left on this process.

    Attributes:
        received: bytes that came from other processes.
        held: bytes of what this process holds when it is over.
    """

    received: int
    held: int


def gather_everything(tensors: Mapping[str, Tensor], shares: Sequence[int]) -> Gathered:
    """Gathers tensors, [V, b, ...], of every process along b, padded to the largest share as the source pads.

    Args:
        tensors: of this process: pixels of all crops, and features of CLS and of every patch.
        shares: samples of each process.
    """
    rank, world = dist.get_rank(), dist.get_world_size()
    most = max(shares)
    received = held = 0
    for tensor in tensors.values():
        padded = tensor.new_zeros(tensor.shape[0], most, *tensor.shape[2:])
        padded[:, : shares[rank]] = tensor
        parts = [torch.empty_like(padded) for _ in range(world)]
        dist.all_gather(parts, padded)
        whole = torch.cat([part[:, :share] for part, share in zip(parts, shares, strict=True)], dim=1)
        received += (world - 1) * padded.numel() * padded.element_size()
        held += whole.numel() * whole.element_size()
    return Gathered(received, held)
