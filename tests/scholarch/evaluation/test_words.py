"""Evaluations by words: recalls and windows by hand, and a suite on a model whose vectors are known."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from scholarch.data.annotated import DATA_SETS
from scholarch.data.annotated.shapes import CLASSES
from scholarch.data.shapes import COUNTS
from scholarch.data.tokenizer import Tokenizer
from scholarch.data.words import TEMPLATES, Words, patch_cosines
from scholarch.errors import UserError
from scholarch.evaluation.words import TextSegmentationOptions, by_windows, recalls, windows
from scholarch.models import build_backbone
from scholarch.models.alignment import (
    AlignedBackbone,
    AlignedOptions,
    VisionHeadOptions,
    image_embedding,
    text_embedding,
)
from scholarch.models.features import Views
from scholarch.models.initialise import initialise
from scholarch.models.text import TextOptions
from scholarch.models.vit import ViTOptions


def model() -> AlignedBackbone:
    options = AlignedOptions(
        vision=ViTOptions(size=None, embed_dim=16, depth=1, heads=2, ffn="mlp", ffn_ratio=2.0, patch=4),
        head=VisionHeadOptions(heads=2),
        text=TextOptions(size="tiny", embed_dim=16, depth=1, heads=2, vocabulary=600, length=12),
        joint=32,
    )
    found = build_backbone(options)
    assert isinstance(found, AlignedBackbone)
    initialise(found, 1)
    found.merges = Tokenizer.learned(["a red circle", "a blue ring"] * 4, 600).text()
    return found.eval()


def test_recalls_by_hand() -> None:
    """Three pictures with two, one and one captions, in two dimensions."""
    pictures = torch.tensor([[1.0, 0.0], [0.0, 1.0], [0.6, 0.8]])
    texts = torch.tensor([[1.0, 0.0], [0.0, 1.0], [0.8, 0.6], [0.6, 0.8]])
    owners = torch.tensor([0, 0, 1, 2])
    # Picture 1 finds: 1.0 (of 0), 0.8 (of 2), 0.6 (its own): third. Caption 1, of picture 0: 1.0, 0.8, 0.0: third.
    # Caption 2, of picture 1: 0.6, behind 0.96 and 0.8: third.
    to_text, to_picture = recalls(pictures, texts, owners, (1, 2, 3))
    assert to_text[1].tolist() == [1.0, 0.0, 1.0]
    assert to_text[2].tolist() == [1.0, 0.0, 1.0]
    assert to_text[3].tolist() == [1.0, 1.0, 1.0]
    assert to_picture[1].tolist() == [0.5, 0.0, 1.0]
    assert to_picture[2].tolist() == [0.5, 0.0, 1.0]
    assert to_picture[3].tolist() == [1.0, 1.0, 1.0]


def test_a_tie_counts_against_what_is_sought() -> None:
    """A model that gives all pictures and texts one vector finds nothing."""
    same = torch.ones(4, 3) / 3**0.5
    to_text, to_picture = recalls(same, same, torch.arange(4), (1, 4))
    assert to_text[1].sum() == to_picture[1].sum() == 0
    assert to_text[4].sum() == to_picture[4].sum() == 4


def test_windows_cover_a_length() -> None:
    assert windows(512, 384, 192) == [(0, 384), (128, 512)]
    assert windows(768, 384, 192) == [(0, 384), (192, 576), (384, 768)]
    assert windows(300, 384, 192) == [(0, 300)]
    assert windows(384, 384, 192) == [(0, 384)]


def test_segmentation_by_one_window_and_by_several() -> None:
    words = Words(model())
    named = words.classes(["red circle", "blue ring", "nothing"])
    picture = torch.randn(3, 16, 24, generator=torch.Generator().manual_seed(0))
    whole = by_windows(words, picture, named, TextSegmentationOptions(short=16, window=24, stride=24))
    with torch.no_grad():
        (features,) = words.backbone([Views(picture[None])])
    cosines = patch_cosines(features.patches[0], named).T.reshape(1, 3, 4, 6)
    large = torch.nn.functional.interpolate(cosines, (16, 24), mode="bilinear", align_corners=False)[0]
    torch.testing.assert_close(whole, large.softmax(dim=0))
    several = by_windows(words, picture, named, TextSegmentationOptions(short=16, window=16, stride=8))
    parts = [
        by_windows(words, picture[:, :, a:b], named, TextSegmentationOptions(short=16, window=16, stride=16))
        for a, b in ((0, 16), (8, 24))
    ]
    torch.testing.assert_close(several[:, :, :8], parts[0][:, :, :8])
    torch.testing.assert_close(several[:, :, 8:16], (parts[0][:, :, 8:] + parts[1][:, :, :8]) / 2)
    torch.testing.assert_close(several[:, :, 16:], parts[1][:, :, 8:])


def test_where_is_against_an_empty_text() -> None:
    """In float64 NumPy, from the halves of texts that stand for patches."""
    words, patches = Words(model()), torch.randn(2, 5, 16, generator=torch.Generator().manual_seed(0))
    ring, circle, empty = (row[16:].double().numpy() for row in words.texts(["a ring", "a circle", ""]))
    found = words.where(patches, ["a ring", "a circle"])
    assert found.shape == (2, 2, 5)
    for picture, number in np.ndindex(2, 5):
        own = patches[picture, number].double().numpy()
        cosines = [own @ text / np.linalg.norm(own) / np.linalg.norm(text) for text in (ring, circle, empty)]
        expected = [cosines[0] - cosines[2], cosines[1] - cosines[2]]
        np.testing.assert_allclose(found[picture, :, number].double(), expected, atol=1e-6)


@pytest.mark.parametrize("window", [3, 4, 7])
def test_where_by_windows_one_by_one(window: int) -> None:
    """Each window cut out by hand, pixels beyond the border being the nearest within."""
    words, picture = Words(model()), torch.randn(3, 8, 12, generator=torch.Generator().manual_seed(0))
    texts = words.texts(["a ring", ""])
    found = words.where_by_windows(picture, ["a ring"], window)
    assert found.shape == (1, 2, 3)
    for row, column in np.ndindex(2, 3):
        rows, columns = (
            (4 * place + 2 - window // 2 + torch.arange(window)).clamp(0, size - 1)
            for place, size in ((row, 8), (column, 12))
        )
        own = picture[:, rows][:, :, columns][None]
        own = torch.nn.functional.interpolate(own, (8, 8), mode="bicubic", antialias=True)
        with torch.no_grad():
            (features,) = words.backbone([Views(own)])
        cosines = (image_embedding(features.cls, features.patches) @ texts.T)[0]
        torch.testing.assert_close(found[0, row, column], cosines[0] - cosines[1], atol=1e-5, rtol=0)


def test_windows_in_several_parts_are_those_in_one(monkeypatch: pytest.MonkeyPatch) -> None:
    words, picture = Words(model()), torch.randn(3, 8, 12, generator=torch.Generator().manual_seed(0))
    at_once = words.where_by_windows(picture, ["a ring"], 4)
    monkeypatch.setattr("scholarch.data.words._WINDOWS_AT_ONCE", 4)
    told: list[tuple[int, int]] = []
    found = words.where_by_windows(picture, ["a ring"], 4, lambda *counts: told.append(counts))
    torch.testing.assert_close(found, at_once)
    assert told == [(4, 6), (6, 6)]


def test_classes_are_means_over_templates() -> None:
    words = Words(model())
    found = words.classes(["ring", "circle"], ["a {}", "the red {}"])
    for row, name in zip(found, ("ring", "circle"), strict=True):
        each = words.texts([f"a {name}", f"the red {name}"])
        torch.testing.assert_close(row, each.mean(0) / each.mean(0).norm())
    (features,) = words.backbone([Views(torch.from_numpy(words.tokenizer.encode("a ring", 12))[None])])
    torch.testing.assert_close(words.texts(["a ring"]), text_embedding(features.cls))
    assert words.texts([]).shape == (0, 32)
    assert all(template.count("{}") == 1 for template in TEMPLATES)
    with pytest.raises(UserError, match="no place for a name"):
        words.classes(["ring"], ["a ring"])
    with pytest.raises(UserError, match="nothing to tell apart"):
        words.classes([])


def test_a_model_that_does_not_know_its_merges() -> None:
    unknown = model()
    unknown.merges = ""
    for backbone in (unknown, unknown.vision):
        with pytest.raises(UserError, match="reads no text"):
            Words(backbone)


def test_annotations_of_shapes() -> None:
    splits = DATA_SETS["shapes"]("")
    test = splits["test"]
    assert len(test) == COUNTS[True]
    assert len(CLASSES) == 36
    shown = {CLASSES[test.annotation(i, "class")] for i in range(60)}
    seen = {CLASSES[splits["train"].annotation(i, "class")] for i in range(60)}
    assert len(shown) == 6
    assert len(seen) == 30
    assert not shown & seen
    mask = test.annotation(0, "mask")
    large = CLASSES[test.annotation(0, "class")].split()[1]
    assert test.names["mask"][0] == "dark background"
    assert test.names["mask"].index(large) in np.unique(mask)
    assert large in test.annotation(0, "captions")[0]
