"""The report of a curation: counts, balance, sizes of clusters, and sheets of pictures to judge it by."""

from __future__ import annotations

import json
import time
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from scholarch.curation.balance import balance
from scholarch.curation.pipeline import EVALUATED, NEAR, SAME_HASH, Outcome
from scholarch.curation.pool import Rows
from scholarch.curation.recipe import CurationRecipe
from scholarch.data.source import BrokenPicture
from scholarch.draws import generator
from scholarch.report.curation import Strip, draw_sheet, draw_sizes
from scholarch.report.page import Content, Report, Section, Tile, write_page
from scholarch.storage.local import write_text
from scholarch.storage.records import RECORDS_NAME

_SHOWN_CLUSTERS, _SHOWN_PICTURES, _SHOWN_PAIRS = 12, 8, 32
_WHY = {SAME_HASH: "same hash", NEAR: "near-duplicate", EVALUATED: "like an evaluation"}


def report(folder: Path, recipe: CurationRecipe, outcome: Outcome) -> Report:
    """Writes the page, its figures and the numbers that MLflow gets."""
    sizes = cluster_sizes(outcome)
    numbers = {
        f"counts/{step}/{name}".replace(" ", "_"): float(value)
        for step, result in outcome.results.items()
        for name, value in result.counts.items()
    }
    facts = [("recipe", recipe.name), ("mixture", outcome.mixture)]
    for step, result in outcome.results.items():
        counts = ", ".join(f"{value:,} {name}" for name, value in result.counts.items())
        facts.append((step, f"{counts}{' (as before)' if step in outcome.reused else ''}"))
        facts += [(f"{step}: broken", entry) for entry in result.named[:10]]
    for what, of in balances(outcome, sizes).items():
        facts.append((f"balance, {what}", f"entropy {of[0]:.3f}, divergence from uniform {of[1]:.3f} nats"))
        key = f"balance/{what}".replace(" ", "_")
        numbers |= {f"{key}/entropy": of[0], f"{key}/divergence": of[1]}
    record = {"step": 0, "time": time.time(), **numbers}
    write_text(folder / RECORDS_NAME, json.dumps(record) + "\n")
    content = Content(title=recipe.name, subtitle=recipe.about or "curation", facts=facts)
    top = [Tile("pool", f"{len(outcome.rows):,}", "pictures")] + [
        Tile(name, f"{len(rows):,}", "pictures") for name, rows in outcome.chosen.items()
    ]
    return write_page(folder / "report", content, _sections(outcome, sizes), top)


def cluster_sizes(outcome: Outcome) -> dict[str, np.ndarray]:
    """Pictures of each of the finest clusters, in the pool without duplicates and in what was chosen."""
    if not outcome.levels:
        return {}
    of_row = np.full(len(outcome.rows), -1)
    of_row[outcome.chosen["deduplicated"]] = outcome.levels[0].clusters
    count = len(outcome.levels[0].centroids)
    return {name: np.bincount(of_row[rows], minlength=count) for name, rows in outcome.chosen.items()}


def balances(outcome: Outcome, sizes: dict[str, np.ndarray]) -> dict[str, tuple[float, float]]:
    """Entropy and divergence by selection, over clusters and, where there are any, over labels."""
    found = {f"{name} over clusters": balance(counts)[:2] for name, counts in sizes.items() if counts.sum()}
    classes = outcome.rows.classes()
    if classes is not None:
        every = {"pool": np.arange(len(classes)), **outcome.chosen}
        for name, rows in every.items():
            if len(rows):
                counts = np.bincount(classes[rows], minlength=int(classes.max()) + 1)
                found[f"{name} over labels"] = balance(counts)[:2]
    return found


def _sections(outcome: Outcome, sizes: dict[str, np.ndarray]) -> list[Section]:
    found = []
    if sizes:
        found.append(
            Section(
                "sizes",
                "Sizes of clusters",
                "Of the finest clusters, the largest first. A balanced sample is as flat as the pool allows.",
                lambda theme: draw_sizes(sizes, theme),
            )
        )
        clusters = _clusters(outcome)
        found.append(
            Section(
                "clusters",
                "Clusters",
                "Some of the finest clusters, from the largest to the smallest: the pictures closest to the centroid.",
                lambda theme: draw_sheet(clusters, 2, theme),
            )
        )
    if outcome.duplicates:
        around, dropped = _around(outcome), _dropped(outcome)
        found.append(
            Section(
                "around",
                "Around the threshold",
                "Pairs whose similarity is closest to the threshold, the most similar first. Above it one of each "
                "pair goes: choose the threshold so that these are the same picture, and those below are not.",
                lambda theme: draw_sheet(around, 4, theme),
            )
        )
        found.append(
            Section(
                "dropped",
                "Dropped pictures",
                "Drawn at random from all that were dropped, by reason.",
                lambda theme: draw_sheet(dropped, 1, theme),
            )
        )
    return found


def _clusters(outcome: Outcome) -> list[Strip]:
    level, kept = outcome.levels[0], outcome.chosen["deduplicated"]
    counts = np.bincount(level.clusters, minlength=len(level.centroids))
    order = np.argsort(-counts, kind="stable")[: int((counts > 0).sum())]
    strips = []
    for place in np.unique(np.linspace(0, len(order) - 1, _SHOWN_CLUSTERS).astype(int)).tolist():
        cluster = order[place]
        mine = np.flatnonzero(level.clusters == cluster)
        nearest = mine[np.argsort(level.distances[mine], kind="stable")][:_SHOWN_PICTURES]
        strips.append(Strip(f"{counts[cluster]:,} pictures", _pictures(outcome.rows, kept[nearest].tolist())))
    return strips


def _around(outcome: Outcome) -> list[Strip]:
    pairs, near = outcome.duplicates["around"].T, outcome.duplicates["around_similarities"]
    order = np.argsort(-near[:_SHOWN_PAIRS], kind="stable")
    return [Strip(f"{near[i]:.3f}", _pictures(outcome.rows, pairs[i].tolist())) for i in order.tolist()]


def _dropped(outcome: Outcome) -> list[Strip]:
    strips = []
    for reason, words in _WHY.items():
        rows = np.flatnonzero(outcome.duplicates["why"] == reason)
        if len(rows):
            shown = generator(0, "dropped", reason).permutation(rows)[:_SHOWN_PICTURES]
            strips.append(Strip(f"{words}: {len(rows):,}", _pictures(outcome.rows, np.sort(shown).tolist())))
    return strips


def _pictures(rows: Rows, chosen: Sequence[int]) -> list[np.ndarray]:
    """Pictures of rows, [h, w, 3] in [0, 1]; one that can no longer be read is left out."""
    found = []
    for row in chosen:
        try:
            picture = rows.sets[rows.owners[row]].source.read(int(rows.numbers[row]))
        except BrokenPicture:
            continue
        values = picture.float().numpy() / (255 if picture.dtype.itemsize == 1 else 1)
        values = np.repeat(values, 3, axis=0)[:3] if len(values) < 3 else values[:3]
        found.append(np.moveaxis(values, 0, -1))
    return found
