"""High-resolution adaptation: sizes of crops drawn for each step, with a Gram teacher on its own crops."""

from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
import pytest
import torch
from gloo import run_ranks
from scholarch.data.catalog import open_source
from scholarch.data.stream import SampleStream
from scholarch.data.views import IMAGENET_MEAN, IMAGENET_STD
from scholarch.draws import generator
from scholarch.errors import UserError
from scholarch.training.assemble import build_dataset
from scholarch.training.preflight import check_views
from scholarch.training.recipe import load_recipe
from scipy.stats import chi2
from tiny_training import gloo_world, tiny_recipe, train
from torch.distributed import ProcessGroup

HIGHRES = (
    "training.precision=fp64",
    "training.workers=0",
    "evaluation.every=1000",
    "views.global.distortions=none",
    "views.gram={like: global, size: 24, distortions: none}",
    "teachers.gram={weights: snapshot, of: ema, sees: [gram]}",
    "terms.gram={teacher: gram}",
    (
        "resolutions=[{ratio: 0.3, sizes: {global: 16, local: 8, gram: 24}},"
        " {ratio: 0.7, sizes: {global: 24, local: 12, gram: 36}}]"
    ),
)


def on_rank(group: ProcessGroup, folder: Path, overrides: Sequence[str]) -> list[float]:
    records = train(gloo_world(group), folder, (*HIGHRES, *overrides))
    return [r["loss/total"] + r["loss/gram"] for r in records if "loss/total" in r]


@pytest.mark.gloo
def test_same_on_any_number_of_processes(tmp_path: Path) -> None:
    one = run_ranks(1, on_rank, tmp_path / "1", ())[0]
    two = run_ranks(2, on_rank, tmp_path / "2", ("training.micro_batch=2",))[0]
    assert len(one) == 6
    torch.testing.assert_close(torch.tensor(two), torch.tensor(one), rtol=1e-8, atol=0)


def walked(left: float, pairs: Mapping[tuple[int, ...], float]) -> tuple[int, ...]:
    """The slow form: along the ratios until the number drawn is used up."""
    for pair, ratio in pairs.items():
        left -= ratio
        if left < 0:
            return pair
    return list(pairs)[-1]


def test_the_published_pairs_are_drawn_with_their_probabilities() -> None:
    """reference.md section 5.4: sizes, ratios, one draw for each step; the samples do not depend on it."""
    pairs = {(512, 112, 768): 0.3, (768, 112, 1152): 0.3, (768, 168, 1152): 0.3}
    pairs |= {(768, 224, 1152): 0.05, (768, 336, 1152): 0.05}
    recipe = load_recipe("dinov3/vit7b16-highres", ["data.mean=imagenet"])
    section = recipe.data.model_copy(update={"mean": IMAGENET_MEAN, "std": IMAGENET_STD})
    source = open_source("digits")
    dataset = build_dataset(recipe.model_copy(update={"data": section}), source)
    found: Counter[tuple[int, ...]] = Counter()
    for step in range(4000):
        expected = walked(generator(recipe.seed, "step", step, "resolution").random(), pairs)
        views = dataset.cut(step).crops.views
        assert tuple(views[name].size for name in ("global", "local", "gram")) == expected
        found[expected] += 1
    counts = np.array([found[pair] for pair in pairs])
    wanted = 4000 * np.array(list(pairs.values()))
    assert ((counts - wanted) ** 2 / wanted).sum() < chi2.ppf(0.9999, 4)
    plain = SampleStream(len(source), recipe.training.global_batch, recipe.seed)
    np.testing.assert_array_equal(dataset.stream.batch(7), plain.batch(7))


@pytest.mark.parametrize(
    ("sizes", "message"),
    [
        ("{global: 18}", r"resolutions\.0\.sizes\.global: crops of 18 pixels"),
        ("{globl: 16}", "no view 'globl'"),
        ("{local: 2}", "does not fit crops of 2"),
    ],
)
def test_sizes_that_cannot_be_are_refused(sizes: str, message: str) -> None:
    with pytest.raises(UserError, match=message):
        check_views(tiny_recipe(f"resolutions=[{{ratio: 1.0, sizes: {sizes}}}]", "views.local.blur_kernel=5"))
