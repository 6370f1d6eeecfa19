"""The count of operations against torch's counter, which sees the products that are really run."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest
import torch
from scholarch.config.schema import Recipe
from scholarch.training.assemble import build_learner
from scholarch.training.networks import Execution
from torch.utils.flop_counter import FlopCounterMode

BENCHMARKS = Path(__file__).parents[2] / "benchmarks"
TINY = {"embed_dim": 24, "depth": 2, "heads": 2, "batch": 4, "global_size": 56, "local_size": 28}


@pytest.fixture
def parts(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(str(BENCHMARKS / "parts"))


@pytest.mark.parametrize("ffn", ["mlp", "swiglu"])
def test_operations_of_a_step(parts: None, ffn: str) -> None:
    del parts
    import flops
    import memory
    import our_step

    settings = TINY | {"local_crops": 3, "prototypes": 16, "stochastic_depth": 0.5}
    recipe: Recipe = our_step.recipe_for(settings)
    recipe = recipe.model_copy(update={"model": type(recipe.model)(**{**vars(recipe.model), "ffn": ffn})})
    learner = build_learner(recipe, Execution(device=torch.device("cpu")), None).train()
    (batch,) = memory.batches(recipe, count=1)
    with FlopCounterMode(display=False) as counter:
        learner.accumulate([batch], [(0, 4)], 4, step=0)
    seen = counter.get_total_flops()
    # Left out in flops.py: products of the terms (Sinkhorn-Knopp's, KoLeo's distances, cross-entropies).
    expected = flops.step(recipe, 4, float(len(batch.places["global"])))["total"]
    assert expected == pytest.approx(seen, rel=0.06)


def test_without_a_gpu_it_says_so() -> None:
    if torch.cuda.is_available():
        pytest.skip("there is a GPU")
    done = subprocess.run(
        [sys.executable, str(BENCHMARKS / "gpu.py")], capture_output=True, text=True, check=True, timeout=120
    )
    assert done.stdout.strip() == "benchmarks/gpu.py: there is no CUDA GPU here, nothing is measured"
