"""Vision transformer of the DINO family (reference.md sections 1.1 to 1.5).

Legend: B pictures, C channels, H x W pixels, h x w patches, N = h * w, R registers,
T = 1 + R + N tokens in the order [CLS, registers, patches], S tokens of all pictures, D width.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Literal, NamedTuple

import torch
from torch import Tensor, nn

from scholarch.draws import Draws
from scholarch.models.block import Block
from scholarch.models.features import Backbone, Features, Views, wanted_layers
from scholarch.models.initialise import normal_, trunc_normal_
from scholarch.models.layers import FfnKind, NormKind, PatchEmbed, Projections, build_norm
from scholarch.models.packing import Packing, decide_packed, pack
from scholarch.models.positions import LearnedPositionOptions, resample
from scholarch.models.rope import AxialRope, RopeOptions, Rotation
from scholarch.models.stochastic_depth import DrawForm, RateShape, block_rates

Size = Literal[
    "tiny", "small", "small_plus", "base", "large", "large_plus", "so400m", "huge_plus", "giant", "7b"
]


class Shape(NamedTuple):
    """What the name of a size stands for."""

    embed_dim: int
    depth: int
    heads: int
    ffn: FfnKind
    ffn_ratio: float


SIZES: dict[Size, Shape] = {
    "tiny": Shape(192, 12, 3, "mlp", 4),
    "small": Shape(384, 12, 6, "mlp", 4),
    "small_plus": Shape(384, 12, 6, "swiglu", 6),
    "base": Shape(768, 12, 12, "mlp", 4),
    "large": Shape(1024, 24, 16, "mlp", 4),
    "large_plus": Shape(1024, 24, 16, "swiglu", 6),
    "so400m": Shape(1152, 27, 18, "mlp", 3.777777778),
    "huge_plus": Shape(1280, 32, 20, "swiglu", 6),
    "giant": Shape(1536, 40, 24, "mlp", 4),
    "7b": Shape(4096, 40, 32, "swiglu64", 3),
}


@dataclass(frozen=True, kw_only=True)
class ViTOptions:
    """Options of a vision transformer.

    Attributes:
        size: named shape (reference.md 1.1); null: the five values below must be given.
        embed_dim: D; overrides the size's, as do the next four.
        depth: blocks.
        heads: attention heads.
        ffn: feed-forward layer; the number after swiglu aligns its hidden width (8 without one).
        ffn_ratio: nominal hidden width over D.
        patch: side of a patch in pixels.
        channels: of the pictures.
        registers: tokens without a place or a target (storage tokens).
        layer_scale: start of LayerScale; null or 0: none.
        stochastic_depth: share of pictures for which a branch is skipped while training, [0, 1).
        stochastic_depth_shape: the same in every block, or linear from 0 to it in the last block.
        stochastic_depth_draw: exactly that share of the global batch, or each picture for itself.
        qkv_bias: whether queries, keys and values have a bias.
        masked_key_bias: with rope, whether the keys' bias is switched off by a buffer; with learned
            positions it is not, as softmax drops it anyway.
        norm: layernorm (eps 1e-6), layernorm_bf16 (eps 1e-5) or rmsnorm (eps 1e-5).
        position: rotary or learned.
        rope: options of rotary positions.
        learned: options of learned positions.
        untie_cls_and_patch_norms: a final norm of its own for CLS and registers.
        untie_global_and_local_cls_norm: while training, another one for CLS and registers of local crops.
    """

    kind: Literal["vit"] = "vit"
    size: Size | None = "small"
    embed_dim: int | None = None
    depth: int | None = None
    heads: int | None = None
    ffn: FfnKind | None = None
    ffn_ratio: float | None = None
    patch: int = 16
    channels: int = 3
    registers: int = 4  # released DINOv3 (reference.md 1.4)
    layer_scale: float | None = 1e-5
    stochastic_depth: float = 0.0
    stochastic_depth_shape: RateShape = "constant"
    stochastic_depth_draw: DrawForm = "subset"
    qkv_bias: bool = True
    masked_key_bias: bool = True  # released DINOv3 (reference.md 1.4)
    norm: NormKind = "layernorm"
    position: Literal["rope", "learned"] = "rope"
    rope: RopeOptions = field(default_factory=RopeOptions)
    learned: LearnedPositionOptions = field(default_factory=LearnedPositionOptions)
    untie_cls_and_patch_norms: bool = False
    untie_global_and_local_cls_norm: bool = False  # True for 7B

    def __post_init__(self) -> None:
        shape = self.shape
        for name, value in {**shape._asdict(), "patch": self.patch, "channels": self.channels}.items():
            if name != "ffn" and value <= 0:
                raise ValueError(f"{name} must be positive, not {value}")
        if self.registers < 0:
            raise ValueError(f"registers must not be negative, not {self.registers}")
        if shape.embed_dim % shape.heads:
            raise ValueError(f"embed_dim {shape.embed_dim} is not a multiple of heads {shape.heads}")
        if self.position == "rope" and shape.embed_dim % (4 * shape.heads):
            raise ValueError(
                f"rope wants embed_dim to be a multiple of 4 x heads = {4 * shape.heads}, not {shape.embed_dim}"
            )
        if not 0 <= self.stochastic_depth < 1:
            raise ValueError(f"stochastic_depth must lie in [0, 1), not {self.stochastic_depth}")

    @property
    def shape(self) -> Shape:
        """The size's shape with what was given in its place.

        Raises:
            ValueError: if there is no size and not every value.
        """
        named = SIZES[self.size]._asdict() if self.size is not None else {}
        given = {name: getattr(self, name) for name in Shape._fields if getattr(self, name) is not None}
        values = {**named, **given}
        missing = [name for name in Shape._fields if name not in values]
        if missing:
            raise ValueError(
                f"without a size, give {', '.join(missing)} too; or name a size: {', '.join(SIZES)}"
            )
        return Shape(**values)


class LastAttention(NamedTuple):
    """What the attention of the last block sees.

    Attributes:
        cls: [B, heads, T], how CLS attends to every token; sums to 1 over T.
        projections: queries, keys and values [B, heads, T, d], before rotation.
    """

    cls: Tensor
    projections: Projections


class VisionTransformer(Backbone):
    """See ViTOptions; names of parameters are those of released DINOv3 (reference.md 1.4).

    Tensors are made without values: call `scholarch.models.initialise.initialise`.

    Attributes:
        registers: R.
    """

    def __init__(self, options: ViTOptions) -> None:
        super().__init__()
        shape = options.shape
        self.options = options
        self.width, self.patch, self.channels = shape.embed_dim, options.patch, options.channels
        self.registers = options.registers
        self.patch_embed = PatchEmbed(options.channels, options.patch, self.width)
        self.cls_token = _empty(1, 1, self.width)
        self.storage_tokens = _empty(1, options.registers, self.width) if options.registers else None
        self.mask_token = _empty(1, self.width)
        self.rope_embed: AxialRope | None = None
        self.pos_embed: nn.Parameter | None = None
        if options.position == "rope":
            self.rope_embed = AxialRope(self.width // shape.heads, options.rope)
        else:
            self.pos_embed = _empty(1, 1 + options.learned.grid**2, self.width)
        self.blocks = nn.ModuleList(
            Block(
                self.width,
                shape.heads,
                ffn=shape.ffn,
                ffn_ratio=shape.ffn_ratio,
                norm=options.norm,
                layer_scale=options.layer_scale,
                qkv_bias=options.qkv_bias,
                masked_key_bias=options.masked_key_bias and options.position == "rope",
            )
            for _ in range(shape.depth)
        )
        self.norm = build_norm(options.norm, self.width)
        self.cls_norm = build_norm(options.norm, self.width) if options.untie_cls_and_patch_norms else None
        untied = options.untie_global_and_local_cls_norm
        self.local_cls_norm = build_norm(options.norm, self.width) if untied else None
        self._rates = block_rates(options.stochastic_depth, options.stochastic_depth_shape, shape.depth)

    def init_weights(self, generator: torch.Generator) -> None:
        """Fills the tokens and learned positions (reference.md 1.2 and 1.5)."""
        std = 0.02 if self.pos_embed is None else 1e-6
        for token in (self.cls_token, self.storage_tokens):
            if token is not None:
                normal_(token, std, generator)
        nn.init.zeros_(self.mask_token)
        if self.pos_embed is not None:
            trunc_normal_(self.pos_embed, 0.02, generator)

    def forward(self, views: list[Views], draws: Draws | None = None) -> list[Features]:
        """See Backbone; every block runs once, on the tokens of all groups."""
        if not views:
            return []
        prepared = [self._prepare(group, draws) for group in views]
        groups = [tokens for tokens, _ in prepared]
        packing, x = Packing.of(groups), pack(groups)
        rates = self._rates if self.training else [0.0] * len(self.blocks)
        form = self.options.stochastic_depth_draw
        kept = decide_packed(views, packing, draws, rates, ("attention", "ffn"), form, x.dtype)
        for number, (block, (attention, ffn)) in enumerate(zip(self.blocks, kept, strict=True)):
            x = block(x, packing, _of_block(prepared, number), attention, ffn)
        return [
            self._features(tokens, group.local)
            for tokens, group in zip(packing.groups(x), views, strict=True)
        ]

    def intermediate_layers(
        self, images: Tensor, layers: int | Sequence[int] = 1, *, norm: bool = True
    ) -> list[Features]:
        """See Backbone."""
        wanted = wanted_layers(layers, len(self.blocks))
        prepared = self._prepare(Views(images), None)
        packing, x = Packing.of([prepared[0]]), pack([prepared[0]])
        found: dict[int, Features] = {}
        for number, block in enumerate(self.blocks):
            x = block(x, packing, _of_block([prepared], number))
            if number in wanted:
                (tokens,) = packing.groups(x)
                found[number] = self._features(tokens, local=False) if norm else self._split(tokens, tokens)
        return [found[number] for number in wanted]

    def last_attention(self, images: Tensor) -> LastAttention:
        """Attention of CLS, and queries, keys and values, in the last block. [B, C, H, W] pictures.

        Not under FSDP2: the last block does not run as a whole.

        Raises:
            UserError: as `forward`.
        """
        prepared = self._prepare(Views(images), None)
        packing, x = Packing.of([prepared[0]]), pack([prepared[0]])
        for number, block in enumerate(self.blocks[:-1]):
            x = block(x, packing, _of_block([prepared], number))
        last, rotations = self.blocks[-1], prepared[1]
        assert isinstance(last, Block)
        projections = last.attn.project(last.norm1(packing.groups(x)[0]))
        queries, keys = projections.queries, projections.keys
        if rotations is not None:
            queries, keys = rotations[-1](queries), rotations[-1](keys)
        scores = (queries[:, :, :1] @ keys.transpose(-2, -1)).squeeze(2) * queries.shape[-1] ** -0.5
        return LastAttention(scores.softmax(-1), projections)

    def _prepare(self, views: Views, draws: Draws | None) -> tuple[Tensor, Sequence[Rotation] | None]:
        """Tokens before the first block [B, T, D], and the rotation for each block, where there are any."""
        height, width = self.grid(views.images)
        patches = self.patch_embed(views.images).flatten(1, 2)  # [B, N, D]
        cls: Tensor = self.cls_token
        if views.masks is None:
            # The mask token gets a zero gradient, so that every step reduces the same parameters.
            cls = cls + 0 * self.mask_token
        else:
            if views.masks.shape != patches.shape[:2]:
                raise ValueError(f"masks {tuple(views.masks.shape)} for patches {tuple(patches.shape[:2])}")
            patches = torch.where(views.masks[..., None], self.mask_token, patches)
        tokens = torch.cat([cls.expand(len(patches), -1, -1), patches], dim=1)
        if self.pos_embed is not None:
            tokens = tokens + resample(self.pos_embed, height, width, self.options.learned.interpolation)
        if self.storage_tokens is not None:
            registers = self.storage_tokens.expand(len(tokens), -1, -1)
            tokens = torch.cat([tokens[:, :1], registers, tokens[:, 1:]], dim=1)
        if self.rope_embed is None:
            return tokens, None
        prefix = 1 + self.registers
        return tokens, self.rope_embed(height, width, prefix, len(self.blocks), draws, views.name)

    def _features(self, tokens: Tensor, local: bool) -> Features:
        norm = self.norm if self.cls_norm is None else self.cls_norm
        unused = [self.local_cls_norm]
        if self.training and local and self.local_cls_norm is not None:
            norm, unused = self.local_cls_norm, [self.cls_norm]
        if norm is self.norm:
            normed = self.norm(tokens)
        else:
            prefix = 1 + self.registers
            normed = torch.cat([norm(tokens[:, :prefix]), self.norm(tokens[:, prefix:])], dim=1)
        if self.training:
            for module in unused:
                for parameter in module.parameters() if module is not None else ():
                    normed = normed + 0 * parameter  # a zero gradient, as for the mask token
        return self._split(normed, tokens)

    def _split(self, normed: Tensor, prenorm: Tensor) -> Features:
        cls, registers, patches = torch.split(
            normed, [1, self.registers, normed.shape[1] - 1 - self.registers], dim=1
        )
        return Features(cls.squeeze(1), registers, patches, prenorm)


def _of_block(
    prepared: Sequence[tuple[Tensor, Sequence[Rotation] | None]], block: int
) -> list[Rotation] | None:
    """Rotations of a block for each group."""
    rotations = [rotations[block] for _, rotations in prepared if rotations is not None]
    return rotations or None


def _empty(*shape: int) -> nn.Parameter:
    return nn.Parameter(torch.full(shape, torch.nan))
