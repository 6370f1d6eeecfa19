"""Pictures of several sizes as one sequence of tokens, so that each layer runs once on all of them.

Legend: B pictures of T tokens in each group of views, S = sum of B T over the groups, D width,
h heads, d = D / h. Tokens of a picture follow one another, pictures of a group too.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F
from torch.nn.attention.varlen import varlen_attn

from scholarch.draws import Draws
from scholarch.models.features import Views
from scholarch.models.rope import Rotation
from scholarch.models.stochastic_depth import DrawForm, kept_rows, scale_of

WIDEST_HEAD = 256
"""Largest d of flash attention."""


class Packing:
    """Where the pictures of each group lie in the sequence: attention stays within a picture.

    A plain class, as Rotation: FSDP2 would look into a tuple or dataclass for tensors to cast.

    Args:
        counts: B of each group.
        lengths: T of each group.
        bounds: [sum of B + 1] int32, first token of each picture and S, on the tokens' device; needed
            for variable-length attention alone.
    """

    def __init__(self, counts: Sequence[int], lengths: Sequence[int], bounds: Tensor | None = None) -> None:
        self.counts, self.lengths, self.bounds = tuple(counts), tuple(lengths), bounds

    @staticmethod
    def of(groups: Sequence[Tensor]) -> Packing:
        """That of groups of tokens [B, T, D]."""
        counts, lengths = [len(group) for group in groups], [group.shape[1] for group in groups]
        device = groups[0].device
        bounds = _bounds(counts, lengths) if device.type == "cuda" else None
        moved = None if bounds is None else torch.from_numpy(bounds).to(device, non_blocking=True)
        return Packing(counts, lengths, moved)

    @property
    def sizes(self) -> list[int]:
        """B T of each group."""
        return [count * length for count, length in zip(self.counts, self.lengths, strict=True)]

    def groups(self, packed: Tensor) -> list[Tensor]:
        """[S, ...] -> each group's [B, T, ...], without a copy."""
        return [
            torch.unflatten(part, 0, (count, length))
            for part, count, length in zip(
                torch.split(packed, self.sizes), self.counts, self.lengths, strict=True
            )
        ]


class KeptTokens:
    """What one branch of one block keeps of a packed sequence (stochastic depth).

    A plain class, for the reason that Packing is one.

    Attributes:
        tokens: [K] int64, the tokens of the pictures on which the branch runs.
        scale: [S, 1], by which what a token receives is multiplied, in float32 (float64 of such a model).
        packing: of the kept tokens.
    """

    def __init__(self, tokens: Tensor, scale: Tensor, packing: Packing) -> None:
        self.tokens, self.scale, self.packing = tokens, scale, packing


def pack(groups: Sequence[Tensor]) -> Tensor:
    """Groups of [B, T, D] as one sequence [S, D]."""
    return (
        torch.cat([group.flatten(0, 1) for group in groups]) if len(groups) > 1 else groups[0].flatten(0, 1)
    )


def attend(qkv: Tensor, packing: Packing, rotations: Sequence[Rotation] | None, heads: int) -> Tensor:
    """Attention of each picture's tokens to one another.

    With half precision on a GPU it is one variable-length kernel over the sequence, elsewhere one
    kernel for each group.

    Args:
        qkv: [S, 3 D].
        rotations: of each group's queries and keys, [T, d]; None: they are not turned.
        heads: h.

    Returns:
        [S, D].
    """
    mixed, turned = [], []
    one_kernel = _one_kernel(qkv, packing, heads)
    for number, group in enumerate(packing.groups(qkv)):
        queries, keys, values = torch.unflatten(group, 2, (3, heads, -1)).permute(2, 0, 3, 1, 4).unbind(0)
        if rotations is not None:
            queries, keys = rotations[number](queries), rotations[number](keys)
        if one_kernel:
            turned.append([part.transpose(1, 2).flatten(0, 1) for part in (queries, keys, values)])
        else:
            mixed.append(
                F.scaled_dot_product_attention(queries, keys, values).transpose(1, 2)
            )  # [B, T, h, d]
    if not one_kernel:
        return pack(mixed).flatten(1)
    queries, keys, values = (torch.cat(parts) for parts in zip(*turned, strict=True))  # [S, h, d]
    longest = max(packing.lengths)
    bounds = packing.bounds
    assert bounds is not None
    out = varlen_attn(queries, keys, values, bounds, bounds, longest, longest)
    assert isinstance(out, Tensor)
    return out.flatten(1)


def _one_kernel(qkv: Tensor, packing: Packing, heads: int) -> bool:
    return (
        packing.bounds is not None
        and len(packing.counts) > 1
        and qkv.dtype in (torch.float16, torch.bfloat16)
        and qkv.shape[1] // (3 * heads) <= WIDEST_HEAD
        and any(packing.counts)
    )


def add_packed(x: Tensor, branch: Callable[[Tensor], Tensor], kept: KeptTokens | None) -> Tensor:
    """`x` plus the branch, run on the tokens `kept` (None: all) and scaled. [S, D] -> [S, D]."""
    if kept is None:
        return x + branch(x)
    added = branch(x.index_select(0, kept.tokens))
    scaled = added * kept.scale.index_select(0, kept.tokens)
    return x.index_add(0, kept.tokens, scaled.to(x.dtype))


def decide_packed(
    views: Sequence[Views],
    packing: Packing,
    draws: Draws | None,
    rates: Sequence[float],
    branches: Sequence[str],
    form: DrawForm,
    dtype: torch.dtype,
) -> list[list[KeptTokens | None]]:
    """What each branch of each block keeps of the packed groups `views`; see stochastic_depth.decide.

    Args:
        dtype: of the tokens.

    Raises:
        ValueError: if draws are needed and not given.
    """
    if not any(rates):
        return [[None] * len(branches) for _ in rates]
    device = views[0].images.device
    rows = [kept_rows(group, draws, rates, branches, form) for group in views]
    scales: dict[float, Tensor] = {}
    parts: list[np.ndarray] = []
    counts: list[list[int]] = []
    for number in range(len(branches) * sum(rate > 0 for rate in rates)):
        chosen = [group[number] for group in rows]
        counts.append([len(part) for part in chosen])
        parts.append(_tokens(chosen, packing))
        if packing.bounds is not None:
            parts.append(_bounds(counts[-1], packing.lengths).astype(np.int64))
    # One transfer for all blocks.
    moved = torch.from_numpy(np.concatenate(parts)).to(device, non_blocking=True)
    split = iter(torch.split(moved, [len(part) for part in parts]))
    remaining = iter(counts)
    decided: list[list[KeptTokens | None]] = []
    for rate in rates:
        if not rate:
            decided.append([None] * len(branches))
            continue
        if rate not in scales:
            scales[rate] = _scale(views, packing, rate, form, dtype, device)
        decided.append([])
        for _ in branches:
            tokens = next(split)
            bounds = None if packing.bounds is None else next(split).to(torch.int32)
            kept = Packing(next(remaining), packing.lengths, bounds)
            decided[-1].append(KeptTokens(tokens, scales[rate], kept))
    return decided


def _tokens(rows: Sequence[np.ndarray], packing: Packing) -> np.ndarray:
    """Tokens of the pictures `rows` of each group."""
    parts, start = [], 0
    for chosen, length, size in zip(rows, packing.lengths, packing.sizes, strict=True):
        parts.append((start + chosen[:, None] * length + np.arange(length)).reshape(-1))
        start += size
    return np.concatenate(parts)


def _bounds(counts: Sequence[int], lengths: Sequence[int]) -> np.ndarray:
    """[sum of counts + 1] int32."""
    each = np.repeat(np.asarray(lengths, dtype=np.int32), counts)
    return np.concatenate([np.zeros(1, dtype=np.int32), np.cumsum(each, dtype=np.int32)])


def _scale(
    views: Sequence[Views],
    packing: Packing,
    rate: float,
    form: DrawForm,
    dtype: torch.dtype,
    device: torch.device,
) -> Tensor:
    wide = torch.float64 if dtype == torch.float64 else torch.float32
    parts = [
        torch.full((size, 1), scale_of(group, rate, form), dtype=wide, device=device)
        for group, size in zip(views, packing.sizes, strict=True)
    ]
    return torch.cat(parts)
