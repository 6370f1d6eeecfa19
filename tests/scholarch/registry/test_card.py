"""The model card as people read it."""

from __future__ import annotations

from scholarch.registry.card import Card, card_text
from scholarch.registry.outbox import Data


def test_a_card_says_what_it_is_made_from_and_how_to_load_it() -> None:
    card = Card(
        recipe="demo/digits",
        summary="Handwritten digits.",
        licence="Apache-2.0",
        data=[
            Data(name="a|b", source="s3://b", fingerprint="0123456789abcdefXYZ", counts={"pictures": 1797})
        ],
        evaluations={"evaluation/knn": 0.98765},
        facts={"Steps": "1,000"},
    )

    text = card_text(card, "dino", "candidate", width=192, size=32)

    assert text.startswith("# dino\n\nHandwritten digits.\n")
    assert "| Recipe | `demo/digits` |" in text
    assert "| Steps | 1,000 |" in text
    assert "| a\\|b | s3://b | 1,797 pictures | `0123456789abcdef` |" in text
    assert "| knn | 0.9877 |" in text
    assert "    model" not in text
    assert 'load_model("models:/dino@candidate")' in text
    assert "# [1, 192]" in text
    assert text.rstrip().endswith("Apache-2.0")


def test_what_is_not_known_is_said() -> None:
    text = card_text(Card(recipe="mine"), "dino", None, width=4, size=8)

    assert 'load_model("models:/dino/latest")' in text
    for words in ("Not recorded.", "Not evaluated.", "Not stated."):
        assert words in text
