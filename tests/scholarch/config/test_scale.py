"""What the tiny form of a recipe keeps, and that every recipe trains to its end in it."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import pytest
from gloo import run_ranks
from scholarch.cli import main
from scholarch.config.load import overridden, read_recipe, recipe_names
from scholarch.config.resolve import merge
from scholarch.config.scale import STEPS, tiny
from scholarch.storage.records import read_records
from scholarch.training.recipe import load_recipe, recipe_from
from tiny_training import gloo_world, train
from torch.distributed import ProcessGroup

QUICK = ("data.source=digits", "data.channels=3")
"""Pictures that need no decoding."""
CHAIN = ("dinov3/vit7b16", "dinov3/vit7b16-gram", "dinov3/vit7b16-highres")


def test_lengths_shrink_but_never_to_nothing() -> None:
    small = tiny(
        {
            "model": {},
            "views": {"global": {}},
            "teachers": {"gram": {"refresh": {"first": 1_010_000, "every": 10_000, "at_most": 3}}},
            "terms": {"gram": {"weight": [{"steps": 1_000_000, "end": 0.0}, {"steps": 1_000, "end": 2.0}]}},
            "optimizer": {"freeze_prototypes": 5_000, "lr": [{"steps": 0.5, "end": 1.0}, {"end": 2.0}]},
            "training": {"steps": 1_200_000},
        }
    )
    assert small["teachers"]["gram"]["refresh"] == {"first": 10, "every": 1, "at_most": 3}
    assert [segment["steps"] for segment in small["terms"]["gram"]["weight"]] == [10, 1]
    assert small["optimizer"]["freeze_prototypes"] == 1
    assert small["optimizer"]["lr"][0]["steps"] == 0.5
    assert small["training"]["steps"] == STEPS == 12


def test_views_keep_their_ratios() -> None:
    # 256, 112 and 512 pixels of patch 16 are 16, 7 and 32 patches; half of that, of 4 pixels.
    views = {"global": {"size": 256}, "local": {"size": 112}, "gram": {"like": "global", "size": 512}}
    small = tiny({"model": {}, "views": views, "training": {"steps": 10}})
    assert {name: view["size"] for name, view in small["views"].items()} == {
        "global": 8 * 4,
        "local": 4 * 4,
        "gram": 16 * 4,
    }


def test_the_recipe_itself_is_left_alone() -> None:
    before = {
        "name": "a",
        "model": {"size": "7b"},
        "views": {"global": {"size": 256}},
        "heads": {"x": {"hidden": 99}},
    }
    tiny(before)
    assert before["views"] == {"global": {"size": 256}}
    assert before["heads"] == {"x": {"hidden": 99}}
    assert before["model"] == {"size": "7b"}


def _train(group: ProcessGroup, name: str, folder: Path) -> list[dict[str, float]]:
    overrides = () if name.startswith("demo/") else QUICK
    recipe = load_recipe(name, (*overrides, "init_from=null"), "tiny")
    return train(gloo_world(group), folder, (), recipe)


@pytest.mark.gloo
@pytest.mark.parametrize("name", recipe_names())
def test_every_recipe_trains_to_its_end_on_two_processes(name: str, tmp_path: Path) -> None:
    records = run_ranks(2, _train, name, tmp_path)[0]
    losses = {int(record["step"]): record["loss/total"] for record in records if "loss/total" in record}
    assert sorted(losses) == list(range(1, STEPS + 1))
    assert all(math.isfinite(loss) for loss in losses.values())


def _train_convnext(group: ProcessGroup, folder: Path, extra: dict[str, Any]) -> list[float]:
    data = merge({**read_recipe("dinov3/vitl16"), "model": {"kind": "convnext"}}, extra)
    small = tiny({**data, "views": {"global": {"count": 2, "size": 128}, "local": {"count": 2, "size": 64}}})
    small = overridden(small, [*QUICK, "training.steps=3", "training.precision=fp64"])
    records = train(gloo_world(group), folder, (), recipe_from(small, where="convnext"))
    return [record["loss/total"] for record in records if "loss/total" in record]


@pytest.mark.gloo
def test_a_convnext_student_is_the_same_on_two_processes(tmp_path: Path) -> None:
    """By itself, and with a frozen ConvNeXt, wider than it, whose weights are drawn."""
    frozen = {
        "teachers": {"big": {"weights": "frozen", "model": {"kind": "convnext"}}},
        "terms": {"dino": {"teacher": "big"}, "ibot": {"teacher": "big"}},
    }
    for number, extra in enumerate(({}, frozen)):
        curves = [
            run_ranks(world, _train_convnext, tmp_path / f"{number}{world}", extra)[0] for world in (1, 2)
        ]
        assert len(curves[0]) == 3
        assert curves[1] == pytest.approx(curves[0], rel=1e-9)


def test_a_frozen_teacher_that_is_not_named_is_drawn_and_stays_wider() -> None:
    recipe = load_recipe("dinov2/distill", (), "tiny")
    teacher = recipe.teachers["teacher"]
    assert teacher.checkpoint == "drawn"
    assert (teacher.model.embed_dim, teacher.model.patch) == (48, 4)
    assert (recipe.model.embed_dim, recipe.model.patch) == (32, 4)
    assert (
        load_recipe("dinov2/distill", ("teachers.teacher.checkpoint=run",), "tiny")
        .teachers["teacher"]
        .checkpoint
        == "run"
    )
    assert load_recipe("dinov2/distill").teachers["teacher"].checkpoint is None


def test_the_stages_of_dinov3_follow_one_another(tmp_path: Path) -> None:
    words = [word for name in CHAIN for word in ("--recipe", name)]
    assert main(["pretrain", *words, "--scale", "tiny", "--run", str(tmp_path / "run"), *QUICK]) == 0
    stages = sorted((tmp_path / "run/stages").iterdir())
    assert len(stages) == 3
    for stage in stages:
        assert read_records(stage / "metrics.jsonl")[-1]["step"] == STEPS
    last = [name for name in read_records(stages[1] / "metrics.jsonl")[-1] if name.startswith("loss/gram")]
    assert last


def test_a_later_stage_by_itself_begins_from_drawn_weights(tmp_path: Path) -> None:
    words = ["--recipe", "dinov2/highres", "--scale", "tiny", "--run", str(tmp_path / "run")]
    assert main(["pretrain", *words, *QUICK, "training.steps=2"]) == 0
