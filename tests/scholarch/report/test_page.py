"""The page: holds all it shows, says what was found, and nothing that was not measured."""

from __future__ import annotations

import base64
import io
import re
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from scholarch.report.inspection import Inspection, Scene, sections
from scholarch.report.look import FixedPictures
from scholarch.report.page import Content, write_report
from scholarch.report.pictures import Crops

VOID = {"meta", "img", "source", "link", "br"}


class Page(HTMLParser):
    """Text, pictures and commands of a page; fails on tags that do not close in order."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.open: list[str] = []
        self.words: list[str] = []
        self.pictures: list[str] = []
        self.addresses: list[str] = []
        self.feed(text)
        self.close()
        assert self.open == []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        if tag not in VOID:
            self.open.append(tag)
        for name, value in attrs:
            if name in ("src", "srcset", "href"):
                self.addresses.append(str(value))
        if tag == "img":
            self.pictures.append(str(dict(attrs)["src"]))

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        if self.open and self.open[-1] != "style":
            self.words.append(data)

    @property
    def text(self) -> str:
        return re.sub(r"\s+", " ", " ".join(self.words))


def records() -> list[dict[str, Any]]:
    start = {"step": 0, "time": 0.0, "evaluation/knn": 0.25, "health/teacher_entropy/dino": 0.9}
    steps = [
        {"step": step, "time": float(step), "loss/total": 8 / step, "lr": 0.1, "images_per_second": 120.0}
        for step in range(1, 11)
    ]
    return [start, *steps, {"step": 10, "time": 10.0, "evaluation/knn": 0.9375}]


def looked_at(image: torch.Tensor) -> Inspection:
    norms = np.arange(4.0).reshape(2, 2)
    scene = Scene(image=image, patches=torch.rand(4, 8), norms=norms, grid=(2, 2))
    return Inspection(
        scenes=[scene],
        attention=np.eye(2)[None],
        point=(0, 1),
        similarity=np.eye(2),
        threshold=2.5,
        outliers=norms > 2.5,
    )


def content(**changes: Any) -> Content:
    generator = torch.Generator().manual_seed(0)
    images = torch.rand(2, 3, 8, 8, generator=generator)
    made: dict[str, Any] = {
        "title": "first <run>",
        "subtitle": "demo/digits",
        "facts": [("Recipe", "demo/digits"), ("World size", "2 processes")],
        "records": records(),
        "step": 10,
        "steps": 20,
        "schedules": {"lr": [0.1] * 20},
        "crops": [Crops("global", images[None], torch.zeros(1, 2, 4, dtype=torch.bool), 4)],
        "fixed": FixedPictures(
            images=images,
            patches=torch.rand(2, 4, 8, generator=generator),
            grid=(2, 2),
        ),
        "inspected": sections(looked_at(images[0]), (0.0, 0.0, 0.0), (1.0, 1.0, 1.0)),
        "next_commands": [("Evaluate it", "scholarch evaluate runs/first")],
    }
    return Content(**{**made, **changes})


@pytest.fixture(scope="module")
def written(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Page]:
    folder = tmp_path_factory.mktemp("run") / "report"
    report = write_report(folder, content())
    assert report.page == folder / "index.html"
    assert sorted(report.pictures) == sorted(folder.glob("*.png"))
    return folder, Page(report.page.read_text())


def test_every_figure_is_a_file_and_inside_the_page(written: tuple[Path, Page]) -> None:
    folder, page = written

    assert sorted(path.stem for path in folder.glob("*.png")) == [
        "attention", "crops", "evaluation", "features", "health", "losses", "machine", "norms", "schedules",
        "similarity", "sizes",
    ]  # fmt: skip
    files = {path.read_bytes() for path in folder.glob("*.png")}
    embedded = {base64.b64decode(picture.removeprefix("data:image/png;base64,")) for picture in page.pictures}
    assert embedded == files
    for file in files:
        with Image.open(io.BytesIO(file)) as image:
            image.load()
            assert image.width == 1440
            assert np.asarray(image.convert("RGB")).std() > 1
    assert sorted(path.name for path in folder.iterdir() if path.suffix != ".png") == ["index.html"]


def test_nothing_is_fetched_from_elsewhere(written: tuple[Path, Page]) -> None:
    folder, page = written
    text = (folder / "index.html").read_text()

    assert page.addresses
    assert all(address.startswith("data:image/png;base64,") for address in page.addresses)
    assert len(page.addresses) == 2 * len(page.pictures)  # light and dark
    assert not re.search(r"https?://|<script|@import|url\(", text)


def test_the_page_says_what_the_run_is(written: tuple[Path, Page]) -> None:
    text = written[1].text

    assert "first <run>" in text
    assert "first <run>" not in (written[0] / "index.html").read_text()  # escaped
    for words in (
        "k-NN 0.938 untrained 0.250",
        "loss 0.8 began at 8",
        "steps 10 of 20",
        "pictures a second 120",
    ):
        assert words in text
    assert "World size 2 processes" in text
    assert "Evaluate it scholarch evaluate runs/first" in text
    assert "Features look healthy" in text
    assert "evaluation/knn 0.9375 step 10" in text


def test_warnings_take_the_place_of_the_good_news(tmp_path: Path) -> None:
    report = write_report(tmp_path, content(warnings=["collapse: 1% of prototypes", "another"]))
    text = Page(report.page.read_text()).text

    assert "2 things need attention" in text
    assert "collapse: 1% of prototypes" in text
    assert "healthy" not in text


def test_what_was_not_measured_is_not_claimed(tmp_path: Path) -> None:
    report = write_report(tmp_path, Content(title="empty"))
    text = Page(report.page.read_text()).text

    assert report.pictures == []
    assert "empty" in text
    for words in ("healthy", "attention", "What next", "All last values"):
        assert words not in text


def test_a_second_report_replaces_the_first(tmp_path: Path) -> None:
    write_report(tmp_path, content(title="one"))
    write_report(tmp_path, content(title="two"))

    text = (tmp_path / "index.html").read_text()
    assert "two" in text
    assert "<h1>one" not in text
    assert not list(tmp_path.glob(".*"))
