"""Curves: what is drawn together, and that it is what was measured."""

from __future__ import annotations

import math

import numpy as np
import pytest
from matplotlib.figure import Figure
from scholarch.report import curves
from scholarch.report.theme import DARK, LIGHT, png, short_number


def record(step: int, **values: float) -> dict[str, float]:
    return {"step": step, "time": 1e9 + step, "eta_seconds": 5.0, **values}


RECORDS = [
    record(0, **{"evaluation/knn": 0.5, "health/patch_norm_mean": 3.0, "health/patch_norm_max": 9.0}),
    record(
        1, **{"loss/total": 4.0, "loss/dino/global": 1.0, "loss/dino/local": 3.0, "lr": 0.1, "data/broken": 0}
    ),
    record(2, **{"loss/total": math.nan, "loss/dino/global": 2.0, "loss/dino/local": 5.0, "lr": 0.2}),
    record(3, **{"evaluation/knn": 0.9, "health/teacher_entropy/dino": 0.7, "images_per_second": 10.0}),
]


def drawn(figure: Figure) -> dict[str, dict[str, list[tuple[float, float]]]]:
    """Panel title -> label -> points, read back from the figure."""
    found: dict[str, dict[str, list[tuple[float, float]]]] = {}
    for axes in figure.axes:
        lines = [line for line in axes.lines if len(line.get_xdata()) > 2 or line.get_linestyle() == "-"]
        found[axes.get_title(loc="left")] = {
            str(line.get_label()): [tuple(point) for point in line.get_xydata()] for line in lines
        }
    return found


def test_series_leave_out_what_is_no_measurement() -> None:
    found = curves.series(RECORDS)

    assert "time" not in found
    assert "eta_seconds" not in found
    assert list(found)[:3] == ["evaluation/knn", "health/patch_norm_mean", "health/patch_norm_max"]
    assert found["loss/total"].values.tolist() == [4.0]
    assert found["loss/dino/local"].steps.tolist() == [1, 2]
    assert found["loss/dino/local"].values.tolist() == [3.0, 5.0]


def test_names_decide_what_is_drawn_together() -> None:
    names = ["total", "dino/global", "dino/local", "koleo", "norm_mean", "norm_max", "feature_std"]
    one = curves.Curve(np.asarray([1]), np.asarray([1.0]))

    grouped = curves.panels(dict.fromkeys([*(f"loss/{name}" for name in names), "health/x"], one), "loss/")

    assert {title: list(lines) for title, lines in grouped.items()} == {
        "total": [""],
        "dino": ["global", "local"],
        "koleo": [""],
        "norm": ["mean", "max"],
        "feature std": [""],
    }


def test_losses_are_drawn_as_measured() -> None:
    figure = curves.losses(RECORDS)

    assert figure is not None
    assert drawn(figure)["dino"] == {"global": [(1, 1.0), (2, 2.0)], "local": [(1, 3.0), (2, 5.0)]}


def test_the_untrained_network_is_a_line_through_the_evaluation() -> None:
    figure = curves.evaluations(RECORDS)

    assert figure is not None
    (axes,) = figure.axes
    assert axes.get_title(loc="left") == "k-NN"
    (baseline,) = [line for line in axes.lines if line.get_linestyle() == "--"]
    assert list(baseline.get_ydata()) == [0.5, 0.5]
    assert "untrained 0.5" in [text.get_text() for text in axes.texts]


def test_a_resumed_record_without_step_0_has_no_untrained_line() -> None:
    figure = curves.evaluations([record(5, **{"evaluation/knn": 0.5}), record(6, **{"evaluation/knn": 0.6})])

    assert figure is not None
    assert not [line for line in figure.axes[0].lines if line.get_linestyle() == "--"]


def test_health_puts_statistics_of_one_thing_together() -> None:
    figure = curves.health(RECORDS)

    assert figure is not None
    assert {title: sorted(lines) for title, lines in drawn(figure).items()}["patch norm"] == ["max", "mean"]


def test_the_rest_leaves_out_schedules_and_zeros() -> None:
    figure = curves.machine(RECORDS, drawn=("lr",))

    assert figure is not None
    assert list(drawn(figure)) == ["images per second"]


def test_nothing_to_draw_is_no_figure() -> None:
    assert curves.losses([]) is None
    assert curves.evaluations(RECORDS[1:3]) is None
    assert curves.health([]) is None
    assert curves.machine(RECORDS[:1]) is None
    assert curves.schedules({}, 0) is None


def test_schedules_keep_their_corners_and_mark_the_step() -> None:
    values = [min(step / 100, 1.0) for step in range(1000)]

    figure = curves.schedules({"momentum/ema": values}, step=250)

    assert figure is not None
    (axes,) = figure.axes
    line, mark = axes.lines
    assert np.array_equal(line.get_ydata(), values)
    assert list(mark.get_xdata()) == [250, 250]


def test_a_long_schedule_is_thinned_with_both_ends() -> None:
    figure = curves.schedules({"lr": list(range(1_000_000))}, step=0)

    assert figure is not None
    points = figure.axes[0].lines[0].get_xydata()
    assert len(points) == 2000
    assert points[0].tolist() == [0, 0]
    assert points[-1].tolist() == [999_999, 999_999]


@pytest.mark.parametrize("count", [3, 39, 40, 401])
def test_smoothing_is_a_moving_average(count: int) -> None:
    values = np.random.default_rng(count).normal(size=count)
    half = count // 40

    smooth = curves._smoothed(values)

    slow = [np.mean([values[j] for j in range(count) if abs(i - j) <= half]) for i in range(count)]
    np.testing.assert_allclose(smooth, slow, atol=1e-12)


def test_the_same_records_give_the_same_file_and_others_another() -> None:
    first, again = (png(curves.losses(RECORDS) or Figure()) for _ in range(2))
    changed = [*RECORDS[:2], record(2, **{"loss/dino/local": 6.0})]

    assert first.startswith(b"\x89PNG\r\n\x1a\n")
    assert first == again
    assert png(curves.losses(changed) or Figure()) != first
    assert png(curves.losses(RECORDS, DARK) or Figure()) != first


@pytest.mark.parametrize(
    ("value", "text"), [(0, "0"), (999, "999"), (1500, "1.5k"), (2e6, "2M"), (0.25, "0.25")]
)
def test_ticks_are_short(value: float, text: str) -> None:
    assert short_number(value) == text


def test_one_number_is_enough_for_every_count_of_panels() -> None:
    for count in range(1, 8):
        figure = curves.losses([record(1, **{f"loss/term{i}": 1.0 for i in range(count)})], LIGHT)
        assert figure is not None
        assert len(figure.axes) == count
        boxes = [axes.get_position() for axes in figure.axes]
        assert all(0 <= box.x0 < box.x1 <= 1 and 0 <= box.y0 < box.y1 <= 1 for box in boxes)
        assert not any(a.overlaps(b) for i, a in enumerate(boxes) for b in boxes[:i])
