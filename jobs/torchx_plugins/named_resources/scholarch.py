"""Nodes by name: `--resource h100_4` is half of one with eight H100; some is left to the node itself."""

# mypy: disallow-untyped-decorators=False
# (TorchX tells no types.)
from __future__ import annotations

from torchx.plugins import WHOLE, halve_mem_down_to, powers_of_two_gpus, register
from torchx.specs import Resource

GIB = 1024


def _part(fractional: float, *, cpu: int, gpu: int, gib: int) -> Resource:
    return Resource(
        cpu=max(1, int(cpu * fractional)), gpu=int(gpu * fractional), memMB=int(gib * GIB * fractional)
    )


@register.named_resource(fractionals=powers_of_two_gpus)
def h200(fractional: float = WHOLE) -> Resource:
    """Eight H200, 192 cores and 2 TiB."""
    return _part(fractional, cpu=176, gpu=8, gib=1792)


@register.named_resource(fractionals=powers_of_two_gpus)
def h100(fractional: float = WHOLE) -> Resource:
    """Eight H100, 192 cores and 2 TiB."""
    return _part(fractional, cpu=176, gpu=8, gib=1792)


@register.named_resource(fractionals=powers_of_two_gpus)
def a100(fractional: float = WHOLE) -> Resource:
    """Eight A100, 96 cores and 1 TiB."""
    return _part(fractional, cpu=88, gpu=8, gib=896)


@register.named_resource(fractionals=halve_mem_down_to(minGiB=4))
def cpu(fractional: float = WHOLE) -> Resource:
    """16 cores and 64 GiB."""
    return _part(fractional, cpu=16, gpu=0, gib=64)
