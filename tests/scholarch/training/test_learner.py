import pytest
import torch
import torch.distributed as dist
from gloo import run_ranks
from scholarch.data.stream import rank_positions
from scholarch.errors import UserError
from scholarch.models.features import Views
from scholarch.objectives.term import Output
from scholarch.training.layout import Layout
from scholarch.training.learner import Learner
from scholarch.training.networks import move_average
from tiny_training import random_pictures, tiny_learner, tiny_recipe
from torch.distributed import ProcessGroup

Result = tuple[dict[str, float], dict[str, torch.Tensor]]


def one_step(learner: Learner, rank: int, world: int, micro_batches: int, step: int = 3) -> Result:
    """Loss parts and gradients of this rank's share of one step."""
    learner.train()
    pictures = random_pictures(step)
    shares = rank_positions(8, micro_batches, rank, world)
    batches = [pictures.rows(share.tolist()) for share in shares]
    values = learner.accumulate(batches, Layout(8, micro_batches).bounds(rank, world), 8, step)
    gradients = {name: p.grad.clone() for name, p in learner.student.named_parameters() if p.grad is not None}
    return {name: float(value) for name, value in values.parts.items()}, gradients


def on_rank(group: ProcessGroup, micro_batches: int) -> Result:
    learner = tiny_learner(tiny_recipe(), group)
    return one_step(learner, dist.get_rank(group), dist.get_world_size(group), micro_batches)


def assert_same(expected: Result, parts: dict[str, float], gradients: dict[str, torch.Tensor]) -> None:
    assert parts == pytest.approx(expected[0], rel=1e-12)
    assert gradients.keys() == expected[1].keys()
    for name, gradient in gradients.items():
        torch.testing.assert_close(gradient, expected[1][name], rtol=1e-9, atol=1e-13, msg=name)


@pytest.fixture(scope="module")
def whole() -> Result:
    return one_step(tiny_learner(tiny_recipe()), 0, 1, 1)


def test_every_parameter_of_the_student_gets_a_gradient(whole: Result) -> None:
    names = {name for name, _ in tiny_learner(tiny_recipe()).student.named_parameters()}
    assert whole[1].keys() == names
    assert all(name in whole[0] for name in ("dino/global", "dino/local", "ibot", "koleo"))


@pytest.mark.parametrize("micro_batches", [2])
def test_micro_batches_change_nothing(whole: Result, micro_batches: int) -> None:
    assert_same(whole, *one_step(tiny_learner(tiny_recipe()), 0, 1, micro_batches))


@pytest.mark.gloo
@pytest.mark.parametrize(("world", "micro_batches"), [(2, 1), (2, 2), (3, 1), (3, 2), (4, 1)])
def test_ranks_change_nothing(whole: Result, world: int, micro_batches: int) -> None:
    """Shares add up to the loss, gradients to its gradient; shares are uneven on 3 ranks."""
    results = run_ranks(world, on_rank, micro_batches)
    parts = {name: sum(r[0][name] for r in results) for name in whole[0]}
    gradients = {name: sum(r[1][name] for r in results) for name in whole[1]}
    assert_same(whole, parts, gradients)


def test_a_term_without_weight_is_not_computed() -> None:
    learner = tiny_learner(tiny_recipe("terms.koleo.weight=0.0", "terms.ibot.weight=0.0"))
    parts, gradients = one_step(learner, 0, 1, 1)
    assert sorted(parts) == ["dino/global", "dino/local"]
    assert not any(name.startswith("heads.ibot") for name in gradients)


def test_teachers_stay_in_eval_mode() -> None:
    learner = tiny_learner(tiny_recipe()).train()
    assert learner.student.training
    assert not any(module.training for module in learner.teachers.modules())


def test_teacher_begins_as_the_student() -> None:
    learner = tiny_learner(tiny_recipe())
    student = dict(learner.student.named_parameters())
    for name, parameter in learner.teachers["ema"].named_parameters():
        torch.testing.assert_close(parameter, student[name], rtol=0, atol=0)
        assert not parameter.requires_grad


def test_a_teacher_that_does_not_see_what_a_term_reads_is_refused() -> None:
    with pytest.raises(ValueError, match=r"add the view to teachers\.ema\.sees"):
        tiny_learner(tiny_recipe("teachers.ema.sees=[local]"))


def test_outputs_are_named_by_view_tokens_and_head() -> None:
    assert Output("global", "cls", "dino") in tiny_learner(tiny_recipe()).terms["dino"].student_outputs()


def test_masks_that_hide_nothing_and_teachers_that_never_move() -> None:
    """Distillation: the student sees whole pictures, and its own features are observed."""
    calm = ("model.stochastic_depth=0.0", "model.rope.rescale=null")
    frozen = (
        "teachers.old={weights: frozen, checkpoint: drawn}",
        "terms.dino.teacher=old",
        "terms.ibot.teacher=old",
    )
    shown, hidden = (
        tiny_learner(tiny_recipe(*calm, *frozen, f"masks.global.hide={hide}")).train()
        for hide in ("false", "true")
    )
    pictures = random_pictures()
    seen = [
        learner.accumulate([pictures], [(0, 8)], 8, 0).observed["student/global"].patches
        for learner in (shown, hidden)
    ]
    images = pictures.views["global"].flatten(0, 1)
    expected = shown.student.backbone([Views(images)], None)[0].patches  # type: ignore[operator]
    torch.testing.assert_close(seen[0], expected.detach())
    assert not seen[0].requires_grad
    assert not torch.allclose(seen[1], expected)


def test_second_prototypes_are_the_students_own() -> None:
    """iBOT's default (reference.md 2): the teacher names patches by the prototypes of CLS."""
    options = (
        "heads.dino.patches=student",
        "heads.dino.weight_norm=none",
        "terms.ibot.head=dino",
        "terms.koleo=null",
    )
    learner = tiny_learner(tiny_recipe(*options))
    assert not [n for n, _ in learner.teachers.named_parameters() if "last_layer2" in n]
    first = learner.student.heads["dino"].last_layer2.weight.detach().clone()  # type: ignore[union-attr, operator]
    move_average(learner.teachers["ema"], learner.student, 0.5)
    assert torch.equal(learner.student.heads["dino"].last_layer2.weight, first)  # type: ignore[union-attr]
    _, gradients = one_step(tiny_learner(tiny_recipe(*options, "terms.dino.weight=0.0")), 0, 1, 1)
    assert gradients["heads.dino.last_layer2.weight"].any()
    assert not gradients["heads.dino.last_layer.weight"].any()
    _, gradients = one_step(tiny_learner(tiny_recipe(*options, "terms.ibot.weight=0.0")), 0, 1, 1)
    assert gradients["heads.dino.last_layer.weight"].any()
    assert not gradients["heads.dino.last_layer2.weight"].any()
    own = tiny_learner(tiny_recipe("heads.dino.patches=own", "terms.ibot.head=dino"))
    assert [n for n, _ in own.teachers.named_parameters() if "last_layer2" in n]


def test_gram_compares_with_a_teacher_of_other_width_and_patch() -> None:
    """By hand: the teacher's 2 x 2 patches resized to the student's 4 x 4, then both normalised."""
    model = "{size: null, embed_dim: 32, depth: 1, heads: 2, patch: 8, channels: 1, ffn: mlp, ffn_ratio: 2.0}"
    recipe = tiny_recipe(
        "model.stochastic_depth=0.0",
        "model.rope.rescale=null",
        "masks.global.hide=false",
        f"teachers.old={{weights: frozen, checkpoint: drawn, model: {model}}}",
        "terms={gram: {teacher: old, teacher_view: global}, dino: null, ibot: null, koleo: null}",
    )
    learner, pictures = tiny_learner(recipe).train(), random_pictures()
    value = learner.accumulate([pictures], [(0, 8)], 8, 0).parts["gram"]
    views = [Views(pictures.views["global"].flatten(0, 1))]
    student = learner.student.backbone(views, None)[0].patches  # type: ignore[operator]
    teacher = learner.teachers["old"].backbone(views)[0].patches  # type: ignore[operator, union-attr]
    assert teacher.shape == (16, 4, 32)
    maps = teacher.transpose(1, 2).reshape(16, 32, 2, 2)
    maps = torch.nn.functional.interpolate(maps, size=(4, 4), mode="bicubic", align_corners=False)
    grams = [
        (x / x.norm(dim=-1, keepdim=True)) @ (x / x.norm(dim=-1, keepdim=True)).transpose(1, 2)
        for x in (student, maps.flatten(2).transpose(1, 2))
    ]
    torch.testing.assert_close(value, (grams[0] - grams[1]).square().mean().detach(), rtol=1e-9, atol=0)


def test_other_numbers_of_prototypes_cannot_be_compared() -> None:
    heads = "{dino: {prototypes: 13, hidden: 16, bottleneck: 8}}"
    with pytest.raises(UserError, match=r"terms\.dino: the student has 12 prototypes, its teacher 13"):
        tiny_learner(
            tiny_recipe(
                f"teachers.old={{weights: frozen, checkpoint: drawn, heads: {heads}}}",
                "terms.dino.teacher=old",
            )
        )


def test_teachers_may_be_shown_other_crops_than_the_student() -> None:
    mine, others = random_pictures(3), random_pictures(4)
    learner = tiny_learner(tiny_recipe()).train()
    bounds = Layout(8, 1).bounds(0, 1)
    seen = [learner.accumulate([p], bounds, 8, 3).observed["ema/global"].cls for p in (mine, others)]
    plain = learner.accumulate([mine], bounds, 8, 3).parts
    mine.views["global/teacher"] = others.views["global"]
    values = learner.accumulate([mine], bounds, 8, 3)
    assert values.observed["ema/global"].cls.equal(seen[1])
    assert not seen[0].equal(seen[1])
    assert values.parts["koleo"].equal(plain["koleo"])  # of the student alone
    assert not values.parts["dino/global"].equal(plain["dino/global"])
