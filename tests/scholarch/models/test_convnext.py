from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from model_helpers import TINY_CONVNEXT, arrays, parameters, pictures, tiny_convnext
from scholarch.draws import Draws
from scholarch.errors import UserError
from scholarch.models import build_backbone
from scholarch.models.convnext import ConvNeXtOptions
from scholarch.models.features import Views
from scholarch.models.initialise import check_initialised, fill_with_nan, initialise
from slow_vit import gelu, layer_norm


def slow_convnext(image: np.ndarray, state: dict[str, np.ndarray]) -> list[np.ndarray]:
    """Maps [h, w, C] after each stage, by plain loops."""

    def cut_and_map(x: np.ndarray, name: str, side: int) -> np.ndarray:
        h, w = x.shape[0] // side, x.shape[1] // side
        weight = state[f"{name}.weight"]  # [out, in, side, side]
        out = np.zeros((h, w, len(weight)))
        for i in range(h):
            for j in range(w):
                patch = x[i * side : (i + 1) * side, j * side : (j + 1) * side]
                out[i, j] = np.einsum("abc,ocab->o", patch, weight) + state[f"{name}.bias"]
        return out

    def depthwise(x: np.ndarray, name: str) -> np.ndarray:
        h, w, _ = x.shape
        padded = np.pad(x, ((3, 3), (3, 3), (0, 0)))
        out = np.zeros_like(x)
        for i in range(h):
            for j in range(w):
                out[i, j] = np.einsum(
                    "abc,cab->c", padded[i : i + 7, j : j + 7], state[f"{name}.weight"][:, 0]
                )
        return out + state[f"{name}.bias"]

    x, maps, number = image.transpose(1, 2, 0), [], 0
    for stage, depth in enumerate((1, 2, 1, 1)):
        name = f"downsample_layers.{stage}"
        if stage == 0:
            x = layer_norm(cut_and_map(x, f"{name}.0", 4), state, f"{name}.1", 1e-6)
        else:
            x = cut_and_map(layer_norm(x, state, f"{name}.0", 1e-6), f"{name}.1", 2)
        for _ in range(depth):
            block = f"blocks.{number}"
            y = layer_norm(depthwise(x, f"{block}.dwconv"), state, f"{block}.norm", 1e-6)
            y = gelu(y @ state[f"{block}.pwconv1.weight"].T + state[f"{block}.pwconv1.bias"])
            y = y @ state[f"{block}.pwconv2.weight"].T + state[f"{block}.pwconv2.bias"]
            x = x + state[f"{block}.gamma"] * y
            number += 1
        maps.append(x)
    return maps


@pytest.mark.parametrize(
    ("size", "count"),
    [("tiny", 27_820_128), ("small", 49_454_688), ("base", 87_566_464), ("large", 196_230_336)],
)
def test_parameter_counts(size: Any, count: int) -> None:
    with torch.device("meta"):
        assert parameters(build_backbone(ConvNeXtOptions(size=size))) == count


def test_equals_slow_forward() -> None:
    model, images = tiny_convnext(), pictures(2, 64, 96)
    (features,) = model([Views(images)])
    stages = model.intermediate_layers(images, 4)
    for i, image in enumerate(images):
        maps = slow_convnext(image.numpy(), arrays(model))
        last = maps[-1].reshape(6, 10)
        prenorm = np.concatenate([last.mean(0, keepdims=True), last])
        normed = layer_norm(prenorm, arrays(model), "norm", 1e-6)
        np.testing.assert_allclose(features.prenorm[i].detach(), prenorm, rtol=1e-9, atol=1e-9)
        np.testing.assert_allclose(features.cls[i].detach(), normed[0], rtol=1e-9, atol=1e-9)
        np.testing.assert_allclose(features.patches[i].detach(), normed[1:], rtol=1e-9, atol=1e-9)
        for stage, found in enumerate(stages[:3]):  # only the last stage is normed
            flat = maps[stage].reshape(-1, maps[stage].shape[-1])
            np.testing.assert_allclose(found.patches[i].detach(), flat, rtol=1e-9, atol=1e-9)
            np.testing.assert_allclose(found.cls[i].detach(), flat.mean(0), rtol=1e-9, atol=1e-9)
    assert torch.equal(stages[3].patches, features.patches)
    assert features.registers.shape == (2, 0, 10)
    masked = model([Views(images, torch.ones(2, 6, dtype=torch.bool))])[0]
    assert torch.equal(masked.patches, features.patches)


def test_dense_patch() -> None:
    model, images = tiny_convnext(dense_patch=16), pictures(1, 64, 96)
    (last,) = model.intermediate_layers(images)
    assert last.patches.shape == (1, 24, 10)
    (plain,) = tiny_convnext().intermediate_layers(images)
    torch.testing.assert_close(last.cls, plain.cls)
    # Bilinear between the centres of 2 x 3 cells: corners are what the corner cells are.
    torch.testing.assert_close(last.prenorm[0, 1], plain.prenorm[0, 1])
    inner = 0.5625 * plain.prenorm[0, 1] + 0.1875 * (plain.prenorm[0, 2] + plain.prenorm[0, 4])
    inner = inner + 0.0625 * plain.prenorm[0, 5]
    torch.testing.assert_close(last.prenorm[0, 1 + 7], inner)
    with pytest.raises(ValueError, match="no such layer"):
        model.intermediate_layers(images, [4])


def test_every_tensor_is_initialised() -> None:
    with torch.device("meta"):
        model = build_backbone(ConvNeXtOptions(**TINY_CONVNEXT))
    fill_with_nan(model)
    initialise(model, 0)
    check_initialised(model)
    state = model.state_dict()
    assert (state["blocks.1.gamma"] == 1e-6).all()
    assert not state["downsample_layers.0.0.bias"].any()
    assert state["blocks.0.dwconv.weight"].std().item() == pytest.approx(0.02, rel=0.2)


@pytest.mark.parametrize("compiled", [False, True])
def test_stochastic_depth_spreads(compiled: bool) -> None:
    images, draws = pictures(5, 32, 32), Draws(1, 2)
    whole, split = (tiny_convnext(stochastic_depth=0.6).train() for _ in range(2))
    for block in split.blocks:
        block.checkpoint = "selective" if compiled else "full"  # type: ignore[assignment]
        if compiled:
            block.compile(backend="eager")
    expected = whole([Views(images)], draws)[0].patches
    expected.square().sum().backward()
    for rows in ([4], [], [0, 1, 2, 3]):
        index = torch.tensor(rows, dtype=torch.int64)
        found = split([Views(images[index], rows=index, total=5)], draws)[0].patches
        torch.testing.assert_close(found, expected[index])
        found.square().sum().backward()
    for (name, ours), theirs in zip(split.named_parameters(), whole.parameters(), strict=True):
        torch.testing.assert_close(ours.grad, theirs.grad, msg=name)


def test_evaluation_draws_nothing() -> None:
    model = tiny_convnext(stochastic_depth=0.6)
    assert torch.equal(
        model([Views(pictures(2, 32, 32))])[0].cls, tiny_convnext()([Views(pictures(2, 32, 32))])[0].cls
    )
    model.train().intermediate_layers(pictures(2, 32, 32))  # no draws needed here either
    with pytest.raises(ValueError, match="draws"):
        model([Views(pictures(2, 32, 32))])


def test_wrong_input() -> None:
    with pytest.raises(UserError, match="40x32"):
        tiny_convnext()([Views(pictures(1, 40, 32))])
    with pytest.raises(ValueError, match="without a size"):
        ConvNeXtOptions(size=None, depths=(1, 1, 1, 1))
    with pytest.raises(ValueError, match="positive"):
        ConvNeXtOptions(depths=(1, 0, 1, 1))
