"""Features of a locked backbone, computed once: the same training, whoever computed them, whatever ended it."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from gloo import run_ranks
from scholarch.cli import main
from scholarch.config.schema import Recipe
from scholarch.data.catalog import open_source
from scholarch.data.index import MANIFEST
from scholarch.data.kept_features import KeptFeatures
from scholarch.data.manifest import read_manifest
from scholarch.data.source import BrokenPicture, captions
from scholarch.data.split import Subset
from scholarch.data.tokenizer import Tokenizer
from scholarch.errors import RunFailed, UserError
from scholarch.models.alignment import AlignedBackbone
from scholarch.models.convnext import ConvNeXtOptions
from scholarch.storage.objects import open_objects
from scholarch.training import autos, kept_features
from scholarch.training.assemble import Loading, build_trainer
from scholarch.training.preflight import check_batch
from scholarch.training.recipe import load_recipe
from scholarch.training.trainer import Trainer
from tiny_training import Kept, gloo_world
from torch import Tensor
from torch.distributed import ProcessGroup

PICTURES, BROKEN, EACH = 40, 7, 6
"""In all; the number of one that cannot be read; in a shard: 7 shards, the last one shorter."""
FIXED = ("views.global.scale=[1,1]", "views.global.ratio=[1,1]", "views.global.flip=0")
CONVNEXT = ConvNeXtOptions(depths=(1, 1, 1, 1), widths=(4, 8, 12, 16))


class Damaged(Subset):
    """Shapes, one of which is broken; closed, none may be read."""

    closed = False

    def read(self, index: int) -> Tensor:
        assert not self.closed
        if index == BROKEN:
            raise BrokenPicture(self.name(index), "damaged")
        return super().read(index)


class Told(Kept):
    """An observer that expects warnings."""

    def warned(self, message: str) -> None:
        assert "left out" in message


def begun(
    group: ProcessGroup | None, folder: Path, *overrides: str, vision: ConvNeXtOptions | None = None
) -> tuple[Trainer, Recipe, Damaged, Told]:
    """A trainer at its start, on few pictures."""
    world, source = gloo_world(group), Damaged(open_source("shapes", "none"), np.arange(PICTURES))
    small = ("data=shapes", "training.steps=6", "training.precision=fp64", "evaluation.every=6", *FIXED)
    recipe = load_recipe("dinov3/text", (*small, *overrides), "tiny")
    if vision is not None:
        recipe = recipe.model_copy(update={"model": replace(recipe.model, vision=vision)})
    tokenizer = Tokenizer.learned(
        [text for i in range(PICTURES) for text in captions(source, i)], recipe.model.text.vocabulary
    )
    look = autos.look_at(recipe, source)
    recipe = autos.resolve(recipe, look, world_size=world.size, local_size=world.size)
    layout, told = check_batch(recipe, world.size), Told()
    trainer = build_trainer(recipe, source, layout, world, folder, [told], tokenizer)
    trainer.begin()
    return trainer, recipe, source, told


def keep(trainer: Trainer, recipe: Recipe, source: Damaged) -> KeptFeatures:
    """Shards of EACH pictures."""
    backbone = trainer.learner.student.backbone
    assert isinstance(backbone, AlignedBackbone)
    tokens = backbone.locked_count(recipe.views["global"].size)
    kept_features.SHARD_BYTES = EACH * tokens * backbone.vision.width * 8
    kept_features.BATCH = 4  # two passes for a shard, one for the last
    return kept_features.keep_features(recipe, source, backbone, trainer.world, lambda _: None)


def curve(
    group: ProcessGroup | None, folder: Path, address: str, vision: ConvNeXtOptions | None
) -> list[float]:
    """Losses of a run; with an address, from kept features."""
    more = (f"data.features={address}",) if address else ()
    if vision is not None:
        more = (*more, "views.global.size=64")
    trainer, recipe, source, told = begun(group, folder, *more, vision=vision)
    if address:
        kept = keep(trainer, recipe, source)
        loading = trainer.loader
        assert isinstance(loading, Loading)
        loading.dataset.read_features(kept)
        source.closed = True
    trainer.run()
    return [record["loss/total"] for record in told.records if "loss/total" in record]


@pytest.mark.gloo
@pytest.mark.parametrize(("vision", "writers"), [(None, 1), (CONVNEXT, 2)], ids=["vit", "convnext"])
def test_a_run_from_kept_features_is_the_run_from_pictures(
    tmp_path: Path, vision: ConvNeXtOptions | None, writers: int
) -> None:
    plain = run_ranks(1, curve, tmp_path / "plain", "", vision)[0]
    assert len(plain) == 6
    where = str(tmp_path / "features")
    kept = run_ranks(writers, curve, tmp_path / "kept", where, vision)[0]
    assert kept == pytest.approx(plain, rel=1e-9)
    again = run_ranks(3 - writers, curve, tmp_path / "again", where, vision)[0]
    assert again == pytest.approx(plain, rel=1e-9)  # computed by others, and read


@pytest.mark.gloo
@pytest.mark.service
def test_in_a_store_what_is_there_is_not_computed_again(
    bucket: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("SCHOLARCH_CACHE", str(tmp_path / "cache"))
    address = f"{bucket}/features"

    def work(group: ProcessGroup, stop_after: int | None, *overrides: str) -> tuple[list[int], str]:
        trainer, recipe, source, _ = begun(group, tmp_path / "run", f"data.features={address}", *overrides)
        made: list[int] = []
        honest = kept_features.pack_shard

        def counted(job: Any, number: int) -> Any:
            if len(made) == stop_after:
                raise InterruptedError
            made.append(number)
            return honest(job, number)

        kept_features.pack_shard = counted
        try:
            kept = keep(trainer, recipe, source)
        except InterruptedError:
            return made, ""
        for number in (0, EACH, PICTURES - 1):
            look = trainer.loader.dataset.cuts[0].crops  # type: ignore[attr-defined]
            picture = look(source.read(number), 1, 2, 3)["global"].double()
            expected = trainer.learner.student.backbone.locked_tokens(picture)[0]  # type: ignore[operator]
            torch.testing.assert_close(kept.read(number), expected)
        with pytest.raises(BrokenPicture, match="could not be read"):
            kept.read(BROKEN)
        return made, kept.shards.objects.address

    assert run_ranks(1, work, 3)[0] == ([0, 1, 2], "")
    made, where = run_ranks(1, work, None)[0]
    assert made == [3, 4, 5, 6]
    manifest = read_manifest(open_objects(where))
    assert manifest is not None
    assert manifest.broken == (f"shapes/{BROKEN:05d}: damaged",)
    assert run_ranks(1, work, None)[0] == ([], where)
    # Another backbone has a place of its own.
    made, other = run_ranks(1, work, None, "seed=5")[0]
    assert len(made) == 7
    assert other != where
    with pytest.raises(UserError, match="holds features"):
        open_source(where)
    objects = open_objects(other)
    shard = bytearray(objects.read("shard-000001.tar"))
    shard[len(shard) // 2] ^= 1
    objects.write("shard-000001.tar", bytes(shard))
    kept = KeptFeatures(objects, "global")
    with pytest.raises(UserError, match="is not what was packed"):
        [kept.read(number) for number in range(EACH, 2 * EACH) if number != BROKEN]


def lose_one(group: ProcessGroup | None, folder: Path, address: str) -> str:
    """What is said where the first shard is gone when the manifest is to be written."""
    trainer, recipe, source, _ = begun(group, folder, f"data.features={address}")
    found = kept_features.finished_shards
    kept_features.finished_shards = lambda job: dict([*found(job).items()][1:])
    with pytest.raises(RunFailed) as failed:
        keep(trainer, recipe, source)
    return str(failed.value)


@pytest.mark.gloo
def test_a_shard_that_got_lost_leaves_no_manifest(tmp_path: Path) -> None:
    """Numbers would no longer be those of the pictures."""
    (said,) = run_ranks(1, lose_one, tmp_path / "run", str(tmp_path / "features"))
    assert "lost shards" in said
    assert not list((tmp_path / "features").rglob(MANIFEST))


@pytest.mark.parametrize(
    ("verb", "overrides", "told"),
    [
        ("align", (), "cut or changed anew in every step"),
        ("align", ("views.global.scale=[1,1]", "views.global.ratio=[1,1]"), "cut or changed anew"),
        ("align", (*FIXED, "views.global.count=2"), "cut or changed anew"),
        ("pretrain", ("data=digits",), "is trained, and its features change"),
    ],
)
def test_what_is_not_the_same_in_every_step_is_refused(
    verb: str,
    overrides: tuple[str, ...],
    told: str,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    run = tmp_path / "run"
    where = f"data.features={tmp_path / 'features'}"
    assert main([verb, "--scale", "tiny", "--run", str(run), *overrides, where]) == 2
    assert told in capsys.readouterr().err
    assert not run.exists()
    assert not (tmp_path / "features").exists()


def test_the_command_computes_first_and_goes_on_from_what_is_there(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    where, small = tmp_path / "features", ["training.steps=2", "evaluation.every=2", *FIXED]
    for number in (1, 2):
        run = ["align", "--scale", "tiny", "--run", str(tmp_path / f"run-{number}"), *small]
        assert main([*run, f"data.features={where}"]) == 0
        told = capsys.readouterr().err
        assert ("are computed first" in told) == (number == 1)
        assert ("are in" in told) == (number == 2)
    assert [path.name for path in where.rglob(MANIFEST)] == [MANIFEST]
