"""The model card: what a registered model is, what it was made from, and how to load it."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from scholarch.registry.outbox import Data

DESCRIPTION_LENGTH = 5000
"""Characters that MLflow keeps of a description: a column of its database."""
_EVALUATION, _NOT_EVALUATED = "## Evaluation", "Not evaluated."


@dataclass(frozen=True, kw_only=True)
class Card:
    """What the card of a model says.

    Attributes:
        recipe: name of the recipe.
        summary: one or two sentences for people who do not know the recipe.
        licence: of the weights; empty: said to be not stated.
        data: what it was trained on.
        evaluations: values by slash-separated names, such as `evaluation/knn`.
        facts: further rows, such as steps, pictures seen, hardware, code version.
    """

    recipe: str
    summary: str = ""
    licence: str = ""
    data: Sequence[Data] = ()
    evaluations: Mapping[str, float] = field(default_factory=dict)
    facts: Mapping[str, str] = field(default_factory=dict)


def card_text(card: Card, name: str, alias: str | None, width: int, size: int) -> str:
    """The card in Markdown.

    Args:
        card: what it says.
        name: the registered model's name.
        alias: that the model is loaded by; None: its latest version.
        width: D, numbers in an embedding.
        size: side in pixels of what the backbone sees of a picture.
    """
    address = f"models:/{name}@{alias}" if alias else f"models:/{name}/latest"
    facts = {
        "Recipe": f"`{card.recipe}`",
        "Gives": f"{width} numbers for a picture (CLS token), or for each of its patches",
        "Sees": f"the central {size} x {size} pixels after resizing",
        **card.facts,
    }
    parts = [
        f"# {name}",
        card.summary or "A vision backbone, trained on pictures without labels by scholarch.",
        _table(("", ""), list(facts.items())),
        "## Load it",
        f"""```python
import mlflow, pandas
model = mlflow.pyfunc.load_model("{address}")
embeddings = model.predict(pandas.DataFrame({{"image": [open("picture.jpg", "rb").read()]}}))  # [1, {width}]
```""",
        'Add `params={"return": "patches"}` for patch features. Weights alone: `data/backbone/backbone.safetensors`.',
        "## Data",
        _data_table(card.data),
        _EVALUATION,
        _evaluation_table(card.evaluations),
        "## Licence",
        card.licence or "Not stated. Ask whoever trained it before you pass it on.",
    ]
    return "\n\n".join(parts) + "\n"


def with_suite(card: str, suite: str, metrics: Mapping[str, float], page: str) -> str:
    """The card with what a suite of evaluations found, in place of what it had of that suite.

    Args:
        card: in Markdown.
        suite: its name.
        metrics: values by name.
        page: where pictures and samples are: a web address, or any other.
    """
    card = card if _EVALUATION in card else f"{card.rstrip()}\n\n{_EVALUATION}\n\n{_NOT_EVALUATED}\n"
    before, rest = card.split(_EVALUATION, 1)
    section, licence, after = rest.partition("\n## ")
    first, *suites = re.split(r"^(?=### )", section.strip(), flags=re.MULTILINE)
    others = [text.strip() for text in suites if text.splitlines()[0] != f"### {suite}"]
    link = f"[Pictures and samples]({page})" if page.startswith("http") else f"Pictures and samples: `{page}`"
    found = f"### {suite}\n\n{link}\n\n{_evaluation_table(metrics)}"
    kept = first.strip().replace(_NOT_EVALUATED, "")
    parts = [part for part in (_EVALUATION, kept, *others, found) if part]
    return before + "\n\n".join(parts) + "\n" + licence + after


def _data_table(data: Sequence[Data]) -> str:
    rows = [
        (
            item.name,
            item.source,
            ", ".join(f"{count:,} {what}" for what, count in item.counts.items()),
            f"`{item.fingerprint[:16]}`",
        )
        for item in data
    ]
    return _table(("Name", "Source", "Counts", "Fingerprint"), rows) if rows else "Not recorded."


def _evaluation_table(evaluations: Mapping[str, float]) -> str:
    rows = [(name.removeprefix("evaluation/"), f"{value:.4g}") for name, value in evaluations.items()]
    return _table(("Measure", "Value"), rows) if rows else _NOT_EVALUATED


def _table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    lines = [head, ["---"] * len(head), *([cell.replace("|", "\\|") for cell in row] for row in rows)]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)
