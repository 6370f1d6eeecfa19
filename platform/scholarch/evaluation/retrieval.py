"""Retrieval of pictures of the same thing by the cosine of CLS (reference.md section 9.6).

Legend: n pictures, g of the gallery, q queries.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import numpy as np
import torch
from torch.nn import functional as F

from scholarch.data.annotated.face import Relevance
from scholarch.evaluation.dense import picture_of
from scholarch.evaluation.face import Evaluation, Given, Needs, Outcome, Tiles, means

SHOWN, COLUMNS = 4, 5


@dataclass(frozen=True, kw_only=True)
class RetrievalOptions:
    """Options of retrieval: `data`, the suite's name for the data."""

    kind: Literal["retrieval"] = "retrieval"
    data: str = ""


class Retrieval(Evaluation):
    """Mean average precision `map_easy`, `map_medium` and `map_hard`; its samples are the queries.

    A query that has nothing to be found at a level counts for nothing there. Queries are no part of the gallery.
    """

    Options = RetrievalOptions

    def needs(self) -> Needs:
        return Needs(
            known=frozenset({"relevance"}), outputs=frozenset({"cls"}), splits=("test",), view="whole"
        )

    def run(self, given: Given) -> Outcome:
        seen, data = given.features("test"), given.data["test"]
        features = F.normalize(seen.stacked("cls"), dim=-1)
        relevance: list[Relevance | None] = [data.annotation(int(i), "relevance") for i in seen.samples]
        is_query = np.array([one is not None for one in relevance])
        gallery = np.flatnonzero(~is_query)
        numbers = seen.samples[gallery]
        found: dict[str, list[float]] = {"map_easy": [], "map_medium": [], "map_hard": []}
        rows: list[list[np.ndarray]] = []
        for row in np.flatnonzero(is_query):
            wanted = relevance[row]
            assert wanted is not None
            cosine = features[torch.from_numpy(gallery)] @ features[row]
            ranked = numbers[np.argsort(-cosine.numpy(), kind="stable")]
            for level, (positive, junk) in levels(wanted).items():
                value = average_precision(ranked, positive, junk)
                if not np.isnan(value):
                    found[level].append(value)
            if len(rows) < SHOWN:
                shown = [int(seen.samples[row]), *(int(i) for i in ranked[:COLUMNS])]
                rows.append([picture_of(data, index) for index in shown])
        metrics, samples = means({name: np.array(values) for name, values in found.items()})
        tiles = Tiles(rows, ("query", *(f"{n}." for n in range(1, COLUMNS + 1))))
        return Outcome(metrics=metrics, samples=samples, pictures={"neighbours": tiles})


def levels(wanted: Relevance) -> dict[str, tuple[np.ndarray, np.ndarray]]:
    """What is to be found at each level, and what counts for nothing (Radenovic et al., CVPR 2018, section 3)."""
    return {
        "map_easy": (wanted.easy, np.concatenate([wanted.hard, wanted.junk])),
        "map_medium": (np.concatenate([wanted.easy, wanted.hard]), wanted.junk),
        "map_hard": (wanted.hard, np.concatenate([wanted.easy, wanted.junk])),
    }


def average_precision(ranked: np.ndarray, positive: np.ndarray, junk: np.ndarray) -> float:
    """Area under precision and recall by trapezoids, what counts for nothing taken out of the ranking.

    Args:
        ranked: numbers of all pictures, the likest first.
        positive, junk: numbers.

    Returns:
        in [0, 1]; NaN if nothing is to be found.
    """
    if not len(positive):
        return float("nan")
    kept = ranked[~np.isin(ranked, junk)]
    places = np.flatnonzero(np.isin(kept, positive)).astype(np.float64)  # 0-based
    earlier = np.arange(len(places), dtype=np.float64)
    before = np.where(places > 0, earlier / np.maximum(places, 1), 1.0)
    after = (earlier + 1) / (places + 1)
    return float(((before + after) / 2).sum() / len(positive))
