from pathlib import Path
from typing import Any

import pytest
import yaml
from scholarch.config.load import parse_override, parse_yaml, plain, recipe_names, to_yaml
from scholarch.config.resolve import merge
from scholarch.errors import UserError
from scholarch.training.recipe import load_recipe, recipe_from


def mistakes(*overrides: str, recipe: str = "demo/digits") -> str:
    with pytest.raises(UserError) as caught:
        load_recipe(recipe, overrides)
    return str(caught.value)


@pytest.mark.parametrize("name", recipe_names())
def test_every_recipe_loads_and_survives_being_saved(name: str) -> None:
    recipe = load_recipe(name)
    assert recipe.name == name
    again = recipe_from(yaml.safe_load(to_yaml(recipe)), "saved")
    assert plain(again) == plain(recipe)


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("trainin.steps=3", "trainin: unknown key; did you mean `training`?"),
        ("training.step=3", "training.step: unknown key; did you mean `steps`?"),
        (
            "training.batch_size=3",
            "training.batch_size: unknown key; did you mean `global_batch` or `micro_batch`?",
        ),
        ("training.zzz=3", "training.zzz: unknown key; known: steps, "),
        ("model.rope.bas=3", "model.rope.bas: unknown key; did you mean `base`?"),
        ("terms.dino.weigt=3", "terms.dino.weigt: unknown key; did you mean `weight`?"),
        ("views.global.siz=3", "views.global.siz: unknown key; did you mean `size`?"),
        ("terms.din.weight=3", "terms.din: no such kind: 'din'"),
        ("training.steps=0", "training.steps: input should be greater than or equal to 1 (given: 0)"),
        ("training.steps=many", "training.steps: input should be a valid integer"),
        ("terms.dino.teacher=emma", "terms.dino.teacher: no teacher 'emma'; there are: ema"),
        ("terms.dino.head=x", "terms.dino.head: no head 'x'; there are: dino, ibot"),
        ("masks.locl.share=0.1", "masks.locl: no view 'locl'; there are: global, local"),
        ("optimizer.lr=[{shape: linear}]", "optimizer.lr: segment 1: `end` is missing"),
        ("terms.koleo.group=0", "group"),
    ],
)
def test_a_mistake_is_told_in_plain_words(override: str, message: str) -> None:
    assert message in mistakes(override)


def test_all_mistakes_come_in_one_message() -> None:
    text = mistakes("training.steps=0", "optimizer.l=1", "model.dept=3")
    assert text.startswith("recipe demo/digits: 3 mistakes")
    assert all(part in text for part in ("training.steps", "optimizer.l", "model.dept"))


def test_unknown_recipe_names_the_nearest() -> None:
    assert "did you mean demo/digits?" in mistakes(recipe="demo/digit")
    assert "no recipe file" in mistakes(recipe="nowhere.yaml")


def test_data_as_text_is_its_source() -> None:
    recipe = load_recipe("demo/digits", ["data=photos"])
    assert recipe.data.source == "photos"
    assert recipe.data.channels == "auto"


def test_several_data_sets() -> None:
    words = [
        "data.sources.a.source=/a b: [c",
        "data.sources.web={source: photos, weight: 3, homogeneous: 0.1}",
    ]
    data = load_recipe("demo/digits", words).data
    assert (data.source, data.channels) == ("", "auto")  # digits, and what is said of them, are gone
    assert data.sources is not None
    assert data.sources["a"].source == "/a b: [c"
    assert (data.sources["web"].weight, data.sources["web"].homogeneous) == (3.0, 0.1)
    assert load_recipe("demo/digits", [*words, "data=photos"]).data.sources is None


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (("data.sources={}",), "data.sources: dictionary should have at least 1 item"),
        (("data.sources.a.weight=2",), "data.sources.a.source: missing"),
        (("data.sources.a={source: x, weigth: 2}",), "a.weigth: unknown key; did you mean `weight`?"),
        (("data.sources.a={source: x, weight: -1}",), "a.weight: input should be greater than or equal to 0"),
        (("data.sources.a={source: x, homogeneous: 2}",), "homogeneous: input should be less than or equal"),
        (("data.sources={a b: {source: x}}",), "letters, digits and _, not 'a b'"),
        (("data.sources.a.source=x", "data.source=y"), "not both"),
        (("data.sources.a.source=x", "data.labels=none"), "not both"),
        (("data.sources.a.source=x", "data.evaluated=b"), "evaluated: no source 'b'; there are: a"),
        (("data.evaluated=b",), "`evaluated` names one of several"),
    ],
)
def test_data_sets_that_cannot_be(words: tuple[str, ...], message: str) -> None:
    assert message in mistakes(*words)


def test_numbers_without_a_point_are_numbers() -> None:
    assert parse_yaml("a: 1e-4") == {"a": 1e-4}
    assert parse_yaml("a: 12") == {"a": 12}


def test_merge_removes_by_null_and_replaces_lists() -> None:
    base = {"a": {"b": 1, "c": [1, 2]}, "d": 3}
    assert merge(base, {"a": {"c": [5]}, "d": None}) == {"a": {"b": 1, "c": [5]}}


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("training.steps=5", {"training": {"steps": 5}}),
        ("optimizer.lr=1e-3", {"optimizer": {"lr": 1e-3}}),
        ("data=/a/b=c [1]", {"data": "/a/b=c [1]"}),
        ("views.local=null", {"views": {"local": None}}),
    ],
)
def test_override(text: str, expected: dict[str, Any]) -> None:
    assert parse_override(text) == expected


@pytest.mark.parametrize("text", ["steps", "=3", "a..b=3", "a b=3"])
def test_what_is_no_override_is_refused(text: str) -> None:
    with pytest.raises(UserError, match="is no override"):
        parse_override(text)


def test_extends_lays_a_file_over_another(tmp_path: Path) -> None:
    path = tmp_path / "mine.yaml"
    path.write_text("extends: demo/digits\ntraining: {steps: 7}\nviews: {local: null}\n")
    recipe = load_recipe(str(path))
    assert (recipe.name, recipe.training.steps, recipe.training.global_batch) == ("mine", 7, 64)
    assert list(recipe.views) == ["global"]


def test_recipes_in_a_circle_are_refused(tmp_path: Path) -> None:
    path = tmp_path / "loop.yaml"
    path.write_text(f"extends: {path}\n")
    assert "circle" in mistakes(recipe=str(path))


def test_a_file_that_is_no_recipe_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "list.yaml"
    path.write_text("- 1\n")
    assert "a mapping of sections" in mistakes(recipe=str(path))
    path.write_text("a: [1")
    assert "not YAML" in mistakes(recipe=str(path))
