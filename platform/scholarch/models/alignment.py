"""A locked backbone aligned with text: dino.txt (reference.md section 7).

Legend: B pictures or captions, R registers, N patches, T = 1 + R + N tokens, L tokens of a caption,
D width of the locked backbone, E joint width, C = E / 2.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import ClassVar, Literal

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from scholarch.collectives import upcast
from scholarch.draws import Draws
from scholarch.models.block import Block
from scholarch.models.capi import CapiViTOptions
from scholarch.models.convnext import ConvNeXtOptions
from scholarch.models.features import Backbone, Features, Views, wanted_layers
from scholarch.models.layers import build_norm
from scholarch.models.packing import Packing, decide_packed, pack
from scholarch.models.text import NormalLinear, TextOptions, TextTower, pooled
from scholarch.models.vit import ViTOptions

START_SCALE, LARGEST_SCALE = math.log(1 / 0.07), math.log(100)
VISION = "visual_model.backbone"
"""Where the locked backbone is."""


@dataclass(frozen=True, kw_only=True)
class VisionHeadOptions:
    """Options of what is trained on the locked backbone's tokens.

    Attributes:
        blocks: self-attention blocks, without positions.
        heads: attention heads; null: one for each 64 of the width.
        ffn_ratio: nominal hidden width of the gated feed-forward layers over D.
        layer_scale: start of LayerScale; null or 0: none.
        stochastic_depth: share of pictures for which a branch is skipped while training, [0, 1).
        project: a linear layer to E / 2 even where D is that.
    """

    blocks: int = 2
    heads: int | None = None
    ffn_ratio: float = 4.0
    layer_scale: float | None = 1e-5
    stochastic_depth: float = 0.3
    project: bool = False

    def __post_init__(self) -> None:
        if self.blocks < 0:
            raise ValueError(f"blocks must not be negative, not {self.blocks}")
        if not 0 <= self.stochastic_depth < 1:
            raise ValueError(f"stochastic_depth must lie in [0, 1), not {self.stochastic_depth}")


@dataclass(frozen=True, kw_only=True)
class AlignedOptions:
    """Options of a locked backbone with a text tower.

    Attributes:
        vision: of the backbone; a run takes them from the backbone that it begins from.
        head: of the blocks on its tokens.
        text: of the text tower.
        joint: E, width of what pictures and captions are compared by; even.
    """

    kind: Literal["aligned"] = "aligned"
    vision: ViTOptions | ConvNeXtOptions | CapiViTOptions = field(default_factory=ViTOptions)
    head: VisionHeadOptions = field(default_factory=VisionHeadOptions)
    text: TextOptions = field(default_factory=TextOptions)
    joint: int = 2048

    def __post_init__(self) -> None:
        if self.joint < 2 or self.joint % 2:
            raise ValueError(f"joint is one half for CLS and one for the mean patch: even, not {self.joint}")

    @property
    def patch(self) -> int:
        """Side of a patch in pixels."""
        return self.vision.patch

    @property
    def channels(self) -> int:
        """Of the pictures."""
        return self.vision.channels


class VisionHead(nn.Module):
    """Blocks on the backbone's tokens, a final norm and a projection.

    Attributes:
        blocks: in order.
    """

    def __init__(self, options: VisionHeadOptions, width: int, joint: int) -> None:
        super().__init__()
        self.options = options
        self.blocks = nn.ModuleList(
            Block(
                width,
                options.heads or max(width // 64, 1),
                ffn="swiglu64",
                ffn_ratio=options.ffn_ratio,
                norm="layernorm_bf16",
                layer_scale=options.layer_scale,
                qkv_bias=False,
                masked_key_bias=False,
            )
            for _ in range(options.blocks)
        )
        self.ln_final = build_norm("layernorm_bf16", width)
        same = 2 * width == joint and not options.project
        self.linear_projection = (
            nn.Identity() if same else NormalLinear(width, joint // 2, bias=False, std=width**-0.5)
        )

    def forward(self, tokens: list[Tensor], views: list[Views], draws: Draws | None) -> list[Tensor]:
        """[B, T, D] of each group of views -> [B, T, C]."""
        packing, x = Packing.of(tokens), pack(tokens)
        rate = self.options.stochastic_depth if self.training else 0.0
        rates = [rate] * len(self.blocks)
        kept = decide_packed(views, packing, draws, rates, ("head attention", "head ffn"), "subset", x.dtype)
        for block, (attention, ffn) in zip(self.blocks, kept, strict=True):
            x = block(x, packing, None, attention, ffn)
        return packing.groups(self.linear_projection(self.ln_final(x)))


class AlignedBackbone(Backbone):
    """Pictures and captions as features in one space; names of parameters are those of released dino.txt.

    A group of views whose `images` are token ids [B, L] int64 holds captions; one whose `images` are
    [B, T, D] holds pictures as `locked_tokens` made of them. Pictures give `cls` [B, C], `registers` and
    `patches` of the head; `image_embedding` makes [B, E] of them. Captions give `cls`
    [B, E], `patches` [B, L, E] (every token), `prenorm` [B, L, width of the tower] and `scale`.

    The backbone stays in eval mode and gets no gradient.

    Attributes:
        merges: text of the merges by which its tokens are made; empty: not known.
    """

    merges: str = ""
    locked: ClassVar[tuple[str, ...]] = (VISION,)
    bounds: ClassVar[Mapping[str, tuple[float, float]]] = {"logit_scale": (0.0, LARGEST_SCALE)}

    def __init__(self, options: AlignedOptions) -> None:
        super().__init__()
        from scholarch.models import build_backbone  # which knows this class

        self.options = options
        vision = build_backbone(options.vision)
        vision.requires_grad_(False)
        self.width, self.patch, self.channels = options.joint // 2, vision.patch, vision.channels
        self.visual_model = nn.ModuleDict(
            {"backbone": vision, "head": VisionHead(options.head, vision.width, options.joint)}
        )
        text = TextTower(options.text)
        width = options.text.shape.embed_dim
        head = {"linear_projection": NormalLinear(width, options.joint, bias=False, std=width**-0.5)}
        self.text_model = nn.ModuleDict({"backbone": text, "head": nn.ModuleDict(head)})
        self.logit_scale = nn.Parameter(torch.full((1,), torch.nan))

    def init_weights(self, generator: torch.Generator) -> None:  # noqa: ARG002
        """Temperature 0.07."""
        nn.init.constant_(self.logit_scale, START_SCALE)

    @property
    def vision(self) -> Backbone:
        """The locked backbone."""
        found = self.visual_model["backbone"]
        assert isinstance(found, Backbone)
        return found

    @property
    def blocks(self) -> nn.ModuleList:  # type: ignore[override]
        """The locked backbone's."""
        return self.vision.blocks

    def towers(self) -> Mapping[str, nn.Module]:
        """See Backbone."""
        return {
            VISION: self.vision,
            "visual_model.head": self.visual_model["head"],
            "text_model.backbone": self.text_model["backbone"],
        }

    def train(self, mode: bool = True) -> AlignedBackbone:
        """As nn.Module.train, but the locked backbone stays in eval mode."""
        super().train(mode)
        self.vision.eval()
        return self

    def forward(self, views: list[Views], draws: Draws | None = None) -> list[Features]:
        """See Backbone and the class."""
        pictures = [group for group in views if group.images.is_floating_point()]
        seen = iter(self._pictures(pictures, draws) if pictures else [])
        return [
            next(seen) if group.images.is_floating_point() else self._captions(group.images)
            for group in views
        ]

    def intermediate_layers(
        self, images: Tensor, layers: int | Sequence[int] = 1, *, norm: bool = True
    ) -> list[Features]:
        """See Backbone; layers are the locked backbone's, and with `norm` the last one is what the head gives."""
        found = self.vision.intermediate_layers(images, layers, norm=norm)
        depth = len(self.blocks)
        if norm and wanted_layers(layers, depth)[-1] == depth - 1:
            found[-1] = self._headed([_tokens(found[-1])], [Views(images)], None)[0]
        return found

    @property
    def _registers(self) -> int:
        return getattr(self.options.vision, "registers", 0)  # a ConvNeXt has none

    def locked_count(self, side: int) -> int:
        """T of a square picture of so many pixels along a side."""
        return 1 + self._registers + (side // self.patch) ** 2

    @torch.no_grad()
    def locked_tokens(self, images: Tensor) -> Tensor:
        """[B, C, H, W] -> [B, T, D]: all that the locked backbone gives to the head.

        Under FSDP2, name it to `register_fsdp_forward_method` first.
        """
        (found,) = self.vision([Views(images)])
        return _tokens(found)

    def _pictures(self, views: list[Views], draws: Draws | None) -> list[Features]:
        shown = [group._replace(masks=None, predict=None) for group in views if group.images.dim() == 4]
        with torch.no_grad():
            seen = iter(self.vision(shown) if shown else [])
        tokens = [_tokens(next(seen)) if group.images.dim() == 4 else group.images for group in views]
        return self._headed(tokens, views, draws)

    def _headed(self, tokens: list[Tensor], views: list[Views], draws: Draws | None) -> list[Features]:
        projected = self.visual_model["head"](tokens, views, draws)
        registers = self._registers
        features = []
        for after in projected:
            cls, extra, patches = after.split([1, registers, after.shape[1] - 1 - registers], dim=1)
            features.append(Features(cls.squeeze(1), extra, patches, after))
        return features

    def _captions(self, tokens: Tensor) -> Features:
        before = self.text_model["backbone"](tokens)
        head = self.text_model["head"]
        assert isinstance(head, nn.ModuleDict)
        after = head["linear_projection"](before)
        scale = upcast(self.logit_scale).exp().squeeze(0)
        return Features(pooled(after, tokens), after[:, :0], after, before, scale)


def _tokens(features: Features) -> Tensor:
    return torch.cat([features.cls[:, None], features.registers, features.patches], dim=1)


def image_embedding(cls: Tensor, patches: Tensor) -> Tensor:
    """CLS beside the mean patch, of length 1: [..., C] and [..., N, C] -> [..., 2 C], in float32."""
    return F.normalize(torch.cat([upcast(cls), upcast(patches).mean(dim=-2)], dim=-1), dim=-1)


def text_embedding(cls: Tensor) -> Tensor:
    """[..., E] of length 1, in float32."""
    return F.normalize(upcast(cls), dim=-1)
