from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
import torch
from model_helpers import arrays, shaken
from scholarch.models.heads import HeadOptions, ProjectionHead


def built(**options: Any) -> ProjectionHead:
    options = {"prototypes": 7, "hidden": 6, "bottleneck": 5, **options}
    head = shaken(ProjectionHead(4, HeadOptions(**options)))
    assert isinstance(head, ProjectionHead)
    return head


def slow_head(x: np.ndarray, state: dict[str, np.ndarray], layers: int) -> tuple[np.ndarray, np.ndarray]:
    for i in range(layers):
        x = x @ state[f"mlp.{2 * i}.weight"].T + state[f"mlp.{2 * i}.bias"]
        if i < layers - 1:
            x = x * 0.5 * (1 + np.vectorize(math.erf)(x / math.sqrt(2)))
    x = x / np.sqrt((x**2).sum(-1, keepdims=True))
    if "last_layer.weight" in state:
        return x, x @ state["last_layer.weight"].T
    direction = state["last_layer.weight_v"]
    norm = np.sqrt((direction**2).sum(1, keepdims=True))
    return x, x @ (state["last_layer.weight_g"] * direction / norm).T


@pytest.mark.parametrize("weight_norm", ["none", "trainable", "frozen"])
@pytest.mark.parametrize("layers", [1, 2, 3])
def test_equals_slow_head(weight_norm: str, layers: int) -> None:
    head = built(weight_norm=weight_norm, layers=layers)
    x = torch.randn(3, 2, 4, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    bottleneck, logits = slow_head(x.numpy(), arrays(head), layers)
    np.testing.assert_allclose(head(x).detach(), logits, atol=1e-12)
    found = head(x, until="bottleneck")
    np.testing.assert_allclose(found.detach(), bottleneck, atol=1e-12)
    assert torch.equal(head.of_prototypes(found), head(x))


def test_parameter_counts() -> None:
    with torch.device("meta"):
        # reference.md section 2
        for width, options, count in (
            (4096, HeadOptions(prototypes=262144, hidden=8192, bottleneck=512), 239_092_224),
            (4096, HeadOptions(prototypes=98304, hidden=4096, bottleneck=384), 72_884_608),
            (1024, HeadOptions(), 23_597_312),
        ):
            assert sum(p.numel() for p in ProjectionHead(width, options).parameters()) == count


def test_state_keys() -> None:
    keys = {f"mlp.{i}.{part}" for i in (0, 2, 4) for part in ("weight", "bias")}
    assert set(built().state_dict()) == keys | {"last_layer.weight"}
    normed = keys | {"last_layer.weight_g", "last_layer.weight_v"}
    assert set(built(weight_norm="trainable").state_dict()) == normed
    assert set(built(weight_norm="frozen").state_dict()) == normed


def test_frozen_length_is_no_parameter() -> None:
    head = built(weight_norm="frozen")
    assert "last_layer.weight_g" not in dict(head.named_parameters())
    rows = head.last_layer.weight.norm(dim=1)  # type: ignore[operator, union-attr]
    torch.testing.assert_close(rows, torch.ones_like(rows))
    assert "last_layer.weight_g" in dict(built(weight_norm="trainable").named_parameters())


def test_tiny_input_is_still_normalised() -> None:
    head = built(layers=1)
    with torch.no_grad():
        head.mlp[0].bias.zero_()  # type: ignore[operator, union-attr]
    length = head(torch.full((1, 4), 1e-9, dtype=torch.float64), until="bottleneck").norm()
    assert length.item() == pytest.approx(1.0)  # eps 1e-12, far below


def test_no_rows() -> None:
    head = built()
    head(torch.zeros(0, 4, dtype=torch.float64)).sum().backward()
    assert all(p.grad is not None and not p.grad.any() for p in head.parameters())


def test_wrong_options() -> None:
    with pytest.raises(ValueError, match="bottleneck"):
        HeadOptions(bottleneck=0)


@pytest.mark.parametrize("weight_norm", ["none", "frozen"])
def test_patches_may_have_prototypes_of_their_own(weight_norm: str) -> None:
    """iBOT's second layer on the same MLP (reference.md 2)."""
    head = built(weight_norm=weight_norm, patches="student")
    x = torch.randn(5, 4, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    state = arrays(head)
    second = {
        n.replace("last_layer2", "last_layer"): a for n, a in state.items() if not n.startswith("last_layer.")
    }
    expected = np.concatenate([slow_head(x[:2].numpy(), state, 3)[1], slow_head(x[2:].numpy(), second, 3)[1]])
    np.testing.assert_allclose(head(x, patches=3).detach(), expected, atol=1e-12)
    np.testing.assert_allclose(head(x).detach(), slow_head(x.numpy(), state, 3)[1], atol=1e-12)
    assert head(x[:0], patches=0).shape == (0, 7)
