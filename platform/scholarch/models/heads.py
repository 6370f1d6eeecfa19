"""Projection heads (reference.md section 2).

Legend: D features, K prototypes.
"""

from __future__ import annotations

import itertools
import math
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from scholarch.models.initialise import trunc_normal_, uniform_


@dataclass(frozen=True, kw_only=True)
class HeadOptions:
    """Options of a projection head.

    Attributes:
        prototypes: K, outputs of the last layer.
        hidden: width between the layers of the MLP.
        bottleneck: width before the prototypes.
        layers: linear layers before the prototypes; 1: a single one from input to bottleneck; 0: none,
            prototypes of the normalised input (CAPI), and `hidden` and `bottleneck` have no meaning.
        weight_norm: of the prototypes: none (DINOv3), with trainable lengths (DINOv2), or with
            lengths frozen at 1 (DINO, iBOT).
        patches: whether patches have the prototypes of CLS ("shared"), or a second layer of them on the
            same MLP: in the student alone ("student": iBOT's default, whose teacher names patches by the
            prototypes of CLS), or in teachers too ("own").
    """

    prototypes: int = 65536  # DINO, DINOv2 and DINOv3 defaults
    hidden: int = 2048
    bottleneck: int = 256
    layers: int = 3
    weight_norm: Literal["none", "trainable", "frozen"] = "none"
    patches: Literal["shared", "student", "own"] = "shared"

    def __post_init__(self) -> None:
        for name in ("prototypes", "hidden", "bottleneck", "layers"):
            least = 0 if name == "layers" else 1
            if getattr(self, name) < least:
                raise ValueError(f"{name} of a head must be at least {least}, not {getattr(self, name)}")


class WeightNormLinear(nn.Module):
    """Linear layer without bias whose rows are g v / |v|; state-dict keys `weight_g`, `weight_v`.

    Args:
        inputs: width of the input.
        outputs: width of the output.
        trainable_length: whether g is a parameter, or a buffer of ones.
        eps: added to |v|.
        std: of the first directions; None: uniform, as torch's linear layer has it.
    """

    weight_g: Tensor

    def __init__(
        self, inputs: int, outputs: int, *, trainable_length: bool, eps: float = 0.0, std: float | None = None
    ) -> None:
        super().__init__()
        self.eps, self.std = eps, std
        length = torch.full((outputs, 1), torch.nan)
        if trainable_length:
            self.weight_g = nn.Parameter(length)
        else:
            self.register_buffer("weight_g", length)
        self.weight_v = nn.Parameter(torch.full((outputs, inputs), torch.nan))

    def init_weights(self, generator: torch.Generator) -> None:
        """Lengths 1, and directions."""
        nn.init.ones_(self.weight_g)
        if self.std is not None:
            trunc_normal_(self.weight_v, self.std, generator)
        else:
            uniform_(self.weight_v, 1 / math.sqrt(self.weight_v.shape[1]), generator)

    @property
    def weight(self) -> Tensor:
        """[outputs, inputs]."""
        lengths: Tensor = torch.linalg.vector_norm(self.weight_v, dim=1, keepdim=True)
        # A frozen length is a buffer, which FSDP2 leaves in fp32 when it casts the parameters to bf16.
        return self.weight_v * (self.weight_g.to(lengths.dtype) / (lengths + self.eps))

    def forward(self, x: Tensor) -> Tensor:
        """[..., inputs] -> [..., outputs]."""
        return F.linear(x, self.weight)


class ProjectionHead(nn.Module):
    """MLP, L2 normalisation, prototypes.

    The two halves can be run alone, so that the bottleneck's output, much narrower than the
    prototypes', may be sent between ranks.

    Args:
        in_dim: D.
        options: see HeadOptions.
    """

    def __init__(self, in_dim: int, options: HeadOptions) -> None:
        super().__init__()
        self.options = options
        hidden = [options.hidden] * (options.layers - 1)
        widths = [in_dim, *hidden, options.bottleneck] if options.layers else [in_dim]
        layers: list[nn.Module] = []
        for inputs, outputs in itertools.pairwise(widths):
            layers += [nn.Linear(inputs, outputs), nn.GELU()]
        self.mlp = nn.Sequential(*layers[:-1])
        self.last_layer = _prototypes(widths[-1], options)
        self.last_layer2 = None if options.patches == "shared" else _prototypes(widths[-1], options)

    def forward(
        self,
        x: Tensor,
        until: Literal["prototypes", "bottleneck"] = "prototypes",
        patches: int = 0,
    ) -> Tensor:
        """Runs the head, or all of it but the prototypes.

        Args:
            x: [..., D].
            patches: how many of x's last rows are of patches, for prototypes of their own.
            until: "bottleneck" stops after the L2 normalisation.

        Returns:
            [..., K] logits, or [..., bottleneck] of length 1.
        """
        # 1e-12 is below the smallest float16.
        eps = 1e-6 if x.dtype == torch.float16 else 1e-12
        x = F.normalize(self.mlp(x), dim=-1, eps=eps)
        return x if until == "bottleneck" else self.of_prototypes(x, patches)

    def of_prototypes(self, x: Tensor, patches: int = 0) -> Tensor:
        """The prototypes alone, [..., bottleneck] -> [..., K]: where they are sharded apart from the rest."""
        if self.last_layer2 is None:
            logits: Tensor = self.last_layer(x)
            return logits
        border = len(x) - patches
        return torch.cat([self.last_layer(x[:border]), self.last_layer2(x[border:])])


def _prototypes(width: int, options: HeadOptions) -> nn.Module:
    if options.weight_norm == "none":
        return nn.Linear(width, options.prototypes, bias=False)
    # CAPI's head differs from DINO's in these two as well (reference.md 0b and 3.8).
    capi: dict[str, float] = {} if options.layers else {"eps": 1e-8, "std": 0.02}
    trainable = options.weight_norm == "trainable"
    return WeightNormLinear(width, options.prototypes, trainable_length=trainable, **capi)
