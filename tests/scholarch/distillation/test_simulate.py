"""A job on numbers of GPUs that are not here."""

from __future__ import annotations

import pytest
from distilling import job_data, job_recipe, resolved
from scholarch.distillation.planner import Cost, Costs
from scholarch.distillation.simulate import doubled, simulated
from scholarch.distillation.traffic import picture_bytes

COSTS = Costs(
    Cost(0.0, 0.1),
    {"small": Cost(0.1, 0.05), "middle": Cost(0.1, 0.1), "large": Cost(0.1, 0.2)},
    together=False,
    source="",
)


def test_numbers_double_up_to_the_last() -> None:
    assert list(doubled(8, 33)) == [8, 16, 32, 33]
    assert list(doubled(8, 8)) == [8]


def test_what_comes_over_the_link_is_counted_picture_by_picture() -> None:
    recipe = job_recipe(job_data("training.global_batch=12", "terms.koleo.group=2"))
    recipes = {name: resolved(recipe, name, 1) for name in COSTS.students}
    found = simulated(recipes, COSTS, 6)
    tiling = found.plan.tiling
    most = 0.0
    for name, size in tiling.sizes.items():
        for place, rank in enumerate(tiling.ranks(name)):
            mine = {p for p in range(12) if 12 * place / size <= p < 12 * (place + 1) / size}
            made_here = set(range(tiling.teacher[rank], tiling.teacher[rank + 1]))
            if 12 % size == 0:
                most = max(most, len(mine - made_here) * picture_bytes(recipes[name]).read)
    assert all(12 % size == 0 for size in tiling.sizes.values()), tiling
    assert found.received == pytest.approx(most)


def test_memory_falls_with_the_share() -> None:
    recipe = job_recipe(job_data("training.global_batch=48", "terms.koleo.group=2"))
    recipes = {name: resolved(recipe, name, 1) for name in COSTS.students}
    few, many = (simulated(recipes, COSTS, gpus).memory for gpus in (3, 12))
    assert few is not None
    assert many is not None
    assert many < few / 2
