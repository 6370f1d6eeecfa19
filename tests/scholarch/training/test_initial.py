"""What a run begins from: another run, a released file, frozen teachers."""

import json
from collections.abc import Sequence
from pathlib import Path

import pytest
import torch
from gloo import run_ranks
from safetensors.torch import save_file
from scholarch.config.load import plain
from scholarch.data.catalog import open_source
from scholarch.errors import UserError
from scholarch.models.positions import resample
from scholarch.models.weights import export_backbone, training_export
from scholarch.training import autos
from scholarch.training.assemble import build_networks, build_terms, build_trainer
from scholarch.training.checkpoint import newest_whole, saved_shapes
from scholarch.training.learner import Learner
from scholarch.training.networks import whole_state
from scholarch.training.optimizer import Optimizer
from scholarch.training.preflight import check_batch, check_beginning, check_patches
from scholarch.training.recipe import load_recipe
from scholarch.training.trainer import Trainer
from tiny_training import TINY, gloo_world, tiny_learner, tiny_recipe, train
from torch.distributed import ProcessGroup

State = dict[str, torch.Tensor]
FAST = (
    "training.precision=fp64",
    "training.workers=0",
    "training.checkpoint_every=2",
    "training.steps=4",
    "evaluation.every=1000",
    "optimizer.lr=1.0e-3",
    "optimizer.weight_decay=0.04",
    "teachers.ema.momentum=0.9",
    "terms.dino.teacher_temperature=0.05",
    "terms.ibot.teacher_temperature=0.05",
    "optimizer.freeze_prototypes=0",
)
GRAM = (
    "teachers.gram={weights: snapshot, of: ema, sees: [global]}",
    "terms.gram={teacher: gram, teacher_view: global}",
)


def trained_on_rank(group: ProcessGroup, folder: Path, overrides: Sequence[str]) -> list[float]:
    records = train(gloo_world(group), folder, (*FAST, *overrides))
    return [record["loss/total"] for record in records if "loss/total" in record]


def trainer_of(group: ProcessGroup, folder: Path, overrides: Sequence[str]) -> Trainer:
    world, source = gloo_world(group), open_source("digits")
    recipe = load_recipe("demo/digits", (*TINY, *FAST, *overrides))
    recipe = autos.resolve(recipe, autos.look_at(recipe, source), world_size=world.size, local_size=1)
    return build_trainer(recipe, source, check_batch(recipe, world.size), world, folder)


def state_at_start(
    group: ProcessGroup, folder: Path, overrides: Sequence[str], first: bool
) -> tuple[int, State]:
    """The learner's whole state where a run begins, or (not `first`) at its newest checkpoint."""
    trainer = trainer_of(group, folder, overrides)
    start = trainer.begin() if first else trainer.resume(newest_whole(folder))  # type: ignore[arg-type]
    return start, whole_state(trainer.learner)


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run of 4 steps on one process."""
    folder = tmp_path_factory.mktemp("first")
    run_ranks(1, trained_on_rank, folder / "checkpoints", ())
    return folder


def equal(state: State, other: State, name: str, other_name: str) -> bool:
    found = [n for n in state if n.startswith(name)]
    assert found
    return all(torch.equal(state[n], other[other_name + n.removeprefix(name)]) for n in found)


@pytest.mark.gloo
def test_a_run_begins_from_another_one(run: Path, tmp_path: Path) -> None:
    """On 2 processes from 1; a new snapshot teacher begins as the teacher it is of."""
    last = run_ranks(1, state_at_start, run / "checkpoints", (), False)[0][1]
    begin = (*GRAM, f"init_from.checkpoint={run}")
    start, state = run_ranks(2, state_at_start, tmp_path, begin, True)[0]
    assert start == 0
    assert equal(state, last, "student.", "student.")
    assert equal(state, last, "teachers.ema.", "teachers.ema.")
    assert equal(state, last, "teachers.gram.", "teachers.ema.")
    assert not equal(last, last, "teachers.ema.backbone.blocks", "student.backbone.blocks")
    _, state = run_ranks(1, state_at_start, tmp_path, (*begin, "init_from.student=ema"), True)[0]
    assert equal(state, last, "student.backbone.", "teachers.ema.backbone.")
    _, state = run_ranks(1, state_at_start, tmp_path, (*begin, "init_from.what=[backbone]"), True)[0]
    assert equal(state, last, "student.backbone.", "student.backbone.")
    assert not equal(state, last, "student.heads.dino.last", "student.heads.dino.last")


@pytest.mark.gloo
def test_continue_goes_on_as_if_it_were_one_run(run: Path, tmp_path: Path) -> None:
    """Also after a kill, when `init_from` must not be taken again."""
    whole = run_ranks(1, trained_on_rank, tmp_path / "whole", ("training.steps=8",))[0]
    begin = ("training.steps=8", f"init_from={{checkpoint: {run}, continue: true}}")
    rest = run_ranks(2, trained_on_rank, tmp_path / "rest", begin)[0]
    assert rest == pytest.approx(whole[4:], rel=1e-9)
    (last,) = (tmp_path / "rest").glob("step-*8")
    last.rename(tmp_path / "lost")
    assert run_ranks(1, trained_on_rank, tmp_path / "rest", begin)[0] == pytest.approx(whole[6:], rel=1e-9)


@pytest.mark.gloo
def test_frozen_teacher_is_loaded_and_in_no_checkpoint(run: Path, tmp_path: Path) -> None:
    last = run_ranks(1, state_at_start, run / "checkpoints", (), False)[0][1]
    frozen = (
        f"teachers.old={{weights: frozen, checkpoint: '{run}', sees: [global]}}",
        "terms.gram={teacher: old, teacher_view: global}",
    )
    run_ranks(2, trained_on_rank, tmp_path, frozen)
    checkpoint = newest_whole(tmp_path)
    assert checkpoint is not None
    assert not [key for key in saved_shapes(checkpoint) if "teachers.old" in key]
    _, state = run_ranks(1, state_at_start, tmp_path, frozen, False)[0]
    assert equal(state, last, "teachers.old.", "teachers.ema.")
    assert not equal(state, last, "teachers.ema.", "teachers.ema.")


def of_the_run(run: object, **more: object) -> tuple[str, ...]:
    """A narrower student whose terms read a frozen teacher with the model and heads of the run."""
    model, heads = (plain(tiny_recipe())[part] for part in ("model", "heads"))
    teacher = {"weights": "frozen", "checkpoint": str(run), "model": model, "heads": heads, **more}
    return (
        "model.embed_dim=16",
        "masks.global.hide=false",
        f"teachers.old={json.dumps(teacher)}",
        "terms.dino.teacher=old",
        "terms.ibot.teacher=old",
    )


@pytest.mark.gloo
def test_a_frozen_teacher_of_its_own_model_is_the_same_on_two_processes(run: Path, tmp_path: Path) -> None:
    last = run_ranks(1, state_at_start, run / "checkpoints", (), False)[0][1]
    check_beginning(tiny_recipe(*of_the_run(run)), fresh=True)
    one = run_ranks(1, trained_on_rank, tmp_path / "1", of_the_run(run))[0]
    assert run_ranks(2, trained_on_rank, tmp_path / "2", of_the_run(run))[0] == pytest.approx(one, rel=1e-9)
    assert one[-1] < one[0]
    _, state = run_ranks(1, state_at_start, tmp_path / "2", of_the_run(run), False)[0]
    assert equal(state, last, "teachers.old.", "teachers.ema.")
    assert state["student.backbone.cls_token"].shape[-1] == 16
    assert state["teachers.ema.backbone.cls_token"].shape[-1] == 16


@pytest.mark.gloo
def test_a_file_of_a_whole_teacher_has_its_heads(tmp_path: Path) -> None:
    """Under the names that DINOv2 and DINOv3 give them; without heads it is refused."""
    learner, path = tiny_learner(tiny_recipe("seed=7")), tmp_path / "teacher_checkpoint.pth"
    heads = {f"{name}_head": head for name, head in learner.student.heads.items()}
    torch.save(training_export(learner.student.backbone, heads), path)  # type: ignore[arg-type]
    check_beginning(tiny_recipe(*of_the_run(path)), fresh=True)
    state = run_ranks(2, state_at_start, tmp_path / "run", of_the_run(path), True)[0][1]
    for part in ("backbone.blocks.", "heads."):
        assert equal(whole_state(learner.student), state, part, f"teachers.old.{part}")
    wider = of_the_run(path, heads={"dino": {"prototypes": 12}, "ibot": {"prototypes": 10}})
    with pytest.raises(UserError, match=r"misshaped .*mlp\.0\.weight"):
        check_beginning(tiny_recipe(*wider), fresh=True)
    torch.save(export_backbone(learner.student.backbone), path)
    with pytest.raises(
        UserError, match=r"teachers\.old\.checkpoint=.*read the head 'dino'.* the file holds none"
    ):
        check_beginning(tiny_recipe(*of_the_run(path)), fresh=True)


def test_patches_of_a_teacher_must_be_at_hand() -> None:
    model = plain(tiny_recipe())["model"]

    def check(patch: int, *overrides: str) -> None:
        recipe = tiny_recipe(*of_the_run("drawn", model={**model, "patch": patch}), *overrides)
        terms = build_terms(recipe)
        check_patches(recipe, terms, build_networks(recipe, terms)[1])

    check(4)
    check(8, "terms.ibot=null")
    with pytest.raises(
        UserError, match=r"terms\.ibot\.teacher: .* 2 x 2 on the crops 'global', and the student 4 x 4"
    ):
        check(8)
    with pytest.raises(UserError, match=r"views\.global\.size: crops 'global' of 16 pixels .* patches of 3"):
        check(3)


@pytest.mark.parametrize("suffix", ["pth", "safetensors"])
def test_a_released_backbone_fills_student_and_teacher(tmp_path: Path, suffix: str) -> None:
    path = tmp_path / f"released.{suffix}"
    released = export_backbone(tiny_learner(tiny_recipe("seed=7")).student.backbone)
    if suffix == "pth":
        torch.save({"teacher": {f"backbone.{name}": t for name, t in released.items()}}, path)
    else:
        save_file(released, path)
    check_beginning(tiny_recipe(f"init_from.checkpoint={path}"), fresh=True)
    state = run_ranks(1, state_at_start, tmp_path / "run", (f"init_from.checkpoint={path}",), True)[0][1]
    for network in ("student", "teachers.ema"):
        assert equal(released, state, "blocks.", f"{network}.backbone.blocks.")
    with pytest.raises(UserError, match=r"misshaped .*blocks\.0\."):
        check_beginning(tiny_recipe(f"init_from.checkpoint={path}", "model.embed_dim=32"), fresh=True)


def test_the_backbone_does_not_move_while_heads_warm_up() -> None:
    recipe = tiny_recipe("optimizer.freeze_prototypes=0", "optimizer.lr=1.0e-2")
    learner: Learner = tiny_learner(recipe)
    optimizer = Optimizer(learner.student, recipe.optimizer, global_batch=8, total_steps=6, head_warmup=0.5)

    def moved(step: int) -> tuple[bool, bool]:
        before = whole_state(learner.student)
        for p in learner.student.parameters():
            p.grad = torch.ones_like(p)
        optimizer.step(step)
        after = whole_state(learner.student)
        backbone = {n for n in after if n.startswith("backbone.") and not torch.equal(after[n], before[n])}
        heads = {n for n in after if n.startswith("heads.") and not torch.equal(after[n], before[n])}
        return bool(backbone), bool(heads)

    assert [moved(step) for step in (0, 2, 3)] == [(False, True), (False, True), (True, True)]


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("init_from.checkpoint=nowhere", "nowhere does not exist"),
        ("init_from.stage=pretrain", "begins from a run of the stage before it"),
        ("init_from.checkpoint={run}|model.embed_dim=32", "shape of learner.student.backbone.cls_token"),
        ("init_from.checkpoint={run}|heads.more={{}}", "missing: learner.student.heads.more"),
        ("init_from={{checkpoint: '{run}', student: big}}", "no teacher 'big'"),
        ("init_from={{checkpoint: '{run}', continue: true}}", "has finished step 4 of 4"),
        ("teachers.old={{weights: frozen, checkpoint: nowhere}}", "nowhere does not exist"),
        ("teachers.old={{weights: frozen}}", "a frozen teacher needs `checkpoint`"),
        (
            "teachers.old={{weights: frozen, checkpoint: dinov2_vitg14}}",
            "name their file, dinov2_vitg14_pretrain",
        ),
        ("teachers.ema.model={{patch: 4}}", "`model` and `heads` are of frozen teachers"),
        ("teachers.old={{weights: frozen, model: {{pach: 4}}}}", "did you mean `patch`"),
        (
            "teachers.old={{weights: frozen, heads: {{ibot: {{}}}}}}|terms.dino.teacher=old",
            "teacher 'old' has no head 'dino'; it has: ibot",
        ),
        (
            "teachers.old={{weights: frozen, checkpoint: '{run}', model: {{size: small, channels: 1}}}}",
            "missing: learner.teachers.ema.backbone.blocks.2",
        ),
        ("init_from={{checkpoint: '{run}', continue: true, head_warmup: 3}}", "leave student, what"),
        ("init_from.continu=true", "did you mean `continue`"),
    ],
)
def test_what_does_not_fit_is_refused(run: Path, override: str, message: str) -> None:
    with pytest.raises(UserError, match=message):
        check_beginning(tiny_recipe("training.steps=4", *override.format(run=run).split("|")), fresh=True)


def test_a_resumed_run_does_not_look_for_what_it_began_from() -> None:
    check_beginning(tiny_recipe("init_from.checkpoint=nowhere"), fresh=False)


@pytest.mark.gloo
def test_learned_positions_of_another_grid_are_resampled(tmp_path: Path) -> None:
    learned = ("model.position=learned", "model.learned={grid: 4}")
    run_ranks(1, trained_on_rank, tmp_path / "old" / "checkpoints", learned)
    old = run_ranks(1, state_at_start, tmp_path / "old" / "checkpoints", learned, False)[0][1]
    larger = (*learned, "model.learned.grid=6", f"init_from.checkpoint={tmp_path / 'old'}")
    with pytest.raises(UserError, match=r"shape of learner\.student\.backbone\.pos_embed"):
        check_beginning(tiny_recipe(*larger), fresh=True)
    resized = (*larger, "init_from.resize_positions=true")
    check_beginning(tiny_recipe(*resized), fresh=True)
    state = run_ranks(2, state_at_start, tmp_path / "new", resized, True)[0][1]
    for network in ("student", "teachers.ema"):
        name = f"{network}.backbone.pos_embed"
        options = tiny_recipe(*resized).model.learned
        torch.testing.assert_close(state[name], resample(old[name], 6, 6, options.interpolation))
        assert equal(state, old, f"{network}.backbone.blocks.", f"{network}.backbone.blocks.")
