from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from model_helpers import pictures, tiny_vit
from scholarch.draws import Draws
from scholarch.models.features import Views
from scholarch.models.packing import Packing
from scholarch.models.stochastic_depth import block_rates, decide

DRAWS = Draws(3, 5)


def views(images: torch.Tensor, rows: list[int], total: int) -> Views:
    return Views(images[rows], rows=torch.tensor(rows, dtype=torch.int64), total=total)


@pytest.mark.parametrize("draw", ["subset", "sample"])
@pytest.mark.parametrize("parts", [[[0, 1, 2, 3], [4, 5, 6]], [[6, 1], [0], [5, 2, 3, 4], []]])
def test_spread_over_processes_changes_nothing(draw: Any, parts: list[list[int]]) -> None:
    model = tiny_vit(stochastic_depth=0.5, stochastic_depth_draw=draw).train()
    images = pictures(7)
    whole = model([Views(images)], DRAWS)[0].patches
    whole.square().sum().backward()
    gradients = {name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None}
    model.zero_grad()
    for rows in parts:
        part = model([views(images, rows, 7)], DRAWS)[0].patches
        torch.testing.assert_close(part, whole[rows])
        part.square().sum().backward()
    for name, parameter in model.named_parameters():
        torch.testing.assert_close(parameter.grad, gradients[name])


def test_kept_rows_and_scale() -> None:
    model = tiny_vit(stochastic_depth=0.4, depth=1).train()
    images = pictures(5)
    found = model([Views(images)], DRAWS)[0].prenorm
    (block,) = model.blocks
    tokens, rotations = model._prepare(Views(images), DRAWS)
    packing = Packing.of([tokens[:1]])
    keep, scale = 3, 5 / 3  # max(int(5 * 0.6), 1) rows
    for branch in ("attention", "ffn"):
        kept = DRAWS.subset(5, keep, "stochastic depth", "global", 0, branch)
        assert len(kept) == keep
        after = tokens.clone()
        for row in kept.tolist():
            one = tokens[row : row + 1]
            if branch == "attention":
                added = block.ls1(block.attn(block.norm1(one[0]), packing, rotations))  # type: ignore[operator]
            else:
                added = block.ls2(block.mlp(block.norm2(one[0])))  # type: ignore[operator]
            after[row] += scale * added
        tokens = after
    torch.testing.assert_close(found, tokens)


def test_at_least_one_row_is_kept() -> None:
    (kept,) = decide(Views(pictures(3)), DRAWS, [0.9], ("a",), "subset")
    assert kept.scale == 3
    (rows,) = kept.rows
    assert rows is not None
    assert len(rows) == 1


def test_process_without_kept_rows_still_gives_gradients() -> None:
    model = tiny_vit(stochastic_depth=0.9, depth=1).train()
    images = pictures(20)
    keep = {
        branch: set(DRAWS.subset(20, 2, "stochastic depth", "global", 0, branch).tolist())
        for branch in ("attention", "ffn")
    }
    dropped = [row for row in range(20) if row not in keep["attention"] | keep["ffn"]][:3]
    model([views(images, dropped, 20)], DRAWS)[0].patches.sum().backward()
    for name, parameter in model.blocks[0].named_parameters():
        assert parameter.grad is not None, name
        assert not parameter.grad.any(), name
    assert model.patch_embed.proj.weight.grad is not None
    assert model.patch_embed.proj.weight.grad.any()


def test_groups_blocks_and_branches_draw_apart() -> None:
    images = pictures(40)
    kept = [
        tuple(rows.tolist())
        for name in ("global", "local")
        for block in decide(Views(images, name=name), DRAWS, [0.5, 0.5], ("attention", "ffn"), "subset")
        for rows in block.rows
        if rows is not None
    ]
    assert len(set(kept)) == 8
    again = decide(Views(images), Draws(3, 6), [0.5], ("attention",), "subset")[0].rows[0]
    assert again is not None
    assert tuple(again.tolist()) not in kept


def test_sample_form_has_the_right_mean() -> None:
    kept = decide(Views(torch.empty(10_000, 1, 1, 1)), DRAWS, [0.25], ("a",), "sample")[0]
    (rows,) = kept.rows
    assert rows is not None
    assert kept.scale == pytest.approx(4 / 3)
    assert abs(len(rows) - 7500) < 4 * np.sqrt(10_000 * 0.25 * 0.75)


def test_rates() -> None:
    assert block_rates(0.3, "constant", 3) == [0.3, 0.3, 0.3]
    assert block_rates(0.1, "linear", 3) == pytest.approx([0, 0.05, 0.1])
    assert block_rates(0.1, "linear", 1) == [0]
    first, last = decide(Views(pictures(4)), DRAWS, [0.0, 0.5], ("a",), "subset")
    assert first == ((None,), 1.0)
    assert last.scale == 2


def test_not_in_evaluation_and_not_without_draws() -> None:
    model = tiny_vit(stochastic_depth=0.5)
    plain = tiny_vit()
    images = pictures(4)
    assert torch.equal(model([Views(images)])[0].cls, plain([Views(images)])[0].cls)
    with pytest.raises(ValueError, match="draws"):
        model.train()([Views(images)])


def test_compiled_blocks_with_changing_subsets() -> None:
    model, plain = (tiny_vit(stochastic_depth=0.5).train() for _ in range(2))
    for block in model.blocks:
        block.compile(backend="eager")
    images = pictures(6)
    for step in range(4):
        rows = list(range(step, 6))
        draws = Draws(0, step)
        found = model([views(images, rows, 6)], draws)[0].patches
        torch.testing.assert_close(found, plain([views(images, rows, 6)], draws)[0].patches)
