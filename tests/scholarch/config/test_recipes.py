"""Recipes against values worked out by hand from reference.md sections 1, 2, 4.2 and 4.3."""

from __future__ import annotations

import math
from functools import cache

import pytest
from scholarch.config.load import recipe_names
from scholarch.config.schema import Recipe
from scholarch.training.networks import build_network
from scholarch.training.recipe import load_recipe
from scholarch.training.teachers import due

PUBLISHED = [name for name in recipe_names() if not name.startswith("demo/")]
CAPI_END = (1 + math.cos(0.8 * math.pi)) / 2  # 0.0955


@cache
def recipe(name: str) -> Recipe:
    return load_recipe(name)


def value(name: str, quantity: str, step: int) -> float:
    found = recipe(name)
    if quantity == "momentum":
        return found.teachers["ema"].momentum(step)
    quantity = quantity.replace("temperature", "teacher_temperature")
    option, _, term = quantity.partition("/")
    owner = found.terms[term] if term else found.optimizer
    return float(getattr(owner, option)(step))


V1_PEAK = 5e-4 * 1024 / 256
SHORT_PEAK = 4e-3 * math.sqrt(2048 / 1024)
LONG_PEAK = 2e-4 * math.sqrt(3072 / 1024)
V3_PEAK = 1e-3 * 4 * math.sqrt(2048 / 1024)

CASES = [
    # A warm-up of the first kind reaches its peak on its last step, and stays there for one more.
    ("dino/vits16", "lr", 0, 0.0),
    ("dino/vits16", "lr", 12_509, V1_PEAK),
    ("dino/vits16", "lr", 12_510, V1_PEAK),
    ("dino/vits16", "lr", 12_510 + (125_100 - 12_510) // 2, (V1_PEAK + 1e-6) / 2),
    ("dino/vits16", "weight_decay", 62_550, 0.22),
    ("dino/vits16", "momentum", 62_550, 0.998),
    ("dino/vits16", "temperature/dino", 0, 0.04),
    ("dino/vits16", "temperature/dino", 37_529, 0.07),
    ("ibot/vitb16", "temperature/dino", 400_000, 0.04),
    ("ibot/vitb16", "temperature/ibot", 37_529, 0.07),
    ("dinov2/vitl16-short", "lr", 12_499, SHORT_PEAK),
    ("dinov2/vitl16-short", "weight_decay", 62_500, 0.22),
    ("dinov2/vitl16-short", "momentum", 62_500, 0.996),
    ("dinov2/vitl14", "lr", 49_999, LONG_PEAK * 49_999 / 99_999),
    ("dinov2/vitl14", "lr", 99_999, LONG_PEAK),
    ("dinov2/vitl14", "lr", 100_000 + 525_000 // 2, (LONG_PEAK + 1e-6) / 2),
    ("dinov2/vitl14", "momentum", 312_500, 0.997),
    ("dinov2/vitl14", "weight_decay", 312_500, 0.12),
    ("dinov2/vitl14", "temperature/ibot", 10_000, 0.04 + 0.03 * 10_000 / 37_499),
    ("dinov2/vitg14", "lr", 99_999, LONG_PEAK),
    ("dinov2/distill", "lr", 99_999, 1e-3),
    ("dinov2/distill", "weight_decay", 312_500, 0.12),
    ("dino/vits16", "temperature/dino", 1_250, 0.04),
    ("dino/vits16", "temperature/dino", 1_251, 0.04 + 0.03 / 29),
    ("dinov3/vitl16", "lr", 12_499, V3_PEAK),
    ("dinov3/vitl16", "lr", 12_500 + 112_500 // 2, (V3_PEAK + 1e-6) / 2),
    ("dinov3/vitl16", "momentum", 62_500, 0.996),
    # A warm-up of the second kind reaches its peak on the step after it.
    ("dinov3/vit7b16", "lr", 0, 0.0),
    ("dinov3/vit7b16", "lr", 50_000, 2e-4),
    ("dinov3/vit7b16", "lr", 99_999, 4e-4 * 99_999 / 100_000),
    ("dinov3/vit7b16", "lr", 100_000, 5e-5 * 4 * math.sqrt(4096 / 1024)),
    ("dinov3/vit7b16", "lr", 999_999, 4e-4),
    ("dinov3/vit7b16", "weight_decay", 500_000, 0.04),
    ("dinov3/vit7b16", "momentum", 500_000, 0.994),
    ("dinov3/vit7b16", "temperature/dino", 50_000, 0.055),
    ("dinov3/vit7b16", "temperature/ibot", 100_000, 0.07),
    ("dinov3/vit7b16-gram", "lr", 1_000_000, 3e-5 * 4 * math.sqrt(4096 / 1024)),
    ("dinov3/vit7b16-gram", "momentum", 1_000_000, 0.999),
    ("dinov3/vit7b16-gram", "weight/gram", 999_999, 0.0),
    ("dinov3/vit7b16-gram", "weight/gram", 1_000_000, 0.0),
    ("dinov3/vit7b16-gram", "weight/gram", 1_000_250, 1 - math.cos(math.pi * 250 / 999)),
    ("dinov3/vit7b16-gram", "weight/gram", 1_000_999, 2.0),
    ("dinov3/vit7b16-gram", "weight/gram", 1_199_999, 2.0),
    ("dinov3/vit7b16-gram", "local_weight/dino", 1_000_000, 1.0),
    ("dinov3/vit7b16-gram", "local_weight/dino", 1_000_999, 0.5),
    ("dinov3/vit7b16-highres", "lr", 0, 0.0),
    ("dinov3/vit7b16-highres", "lr", 2_500, 7.0710678e-5 / 2 * (1 - math.cos(math.pi * 2_500 / 9_999))),
    ("dinov3/vit7b16-highres", "lr", 9_999, 1.25e-5 * 4 * math.sqrt(2048 / 1024)),
    ("dinov3/vit7b16-highres", "lr", 29_999, 1.25e-5 * 4 * math.sqrt(2)),
    ("dinov3/vit7b16-highres", "temperature/dino", 0, 0.07),
    ("dinov3/vit7b16-highres", "weight/gram", 0, 1.5),
    ("dinov3/vit7b16-highres", "local_weight/dino", 0, 0.5),
    ("dinov3/distill-vits-highres", "lr", 0, 0.0),
    ("dinov3/distill-vits-highres", "lr", 9_999, 1.25e-5 * 4 * math.sqrt(2048 / 1024)),
    ("dinov3/distill-vits-highres", "local_weight/dino", 0, 0.5),
    ("dinov2/highres", "temperature/dino", 599, 0.07),
    ("dinov3/text", "lr", 0, 0.0),
    ("dinov3/text", "lr", 1_000, 3.5e-4),
    ("dinov3/text", "lr", 2_000, 7e-4),
    ("dinov3/text", "lr", 26_000, 3.5e-4),
    ("dinov3/text", "weight_decay", 30_000, 1e-4),
    ("capi/vitl14", "lr", 49_999, 1e-3),
    ("capi/vitl14", "lr", 500_000, 1e-3 * CAPI_END),
    ("capi/vitl14", "momentum", 0, 1.0),
    ("capi/vitl14", "momentum", 49_999, 0.999),
    ("capi/vitl14", "momentum", 500_000, 1 - 0.001 * CAPI_END),
]


@pytest.mark.parametrize(("name", "quantity", "step", "expected"), CASES)
def test_schedules(name: str, quantity: str, step: int, expected: float) -> None:
    assert value(name, quantity, step) == pytest.approx(expected, rel=1e-6, abs=1e-12)


def mlp(width: int, hidden: int) -> int:
    return width * hidden + hidden + hidden * width + width


def swiglu(width: int, hidden: int) -> int:
    return 2 * (width * hidden + hidden) + hidden * width + width


def learned(width: int, depth: int, patch: int, grid: int, ffn: int, scale: bool) -> int:
    """A ViT with learned positions, added up tensor by tensor."""
    attention = 3 * width * width + 3 * width + width * width + width
    block = 4 * width + attention + ffn + (2 * width if scale else 0)
    tokens = width + width + (1 + grid**2) * width  # CLS, mask, positions
    return depth * block + tokens + 3 * patch**2 * width + width + 2 * width


BACKBONES = {
    "dino/vits16": learned(384, 12, 16, 14, mlp(384, 1536), scale=False),
    "ibot/vitb16": learned(768, 12, 16, 14, mlp(768, 3072), scale=False),
    "dinov2/vitl16-short": learned(1024, 24, 16, 14, mlp(1024, 4096), scale=True),
    "dinov2/vitl14": learned(1024, 24, 14, 16, swiglu(1024, 2736), scale=True),
    "dinov2/vitg14": 1_136_480_768 - (37**2 - 16**2) * 1536,  # the table counts positions of 518 pixels
    "dinov2/highres": 1_136_480_768,
    "dinov3/vitl16": 303_154_176 - 4 * 1024,  # the table counts 4 registers
    "dinov3/vit7b16": 6_716_043_264,
}


@pytest.mark.parametrize("name", BACKBONES)
def test_parameters_of_backbones(name: str) -> None:
    network = build_network(recipe(name).model, {})
    assert sum(p.numel() for p in network.backbone.parameters()) == BACKBONES[name]


def head(width: int, hidden: int, bottleneck: int, prototypes: int, lengths: bool = False) -> int:
    layers = width * hidden + hidden + hidden * hidden + hidden + hidden * bottleneck + bottleneck
    return layers + bottleneck * prototypes + (prototypes if lengths else 0)


HEADS = {
    "dino/vits16": {"dino": head(384, 2048, 256, 65_536, lengths=True)},
    "ibot/vitb16": {"dino": head(768, 2048, 256, 8_192)},  # lengths are frozen, and no parameters
    "dinov2/vitl16-short": {"dino": 23_597_312 + 65_536},
    "dinov2/vitl14": {
        "dino": head(1024, 2048, 384, 131_072, lengths=True),
        "ibot": head(1024, 2048, 256, 131_072, lengths=True),
    },
    "dinov3/vitl16": {"dino": 23_597_312, "ibot": 23_597_312},
    "dinov3/vit7b16": {"dino": 239_092_224, "ibot": 72_884_608},
    "capi/vitl14": {"capi": 1024 * 16_384 + 16_384},
}


@pytest.mark.parametrize("name", HEADS)
def test_parameters_of_heads(name: str) -> None:
    found = recipe(name)
    network = build_network(found.model, found.heads)
    counts = {n: sum(p.numel() for p in module.parameters()) for n, module in network.heads.items()}
    assert counts == HEADS[name]


SEEN = {
    "dino/vits16": 100 * 1_251 * 1024,
    "ibot/vitb16": 400 * 1_251 * 1024,
    "dinov2/vitl16-short": 100 * 1_250 * 2048,
    "dinov2/vitl14": 500 * 1_250 * 3072,
    "dinov2/vitg14": 500 * 1_250 * 3072,
    "dinov3/vitl16": 100 * 1_250 * 2048,
    "dinov3/vit7b16": 1_000 * 1_000 * 4096,
    "dinov3/vit7b16-gram": 1_200 * 1_000 * 4096,
    "dinov3/vit7b16-highres": 30 * 1_000 * 2048,
    "dinov2/highres": 10_000 * 3072,
    "dinov2/distill": 625_000 * 2048,
    "capi/vitl14": 500_000 * 512 * 32,
    "dinov3/text": 50_000 * 256 * 256,
}


@pytest.mark.parametrize("name", SEEN)
def test_pictures_seen(name: str) -> None:
    training = recipe(name).training
    assert training.steps * training.global_batch == SEEN[name]


def test_snapshots_of_the_gram_teacher() -> None:
    refresh = recipe("dinov3/vit7b16-gram").teachers["gram"].refresh
    assert refresh is not None
    taken = [step + 1 for step in range(1_000_000, 1_200_000, 1) if due(refresh, step)]
    assert taken == [1_010_000, 1_020_000, 1_030_000]
    assert recipe("dinov3/vit7b16-highres").teachers["gram"].refresh is None


def test_blur_is_what_takes_effect() -> None:
    # The sources from DINOv2 on invert the probability they are given (reference.md 5.1).
    assert recipe("dinov3/vit7b16").views["global"].blur == (0.0, 0.9)
    assert recipe("dino/vits16").views["global"].blur == (1.0, 0.1)


@pytest.mark.parametrize("name", PUBLISHED)
def test_data_is_left_to_the_user(name: str) -> None:
    assert recipe(name).data.source == ""
    named = load_recipe(name, ["data=/pictures"]).data
    assert (named.source, named.mean) == ("/pictures", "imagenet")


def test_distillation() -> None:
    """reference.md 6.3: nothing is masked or dropped, the loss stands at the masked places, the average is unread."""
    found = recipe("dinov2/distill")
    assert not found.masks["global"].hide
    assert (found.model.stochastic_depth, found.model.ffn) == (0.0, "mlp")
    assert {name: term.teacher for name, term in found.terms.items()} == {
        "dino": "teacher", "ibot": "teacher", "koleo": None,
    }  # fmt: skip
    teacher = found.teachers["teacher"].model
    network = build_network(teacher, {})
    assert sum(p.numel() for p in network.parameters()) == pytest.approx(1_136e6, rel=1e-2)
