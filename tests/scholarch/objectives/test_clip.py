import math
from typing import Any

import numpy as np
import pytest
import torch
from gloo import run_ranks
from scholarch.collectives import world_size
from scholarch.config.views import CAPTION
from scholarch.objectives import clip
from scholarch.objectives.clip import Clip, ClipOptions, contrast
from scholarch.objectives.term import Output
from terms import Case, make_share, random
from torch import Tensor
from torch.distributed import ProcessGroup
from torch.utils._python_dispatch import TorchDispatchMode

CLS, PATCHES = Output("global", "cls"), Output("global", "patches")
TEXT, SCALE = Output(CAPTION, "cls"), Output(CAPTION, "scale")


def outputs(batch: int, views: int = 1) -> dict[Output, Tensor]:
    return {
        CLS: random(views, batch, 3, seed=1),
        PATCHES: random(views, batch, 4, 3, seed=2),
        TEXT: random(1, batch, 6, seed=3),
    }


def slow(pictures: np.ndarray, texts: np.ndarray, scale: float) -> float:
    """The full matrix, row by row and column by column."""
    logits = scale * pictures @ texts.T
    total = 0.0
    for i in range(len(logits)):
        total -= logits[i, i] - math.log(sum(math.exp(x) for x in logits[i]))
        total -= logits[i, i] - math.log(sum(math.exp(x) for x in logits[:, i]))
    return total / (2 * len(logits))


def full_matrix(given: dict[Output, Tensor], scale: Tensor) -> Tensor:
    """The mean over views, by torch's own cross-entropy."""
    values = []
    for cls, patches in zip(given[CLS], given[PATCHES], strict=True):
        pictures = torch.cat([cls, patches.mean(dim=1)], dim=1)
        a, b = pictures / pictures.norm(dim=1, keepdim=True), given[TEXT][0]
        logits = scale * a @ (b / b.norm(dim=1, keepdim=True)).T
        own = torch.arange(len(logits))
        both = torch.nn.functional.cross_entropy(logits, own) + torch.nn.functional.cross_entropy(
            logits.T, own
        )
        values.append(both / 2)
    return torch.stack(values).mean()


def on_rank(group: ProcessGroup | None, given: dict[Output, Tensor], log_scale: float) -> list[Tensor]:
    """Value, and gradients of the dense tensors and of the logarithm of the scale."""
    batch = given[CLS].shape[1]
    case = Case(term=lambda: Clip(ClipOptions(), "clip"), student=given, teachers=[{}], global_batch=batch)
    share = make_share(case, 0, group, 0, 1)
    leaves = [given[output].clone().requires_grad_() for output in (CLS, PATCHES, TEXT)]
    scale = torch.tensor(log_scale, dtype=torch.float64, requires_grad=True)
    shown = dict(zip((CLS, PATCHES, TEXT), (leaf[:, share.positions] for leaf in leaves), strict=True))
    value = case.term()({**shown, SCALE: scale.exp()}, None, share).parts[""]
    value.backward()
    gradients = [leaf.grad for leaf in (*leaves, scale)]
    assert all(gradient is not None for gradient in gradients)
    return [value.detach(), *(g for g in gradients if g is not None)]


@pytest.mark.parametrize("views", [1, 2])
def test_value_and_gradients_of_the_full_matrix(views: int) -> None:
    given = outputs(7, views)
    found = on_rank(None, given, 1.3)
    leaves = {output: x.clone().requires_grad_() for output, x in given.items()}
    log_scale = torch.tensor(1.3, dtype=torch.float64, requires_grad=True)
    value = full_matrix(leaves, log_scale.exp())
    value.backward()
    expected = [value.detach(), *(leaves[o].grad for o in (CLS, PATCHES, TEXT)), log_scale.grad]
    for a, b in zip(found, expected, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-9, atol=1e-12)


def test_value_against_a_loop() -> None:
    given = outputs(5)
    pictures = np.concatenate([given[CLS][0].numpy(), given[PATCHES][0].numpy().mean(axis=1)], axis=1)
    pictures /= np.linalg.norm(pictures, axis=1, keepdims=True)
    texts = given[TEXT][0].numpy()
    texts /= np.linalg.norm(texts, axis=1, keepdims=True)
    assert on_rank(None, given, 2.0)[0].item() == pytest.approx(
        slow(pictures, texts, math.exp(2.0)), rel=1e-12
    )


@pytest.mark.gloo
@pytest.mark.parametrize(("world", "batch"), [(2, 7), (4, 6), (4, 8)])
def test_ranks_with_uneven_shares_give_the_full_matrix(world: int, batch: int) -> None:
    given = outputs(batch)
    whole = on_rank(None, given, 1.1)
    results = run_ranks(world, on_rank, given, 1.1)
    for number, expected in enumerate(whole):
        found = torch.stack([result[number] for result in results]).sum(dim=0)
        torch.testing.assert_close(found, expected, rtol=1e-9, atol=1e-12)


def test_rows_in_slices_are_the_same(monkeypatch: pytest.MonkeyPatch) -> None:
    given = outputs(7)
    whole = on_rank(None, given, 1.0)
    monkeypatch.setattr(clip, "ROWS", 3)
    for a, b in zip(on_rank(None, given, 1.0), whole, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-12, atol=1e-14)


def test_large_scales_stay_finite_in_float32_and_bf16_is_compared_in_float32() -> None:
    given = {output: x.bfloat16() for output, x in outputs(6).items()}
    share = make_share(
        Case(term=lambda: Clip(ClipOptions(), "clip"), student=given, teachers=[{}], global_batch=6),
        0,
        None,
        0,
        1,
    )
    leaf = given[TEXT].clone().requires_grad_()
    term = Clip(ClipOptions(), "clip")
    value = term({**given, TEXT: leaf, SCALE: torch.tensor(100.0)}, None, share).parts[""]
    value.backward()
    assert value.dtype == torch.float32
    assert torch.isfinite(value)
    assert leaf.grad is not None
    assert torch.isfinite(leaf.grad).all()


def test_gradient_accumulation_is_refused() -> None:
    given = outputs(6)
    case = Case(term=lambda: Clip(ClipOptions(), "clip"), student=given, teachers=[{}], global_batch=6)
    share = make_share(case, 0, None, 0, 2)
    shown = {output: x[:, share.positions] for output, x in given.items()}
    with pytest.raises(ValueError, match="no gradient accumulation"):
        case.term()({**shown, SCALE: torch.tensor(1.0)}, None, share)
    assert case.term().group_size(6) == 6


class Largest(TorchDispatchMode):
    """The most elements of any tensor that an operation makes."""

    def __init__(self) -> None:
        super().__init__()
        self.elements = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        made = func(*args, **(kwargs or {}))
        if isinstance(made, Tensor):
            self.elements = max(self.elements, made.numel())
        return made


def largest(group: ProcessGroup | None, each: int) -> int:
    """Both passes with `each` rows of width 8 on every rank."""
    pictures, texts = (torch.nn.functional.normalize(random(each, 8, seed=s), dim=1) for s in (1, 2))
    scale = torch.tensor(10.0, dtype=torch.float64, requires_grad=True)
    with Largest() as seen:
        counts = [each] * world_size(group)
        contrast(pictures.requires_grad_(), texts.requires_grad_(), scale, group, counts).backward()
    return seen.elements


@pytest.mark.gloo
def test_memory_of_a_rank_does_not_grow_with_the_world(monkeypatch: pytest.MonkeyPatch) -> None:
    """Measured: no tensor is larger on 4 ranks than on one, and twice the rows take twice as much."""
    one = largest(None, 64)
    assert one == 64 * 64
    for world in (2, 4):
        assert run_ranks(world, largest, 64) == [one] * world
    monkeypatch.setattr(clip, "ROWS", 16)  # as rows beyond ROWS are
    assert largest(None, 128) == 2 * largest(None, 64)
