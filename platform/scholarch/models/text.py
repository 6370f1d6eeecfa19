"""Text tower of dino.txt (reference.md section 7).

Legend: B captions, L tokens of a caption, D width, E joint width.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from scholarch.models.initialise import normal_
from scholarch.models.layers import Mlp
from scholarch.models.recompute import ActivationCheckpointing, checkpointed

TextSize = Literal["tiny", "small", "base", "large", "huge"]
EPS = 1e-5


class TextShape(NamedTuple):
    """What the name of a size stands for."""

    embed_dim: int
    depth: int
    heads: int


TEXT_SIZES: dict[TextSize, TextShape] = {
    "tiny": TextShape(192, 6, 3),
    "small": TextShape(384, 12, 6),
    "base": TextShape(512, 12, 8),
    "large": TextShape(768, 12, 12),
    "huge": TextShape(1280, 24, 20),  # released: tet1280d20h24l
}


@dataclass(frozen=True, kw_only=True)
class TextOptions:
    """Options of the text tower.

    Attributes:
        size: named shape; the three values below replace its own.
        embed_dim: D.
        depth: blocks.
        heads: attention heads.
        vocabulary: number of token ids; CLIP's has 49,408.
        length: most tokens of a caption, its first and last one included.
    """

    size: TextSize = "huge"
    embed_dim: int | None = None
    depth: int | None = None
    heads: int | None = None
    vocabulary: int = 49408
    length: int = 77

    def __post_init__(self) -> None:
        for name, value in self.shape._asdict().items():
            if value <= 0:
                raise ValueError(f"{name} must be positive, not {value}")
        if self.shape.embed_dim % self.shape.heads:
            raise ValueError(
                f"embed_dim {self.shape.embed_dim} is not a multiple of heads {self.shape.heads}"
            )
        if self.length < 3:
            raise ValueError(
                f"length must be at least 3, for a word between its two marks, not {self.length}"
            )
        if self.vocabulary < 514:
            raise ValueError(f"vocabulary must be at least 514, for all bytes, not {self.vocabulary}")

    @property
    def shape(self) -> TextShape:
        """The size's shape with what was given in its place."""
        named = TEXT_SIZES[self.size]
        return TextShape(
            self.embed_dim or named.embed_dim, self.depth or named.depth, self.heads or named.heads
        )


class NormalLinear(nn.Linear):
    """A linear layer that begins from N(0, std) and bias 0.

    Args:
        std: of the weights.
    """

    def __init__(self, inputs: int, outputs: int, *, bias: bool, std: float) -> None:
        super().__init__(inputs, outputs, bias=bias)
        self.std = std

    def init_weights(self, generator: torch.Generator) -> None:
        """See the class."""
        normal_(self.weight, self.std, generator)
        if self.bias is not None:
            nn.init.zeros_(self.bias)


class _Attention(nn.Module):
    """Multi-head self-attention in which a token sees those before it and itself."""

    def __init__(self, width: int, heads: int, out: float) -> None:
        super().__init__()
        self.heads = heads
        self.qkv = NormalLinear(width, 3 * width, bias=False, std=width**-0.5)
        self.proj = NormalLinear(width, width, bias=True, std=out)

    def forward(self, x: Tensor) -> Tensor:
        """[B, L, D] -> [B, L, D]."""
        batch, length, width = x.shape
        parts = self.qkv(x).view(batch, length, 3, self.heads, width // self.heads)
        queries, keys, values = parts.permute(2, 0, 3, 1, 4).unbind(0)
        mixed = F.scaled_dot_product_attention(queries, keys, values, is_causal=True)
        projected: Tensor = self.proj(mixed.transpose(1, 2).flatten(2))
        return projected


class TextBlock(nn.Module):
    """Pre-norm causal block; names of parameters are those of released dino.txt.

    Args:
        width: D.
        heads: attention heads.
        depth: blocks of the tower, by which the first weights of both branches' last layers shrink.

    Attributes:
        checkpoint: as of `scholarch.models.block.Block`.
    """

    checkpoint: ActivationCheckpointing = "none"

    def __init__(self, width: int, heads: int, depth: int) -> None:
        super().__init__()
        out = width**-0.5 * (2 * depth) ** -0.5
        self.attention_norm = nn.LayerNorm(width, eps=EPS)
        self.attention = _Attention(width, heads, out)
        self.ffn_norm = nn.LayerNorm(width, eps=EPS)
        self.feed_forward = Mlp(width, 4 * width)
        self.feed_forward.fc1 = NormalLinear(width, 4 * width, bias=True, std=(2 * width) ** -0.5)
        self.feed_forward.fc2 = NormalLinear(4 * width, width, bias=True, std=out)

    def forward(self, x: Tensor) -> Tensor:
        """[B, L, D] -> [B, L, D]."""
        return checkpointed(self.checkpoint if self.training else "none", self._run, x)

    def _run(self, x: Tensor) -> Tensor:
        x = x + self.attention(self.attention_norm(x))
        added: Tensor = x + self.feed_forward(self.ffn_norm(x))
        return added


class TokenEmbedding(nn.Embedding):
    """One vector for each token id."""

    def init_weights(self, generator: torch.Generator) -> None:
        """N(0, 0.02)."""
        normal_(self.weight, 0.02, generator)


class TextTower(nn.Module):
    """Token ids to features of every token, after the final norm.

    Attributes:
        blocks: in order.
    """

    def __init__(self, options: TextOptions) -> None:
        super().__init__()
        width, depth, heads = options.shape
        self.options = options
        self.token_embedding = TokenEmbedding(options.vocabulary, width)
        self.positional_embedding = nn.Parameter(torch.full((options.length, width), torch.nan))
        self.blocks = nn.ModuleList(TextBlock(width, heads, depth) for _ in range(depth))
        self.ln_final = nn.LayerNorm(width, eps=EPS)

    def init_weights(self, generator: torch.Generator) -> None:
        """Fills the positions from N(0, 0.01)."""
        normal_(self.positional_embedding, 0.01, generator)

    def forward(self, tokens: Tensor) -> Tensor:
        """[B, L] int64 -> [B, L, D]; L at most the longest caption."""
        x = self.token_embedding(tokens)
        x = x + self.positional_embedding[: tokens.shape[1]].to(x.dtype)
        for block in self.blocks:
            x = block(x)
        normed: Tensor = self.ln_final(x)
        return normed


def pooled(x: Tensor, tokens: Tensor) -> Tensor:
    """[B, L, E] features at the end-of-text token, which has the largest id: [B, E]."""
    return x[torch.arange(len(x), device=x.device), tokens.argmax(dim=1)]
