"""The report of a run: PNG files, and one page with all of them inside that opens anywhere."""

from __future__ import annotations

import base64
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from jinja2 import Environment, PackageLoader
from matplotlib.figure import Figure

from scholarch.report import curves, pictures
from scholarch.report.look import FixedPictures
from scholarch.report.theme import DARK, LIGHT, Theme, png, write_png
from scholarch.storage.local import write_text

INDEX_NAME = "index.html"
Draw = Callable[[Theme], Figure | None]


@dataclass(frozen=True, kw_only=True)
class Content:
    """What a report is made from; whatever is empty is left out of it.

    Attributes:
        title: the run's name.
        subtitle: such as the recipe and what it is about.
        state: "finished", "interrupted", "running" or "failed"; empty where there is no run.
        facts: (name, value) rows: run, recipe, data, world size, pictures seen, ...
        records: lines of metrics.jsonl.
        step: finished steps.
        steps: of the whole run.
        schedules: for each schedule its value at steps 0, 1, 2, ... of the whole run.
        crops: views as they enter the network.
        fixed: fixed pictures and their features.
        inspected: figures of one picture, from `inspection.sections`.
        mean, std: by which `crops` and `fixed` are normalised.
        warnings: what is wrong with the features, in plain words.
        next_commands: (what it does, what to type).
    """

    title: str
    subtitle: str = ""
    state: str = "finished"
    facts: Sequence[tuple[str, str]] = ()
    records: Sequence[Mapping[str, Any]] = ()
    step: int = 0
    steps: int = 0
    schedules: Mapping[str, Sequence[float]] = field(default_factory=dict)
    crops: Sequence[pictures.Crops] = ()
    fixed: FixedPictures | None = None
    inspected: Sequence[Section] = ()
    mean: Sequence[float] = (0.0, 0.0, 0.0)
    std: Sequence[float] = (1.0, 1.0, 1.0)
    warnings: Sequence[str] = ()
    next_commands: Sequence[tuple[str, str]] = ()


class Section(NamedTuple):
    """A figure on the page; `caption` says how to read it."""

    name: str
    title: str
    caption: str
    draw: Draw


class Tile(NamedTuple):
    """A number that stands large at the top."""

    label: str
    value: str
    note: str


class Report(NamedTuple):
    """What was written: the page, and the figures in their light form."""

    page: Path
    pictures: list[Path]


def write_report(folder: Path, content: Content) -> Report:
    """Write the page and its figures into `folder`, which is made when missing.

    Raises:
        UserError: if the disk is full or the folder cannot be written to.
    """
    return write_page(folder, content, sections(content), tiles(content))


def write_page(folder: Path, content: Content, found: Sequence[Section], top: Sequence[Tile]) -> Report:
    """Write a page of these figures and numbers, with the tables of `content`.

    Raises:
        UserError: as `write_report`.
    """
    folder.mkdir(parents=True, exist_ok=True)
    shown, written = [], []
    for section in found:
        light, dark = section.draw(LIGHT), section.draw(DARK)
        if light is None or dark is None:
            continue
        written.append(write_png(light, folder / f"{section.name}.png"))
        shown.append(
            {
                "name": section.name,
                "title": section.title,
                "caption": section.caption,
                "light": _embedded(written[-1].read_bytes()),
                "dark": _embedded(png(dark)),
            }
        )
    environment = Environment(loader=PackageLoader("scholarch.report"), autoescape=True, trim_blocks=True)
    page = environment.get_template("page.html.j2").render(
        content=content,
        sections=shown,
        tiles=top,
        last=last_values(content.records),
        measured=any(name.startswith("health/") for record in content.records for name in record),
    )
    write_text(folder / INDEX_NAME, page)
    return Report(folder / INDEX_NAME, written)


def sections(content: Content) -> list[Section]:
    """The figures that there is something to draw for, in the order of the page."""
    records, fixed = content.records, content.fixed
    found = [
        Section(
            "evaluation",
            "Is it learning?",
            "Accuracy of the frozen teacher while it trains. The dashed line is the untrained network on the same "
            "pictures: what the architecture gives without any training.",
            lambda theme: curves.evaluations(records, theme),
        ),
        Section(
            "losses",
            "Losses",
            "The total and each of its weighted parts, thin as measured and thick smoothed. With a moving teacher "
            "a flat or rising loss is no bad sign by itself: the targets get harder as they sharpen.",
            lambda theme: curves.losses(records, theme),
        ),
        Section(
            "health",
            "Feature health",
            "Entropy of the targets falls towards 0 when all pictures go to one prototype, and stays at its "
            "maximum when the teacher tells nothing apart. CLS and patches should not become the same.",
            lambda theme: curves.health(records, theme),
        ),
    ]
    if fixed is not None:
        found.append(
            Section(
                "features",
                "Patch features",
                "The three main directions of the teacher's patch features as red, green and blue. Parts of pictures "
                "that mean the same to the model have the same colour, across pictures too.",
                lambda theme: pictures.draw_pca(
                    fixed.images, fixed.patches, fixed.grid, content.mean, content.std, theme
                ),
            )
        )
    found += content.inspected
    if content.crops:
        found.append(
            Section(
                "crops",
                "What the model sees",
                "Crops of three training pictures after all distortions. The student does not see covered patches.",
                lambda theme: pictures.draw_crops(content.crops, content.mean, content.std, theme),
            )
        )
    return [
        *found,
        Section(
            "schedules",
            "Schedules",
            "Over the whole run; the dashed line is the step reached.",
            lambda theme: curves.schedules(content.schedules, content.step, theme),
        ),
        Section(
            "machine",
            "Gradients and machine",
            "Gradient norms before clipping, pictures each second, the share of time spent waiting for data, memory.",
            lambda theme: curves.machine(records, tuple(content.schedules), theme),
        ),
    ]


def tiles(content: Content) -> list[Tile]:
    """The evaluations with what the untrained network had, then the loss, the steps and the speed."""
    series = curves.series(content.records)
    found = []
    for name, curve in series.items():
        if name.startswith("evaluation/"):
            untrained = curve.steps[0] == 0 and len(curve.steps) > 1
            note = f"untrained {curve.values[0]:.3f}" if untrained else f"at step {curve.steps[-1]:,}"
            found.append(
                Tile(curves.words(name.removeprefix("evaluation/")), f"{curve.values[-1]:.3f}", note)
            )
    if "loss/total" in series:
        values = series["loss/total"].values
        found.append(Tile("loss", f"{values[-1]:.4g}", f"began at {values[0]:.4g}"))
    found.append(Tile("steps", f"{content.step:,}", f"of {content.steps:,}"))
    if "images_per_second" in series:
        speed = np.median(series["images_per_second"].values)
        found.append(Tile("pictures a second", f"{speed:,.0f}" if speed >= 10 else f"{speed:.2g}", "median"))
    return found


def last_values(records: Sequence[Mapping[str, Any]]) -> list[tuple[str, str, int]]:
    """(name, last value, step) of every metric."""
    return [
        (name, f"{curve.values[-1]:.6g}", int(curve.steps[-1]))
        for name, curve in curves.series(records).items()
    ]


def _embedded(data: bytes) -> str:
    return f"data:image/png;base64,{base64.b64encode(data).decode()}"
