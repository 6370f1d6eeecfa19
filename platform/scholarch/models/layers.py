"""Parts of a vision transformer (reference.md sections 1.1, 1.2 and 1.5).

Legend: B pictures, T tokens, S tokens of all pictures, D width, h heads, d = D / h.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from scholarch.collectives import upcast
from scholarch.models.initialise import init_linear
from scholarch.models.packing import Packing, attend
from scholarch.models.rope import Rotation

NormKind = Literal["layernorm", "layernorm_bf16", "rmsnorm"]
FfnKind = Literal["mlp", "swiglu", "swiglu32", "swiglu64", "swiglu128"]


class RMSNorm(nn.Module):
    """Root-mean-square norm, computed in float32 and cast back before the weight (reference.md 1.2).

    Args:
        width: D.
        eps: added to the mean square.
        affine: whether there is a weight.
    """

    def __init__(self, width: int, eps: float = 1e-5, affine: bool = True) -> None:
        super().__init__()
        self.eps = eps
        self.weight = nn.Parameter(torch.full((width,), torch.nan)) if affine else None

    def init_weights(self, generator: torch.Generator) -> None:  # noqa: ARG002
        """Fills the weight with ones."""
        if self.weight is not None:
            nn.init.ones_(self.weight)

    def forward(self, x: Tensor) -> Tensor:
        """[..., D] -> [..., D]."""
        wide = upcast(x)
        normed = (wide * torch.rsqrt(wide.square().mean(-1, keepdim=True) + self.eps)).to(x.dtype)
        return normed if self.weight is None else normed * self.weight


def build_norm(kind: NormKind, width: int) -> nn.Module:
    """The norm named `kind`.

    `layernorm_bf16` is an ordinary LayerNorm in the parameters' dtype with the larger epsilon of
    the released DINOv3 weights (reference.md 15.13); nothing is forced to bfloat16.
    """
    if kind == "rmsnorm":
        return RMSNorm(width)
    return nn.LayerNorm(width, eps=1e-6 if kind == "layernorm" else 1e-5)


class PatchEmbed(nn.Module):
    """Cuts pictures into patches and maps each to a token: [B, C, H, W] -> [B, h, w, D]."""

    def __init__(self, channels: int, patch: int, width: int) -> None:
        super().__init__()
        self.proj = nn.Conv2d(channels, width, patch, stride=patch)

    def forward(self, images: Tensor) -> Tensor:
        """Rows first; pixels that do not fill a patch are left out."""
        grid: Tensor = self.proj(images.to(self.proj.weight.dtype))
        return grid.permute(0, 2, 3, 1)


class Projections(NamedTuple):
    """Queries, keys and values of an attention layer, before any rotation, each [B, h, T, d]."""

    queries: Tensor
    keys: Tensor
    values: Tensor


class QkvLinear(nn.Linear):
    """One linear layer for queries, keys and values, whose key bias may be switched off.

    With `masked_key_bias` a buffer of ones and zeros multiplies the bias in the forward pass; the
    stored key bias stays what it is and gets a zero gradient (reference.md 1.2).
    """

    bias_mask: Tensor | None

    def __init__(self, width: int, *, bias: bool, masked_key_bias: bool) -> None:
        super().__init__(width, 3 * width, bias=bias)
        masked = bias and masked_key_bias
        self.register_buffer("bias_mask", torch.full((3 * width,), torch.nan) if masked else None)

    def init_weights(self, generator: torch.Generator) -> None:
        """Truncated normal weights, bias 0, mask 1 for queries and values and 0 for keys."""
        init_linear(self, generator)
        if self.bias_mask is not None:
            width = self.in_features
            self.bias_mask.fill_(1)
            self.bias_mask[width : 2 * width] = 0

    def forward(self, x: Tensor) -> Tensor:
        """[..., D] -> [..., 3 D]."""
        if self.bias is None or self.bias_mask is None:
            return F.linear(x, self.weight, self.bias)
        return F.linear(x, self.weight, self.bias * self.bias_mask.to(self.bias.dtype))


class Attention(nn.Module):
    """Multi-head self-attention, with queries and keys turned by the tokens' places."""

    def __init__(self, width: int, heads: int, *, qkv_bias: bool, masked_key_bias: bool) -> None:
        super().__init__()
        self.heads = heads
        self.qkv = QkvLinear(width, bias=qkv_bias, masked_key_bias=masked_key_bias)
        self.proj = nn.Linear(width, width)

    def project(self, x: Tensor) -> Projections:
        """Queries, keys and values of `x` [B, T, D]."""
        batch, tokens, width = x.shape
        parts = self.qkv(x).view(batch, tokens, 3, self.heads, width // self.heads)
        return Projections(*parts.permute(2, 0, 3, 1, 4).unbind(0))

    def forward(self, x: Tensor, packing: Packing, rotations: Sequence[Rotation] | None) -> Tensor:
        """[S, D] -> [S, D]; see packing.attend."""
        projected: Tensor = self.proj(attend(self.qkv(x), packing, rotations, self.heads))
        return projected


class Mlp(nn.Module):
    """Linear, exact (erf) GELU, linear."""

    def __init__(self, width: int, hidden: int, bias: bool = True) -> None:
        super().__init__()
        self.fc1 = nn.Linear(width, hidden, bias=bias)
        self.fc2 = nn.Linear(hidden, width, bias=bias)

    def forward(self, x: Tensor) -> Tensor:
        """[..., D] -> [..., D]."""
        out: Tensor = self.fc2(F.gelu(self.fc1(x)))
        return out


class SwiGlu(nn.Module):
    """Gated feed-forward layer: w3(silu(w1 x) * w2 x).

    Args:
        width: D.
        hidden: nominal hidden width; the layer has two thirds of it, rounded up to `align`.
        align: the hidden width is a multiple of it.
    """

    def __init__(self, width: int, hidden: int, align: int) -> None:
        super().__init__()
        inner = -(-int(hidden * 2 / 3) // align) * align
        self.w1 = nn.Linear(width, inner)
        self.w2 = nn.Linear(width, inner)
        self.w3 = nn.Linear(inner, width)

    def forward(self, x: Tensor) -> Tensor:
        """[..., D] -> [..., D]."""
        out: Tensor = self.w3(F.silu(self.w1(x)) * self.w2(x))
        return out


def build_ffn(kind: FfnKind, width: int, ratio: float) -> nn.Module:
    """The feed-forward layer named `kind`; `swiglu64` is swiglu with a hidden width aligned to 64."""
    hidden = int(width * ratio)
    if kind == "mlp":
        return Mlp(width, hidden)
    return SwiGlu(width, hidden, int(kind.removeprefix("swiglu") or 8))


class LayerScale(nn.Module):
    """Multiplies each channel by a learned factor that starts small."""

    def __init__(self, width: int, start: float) -> None:
        super().__init__()
        self.start = start
        self.gamma = nn.Parameter(torch.full((width,), torch.nan))

    def init_weights(self, generator: torch.Generator) -> None:  # noqa: ARG002
        """Fills the factors with `start`."""
        nn.init.constant_(self.gamma, self.start)

    def forward(self, x: Tensor) -> Tensor:
        """[..., D] -> [..., D]."""
        return x * self.gamma
