from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
import torch
from model_helpers import TINY, pictures, shaken
from scholarch.draws import Draws
from scholarch.errors import UserError
from scholarch.models import build_backbone
from scholarch.models.alignment import (
    AlignedBackbone,
    AlignedOptions,
    VisionHeadOptions,
    image_embedding,
    text_embedding,
)
from scholarch.models.features import Views
from scholarch.models.initialise import check_initialised, fill_with_nan, initialise
from scholarch.models.text import TextBlock, TextOptions
from scholarch.models.vit import ViTOptions
from scholarch.models.weights import export_backbone, import_backbone, import_text_part
from torch import nn

TEXT = TextOptions(size="tiny", embed_dim=16, depth=2, heads=2, vocabulary=520, length=9)


def tiny_options(**more: Any) -> AlignedOptions:
    values: dict[str, Any] = {"vision": ViTOptions(**TINY), "head": VisionHeadOptions(heads=2), "text": TEXT}  # type: ignore[arg-type]
    return AlignedOptions(**{**values, "joint": 32, **more})


def tiny_model(**more: Any) -> AlignedBackbone:
    model = shaken(build_backbone(tiny_options(**more)))
    assert isinstance(model, AlignedBackbone)
    return model.eval()


def captions(*rows: list[int]) -> torch.Tensor:
    found = torch.zeros(len(rows), TEXT.length, dtype=torch.int64)
    for place, row in enumerate(rows):
        found[place, : len(row)] = torch.tensor(row)
    return found


def released_shapes(width: int, text: int, depth: int, heads: int, joint: int) -> dict[str, tuple[int, ...]]:
    """Names and shapes of released dino.txt by reference.md 7, less the backbone's own."""
    assert text % heads == 0
    inner = -(-int(4 * width * 2 / 3) // 64) * 64
    shapes: dict[str, tuple[int, ...]] = {"logit_scale": (1,)}
    for i in range(2):
        block = f"visual_model.head.blocks.{i}"
        for norm in ("norm1", "norm2"):
            shapes |= {f"{block}.{norm}.weight": (width,), f"{block}.{norm}.bias": (width,)}
        shapes |= {
            f"{block}.attn.qkv.weight": (3 * width, width),
            f"{block}.attn.proj.weight": (width, width),
            f"{block}.attn.proj.bias": (width,),
            f"{block}.ls1.gamma": (width,),
            f"{block}.ls2.gamma": (width,),
            f"{block}.mlp.w1.weight": (inner, width),
            f"{block}.mlp.w1.bias": (inner,),
            f"{block}.mlp.w2.weight": (inner, width),
            f"{block}.mlp.w2.bias": (inner,),
            f"{block}.mlp.w3.weight": (width, inner),
            f"{block}.mlp.w3.bias": (width,),
        }
    shapes |= {"visual_model.head.ln_final.weight": (width,), "visual_model.head.ln_final.bias": (width,)}
    shapes |= {
        "text_model.backbone.token_embedding.weight": (49408, text),
        "text_model.backbone.positional_embedding": (77, text),
        "text_model.backbone.ln_final.weight": (text,),
        "text_model.backbone.ln_final.bias": (text,),
        "text_model.head.linear_projection.weight": (joint, text),
    }
    for i in range(depth):
        block = f"text_model.backbone.blocks.{i}"
        for norm in ("attention_norm", "ffn_norm"):
            shapes |= {f"{block}.{norm}.weight": (text,), f"{block}.{norm}.bias": (text,)}
        shapes |= {
            f"{block}.attention.qkv.weight": (3 * text, text),
            f"{block}.attention.proj.weight": (text, text),
            f"{block}.attention.proj.bias": (text,),
            f"{block}.feed_forward.fc1.weight": (4 * text, text),
            f"{block}.feed_forward.fc1.bias": (4 * text,),
            f"{block}.feed_forward.fc2.weight": (text, 4 * text),
            f"{block}.feed_forward.fc2.bias": (text,),
        }
    return shapes


def test_names_and_shapes_of_the_released_model() -> None:
    options = AlignedOptions(vision=ViTOptions(size="large", norm="layernorm_bf16"))
    with torch.device("meta"):
        model = build_backbone(options)
    own = {
        name: tuple(tensor.shape)
        for name, tensor in model.state_dict().items()
        if not name.startswith("visual_model.backbone.")
    }
    assert own == released_shapes(1024, 1280, 24, 20, 2048)
    assert model.width == 1024
    # Counted by hand: 24 blocks of 19,673,600, tokens, positions, the last norm and the projection.
    text = sum(p.numel() for name, p in model.named_parameters() if name.startswith("text_model"))
    assert text == 24 * 19_673_600 + 49_408 * 1280 + 77 * 1280 + 2 * 1280 + 1280 * 2048


def test_a_projection_where_widths_differ_or_it_is_asked_for() -> None:
    assert isinstance(tiny_model().visual_model["head"].linear_projection, nn.Identity)
    for model in (tiny_model(joint=20), tiny_model(head=VisionHeadOptions(heads=2, project=True))):
        projection = model.visual_model["head"].linear_projection
        assert isinstance(projection, nn.Linear)
        assert projection.weight.shape == (model.options.joint // 2, 16)
        assert projection.bias is None


def test_first_weights() -> None:
    model = build_backbone(tiny_options(text=TextOptions(size="small", depth=3, vocabulary=600)))
    fill_with_nan(model)
    initialise(model, 0)
    check_initialised(model)
    state = model.state_dict()
    width, out = 384, 384**-0.5 * 6**-0.5
    expected = {
        "token_embedding.weight": 0.02,
        "positional_embedding": 0.01,
        "blocks.1.attention.qkv.weight": width**-0.5,
        "blocks.1.attention.proj.weight": out,
        "blocks.1.feed_forward.fc1.weight": (2 * width) ** -0.5,
        "blocks.1.feed_forward.fc2.weight": out,
    }
    for name, std in expected.items():
        assert state[f"text_model.backbone.{name}"].std().item() == pytest.approx(std, rel=0.03), name
    assert state["text_model.head.linear_projection.weight"].std().item() == pytest.approx(
        width**-0.5, rel=0.03
    )
    assert state["logit_scale"].item() == pytest.approx(2.6593, abs=1e-4)
    assert state["visual_model.head.blocks.0.ls1.gamma"].unique().tolist() == [pytest.approx(1e-5)]


@pytest.mark.parametrize(("layer_scale", "first"), [(1.0, [1.0]), (None, [])])
def test_layer_scale_of_the_head(layer_scale: float | None, first: list[float]) -> None:
    model = tiny_model(head=VisionHeadOptions(heads=2, layer_scale=layer_scale))
    initialise(model, 0)
    gammas = [tensor for name, tensor in model.visual_model["head"].named_parameters() if "gamma" in name]
    assert len(gammas) == 4 * len(first)  # two blocks, two branches
    assert [value for gamma in gammas for value in gamma.unique().tolist()] == 4 * first


def test_the_text_block_against_numpy() -> None:
    block = shaken(TextBlock(6, 2, 1))
    x = torch.randn(1, 4, 6, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    state = {name: value.detach().numpy() for name, value in block.state_dict().items()}
    np.testing.assert_allclose(
        block(x)[0].detach().numpy(), slow_block(x[0].numpy(), state, heads=2), rtol=1e-9
    )


def slow_block(x: np.ndarray, state: dict[str, np.ndarray], heads: int) -> np.ndarray:
    def norm(y: np.ndarray, name: str) -> np.ndarray:
        centred = y - y.mean(-1, keepdims=True)
        scaled = centred / np.sqrt((centred**2).mean(-1, keepdims=True) + 1e-5)
        return np.asarray(scaled * state[f"{name}.weight"] + state[f"{name}.bias"])

    def linear(y: np.ndarray, name: str) -> np.ndarray:
        return np.asarray(y @ state[f"{name}.weight"].T + state.get(f"{name}.bias", 0.0))

    length, width = x.shape
    each = width // heads
    q, k, v = np.split(linear(norm(x, "attention_norm"), "attention.qkv"), 3, axis=1)
    mixed = np.zeros_like(x)
    for head in range(heads):
        part = slice(head * each, (head + 1) * each)
        for i in range(length):
            scores = np.exp(q[i, part] @ k[: i + 1, part].T / math.sqrt(each))
            mixed[i, part] = scores @ v[: i + 1, part] / scores.sum()
    x = x + linear(mixed, "attention.proj")
    inner = linear(norm(x, "ffn_norm"), "feed_forward.fc1")
    gelu = np.vectorize(lambda y: 0.5 * y * (1 + math.erf(y / math.sqrt(2))))
    return np.asarray(x + linear(gelu(inner), "feed_forward.fc2"))


def test_a_caption_is_read_at_its_end_and_no_further() -> None:
    model = tiny_model()
    plain = captions([518, 5, 6, 519], [518, 7, 519])
    longer = plain.clone()
    longer[0, 4:] = 3  # behind the end of text
    (a,), (b,) = model([Views(plain)]), model([Views(longer)])
    torch.testing.assert_close(a.cls, b.cls)
    torch.testing.assert_close(a.cls[0], a.patches[0, 3])
    torch.testing.assert_close(a.cls[1], a.patches[1, 2])
    other = plain.clone()
    other[0, 1] = 9
    assert not torch.allclose(model([Views(other)])[0].cls[0], a.cls[0])
    assert a.scale is not None
    assert a.scale.item() == pytest.approx(model.logit_scale.exp().item())


def test_embeddings_are_of_length_one_and_hold_cls_beside_the_mean_patch() -> None:
    model = tiny_model()
    images = pictures(2)
    picture, caption = model([Views(images), Views(captions([518, 5, 519], [518, 7, 519]))])
    assert picture.cls.shape == (2, 16)
    assert picture.registers.shape == (2, 4, 16)
    assert picture.patches.shape == (2, 6, 16)
    found = image_embedding(picture.cls, picture.patches)
    expected = torch.cat([picture.cls, picture.patches.mean(dim=1)], dim=1)
    torch.testing.assert_close(found, expected / expected.norm(dim=1, keepdim=True))
    assert found.shape == text_embedding(caption.cls).shape == (2, 32)


def test_only_what_is_not_locked_gets_a_gradient_and_the_backbone_stays_in_eval_mode() -> None:
    model = tiny_model(vision=ViTOptions(**TINY, stochastic_depth=0.5))  # type: ignore[arg-type]
    model.train()
    assert not model.vision.training
    assert model.visual_model["head"].training
    found = model([Views(pictures(2)), Views(captions([518, 5, 519], [518, 7, 519]))], Draws(0, 0))
    assert found[1].scale is not None
    (found[0].cls.sum() + found[0].patches.sum() + found[1].cls.sum() * found[1].scale).backward()
    for name, parameter in model.named_parameters():
        locked = name.startswith("visual_model.backbone.")
        assert (parameter.grad is None) == locked, name


@pytest.mark.parametrize(
    ("more", "words"),
    [({"joint": 3}, "even"), ({"joint": 0}, "even")],
)
def test_wrong_options(more: dict[str, Any], words: str) -> None:
    with pytest.raises(ValueError, match=words):
        tiny_options(**more)


@pytest.mark.parametrize(
    ("more", "words"),
    [
        ({"vocabulary": 300}, "at least 514"),
        ({"length": 2}, "at least 3"),
        ({"heads": 5}, "not a multiple"),
        ({"embed_dim": -4}, "positive"),
    ],
)
def test_wrong_text_options(more: dict[str, Any], words: str) -> None:
    with pytest.raises(ValueError, match=words):
        TextOptions(size="tiny", **more)


def test_weights_go_out_and_come_in() -> None:
    model = tiny_model()
    given = {**export_backbone(model), "logit_scale": torch.tensor(3.0, dtype=torch.float64)}
    other = build_backbone(tiny_options()).double()
    import_backbone(other, {"model": given})
    for name, tensor in other.state_dict().items():
        assert torch.equal(tensor.reshape(-1), given[name].reshape(-1)), name
    assert other.state_dict()["logit_scale"].tolist() == [3.0]


def test_a_locked_backbone_of_another_layout() -> None:
    learned = ViTOptions(**TINY, position="learned")  # type: ignore[arg-type]
    model = tiny_model(vision=learned)
    given = export_backbone(model, "dinov2")
    assert "visual_model.backbone.register_tokens" in given
    other = build_backbone(tiny_options(vision=learned)).double()
    import_backbone(other, given)
    for name, tensor in other.state_dict().items():
        assert torch.equal(tensor, model.state_dict()[name]), name


def test_a_file_without_the_locked_backbone_and_a_backbone_by_itself() -> None:
    model = tiny_model()
    apart = {k: v for k, v in export_backbone(model).items() if not k.startswith("visual_model.backbone.")}
    other = shaken(build_backbone(tiny_options()), seed=5)
    assert isinstance(other, AlignedBackbone)
    before = other.vision.cls_token.clone()
    import_text_part(other, apart)
    assert torch.equal(other.vision.cls_token, before)
    assert torch.equal(other.logit_scale, model.logit_scale)
    import_backbone(other, export_backbone(model.vision))
    for name, tensor in other.state_dict().items():
        assert torch.equal(tensor, model.state_dict()[name]), name
    with pytest.raises(UserError, match=r"missing \(\d+\): visual_model\.backbone\.cls_token"):
        import_backbone(other, apart)


def test_what_does_not_fit_is_named_and_nothing_is_loaded() -> None:
    model = tiny_model()
    given = export_backbone(model)
    given["text_model.backbone.blocks.7.attention.qkv.weight"] = torch.ones(2)
    del given["text_model.backbone.ln_final.bias"]
    given["visual_model.head.blocks.0.mlp.w1.weight"] = torch.ones(3, 3)
    other = shaken(build_backbone(tiny_options()), seed=5)
    before = {name: tensor.clone() for name, tensor in other.state_dict().items()}
    with pytest.raises(UserError) as caught:
        import_backbone(other, given)
    for words in (
        "missing (1): text_model.backbone.ln_final.bias",
        "extra (1)",
        "misshaped (1): visual_model.head",
    ):
        assert words in str(caught.value)
    assert all(torch.equal(tensor, before[name]) for name, tensor in other.state_dict().items())
