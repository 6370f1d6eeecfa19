"""Packed groups of views against each group, and each picture, on its own."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import pytest
import torch
from model_helpers import pictures, tiny_vit
from scholarch.draws import Draws
from scholarch.models import packing as packing_module
from scholarch.models.features import Features, Views
from scholarch.models.packing import Packing, attend, decide_packed
from scholarch.models.positions import LearnedPositionOptions
from scholarch.models.rope import RopeOptions, Rotation
from scholarch.models.vit import VisionTransformer
from torch import Tensor
from torch._dynamo.testing import CompileCounter

DRAWS = Draws(3, 5)
MODELS: dict[str, dict[str, Any]] = {
    "rope": {"rope": RopeOptions(shift=0.2, jitter=1.5, rescale=2.0), "stochastic_depth": 0.4},
    "norms": {
        "untie_cls_and_patch_norms": True,
        "untie_global_and_local_cls_norm": True,
        "stochastic_depth": 0.5,
        "stochastic_depth_shape": "linear",
        "stochastic_depth_draw": "sample",
        "ffn": "swiglu",
    },
    "learned": {
        "position": "learned",
        "learned": LearnedPositionOptions(grid=3),
        "registers": 0,
        "stochastic_depth": 0.7,
    },
    "plain": {"stochastic_depth": 0.0, "layer_scale": None, "qkv_bias": False},
}


def crops() -> list[Views]:
    masks = torch.arange(5 * 6).reshape(5, 6) % 4 == 0
    return [
        Views(pictures(5), masks, rows=torch.tensor([0, 2, 3, 7, 8]), total=9),
        Views(pictures(7, 8, 8, seed=2), rows=torch.arange(7) * 2, total=14, name="local", local=True),
        Views(pictures(2, 16, 12, seed=3), name="large"),
    ]


def alone(model: VisionTransformer, views: Sequence[Views]) -> list[Features]:
    return [model([group], DRAWS)[0] for group in views]


def each_picture(model: VisionTransformer, views: Sequence[Views]) -> list[Features]:
    """Each picture through the model by itself."""
    found = []
    for group in views:
        count = len(group.images)
        rows = torch.arange(count) if group.rows is None else group.rows
        total = count if group.total is None else group.total
        ones = [
            group._replace(
                images=group.images[i : i + 1],
                masks=None if group.masks is None else group.masks[i : i + 1],
                rows=rows[i : i + 1],
                total=total,
            )
            for i in range(count)
        ]
        parts = [model([one], DRAWS)[0] for one in ones]
        found.append(
            Features(*(torch.cat(tensors) for tensors in zip(*(part[:4] for part in parts), strict=True)))
        )
    return found


def backward(model: VisionTransformer, features: Sequence[Features]) -> dict[str, Tensor]:
    weights = torch.Generator().manual_seed(0)
    total = torch.zeros((), dtype=torch.float64)
    for group in features:
        for tensor in filter(lambda part: part is not None, group):
            total = total + (torch.rand(tensor.shape, generator=weights) * tensor.square()).sum()
    model.zero_grad()
    total.backward()  # type: ignore[no-untyped-call]
    return {n: p.grad.clone() for n, p in model.named_parameters() if p.grad is not None}


@pytest.mark.parametrize("name", MODELS)
@pytest.mark.parametrize("training", [True, False])
@pytest.mark.parametrize("unpacked", [alone, each_picture])
def test_packed_equals_unpacked(name: str, training: bool, unpacked: Any) -> None:
    model = tiny_vit(**MODELS[name]).train(training)
    expected = unpacked(model, crops())
    expected_gradients = backward(model, expected)
    found = model(crops(), DRAWS)
    gradients = backward(model, found)
    for ours, theirs in zip(found, expected, strict=True):
        for one, other in zip(ours, theirs, strict=True):
            torch.testing.assert_close(one, other, rtol=1e-12, atol=1e-12)
    assert gradients.keys() == expected_gradients.keys()
    for key, gradient in gradients.items():
        torch.testing.assert_close(gradient, expected_gradients[key], rtol=1e-10, atol=1e-10, msg=key)


def test_each_layer_runs_once() -> None:
    model = tiny_vit(depth=1).train()
    seen: list[tuple[int, ...]] = []
    for layer in (model.blocks[0].norm1, model.blocks[0].attn.qkv, model.blocks[0].mlp.fc1):  # type: ignore[union-attr]
        layer.register_forward_hook(lambda _m, _i, out: seen.append(tuple(out.shape)))  # type: ignore[operator]
    views = crops()
    model(views, DRAWS)
    tokens = sum(len(v.images) * (5 + v.images.shape[2] * v.images.shape[3] // 16) for v in views)
    assert seen == [(tokens, 16), (tokens, 48), (tokens, 48)]


def test_no_views() -> None:
    assert tiny_vit()([]) == []


def varlen_in_loops(
    queries: Tensor, keys: Tensor, values: Tensor, bounds: Tensor, key_bounds: Tensor, longest: int, _: int
) -> Tensor:
    """Variable-length attention by its definition: [S, h, d], one sequence and head after the other."""
    assert bounds.dtype == torch.int32
    assert bounds is key_bounds
    out = torch.full_like(queries, torch.nan)
    for start, stop in zip(bounds[:-1].tolist(), bounds[1:].tolist(), strict=True):
        assert stop - start <= longest
        for head in range(queries.shape[1]):
            q, k, v = (x[start:stop, head].double() for x in (queries, keys, values))
            out[start:stop, head] = ((q @ k.T * q.shape[1] ** -0.5).softmax(1) @ v).to(out.dtype)
    return out


def test_one_kernel_over_the_sequence_sees_each_picture_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(packing_module, "varlen_attn", varlen_in_loops)
    counts, lengths, width = (2, 3), (5, 3), 8
    generator = torch.Generator().manual_seed(1)
    qkv = torch.randn(19, 3 * width, generator=generator).bfloat16()
    turns = [torch.randn(length, 4, generator=generator) for length in lengths]
    rotations = [Rotation(turn.sin(), turn.cos()) for turn in turns]
    by_group = attend(qkv, Packing(counts, lengths), rotations, heads=2)
    bounds = torch.tensor([0, 5, 10, 13, 16, 19], dtype=torch.int32)
    one_kernel = attend(qkv, Packing(counts, lengths, bounds), rotations, heads=2)
    assert not one_kernel.isnan().any()
    torch.testing.assert_close(one_kernel, by_group, rtol=0.03, atol=0.03)
    monkeypatch.setattr(packing_module, "varlen_attn", None)
    assert attend(qkv.float(), Packing(counts, lengths, bounds), rotations, heads=2).dtype == torch.float32
    none = Packing((0, 0), lengths, bounds[:1])
    assert attend(qkv[:0], none, rotations, heads=2).shape == (0, width)


def test_bounds_of_what_is_kept() -> None:
    views = crops()[:2]
    packing = Packing((5, 7), (11, 9), torch.zeros(13, dtype=torch.int32))
    decided = decide_packed(views, packing, DRAWS, [0.0, 0.5], ("a", "b"), "subset", torch.float32)
    assert decided[0] == [None, None]
    for kept in decided[1]:
        assert kept is not None
        assert kept.packing.bounds is not None
        starts, stops = kept.packing.bounds[:-1].tolist(), kept.packing.bounds[1:].tolist()
        assert stops[-1] == len(kept.tokens)
        assert [stop - start for start, stop in zip(starts, stops, strict=True)] == [
            11
        ] * kept.packing.counts[0] + [9] * kept.packing.counts[1]
        for start in starts:  # each kept picture begins with the first token of a picture
            token = int(kept.tokens[start])
            assert token % 11 == 0 if token < 55 else (token - 55) % 9 == 0


def test_compiled_blocks_meet_few_shapes() -> None:
    """Rows that a rank keeps change with every step; blocks share what is compiled."""
    model, plain = (tiny_vit(stochastic_depth=0.5, depth=4).train() for _ in range(2))
    torch._dynamo.reset()
    counter = CompileCounter()
    for block in model.blocks:
        block.compile(backend=counter)
    compiled = []
    for step in range(6):
        draws = Draws(0, step)
        views = [
            Views(pictures(10), rows=torch.arange(10), total=30),
            Views(pictures(20, 8, 8), rows=torch.arange(20), total=60, name="local", local=True),
        ]
        for ours, theirs in zip(model(views, draws), plain(views, draws), strict=True):
            torch.testing.assert_close(ours.patches, theirs.patches)
        compiled.append(counter.frame_count)
    assert compiled[-1] <= 4
    assert compiled[-1] == compiled[1]
