import json
import shutil
from pathlib import Path

import pytest
import torch
from gloo import run_ranks
from scholarch.errors import UserError
from scholarch.training.checkpoint import backbone_weights, committed, newest_whole
from scholarch.training.networks import whole_state
from tiny_training import gloo_world, tiny_recipe, tiny_trainer, train
from torch.distributed import ProcessGroup

SHORT = ("training.workers=0", "training.checkpoint_every=2")
Losses = dict[int, float]


def trained(group: ProcessGroup, folder: Path, *overrides: str) -> Losses:
    records = train(gloo_world(group), folder, (*SHORT, *overrides))
    return {int(r["step"]): r["loss/total"] for r in records if "loss/total" in r}


@pytest.fixture(scope="module")
def whole_run(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Losses]:
    """Six steps in fp64 on one process, with checkpoints after 2, 4 and 6."""
    folder = tmp_path_factory.mktemp("checkpoints")
    return folder, run_ranks(1, trained, folder, "training.precision=fp64")[0]


def copied(source: Path, target: Path, up_to: int) -> Path:
    """The checkpoints of at most `up_to` finished steps."""
    target.mkdir()
    for checkpoint in committed(source):
        if checkpoint.step <= up_to:
            name = Path(checkpoint.address).name
            shutil.copytree(checkpoint.address, target / name)
    return target


def test_checkpoints_are_named_by_finished_steps(whole_run: tuple[Path, Losses]) -> None:
    folder, _ = whole_run
    assert [checkpoint.step for checkpoint in committed(folder)] == [2, 4, 6]
    manifest = committed(folder)[0].manifest()
    assert manifest["step"] == 2
    assert set(manifest["files"]) == {".metadata", "__0_0.distcp"}
    assert (folder / "LATEST").read_text() == "step-000000006\n"


def test_resumed_run_is_bit_equal(whole_run: tuple[Path, Losses], tmp_path: Path) -> None:
    folder, losses = whole_run
    again = run_ranks(1, trained, copied(folder, tmp_path / "c", 4), "training.precision=fp64")[0]
    assert again == {step: losses[step] for step in (5, 6)}


@pytest.mark.gloo
def test_loads_at_another_number_of_processes(whole_run: tuple[Path, Losses], tmp_path: Path) -> None:
    """Optimizer, teachers and student are resharded: the losses go on within rounding."""
    folder, losses = whole_run
    again = run_ranks(2, trained, copied(folder, tmp_path / "c", 2), "training.precision=fp64")[0]
    assert sorted(again) == [3, 4, 5, 6]
    for step, loss in again.items():
        assert loss == pytest.approx(losses[step], rel=1e-12)


def test_only_the_newest_are_kept(tmp_path: Path) -> None:
    run_ranks(1, trained, tmp_path, "training.keep_checkpoints=2")
    assert [checkpoint.step for checkpoint in committed(tmp_path)] == [4, 6]


def test_what_is_partial_does_not_exist(whole_run: tuple[Path, Losses], tmp_path: Path) -> None:
    """What has no manifest is no checkpoint."""
    folder = copied(whole_run[0], tmp_path / "c", 4)
    newest = committed(folder)[-1]
    (Path(newest.address) / "manifest.json").unlink()
    assert [checkpoint.step for checkpoint in committed(folder)] == [2]
    (Path(committed(folder)[0].address) / "manifest.json").unlink()
    assert committed(folder) == []
    assert newest_whole(folder) is None


@pytest.mark.parametrize("harm", ["cut", "flip", "remove"])
def test_a_damaged_checkpoint_is_passed_over(
    whole_run: tuple[Path, Losses], tmp_path: Path, harm: str
) -> None:
    folder = copied(whole_run[0], tmp_path / "c", 4)
    shard = Path(committed(folder)[-1].data()) / "__0_0.distcp"
    data = bytearray(shard.read_bytes())
    if harm == "cut":
        shard.write_bytes(data[:-1])
    elif harm == "flip":
        data[100] ^= 1
        shard.write_bytes(data)
    else:
        shard.unlink()
    told: list[str] = []
    found = newest_whole(folder, told.append)
    assert found is not None
    assert found.step == 2
    assert len(told) == 1
    assert "__0_0.distcp" in told[0]


def test_another_architecture_is_refused_with_the_list(
    whole_run: tuple[Path, Losses], tmp_path: Path
) -> None:
    newest = committed(whole_run[0])[-1]
    options = tiny_recipe("model.embed_dim=48", "model.registers=0").model
    with pytest.raises(UserError) as caught:
        backbone_weights(newest, options, "teachers.ema")
    text = str(caught.value)
    assert "extra: learner.teachers.ema.backbone.storage_tokens" in text
    assert "shape of learner.teachers.ema.backbone.cls_token: [1, 1, 24], not [1, 1, 48]" in text
    with pytest.raises(AssertionError, match="another architecture than the recipe"):
        run_ranks(1, trained, copied(whole_run[0], tmp_path / "c", 4), "model.depth=3")


def test_teacher_weights_are_those_of_the_trainer(tmp_path: Path) -> None:
    def both(group: ProcessGroup) -> bool:
        trainer, recipe = tiny_trainer(gloo_world(group), tmp_path, tiny_recipe(*SHORT))
        trainer.run()
        found = backbone_weights(committed(tmp_path)[-1], recipe.model, "teachers.ema")
        held = whole_state(trainer.learner.teachers["ema"].backbone)
        return all(
            torch.equal(found[name], held[name])
            for name in found
            if "bias_mask" not in name and "periods" not in name
        )

    assert run_ranks(1, both) == [True]


def test_manifest_is_written_last(tmp_path: Path) -> None:
    """The manifest's list is complete: it names every other file of the checkpoint."""
    run_ranks(1, trained, tmp_path, "training.steps=2")
    path = Path(committed(tmp_path)[-1].address)
    manifest = json.loads((path / "manifest.json").read_text())
    assert {child.name for child in path.iterdir()} == {"manifest.json", manifest["data"]}
    assert {file.name for file in (path / manifest["data"]).iterdir()} == set(manifest["files"])
