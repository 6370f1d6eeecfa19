from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from scholarch.draws import Draws, generator
from scholarch.models.initialise import initialise
from scholarch.models.rope import AxialRope, RopeOptions


def built(head_width: int = 64, **options: object) -> AxialRope:
    rope = AxialRope(head_width, RopeOptions(**options))  # type: ignore[arg-type]
    initialise(rope, 0)
    return rope


def angles(rope: AxialRope, *grid: int, **more: object) -> list[np.ndarray]:
    """[P, d/2] angles of each block, from sine and cosine."""
    found = []
    for rotation in rope(*grid, 0, 1 if "blocks" not in more else more.pop("blocks"), **more):
        assert torch.equal(*rotation.sin.chunk(2, dim=-1))  # channel i pairs with i + d/2
        found.append(torch.atan2(rotation.sin, rotation.cos).chunk(2, dim=-1)[0].double().numpy())
    return found


def wrapped(x: np.ndarray) -> np.ndarray:
    return (x + math.pi) % (2 * math.pi) - math.pi


def test_periods_base() -> None:
    periods = built().periods  # reference.md 12.2
    assert periods.shape == (16,)
    assert periods.dtype == torch.float32
    assert periods[0] == 1
    assert periods[1].item() == pytest.approx(1.33352, abs=5e-6)
    assert periods[15].item() == pytest.approx(74.98942, abs=5e-6)


def test_periods_min_max() -> None:
    periods = built(base=None, min_period=2.0, max_period=16.0, head_width=16).periods
    assert periods.tolist() == pytest.approx([2, 4, 8, 16])


@pytest.mark.parametrize(
    ("mode", "rows", "columns"),
    [
        ("separate", [-0.5, 0.5], [-2 / 3, 0, 2 / 3]),
        ("max", [-2 / 3, 0], [-2 / 3, 0, 2 / 3]),
        ("min", [-0.5, 0.5], [-0.5, 0.5, 1.5]),
    ],
)
def test_coordinates(mode: str, rows: list[float], columns: list[float]) -> None:
    # One period of 2 makes the angle pi times the coordinate.
    rope = built(4, base=None, min_period=2.0, max_period=3.0, coordinates=mode).double()
    (found,) = angles(rope, 2, 3)
    expected = np.array([[math.pi * r, math.pi * c] for r in rows for c in columns])
    np.testing.assert_allclose(wrapped(found - expected), 0, atol=1e-6)


def test_prefix_is_not_turned() -> None:
    rotation = built()(2, 2, 5, 1)[0]
    x = torch.randn(1, 1, 9, 64, generator=torch.Generator().manual_seed(0))
    assert torch.equal(rotation(x)[:, :, :5], x[:, :, :5])
    assert not torch.equal(rotation(x)[:, :, 5:], x[:, :, 5:])
    torch.testing.assert_close(rotation(x).norm(dim=-1), x.norm(dim=-1))


def test_augmentation_order_and_keys() -> None:
    rope = built(8, shift=0.3, jitter=1.5, rescale=2.0).double().train()
    found = angles(rope, 2, 3, blocks=2, draws=Draws(7, 11), name="local")
    periods = np.array([1.0, 10.0])
    for block, angle in enumerate(found):

        def draw(kind: str, limit: float, n: int, block: int = block) -> np.ndarray:
            return generator(7, "step", 11, f"rope {kind}", "local", block).uniform(-limit, limit, n)

        shift, jitter = draw("shift", 0.3, 2), np.exp(draw("jitter", math.log(1.5), 2))
        rescale = np.exp(draw("rescale", math.log(2.0), 1))[0]
        for p in range(6):
            place = np.array([2 * (p // 3 + 0.5) / 2 - 1, 2 * (p % 3 + 0.5) / 3 - 1])
            place = (place + shift) * jitter * rescale
            expected = np.concatenate([2 * math.pi * place[0] / periods, 2 * math.pi * place[1] / periods])
            np.testing.assert_allclose(wrapped(angle[p] - expected), 0, atol=1e-6)
    assert not np.allclose(found[0], found[1])


def test_augmentation_only_while_training() -> None:
    rope = built(rescale=2.0)
    with pytest.raises(ValueError, match="draws"):
        rope.train()(2, 2, 1, 1)
    first, second = rope.eval()(2, 2, 1, 2)
    assert first is second
    assert torch.equal(first.sin, built()(2, 2, 1, 1)[0].sin)


def test_dtypes() -> None:
    assert built()(2, 2, 1, 1)[0].sin.dtype == torch.float32
    assert built(dtype="bf16")(2, 2, 1, 1)[0].sin.dtype == torch.bfloat16
    assert built(dtype="bf16").periods.dtype == torch.bfloat16
    assert built().double()(2, 2, 1, 1)[0].sin.dtype == torch.float64
    # float32 coordinates stay fine when a module is cast down.
    assert built().bfloat16()(2, 2, 1, 1)[0].sin.dtype == torch.float32
    x = torch.ones(1, 1, 5, 64, dtype=torch.bfloat16)
    assert built()(2, 2, 1, 1)[0](x).dtype == torch.bfloat16


def test_bf16_is_coarser() -> None:
    fine, coarse = built()(7, 7, 0, 1)[0].sin, built(dtype="bf16")(7, 7, 0, 1)[0].sin
    difference = (fine - coarse.float()).abs().max().item()
    assert 1e-3 < difference < 0.5


@pytest.mark.parametrize(
    "wrong",
    [
        {"base": None},
        {"min_period": 1.0},
        {"base": None, "min_period": 1.0},
        {"base": None, "min_period": 3.0, "max_period": 2.0},
        {"base": 1.0},
        {"shift": -1.0},
        {"jitter": 0.5},
        {"rescale": 0.5},
    ],
)
def test_wrong_options(wrong: dict[str, float]) -> None:
    with pytest.raises(ValueError, match="rope"):
        RopeOptions(**wrong)  # type: ignore[arg-type]


def test_wrong_head_width() -> None:
    with pytest.raises(ValueError, match="multiple of 4"):
        AxialRope(6, RopeOptions())
