import math

import pytest
import torch
from gloo import run_ranks
from scholarch.config.schema import OptimizerSection
from scholarch.draws import torch_generator
from scholarch.training.assemble import build_learner
from scholarch.training.learner import Learner
from scholarch.training.networks import Execution
from scholarch.training.optimizer import Group, Optimizer, group_of, lr_factor
from tiny_training import random_pictures, tiny_learner, tiny_recipe
from torch.distributed import ProcessGroup
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.tensor import DTensor, distribute_tensor

OPTIONS = tiny_recipe().optimizer


def options(**changes: object) -> OptimizerSection:
    return OPTIONS.model_copy(update=changes)


@pytest.mark.parametrize(
    ("part", "name", "layer", "decays", "prototypes"),
    [
        ("backbone", "cls_token", 0, True, False),
        ("backbone", "mask_token", 0, True, False),
        ("backbone", "storage_tokens", 0, True, False),
        ("backbone", "pos_embed", 0, True, False),
        ("backbone", "blocks.0.attn.qkv.weight", 1, True, False),
        ("backbone", "blocks.39.norm1.weight", 40, False, False),
        ("backbone", "blocks.39.ls1.gamma", 40, False, False),
        ("backbone", "blocks.3.mlp.fc1.bias", 4, False, False),
        ("backbone", "norm.weight", 41, False, False),
        ("heads.dino", "mlp.0.weight", 41, True, False),
        ("heads.dino", "last_layer.weight", 41, True, True),
        ("heads.dino", "last_layer2.weight_v", 41, True, True),
    ],
)
def test_groups(part: str, name: str, layer: int, decays: bool, prototypes: bool) -> None:
    """Layer decay rate^(L + 1 - id) and the exceptions of weight decay (reference.md 4.1)."""
    group = group_of(part, name, 40, options(layer_decay=0.98))
    lr = pytest.approx(0.98 ** (41 - layer))
    assert group == Group(lr, float(decays), prototypes, part == "backbone")
    decay = group_of(part, name, 40, options(norm_decay=0.1)).weight_decay
    assert decay == (0.1 if name.endswith("norm1.weight") or name == "norm.weight" else float(decays))


def test_patch_embedding_of_a_deep_model() -> None:
    """0.98^41 = 0.4368 for tokens, times 0.2 for the patch embedding (reference.md 12.11)."""
    decayed = options(layer_decay=0.98, patch_embed_lr=0.2)
    assert group_of("backbone", "cls_token", 40, decayed).lr == pytest.approx(0.4368, abs=1e-4)
    assert group_of("backbone", "patch_embed.proj.weight", 40, decayed).lr == pytest.approx(0.0874, abs=1e-4)


@pytest.mark.parametrize(
    ("rule", "reference", "batch", "factor"),
    [
        ("sqrt", 1024, 4096, 2.0),
        ("linear", 256, 1024, 4.0),
        ("none", 1024, 7, 1.0),
        ("sqrt", 1024, 2048, math.sqrt(2)),
    ],
)
def test_learning_rate_follows_the_batch(rule: str, reference: int, batch: int, factor: float) -> None:
    """5e-5 x 4 x sqrt(4096 / 1024) = 4e-4 (reference.md 12.7), the 4 being the recipe's."""
    scaling = options(
        lr_scaling=OPTIONS.lr_scaling.model_copy(update={"rule": rule, "reference_batch": reference})
    )
    assert lr_factor(scaling, batch) == pytest.approx(factor)


def stepped(
    step: int, **changes: object
) -> tuple[Optimizer, dict[str, torch.Tensor], dict[str, torch.Tensor]]:
    """An optimizer after one step, with the weights before and the gradients of that step."""
    learner = tiny_learner(tiny_recipe())
    learner.train()
    optimizer = Optimizer(learner.student, options(**changes), global_batch=8, total_steps=6)
    learner.accumulate([random_pictures()], [(0, 8)], 8, 3)
    before = {name: p.detach().clone() for name, p in learner.student.named_parameters()}
    gradients = {name: p.grad.clone() for name, p in learner.student.named_parameters() if p.grad is not None}
    optimizer.step(step)
    return optimizer, before, gradients


def test_a_step_is_adamw_by_hand() -> None:
    """After one step both moments are the gradient's: w - lr (sign-like g / (|g| + eps) + wd w)."""
    optimizer, before, gradients = stepped(2)
    rates = optimizer.rates(2)
    for name, weight in optimizer.network.named_parameters():
        part, _, inner = name.rpartition("backbone.") if name.startswith("backbone") else ("", "", "")
        group = (
            group_of("backbone", inner, 2, optimizer.options)
            if name.startswith("backbone")
            else group_of(".".join(name.split(".")[:2]), ".".join(name.split(".")[2:]), 2, optimizer.options)
        )
        del part
        lr, decay = rates["lr"] * group.lr, rates["weight_decay"] * group.weight_decay
        g = gradients[name]
        expected = before[name] * (1 - lr * decay) - lr * g / (g.abs() + optimizer.options.epsilon)
        torch.testing.assert_close(weight.detach(), expected, rtol=1e-9, atol=1e-12, msg=name)


def test_frozen_prototypes_do_not_move() -> None:
    optimizer, before, _ = stepped(2, freeze_prototypes=0.5)
    after = dict(optimizer.network.named_parameters())
    frozen = [name for name in before if "last_layer" in name]
    assert frozen
    assert all(torch.equal(after[name], before[name]) for name in frozen)
    assert not torch.equal(after["backbone.cls_token"], before["backbone.cls_token"])


def test_clip_is_by_part() -> None:
    learner = tiny_learner(tiny_recipe())
    optimizer = Optimizer(learner.student, options(clip=0.01), global_batch=8, total_steps=6)
    learner.train().accumulate([random_pictures()], [(0, 8)], 8, 3)
    norms = optimizer.clip()
    assert list(norms) == ["backbone", "heads.dino", "heads.ibot"]
    for part, module in learner.student.parts().items():
        squares = sum(float(p.grad.square().sum()) for p in module.parameters() if p.grad is not None)
        expected = min(float(norms[part]), 0.01)
        assert math.sqrt(squares) == pytest.approx(expected, rel=1e-3), part


def test_clip_is_by_tensor() -> None:
    """g min(1, c / (|g| + 1e-6)) of each one (reference.md 4.3); the parts' norms are told all the same."""
    learner, found, norms = clipped(None)
    for name, p in learner.student.named_parameters():
        scale = min(1.0, 0.05 / (float(gradient(name, p).norm()) + 1e-6))
        torch.testing.assert_close(found[name], gradient(name, p) * scale, rtol=1e-12, atol=0)
    assert float(norms["backbone"]) > 0.05


@pytest.mark.gloo
def test_clip_by_tensor_is_the_same_on_shards() -> None:
    _, whole, _ = clipped(None)
    for found in run_ranks(2, lambda group: clipped(group)[1]):
        for name, expected in whole.items():
            torch.testing.assert_close(found[name], expected, rtol=1e-6, atol=1e-9, msg=name)


def gradient(name: str, p: torch.Tensor) -> torch.Tensor:
    return torch.randn(p.shape, dtype=torch.float64, generator=torch_generator(0, name)) * (
        0.1 if "norm" in name else 1e-3
    )


def clipped(group: ProcessGroup | None) -> tuple[Learner, dict[str, torch.Tensor], dict[str, torch.Tensor]]:
    """Gradients after clipping by tensor, sharded where there is a group."""
    recipe = tiny_recipe("optimizer.clip=0.05", "optimizer.clip_each=tensor")
    mesh = None if group is None else init_device_mesh("cpu", (2,))
    learner = build_learner(recipe, Execution(device=torch.device("cpu"), precision="fp64", mesh=mesh), group)
    for name, p in learner.student.named_parameters():
        whole = gradient(name, p)
        p.grad = distribute_tensor(whole, p.device_mesh, p.placements) if isinstance(p, DTensor) else whole
    norms = Optimizer(learner.student, recipe.optimizer, global_batch=8, total_steps=6).clip()
    found = {n: p.grad for n, p in learner.student.named_parameters()}
    return learner, {n: g.full_tensor() if isinstance(g, DTensor) else g for n, g in found.items()}, norms
