"""One block of a vision transformer: a pure function of tensors, to be compiled and sharded as one.

Legend: B pictures, T tokens, D width.
"""

from __future__ import annotations

from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from scholarch.models.layers import Attention, FfnKind, LayerScale, NormKind, build_ffn, build_norm
from scholarch.models.rope import Rotation
from scholarch.models.stochastic_depth import add_branch


class Block(nn.Module):
    """Pre-norm block: x + ls1 attn(norm1 x), then x + ls2 ffn(norm2 x) (reference.md 1.2).

    Attributes:
        checkpoint: whether activations are computed again in the backward pass. Kept inside
            `forward`, so that names of parameters stay and FSDP2's hooks run once.
    """

    checkpoint: bool = False

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
        rope: Rotation | None = None,
        kept_attention: Tensor | None = None,
        kept_ffn: Tensor | None = None,
        scale: float = 1.0,
    ) -> Tensor:
        """Runs the block.

        Args:
            x: [B, T, D].
            rope: rotation of queries and keys.
            kept_attention: int64 rows of x on which attention runs (stochastic depth); None: all.
            kept_ffn: the same for the feed-forward layer.
            scale: factor of what the kept rows receive.

        Returns:
            [B, T, D].
        """
        if self.checkpoint and self.training:
            # Nothing random happens inside: no generator state to restore.
            again: Tensor = checkpoint(
                self._run,
                x,
                rope,
                kept_attention,
                kept_ffn,
                scale,
                use_reentrant=False,
                preserve_rng_state=False,
            )
            return again
        return self._run(x, rope, kept_attention, kept_ffn, scale)

    def _run(
        self,
        x: Tensor,
        rope: Rotation | None,
        kept_attention: Tensor | None,
        kept_ffn: Tensor | None,
        scale: float,
    ) -> Tensor:
        x = add_branch(x, lambda y: self.ls1(self.attn(self.norm1(y), rope)), kept_attention, scale)
        return add_branch(x, lambda y: self.ls2(self.mlp(self.norm2(y))), kept_ffn, scale)
