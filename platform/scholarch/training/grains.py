"""Gradients that are added up in the order of the global batch, whichever rank computed them."""

from __future__ import annotations

from collections.abc import Iterable

import torch
from torch import nn

from scholarch.collectives import Pieces


class OrderedGradients:
    """Takes the gradient of each micro-batch away, and gives back the sum over all ranks' micro-batches.

    Sums of rounded numbers depend on their order. Here it is that of the micro-batches in the global
    batch, so the result has the same bits on any number of ranks. Each rank holds the gradients of all
    micro-batches of the step meanwhile.

    Args:
        parameters: those that are trained, unsharded and the same on all ranks.
    """

    def __init__(self, parameters: Iterable[nn.Parameter]) -> None:
        self.parameters = [parameter for parameter in parameters if parameter.requires_grad]
        self._taken: list[torch.Tensor] = []

    def take(self) -> None:
        """After the backward pass of a micro-batch."""
        parts = [torch.zeros_like(p) if p.grad is None else p.grad for p in self.parameters]
        self._taken.append(torch.cat([part.flatten() for part in parts]))
        for parameter in self.parameters:
            parameter.grad = None

    def add_up(self, pieces: Pieces) -> None:
        """Gives every parameter its gradient of the step; all ranks take part.

        Args:
            pieces: the micro-batches, in the order in which their gradients were taken.
        """
        total = pieces.sum(self._taken)
        sizes = [parameter.numel() for parameter in self.parameters]
        for parameter, gradient in zip(self.parameters, torch.split(total, sizes), strict=True):
            parameter.grad = gradient.view_as(parameter)
        self._taken = []
