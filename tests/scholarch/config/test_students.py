"""Recipes with several students: what one of them is, and mistakes in them."""

from __future__ import annotations

import math

import pytest
from scholarch.config.load import plain
from scholarch.config.schema import Recipe
from scholarch.errors import UserError
from scholarch.training.assemble import build_networks, build_terms
from scholarch.training.estimate import numel
from scholarch.training.preflight import check_patches, check_views
from scholarch.training.recipe import load_recipe, recipe_from, student_recipe

VITS, CONVNEXT = "dinov3/distill-vits", "dinov3/distill-convnext"
BACKBONES = {  # reference.md 1.1 and 1.6
    (VITS, "vits16"): 21_601_152,
    (VITS, "vits16plus"): 28_697_472,
    (VITS, "vitb16"): 85_669_632,
    (VITS, "vitl16"): 303_154_176,
    (VITS, "vith16plus"): 840_633_600,
    (CONVNEXT, "convnext_tiny"): 27_820_128,
    (CONVNEXT, "convnext_small"): 49_454_688,
    (CONVNEXT, "convnext_base"): 87_566_464,
    (CONVNEXT, "convnext_large"): 196_230_336,
}


def student(recipe: str, name: str) -> Recipe:
    return student_recipe(load_recipe(recipe), name)


@pytest.mark.parametrize(("recipe", "name"), BACKBONES)
def test_students_have_the_published_sizes_and_patches_that_meet_the_teachers(recipe: str, name: str) -> None:
    own = student(recipe, name)
    terms = build_terms(own)
    network, teachers = build_networks(own, terms)
    assert numel(network.backbone) == BACKBONES[recipe, name]
    assert numel(teachers["teacher"].backbone) == 6_716_043_264
    # 4096-8192-8192-512-262144 and 4096-4096-4096-384-98304.
    assert numel(teachers["teacher"].heads) == 239_092_224 + 72_884_608
    check_views(own)
    check_patches(own, terms, teachers)
    assert own.name == f"{recipe}-{name}"


def test_values_of_the_published_configuration() -> None:
    vit, small, base = (
        student(VITS, "vitl16"),
        student(CONVNEXT, "convnext_small"),
        student(CONVNEXT, "convnext_base"),
    )
    peak = 5e-5 * 4 * math.sqrt(1920 / 1024)
    assert vit.optimizer.lr(50_000) == pytest.approx(peak / 2)
    assert vit.optimizer.lr(999_999) == pytest.approx(peak)
    assert vit.optimizer.lr(1_125_000) == pytest.approx(peak / 2)
    assert vit.teachers["ema"].momentum(625_000) == pytest.approx(0.997)
    assert [student(VITS, name).terms["koleo"].group for name in ("vits16", "vitb16", "vitl16")] == [
        40,
        24,
        16,
    ]
    assert small.optimizer.lr(0) == 1e-6
    assert small.optimizer.lr(100_000) == pytest.approx(2e-4 * 4 * math.sqrt(4096 / 1024))
    assert small.optimizer.lr(624_999) == pytest.approx(8e-6)
    assert base.optimizer.lr(100_000) == pytest.approx(1e-4 * 8)
    assert base.optimizer.weight_decay(0) == 0.02
    assert small.optimizer.weight_decay(312_500) == pytest.approx(0.12)
    assert small.terms["ibot"].teacher_temperature(149_999) == pytest.approx(0.07)


def test_a_student_comes_back_from_plain_data() -> None:
    whole = load_recipe(VITS, ("students.vitb16.optimizer.lr=1e-4", "registered_name=ours"))
    again = recipe_from(plain(whole), where="again")
    assert again.students == whole.students
    own = student_recipe(again, "vitb16")
    assert own.optimizer.lr(7) == 1e-4
    assert student_recipe(again, "vits16").optimizer.lr(999_999) > 2e-4
    assert own.registered_name == "ours-vitb16"
    assert own.students == {}


@pytest.mark.parametrize(
    ("override", "told"),
    [
        (
            "students.vitb16.model.sise=base",
            r"students\.vitb16\.model\.sise: unknown key; did you mean `size`",
        ),
        (
            "students.vitb16.training.steps=5",
            r"students\.vitb16\.training\.steps: is of all students together",
        ),
        ("students.vitb16.data=FOLDER", r"students\.vitb16\.data: is of all students together"),
        ("students.vitb16.terms.dino.teacher=nobody", r"students\.vitb16.*no teacher 'nobody'"),
        ("groups={vits16: 2}", "groups: give one number for each student: vits16, vits16plus"),
        ("students.vitb16=3", r"students\.vitb16"),
    ],
)
def test_mistakes_name_the_student_and_the_key(override: str, told: str) -> None:
    with pytest.raises(UserError, match=told):
        load_recipe(VITS, (override,))


def test_a_teacher_with_other_patches_wants_crops_of_its_own_size() -> None:
    own = student_recipe(load_recipe(CONVNEXT, ("views.global.teacher_size=null",)), "convnext_tiny")
    terms = build_terms(own)
    with pytest.raises(UserError, match="32 x 32 on the crops 'global', and the student 16 x 16") as found:
        check_patches(own, terms, build_networks(own, terms)[1])
    assert "views.global.teacher_size=256" in str(found.value)
