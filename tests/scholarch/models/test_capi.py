from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
import torch
from model_helpers import TINY_CAPI, arrays, parameters, pictures, shaken
from scholarch.draws import Draws
from scholarch.errors import UserError
from scholarch.models import build_backbone
from scholarch.models.capi import CapiViT, CapiViTOptions
from scholarch.models.features import Views
from scholarch.models.heads import HeadOptions, ProjectionHead
from scholarch.models.initialise import check_initialised, fill_with_nan, initialise
from slow_capi import slow_capi
from torch import nn

FREQUENCIES = (TINY_CAPI["max_frequency"], TINY_CAPI["min_frequency"])


def tiny(**options: Any) -> CapiViT:
    model = shaken(build_backbone(CapiViTOptions(**{**TINY_CAPI, **options})))
    assert isinstance(model, CapiViT)
    return model.eval()


def slow(model: CapiViT, image: torch.Tensor, **more: Any) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    return slow_capi(
        image.numpy(),
        arrays(model),
        heads=2,
        patch=4,
        depth=2,
        predictor_depth=2,
        frequencies=FREQUENCIES,
        **more,
    )


def two_masks() -> tuple[torch.Tensor, torch.Tensor]:
    """Of 3 x 4 patches 5 are hidden, a whole side among them, and 2 of them predicted."""
    masks, predict = torch.zeros(2, 12, dtype=torch.bool), torch.zeros(2, 12, dtype=torch.bool)
    masks[0, [0, 1, 4, 8, 11]] = True
    masks[1, [2, 8, 9, 10, 11]] = True
    predict[0, [1, 11]] = True
    predict[1, [2, 8]] = True
    return masks, predict


def close(found: torch.Tensor, expected: np.ndarray) -> None:
    np.testing.assert_allclose(found.detach().numpy(), expected, rtol=1e-9, atol=1e-9)


def test_whole_pictures_equal_slow_forward() -> None:
    model, images = tiny(), pictures(2, 12, 16)
    (features,) = model([Views(images)])
    for i, image in enumerate(images):
        registers, patches, first = slow(model, image, used=1)
        close(features.registers[i], registers)
        close(features.patches[i], patches)
        close(features.cls[i], first.mean(0))
    assert features.prenorm.shape == (2, 8 + 12, 24)


def test_masked_pictures_equal_slow_forward() -> None:
    model, images = tiny().train(), pictures(2, 12, 16)
    masks, predict = two_masks()
    (features,) = model([Views(images, masks, predict=predict)])
    for i, image in enumerate(images):
        registers, visible, predicted = slow(
            model,
            image,
            visible=[n for n in range(12) if not masks[i, n]],
            predict=[n for n in range(12) if predict[i, n]],
        )
        close(features.registers[i], registers)
        close(features.patches[i][~masks[i]], visible)
        close(features.patches[i][predict[i]], predicted)
        assert not features.patches[i][masks[i] & ~predict[i]].any()
        close(features.cls[i], visible.mean(0))


def test_predicts_the_mask_when_not_told() -> None:
    model, images = tiny().train(), pictures(2, 12, 16)
    masks, _ = two_masks()
    (features,) = model([Views(images, masks)])
    hidden = [n for n in range(12) if masks[1, n]]
    predicted = slow(model, images[1], visible=[n for n in range(12) if not masks[1, n]], predict=hidden)[2]
    close(features.patches[1][masks[1]], predicted)


def test_frequencies() -> None:
    model = build_backbone(CapiViTOptions(size="large", depth=1, predictor_depth=1))
    assert isinstance(model, CapiViT)
    initialise(model, 0)
    turns = model.rope.freqs / (2 * math.pi)
    assert turns.shape == (2, 64)
    assert not turns[0, 32:].any()
    assert not turns[1, :32].any()
    for row in (turns[0, :16], turns[0, 16:32], turns[1, 32:48], turns[1, 48:]):
        assert row[0].item() == pytest.approx(7)
        assert row[15].item() == pytest.approx(7e-4, rel=1e-5)
        assert row[5].item() == pytest.approx(7 * 1e-4 ** (5 / 15), rel=1e-5)


def test_parameter_count() -> None:
    with torch.device("meta"):
        model = build_backbone(CapiViTOptions(predictor_depth=1))
    # Reference: 302M. Blocks hold 12 D^2 weights and two norms; patches 3 * 14^2 * D + D.
    block = 12 * 1024**2 + 2 * 1024
    assert parameters(model) - block == 24 * block + 588 * 1024 + 1024 + 16 * 1024 + 1024
    assert 302e6 < parameters(model) - block < 303e6


def test_every_tensor_is_initialised() -> None:
    with torch.device("meta"):
        model = build_backbone(CapiViTOptions(**TINY_CAPI))
    fill_with_nan(model)
    initialise(model, 0)
    check_initialised(model)
    state = model.state_dict()
    assert state["blocks.3.mlp.fc1.weight"].abs().max().item() == pytest.approx(math.sqrt(6 / 120), rel=0.01)
    assert state["patch_embed.weight"].abs().max().item() == pytest.approx(math.sqrt(6 / 72), rel=0.01)
    assert state["patch_embed.bias"].abs().max() <= 1 / math.sqrt(48)
    assert state["mask_token"].std().item() == pytest.approx(0.02, rel=0.5)
    assert (state["blocks.0.norm1.weight"] == 1).all()


def backward(model: nn.Module, views: list[Views], draws: Draws) -> list[torch.Tensor]:
    found = [features.patches for features in model(views, draws)]
    torch.stack([patches.square().sum() for patches in found]).sum().backward()
    return found


@pytest.mark.parametrize("parts", [[[3, 1], [4, 0, 2]], [[4], [], [0, 1, 2, 3]]])
def test_stochastic_depth_spreads(parts: list[list[int]]) -> None:
    masks, predict = (torch.cat([m, m, m])[:5] for m in two_masks())
    images, draws = pictures(5, 12, 16), Draws(1, 2)
    whole, split = (tiny(stochastic_depth=0.5).train() for _ in range(2))
    (expected,) = backward(whole, [Views(images, masks, predict=predict)], draws)
    for rows in parts:
        index = torch.tensor(rows, dtype=torch.int64)
        views = Views(images[index], masks[index], index, 5, predict=predict[index])
        (found,) = backward(split, [views], draws)
        torch.testing.assert_close(found, expected[index])
    for (name, ours), theirs in zip(split.named_parameters(), whole.parameters(), strict=True):
        torch.testing.assert_close(ours.grad, theirs.grad, msg=name)


@pytest.mark.parametrize("masked", [False, True])
@pytest.mark.parametrize("compiled", [False, True])
def test_every_parameter_gets_a_gradient(masked: bool, compiled: bool) -> None:
    masks, predict = two_masks()
    images = pictures(2, 12, 16)
    plain, model = tiny().train(), tiny().train()
    views = [Views(images, masks if masked else None, predict=predict if masked else None)]
    backward(plain, views, Draws(0, 0))
    for block in model.blocks:
        block.checkpoint = "selective" if compiled else "full"  # type: ignore[assignment]
        if compiled:
            block.compile(backend="eager")
    backward(model, views, Draws(0, 0))
    for (name, ours), theirs in zip(model.named_parameters(), plain.parameters(), strict=True):
        assert ours.grad is not None, name
        torch.testing.assert_close(ours.grad, theirs.grad, msg=name)


def test_intermediate_layers() -> None:
    model, images = tiny(), pictures(1, 12, 16)
    first, last = model.intermediate_layers(images, 2)
    assert torch.equal(last.patches, model([Views(images)])[0].patches)
    assert not torch.allclose(first.patches, last.patches)
    (raw,) = model.intermediate_layers(images, [1], norm=False)
    assert torch.equal(raw.patches, last.prenorm[:, 8:])
    with pytest.raises(ValueError, match="no such layer"):
        model.intermediate_layers(images, [2])  # the predictor's blocks are no layers


def test_dtypes() -> None:
    expected = tiny()([Views(pictures(2, 12, 16))])[0].patches
    for rope_dtype in ("fp32", "tokens"):
        model = tiny(rope_dtype=rope_dtype).bfloat16()
        found = model([Views(pictures(2, 12, 16).bfloat16())])[0].patches
        assert found.dtype == torch.bfloat16
        assert 0 < (found.double() - expected).abs().mean() < 0.1


def test_wrong_input() -> None:
    masks, predict = two_masks()
    uneven = masks.clone()
    uneven[0, 2] = True
    with pytest.raises(ValueError, match="same number"):
        tiny()([Views(pictures(2, 12, 16), uneven)])
    with pytest.raises(ValueError, match="masks"):
        tiny()([Views(pictures(2, 12, 16), predict[:, :4])])
    with pytest.raises(UserError, match="12x15"):
        tiny()([Views(pictures(2, 12, 15))])


@pytest.mark.parametrize(
    "wrong",
    [
        {"registers": 6},
        {"embed_dim": 12},
        {"size": None},
        {"stochastic_depth": 1.0},
        {"max_frequency": 1e-5},
        {"predictor_depth": 0},
    ],
)
def test_wrong_options(wrong: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match=r"."):
        CapiViTOptions(**wrong)


def test_student_head() -> None:
    head = shaken(ProjectionHead(4, HeadOptions(prototypes=3, layers=0, weight_norm="trainable")))
    state = arrays(head)
    assert set(state) == {"last_layer.weight_g", "last_layer.weight_v"}
    x = pictures(1, 2, 4)[0, 0].numpy()
    normed = x / np.sqrt((x**2).sum(-1, keepdims=True))
    direction, length = state["last_layer.weight_v"], state["last_layer.weight_g"]
    weight = direction * length / (np.sqrt((direction**2).sum(1, keepdims=True)) + 1e-8)
    np.testing.assert_allclose(head(torch.from_numpy(x)).detach(), normed @ weight.T, rtol=1e-12)
