import pytest
import torch
from scholarch.config.schedule import Schedule
from scholarch.config.schema import RefreshSection, TeacherSection
from scholarch.training.teachers import Teachers, due
from tiny_training import tiny_learner, tiny_recipe


@pytest.mark.parametrize(
    ("first", "every", "at_most", "taken"),
    [
        (1_010, 10, 3, [1_010, 1_020, 1_030]),
        (5, 4, 2, [8, 12]),
        (0, 400, None, [400, 800, 1200]),
        (1_195, 10, 3, [1_200]),
    ],
)
def test_when_a_snapshot_is_taken(first: int, every: int, at_most: int | None, taken: list[int]) -> None:
    refresh = RefreshSection(first=first, every=every, at_most=at_most)
    assert [step + 1 for step in range(1200) if due(refresh, step)] == taken


def test_moving_average_and_snapshot_of_it() -> None:
    """t <- m t + (1 - m) s from the updated student, then the snapshot of the updated teacher."""
    recipe = tiny_recipe("teachers.gram={weights: snapshot, of: ema, refresh: {first: 1, every: 2}}")
    learner = tiny_learner(recipe)
    options = {
        "gram": recipe.teachers["gram"],
        "ema": TeacherSection(weights="ema", momentum=Schedule.parse(0.75).resolve(6)),
    }
    teachers = Teachers(learner, options)
    start = {name: p.detach().clone() for name, p in learner.student.named_parameters()}
    with torch.no_grad():
        for p in learner.student.parameters():
            p.add_(1.0)
    teachers.step(0)
    ema, gram = learner.teachers["ema"], learner.teachers["gram"]
    for name, p in ema.named_parameters():
        torch.testing.assert_close(p, 0.75 * start[name] + 0.25 * (start[name] + 1), rtol=0, atol=1e-15)
    for name, p in gram.named_parameters():
        assert torch.equal(p, start[name])
    teachers.step(1)
    averages = dict(ema.named_parameters())
    for name, p in gram.named_parameters():
        assert torch.equal(p, averages[name])
