"""CAPI in the trainer: its predictor, and a term that trains parameters of its own."""

from pathlib import Path

import pytest
import torch
from gloo import run_ranks
from scholarch.draws import torch_generator
from scholarch.models.features import Views
from scholarch.training.assemble import build_networks, build_terms
from scholarch.training.estimate import memory, term_parameters
from scholarch.training.layout import Layout
from scholarch.training.optimizer import Optimizer
from tiny_training import Pictures, gloo_world, tiny_capi, tiny_learner, train
from torch.distributed import ProcessGroup

STEPS = 12


def records_on_rank(group: ProcessGroup, folder: Path, overrides: tuple[str, ...]) -> list[dict[str, float]]:
    fixed = (
        "training.precision=fp64",
        f"training.steps={STEPS}",
        "training.workers=0",
        "training.checkpoint_every=6",
        "evaluation.every=1000",
    )
    return train(gloo_world(group), folder, (), tiny_capi(*fixed, *overrides))


def curve(world: int, folder: Path, *overrides: str) -> list[tuple[float, float]]:
    records = run_ranks(world, records_on_rank, folder, overrides)[0]
    return [(r["loss/capi/prediction"], r["loss/capi/clustering"]) for r in records if "loss/total" in r]


@pytest.mark.gloo
def test_same_on_any_number_of_processes_and_after_a_kill(tmp_path: Path) -> None:
    one = curve(1, tmp_path / "1")
    assert len(one) == STEPS
    assert one[-1][1] < one[0][1]  # the clusters sharpen
    for world, batch in ((2, 8), (3, 2)):  # whole, and in micro-batches with uneven shares
        other = curve(world, tmp_path / str(world), f"training.micro_batch={batch}")
        torch.testing.assert_close(torch.tensor(other), torch.tensor(one), rtol=1e-9, atol=0)
    # As after a kill in step 8 of another number of processes.
    (last,) = (tmp_path / "1").glob("step-*12")
    last.rename(tmp_path / "lost")
    rest = curve(2, tmp_path / "1")
    torch.testing.assert_close(torch.tensor(rest), torch.tensor(one[6:]), rtol=1e-9, atol=0)


def test_the_student_predicts_at_the_predicted_places_and_the_teacher_sees_all() -> None:
    recipe = tiny_capi("training.precision=fp64", "model.stochastic_depth=0.0")
    learner = tiny_learner(recipe).train()
    masks = torch.zeros(1, 8, 16, dtype=torch.bool)
    masks[..., 3:13] = True
    predicted = torch.zeros_like(masks)
    predicted[..., 5:8] = True
    images = torch.randn(1, 8, 1, 16, 16, generator=torch_generator(1), dtype=torch.float64)
    batch = Pictures({"global": images}, {"global": masks, "global/predicted": predicted}, torch.arange(8))
    values = learner.accumulate([batch], [(0, 8)], 8, 0)

    patches = learner.teachers["ema"].backbone([Views(images[0])])[0].patches  # type: ignore[operator, union-attr]
    torch.testing.assert_close(values.observed["ema/global"].patches, patches)
    # The same by hand: Sinkhorn at each position, then the mean of 8 * 3 cross-entropies.
    clustering = learner.terms["capi"].clustering  # type: ignore[union-attr]
    unit = patches / patches.norm(dim=-1, keepdim=True)
    logits = unit @ clustering.weight.T + clustering.bias  # type: ignore[union-attr, operator]
    plan = (logits / 0.06 - (logits / 0.06).amax(0)).exp()
    for _ in range(3):
        plan = plan / plan.sum(0)
        plan = plan / plan.sum(-1, keepdim=True)
    student = learner.student.backbone([Views(images[0], masks[0], predict=predicted[0])])[0].patches
    found = torch.log_softmax(learner.student.heads["capi"](student[:, 5:8]) / 0.12, dim=-1)
    expected = -(plan[:, 5:8] * found).sum() / 24
    torch.testing.assert_close(values.parts["capi/prediction"], expected.detach(), rtol=1e-6, atol=0)


def test_a_term_has_its_own_rates_no_clipping_and_no_scaling_with_the_batch() -> None:
    recipe = tiny_capi(
        "training.precision=fp32",
        "optimizer.lr_scaling.rule=sqrt",
        "optimizer.clip=1.0e-9",
        "terms.capi.weight_decay=0.5",
    )
    learner = tiny_learner(recipe)
    optimizer = Optimizer(
        learner.student, recipe.optimizer, global_batch=8, total_steps=6, terms=learner.trained_terms()
    )
    own = list(learner.terms["capi"].parameters())
    assert sum(p.numel() for p in own) == 12 * 24 + 12
    before = [p.detach().clone() for p in own]
    for p in (*learner.student.parameters(), *own):
        p.grad = torch.full_like(p, 2.0)
    norms = optimizer.clip()
    assert float(norms["terms.capi"]) == pytest.approx(2 * (12 * 25) ** 0.5)
    assert all(bool((p.grad == 2.0).all()) for p in own if p.grad is not None)
    optimizer.step(3)  # past the warm-up: 5e-3
    for p, old in zip(own, before, strict=True):
        torch.testing.assert_close(p.detach(), old * (1 - 5e-3 * 0.5) - 5e-3, rtol=1e-6, atol=1e-9)
    assert optimizer.rates(3)["lr/capi"] == 5e-3
    terms = build_terms(recipe)
    student, teachers = build_networks(recipe, terms)
    assert term_parameters(recipe, terms, student, teachers) == 300
    parts = memory(recipe, student, teachers, terms, Layout(8, 1), 2)
    # 4 pictures of 16 patches: 10.4 x 0.3 of them predicted by the student, all of them clustered.
    assert parts["logits"] == 4 * 4 * 12 * (13 + 4 * 16)
