"""One block of a vision transformer: a pure function of tensors, to be compiled and sharded as one.

Legend: S tokens of all pictures, D width.
"""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor, nn

from scholarch.models.layers import Attention, FfnKind, LayerScale, NormKind, build_ffn, build_norm
from scholarch.models.packing import KeptTokens, Packing, add_packed
from scholarch.models.recompute import ActivationCheckpointing, checkpointed
from scholarch.models.rope import Rotation


class Block(nn.Module):
    """Pre-norm block: x + ls1 attn(norm1 x), then x + ls2 ffn(norm2 x) (reference.md 1.2).

    Attributes:
        checkpoint: what is computed again in the backward pass. Kept inside `forward`, so that
            names of parameters stay and FSDP2's hooks run once.
    """

    checkpoint: ActivationCheckpointing = "none"

    def __init__(
        self,
        width: int,
        heads: int,
        *,
        ffn: FfnKind,
        ffn_ratio: float,
        norm: NormKind,
        layer_scale: float | None,
        qkv_bias: bool,
        masked_key_bias: bool,
    ) -> None:
        super().__init__()
        self.norm1 = build_norm(norm, width)
        self.attn = Attention(width, heads, qkv_bias=qkv_bias, masked_key_bias=masked_key_bias)
        self.ls1 = LayerScale(width, layer_scale) if layer_scale else nn.Identity()
        self.norm2 = build_norm(norm, width)
        self.mlp = build_ffn(ffn, width, ffn_ratio)
        self.ls2 = LayerScale(width, layer_scale) if layer_scale else nn.Identity()

    def forward(
        self,
        x: Tensor,
        packing: Packing,
        rotations: Sequence[Rotation] | None = None,
        kept_attention: KeptTokens | None = None,
        kept_ffn: KeptTokens | None = None,
    ) -> Tensor:
        """Runs the block.

        Args:
            x: [S, D].
            packing: which tokens are of one picture.
            rotations: of queries and keys, for each group of the packing.
            kept_attention: tokens on which attention runs (stochastic depth); None: all.
            kept_ffn: the same for the feed-forward layer.

        Returns:
            [S, D].
        """
        how = self.checkpoint if self.training else "none"
        return checkpointed(how, self._run, x, packing, rotations, kept_attention, kept_ffn)

    def _run(
        self,
        x: Tensor,
        packing: Packing,
        rotations: Sequence[Rotation] | None,
        kept_attention: KeptTokens | None,
        kept_ffn: KeptTokens | None,
    ) -> Tensor:
        seen = packing if kept_attention is None else kept_attention.packing
        x = add_packed(x, lambda y: self.ls1(self.attn(self.norm1(y), seen, rotations)), kept_attention)
        return add_packed(x, lambda y: self.ls2(self.mlp(self.norm2(y))), kept_ffn)
