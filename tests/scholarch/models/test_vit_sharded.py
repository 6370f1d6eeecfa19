"""The backbone under FSDP2: shares of a global batch on two ranks equal one process."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from gloo import run_ranks
from model_helpers import pictures, tiny_vit
from scholarch.draws import Draws
from scholarch.models.features import Views
from scholarch.models.rope import RopeOptions, Rotation
from torch.distributed import ProcessGroup
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import MixedPrecisionPolicy, fully_shard
from torch.distributed.tensor import DTensor

OPTIONS = {"stochastic_depth": 0.8, "rope": RopeOptions(rescale=2.0), "untie_global_and_local_cls_norm": True}
DRAWS = Draws(1, 2)
ROWS = [[0, 1, 2, 3, 4], [5]]  # of 6 global rows one is kept by a branch: a rank has none


def gradients(group: ProcessGroup | None, checkpoint: str) -> dict[str, np.ndarray]:
    model = tiny_vit(**OPTIONS).train()
    rows = list(range(6))
    if group is not None:
        mesh = init_device_mesh("cpu", (2,))
        for block in model.blocks:
            block.checkpoint = checkpoint  # type: ignore[assignment]
            fully_shard(block, mesh=mesh).set_gradient_divide_factor(1.0)
        fully_shard(model, mesh=mesh).set_gradient_divide_factor(1.0)
        rows = ROWS[group.rank()]
    index = torch.tensor(rows)
    views = [
        Views(pictures(6)[rows], rows=index, total=6),
        Views(pictures(6, 8, 8)[rows], rows=index, total=6, name="local", local=True),
    ]
    loss = sum(features.patches.square().sum() + features.cls.sum() for features in model(views, DRAWS))
    loss.backward()  # type: ignore[union-attr]
    return {
        name: (p.grad.full_tensor() if isinstance(p.grad, DTensor) else p.grad).numpy()
        for name, p in model.named_parameters()
        if p.grad is not None
    }


@pytest.mark.gloo
@pytest.mark.parametrize("checkpoint", ["none", "selective", "full"])
def test_two_ranks_equal_one(checkpoint: str) -> None:
    expected = gradients(None, "none")
    for found in run_ranks(2, gradients, checkpoint):
        assert found.keys() == expected.keys()
        for name, gradient in expected.items():
            np.testing.assert_allclose(found[name], gradient, rtol=1e-9, atol=1e-9, err_msg=name)


def rotation_dtypes(group: ProcessGroup) -> set[tuple[torch.dtype, torch.dtype]]:
    del group
    model = tiny_vit(**OPTIONS).float().train()
    seen = set()
    inner = Rotation.__call__

    def watched(self: Rotation, x: torch.Tensor) -> torch.Tensor:
        seen.add((self.sin.dtype, x.dtype))
        return inner(self, x)

    Rotation.__call__ = watched  # type: ignore[method-assign]
    policy = MixedPrecisionPolicy(param_dtype=torch.bfloat16, reduce_dtype=torch.float32)
    mesh = init_device_mesh("cpu", (2,))
    for block in model.blocks:
        fully_shard(block, mesh=mesh, mp_policy=policy)
    fully_shard(model, mesh=mesh, mp_policy=policy)
    (features,) = model([Views(pictures(2).float())], DRAWS)
    features.patches.sum().backward()
    assert features.patches.dtype == torch.bfloat16
    return seen


@pytest.mark.gloo
def test_rotation_stays_float32_in_bf16() -> None:
    for seen in run_ranks(2, rotation_dtypes):
        assert seen == {(torch.float32, torch.bfloat16)}
