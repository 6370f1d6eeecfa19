import pytest
import torch
import torch.distributed as dist
from gloo import run_ranks
from scholarch.data.stream import rank_positions
from scholarch.objectives.term import Output
from scholarch.training.layout import Layout
from scholarch.training.learner import Learner
from tiny_training import random_pictures, tiny_learner, tiny_recipe
from torch.distributed import ProcessGroup

Result = tuple[dict[str, float], dict[str, torch.Tensor]]


def one_step(learner: Learner, rank: int, world: int, micro_batches: int, step: int = 3) -> Result:
    """Loss parts and gradients of this rank's share of one step."""
    learner.train()
    pictures = random_pictures(step)
    shares = rank_positions(8, micro_batches, rank, world)
    batches = [pictures.rows(share.tolist()) for share in shares]
    values = learner.accumulate(batches, Layout(8, micro_batches).bounds, 8, step)
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


def test_teachers_may_be_shown_other_crops_than_the_student() -> None:
    mine, others = random_pictures(3), random_pictures(4)
    learner = tiny_learner(tiny_recipe()).train()
    bounds = Layout(8, 1).bounds
    seen = [learner.accumulate([p], bounds, 8, 3).observed["ema/global"].cls for p in (mine, others)]
    plain = learner.accumulate([mine], bounds, 8, 3).parts
    mine.views["global/teacher"] = others.views["global"]
    values = learner.accumulate([mine], bounds, 8, 3)
    assert values.observed["ema/global"].cls.equal(seen[1])
    assert not seen[0].equal(seen[1])
    assert values.parts["koleo"].equal(plain["koleo"])  # of the student alone
    assert not values.parts["dino/global"].equal(plain["dino/global"])
