"""The model card as people read it."""

from __future__ import annotations

from scholarch.registry.card import Card, card_text, with_suite
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


def test_suites_stand_under_evaluation_the_newest_of_each() -> None:
    card = card_text(Card(recipe="mine", licence="Apache-2.0"), "dino", None, width=4, size=8)
    for value in (0.5, 0.75):
        card = with_suite(card, "digits", {"knn/top1": value}, "https://mlflow/run")
    card = with_suite(card, "scenes", {"depth/rmse": 2.0}, "runs:/abc")

    section = card.split("## Evaluation")[1].split("## Licence")[0]
    assert [line for line in section.splitlines() if line] == [
        "### digits", "[Pictures and samples](https://mlflow/run)", "| Measure | Value |", "| --- | --- |",
        "| knn/top1 | 0.75 |",
        "### scenes", "Pictures and samples: `runs:/abc`", "| Measure | Value |", "| --- | --- |",
        "| depth/rmse | 2 |",
    ]  # fmt: skip
    assert card.startswith("# dino\n")
    assert card.rstrip().endswith("## Licence\n\nApache-2.0")


def test_what_training_measured_stays_beside_the_suites() -> None:
    card = card_text(Card(recipe="mine", evaluations={"evaluation/knn": 0.9}), "dino", None, width=4, size=8)
    card = with_suite(card, "digits", {"knn/top1": 0.5}, "runs:/abc")
    assert "| knn | 0.9 |\n\n### digits" in card


def test_a_description_that_is_no_card_gets_the_section() -> None:
    card = with_suite("Mine.", "digits", {"knn/top1": 0.5}, "runs:/abc")
    assert card.startswith("Mine.\n\n## Evaluation\n\n### digits\n")
