"""CAPI: a transformer that drops masked patches and a predictor of what they hold (reference.md 3.8).

Legend: B pictures, h x w patches, N = h * w, V visible and P predicted patches of a picture,
R registers, D width, d width of a head.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from scholarch.draws import Draws
from scholarch.models.features import Backbone, Features, Views, wanted_layers
from scholarch.models.initialise import normal_, uniform_
from scholarch.models.recompute import ActivationCheckpointing, checkpointed
from scholarch.models.rope import Rotation
from scholarch.models.stochastic_depth import DrawForm, add_branch, decide

Size = Literal["tiny", "small", "base", "large"]


class Shape(NamedTuple):
    """What the name of a size stands for."""

    embed_dim: int
    depth: int
    heads: int


SIZES: dict[Size, Shape] = {
    "tiny": Shape(192, 12, 3),
    "small": Shape(384, 12, 6),
    "base": Shape(768, 12, 12),
    "large": Shape(1024, 24, 16),
}


@dataclass(frozen=True, kw_only=True)
class CapiViTOptions:
    """Options of CAPI's encoder and predictor.

    Attributes:
        size: named shape of the encoder; null: the three values below must be given.
        embed_dim: D; overrides the size's, as do the next two.
        depth: blocks of the encoder.
        heads: attention heads.
        predictor_depth: blocks of the predictor.
        ffn_ratio: hidden width of the feed-forward layers over D.
        patch: side of a patch in pixels.
        channels: of the pictures.
        registers: tokens that stand around the picture, a multiple of 4.
        stochastic_depth: share of pictures for which a branch is skipped while training, [0, 1).
        stochastic_depth_draw: exactly that share of the global batch, or each picture for itself.
        max_frequency: of the rotary positions, in turns over the picture.
        min_frequency: the smallest one.
        rope_dtype: fp32, or that of the tokens, as the source has it (in bf16, coarse angles).
    """

    kind: Literal["capi"] = "capi"
    size: Size | None = "large"
    embed_dim: int | None = None
    depth: int | None = None
    heads: int | None = None
    predictor_depth: int = 12
    ffn_ratio: float = 4.0
    patch: int = 14
    channels: int = 3
    registers: int = 16
    stochastic_depth: float = 0.2
    stochastic_depth_draw: DrawForm = "subset"
    max_frequency: float = 7.0
    min_frequency: float = 7e-4
    rope_dtype: Literal["fp32", "tokens"] = "fp32"

    def __post_init__(self) -> None:
        shape = self.shape
        if min(*shape, self.predictor_depth, self.patch, self.channels, self.registers) < 1:
            raise ValueError("embed_dim, depths, heads, patch, channels and registers must be positive")
        if self.registers % 4:
            raise ValueError(f"registers stand on four sides: a multiple of 4, not {self.registers}")
        if shape.embed_dim % (4 * shape.heads):
            raise ValueError(
                f"embed_dim {shape.embed_dim} is not a multiple of 4 x heads = {4 * shape.heads}"
            )
        if not 0 <= self.stochastic_depth < 1:
            raise ValueError(f"stochastic_depth must lie in [0, 1), not {self.stochastic_depth}")
        if not 0 < self.min_frequency < self.max_frequency:
            raise ValueError("frequencies must satisfy 0 < min_frequency < max_frequency")

    @property
    def shape(self) -> Shape:
        """The size's shape with what was given in its place.

        Raises:
            ValueError: if there is no size and not every value.
        """
        named = SIZES[self.size]._asdict() if self.size is not None else {}
        given = {name: getattr(self, name) for name in Shape._fields if getattr(self, name) is not None}
        values = {**named, **given}
        if len(values) < len(Shape._fields):
            raise ValueError(
                f"without a size, give {', '.join(Shape._fields)}; or name one: {', '.join(SIZES)}"
            )
        return Shape(**values)


class XavierLinear(nn.Linear):
    """Linear layer without bias, its weights uniform as Glorot and Bengio have it."""

    def __init__(self, inputs: int, outputs: int) -> None:
        super().__init__(inputs, outputs, bias=False)

    def init_weights(self, generator: torch.Generator) -> None:
        """Fills the weight."""
        uniform_(self.weight, math.sqrt(6 / sum(self.weight.shape)), generator)


class XavierPatches(nn.Conv2d):
    """Patch embedding; weights as of a linear layer on the pixels of a patch, bias as torch has it."""

    def init_weights(self, generator: torch.Generator) -> None:
        """Fills weight and bias."""
        inputs = math.prod(self.weight.shape[1:])
        uniform_(self.weight, math.sqrt(6 / (inputs + self.weight.shape[0])), generator)
        assert self.bias is not None
        uniform_(self.bias, 1 / math.sqrt(inputs), generator)


class CapiRope(nn.Module):
    """Rotary positions with coordinates in [0, 1], both ends included.

    Channel i is paired with i + d/2 although the one turns by the row's and the other by the
    column's angle: no rotation in the strict sense, but what the released weights were trained with.
    """

    freqs: Tensor

    def __init__(self, head_width: int, options: CapiViTOptions) -> None:
        super().__init__()
        self.options = options
        # A parameter with learning rate 0 in the source; here a buffer, the same for every block.
        self.register_buffer("freqs", torch.full((2, head_width), torch.nan))

    def init_weights(self, generator: torch.Generator) -> None:  # noqa: ARG002
        """Fills the frequencies; nothing is drawn."""
        half = self.freqs.shape[1] // 2
        steps = torch.arange(half // 2, dtype=torch.float64) / max(half // 2 - 1, 1)
        ratio = self.options.min_frequency / self.options.max_frequency
        turns = (2 * math.pi * self.options.max_frequency * ratio**steps).tile(2)
        with torch.no_grad():
            self.freqs.zero_()
            self.freqs[0, :half] = turns
            self.freqs[1, half:] = turns

    def forward(self, coordinates: Tensor) -> Rotation:
        """[B, T, 2] -> a rotation of [B, heads, T, d]."""
        angles = (coordinates @ self.freqs.to(coordinates.dtype))[:, None]
        return Rotation(angles.sin(), angles.cos())


class CapiAttention(nn.Module):
    """Attention of queries to a context, both turned by their places."""

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.q_proj = XavierLinear(width, width)
        self.k_proj = XavierLinear(width, width)
        self.v_proj = XavierLinear(width, width)
        self.proj = XavierLinear(width, width)

    def forward(self, x: Tensor, context: Tensor, places: Rotation, context_places: Rotation) -> Tensor:
        """x [B, T, D] and context [B, S, D] -> [B, T, D]."""
        queries, keys, values = (
            layer(y).unflatten(-1, (self.heads, -1)).transpose(1, 2)  # [B, heads, T, d]
            for layer, y in ((self.q_proj, x), (self.k_proj, context), (self.v_proj, context))
        )
        mixed = F.scaled_dot_product_attention(places(queries), context_places(keys), values)
        projected: Tensor = self.proj(mixed.transpose(1, 2).flatten(2))
        return projected


class CapiMlp(nn.Module):
    """Linear, GELU, linear, without biases."""

    def __init__(self, width: int, hidden: int) -> None:
        super().__init__()
        self.fc1 = XavierLinear(width, hidden)
        self.fc2 = XavierLinear(hidden, width)

    def forward(self, x: Tensor) -> Tensor:
        """[..., D] -> [..., D]."""
        out: Tensor = self.fc2(F.gelu(self.fc1(x)))
        return out


class CapiBlock(nn.Module):
    """Pre-norm attention (of the tokens to themselves or to a context) and feed-forward layer.

    Attributes:
        checkpoint: what is computed again in the backward pass.
    """

    checkpoint: ActivationCheckpointing = "none"

    def __init__(self, width: int, heads: int, hidden: int) -> None:
        super().__init__()
        self.norm1 = nn.RMSNorm(width, eps=1e-5)
        self.attn = CapiAttention(width, heads)
        self.norm2 = nn.RMSNorm(width, eps=1e-5)
        self.mlp = CapiMlp(width, hidden)

    def forward(
        self,
        x: Tensor,
        places: Rotation,
        context: Tensor | None = None,
        context_places: Rotation | None = None,
        kept_attention: Tensor | None = None,
        kept_ffn: Tensor | None = None,
        scale: float = 1.0,
    ) -> Tensor:
        """Runs the block.

        Args:
            x: [B, T, D].
            places: of the tokens of x.
            context: [B, S, D], not normed again; None: the normed tokens themselves.
            context_places: of the context.
            kept_attention: int64 rows of x on which attention runs (stochastic depth); None: all.
            kept_ffn: the same for the feed-forward layer.
            scale: factor of what the kept rows receive.
        """
        how = self.checkpoint if self.training else "none"
        return checkpointed(
            how, self._run, x, places, context, context_places, kept_attention, kept_ffn, scale
        )

    def _run(
        self,
        x: Tensor,
        places: Rotation,
        context: Tensor | None,
        context_places: Rotation | None,
        kept_attention: Tensor | None,
        kept_ffn: Tensor | None,
        scale: float,
    ) -> Tensor:
        def attend(y: Tensor) -> Tensor:
            y = self.norm1(y)
            seen, here = y, places.rows(kept_attention)
            there = here
            if context is not None and context_places is not None:
                seen = context if kept_attention is None else context[kept_attention]
                there = context_places.rows(kept_attention)
            attended: Tensor = self.attn(y, seen, here, there)
            return attended

        x = add_branch(x, attend, kept_attention, scale)
        return add_branch(x, lambda y: self.mlp(self.norm2(y)), kept_ffn, scale)


class CapiViT(Backbone):
    """See CapiViTOptions.

    The encoder sees registers and visible patches; the predictor's queries are a mask token at each
    predicted place, which attend to the encoder's output alone. `blocks` holds the encoder's blocks,
    then the predictor's. Every picture of a group must hide, and predict, the same number of patches.

    CLS is the source's picture feature: the mean over all places of what the predictor's first block
    makes of mask tokens. No loss reads it, so while training the mean of the visible patches stands in.
    """

    def __init__(self, options: CapiViTOptions) -> None:
        super().__init__()
        shape = options.shape
        self.options = options
        self.width, self.patch, self.channels = shape.embed_dim, options.patch, options.channels
        self.registers, self.depth = options.registers, shape.depth
        self.patch_embed = XavierPatches(options.channels, self.width, options.patch, stride=options.patch)
        self.register_tokens = nn.Parameter(torch.full((1, options.registers, self.width), torch.nan))
        self.mask_token = nn.Parameter(torch.full((1, self.width), torch.nan))
        self.rope = CapiRope(self.width // shape.heads, options)
        self.blocks = nn.ModuleList(
            CapiBlock(self.width, shape.heads, int(self.width * options.ffn_ratio))
            for _ in range(shape.depth + options.predictor_depth)
        )
        self.enc_norm = nn.RMSNorm(self.width, eps=1e-5, elementwise_affine=False)
        self.dec_norm = nn.RMSNorm(self.width, eps=1e-5, elementwise_affine=False)

    def init_weights(self, generator: torch.Generator) -> None:
        """Fills registers and mask token."""
        normal_(self.register_tokens, 0.02, generator)
        normal_(self.mask_token, 0.02, generator)

    def in_order(self) -> Sequence[nn.Module]:
        """The encoder's blocks."""
        return list(self.blocks)[: self.depth]

    def forward(self, views: list[Views], draws: Draws | None = None) -> list[Features]:
        """See Backbone; `predict` of the views says where the predictor predicts."""
        return [self._features(group, draws) for group in views]

    def intermediate_layers(
        self, images: Tensor, layers: int | Sequence[int] = 1, *, norm: bool = True
    ) -> list[Features]:
        """See Backbone: layers are the encoder's blocks; CLS is the mean of the patches."""
        wanted = wanted_layers(layers, self.depth)
        tokens, places, _ = self._prepare(Views(images))
        found: dict[int, Features] = {}
        for number, block in enumerate(self.blocks[: self.depth]):
            tokens = block(tokens, places)
            if number in wanted:
                normed = self.enc_norm(tokens) if norm else tokens
                patches = normed[:, self.registers :]
                found[number] = Features(patches.mean(1), normed[:, : self.registers], patches, tokens)
        return [found[number] for number in wanted]

    def _features(self, views: Views, draws: Draws | None) -> Features:
        rate = self.options.stochastic_depth if self.training else 0.0
        rates = [rate] * len(self.blocks)
        kept = decide(views, draws, rates, ("attention", "ffn"), self.options.stochastic_depth_draw)
        tokens, places, grid = self._prepare(views)
        for block, ((attention, ffn), scale) in zip(self.blocks[: self.depth], kept, strict=False):
            tokens = block(tokens, places, None, None, attention, ffn, scale)
        normed = self.enc_norm(tokens)
        registers, visible = normed[:, : self.registers], normed[:, self.registers :]

        def predicted(where: Tensor, count: int) -> Tensor:
            """What the first `count` blocks make of mask tokens at `where` [B, P, 2]: [B, P, D]."""
            queries = self.mask_token.expand(*where.shape[:2], -1)
            query_places = self.rope(where)
            for block, ((attention, ffn), scale) in zip(
                self.blocks[self.depth :][:count], kept[self.depth :], strict=False
            ):
                queries = block(queries, query_places, normed, places, attention, ffn, scale)
            out: Tensor = self.dec_norm(queries)
            return out

        everywhere = grid.expand(len(normed), -1, -1)  # [B, N, 2]
        cls = visible.mean(1) if self.training else predicted(everywhere, 1).mean(1)
        if views.masks is None:
            if self.training:
                # No places: the predictor's parameters get a zero gradient.
                visible = visible + 0 * predicted(everywhere[:, :0], self.options.predictor_depth).sum()
            return Features(cls, registers, visible, tokens)
        predict = views.masks if views.predict is None else views.predict
        where = _chosen(everywhere, predict)
        patches = _placed(visible, ~views.masks) + _placed(
            predicted(where, self.options.predictor_depth), predict
        )
        prenorm = torch.cat(
            [tokens[:, : self.registers], _placed(tokens[:, self.registers :], ~views.masks)], dim=1
        )
        return Features(cls, registers, patches, prenorm)

    def _prepare(self, views: Views) -> tuple[Tensor, Rotation, Tensor]:
        """Registers and visible patches [B, R + V, D], their places, and all coordinates [1, N, 2]."""
        height, width = self.grid(views.images)
        patches = self.patch_embed(views.images.to(self.patch_embed.weight.dtype))
        patches = patches.flatten(2).transpose(1, 2)  # [B, N, D]
        dtype = patches.dtype
        if self.options.rope_dtype == "fp32" and dtype != torch.float64:
            dtype = torch.float32
        sides = (torch.linspace(0, 1, n, dtype=dtype, device=patches.device) for n in (height, width))
        grid = torch.stack(torch.meshgrid(*sides, indexing="ij"), dim=-1).flatten(0, 1)[None]  # [1, N, 2]
        coordinates = grid.expand(len(patches), -1, -1)
        if views.masks is not None:
            if views.masks.shape != patches.shape[:2]:
                raise ValueError(f"masks {tuple(views.masks.shape)} for patches {tuple(patches.shape[:2])}")
            patches, coordinates = _chosen(patches, ~views.masks), _chosen(coordinates, ~views.masks)
        low, high = coordinates.amin(1, keepdim=True), coordinates.amax(1, keepdim=True)
        border = low + _border(self.registers).to(coordinates) * (high - low)
        tokens = torch.cat([self.register_tokens.expand(len(patches), -1, -1), patches], dim=1)
        return tokens, self.rope(torch.cat([border, coordinates], dim=1)), grid


def _border(count: int) -> Tensor:
    """Places of registers around the unit square, [count, 2], corner first on each side."""
    side = count // 4
    c = torch.arange(side, dtype=torch.float64) / side
    zero, one = torch.zeros_like(c), torch.ones_like(c)
    sides = [(c, zero), (one, c), (1 - c, one), (zero, 1 - c)]
    return torch.cat([torch.stack(pair, dim=-1) for pair in sides])


def _chosen(x: Tensor, mask: Tensor) -> Tensor:
    """The rows of x [B, N, D] where mask [B, N] is True, which are as many in each picture: [B, n, D]."""
    chosen = x[mask]
    count = len(chosen) // len(x) if len(x) else mask.shape[1]
    if (mask.sum(1) != count).any():
        raise ValueError("every picture must have the same number of masked and of predicted patches")
    return chosen.reshape(len(x), count, x.shape[2])


def _placed(rows: Tensor, mask: Tensor) -> Tensor:
    """[B, n, D] put where mask [B, N] is True, zeros elsewhere: [B, N, D]."""
    flat = rows.new_zeros(mask.numel(), rows.shape[2])
    index = mask.flatten().nonzero().squeeze(1)
    return flat.index_copy(0, index, rows.flatten(0, 1)).reshape(*mask.shape, rows.shape[2])
