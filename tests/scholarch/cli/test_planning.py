"""The plan of a run on a cluster that is not here."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
import torch
from scholarch.cli import main
from scholarch.distillation.measured import Measured
from scholarch.storage.objects import open_objects
from scholarch.training.assemble import build_networks, build_terms
from scholarch.training.estimate import memory, term_parameters, traffic
from scholarch.training.layout import Layout
from tiny_training import tiny_recipe


def test_the_largest_model_on_256_gpus(capsys: pytest.CaptureFixture[str]) -> None:
    """Parameters as reference.md 1.1 has them; nothing is allocated for them."""
    import resource

    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    words = ("plan", "pretrain", "--recipe", "dinov3/vit7b16", "--gpus", "256", "--gpu-memory", "80")
    assert main([*words]) == 0
    text = capsys.readouterr().out
    (backbone,) = re.findall(r"student backbone +([\d,]+)", text)
    assert int(backbone.replace(",", "")) == pytest.approx(6_716e6, rel=1e-3)
    assert re.search(r"memory on a GPU +about \d+\.\d GiB", text)
    assert re.search(r"received by a GPU in a step +about \d+\.\d GiB", text)
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 2**20  # KiB; the model has 27 GB
    assert main([*words[:-1], "1"]) == 2
    assert "do not fit" in capsys.readouterr().err


def test_memory_and_traffic_by_hand() -> None:
    recipe = tiny_recipe("training.precision=bf16", "training.global_batch=8")
    terms = build_terms(recipe)
    student, teachers = build_networks(recipe, terms)
    assert term_parameters(recipe, terms, student, teachers) == 0
    assert {p.device for p in student.parameters()} == {torch.device("meta")}
    count = sum(p.numel() for p in student.parameters())
    held = sum(p.numel() for p in teachers["ema"].parameters())
    parts = memory(recipe, student, teachers, terms, Layout(8, 2), 4)
    assert parts["weights"] == (count + held) * 4 // 4
    assert parts["optimizer"] == 2 * parts["gradients"] == 2 * count
    # One picture: 2 global crops of 4 x 4 patches, 2 local ones of 2 x 2, and their CLS tokens.
    assert parts["activations"] == (2 * 17 + 2 * 5) * 24 * 18 * 2 * 2
    # iBOT: half of the crops, 10 to 50 % of the patches: 2 x 16 x 0.5 x 0.3, rounded up, of 10 prototypes.
    assert parts["logits"] == 4 * 4 * ((2 + 2) * 12 + 5 * 10)
    moved = traffic(recipe, student, [teachers["ema"]], Layout(8, 2), 4)
    assert moved.gathered == 2 * (2 * count * 2 * 3 // 4)
    assert moved.teachers == 2 * held * 2 * 3 // 4
    assert moved.reduced == 2 * count * 4 * 3 // 4


RECIPE = """
pool: {web: somewhere}
embed: {model: some, stored: float16}
cluster: {levels: [{clusters: 1000, rounds: 0}, {clusters: 50, rounds: 0}]}
sample: {pictures: 100}
mix: {web: {of: sample}}
"""


def test_a_curation(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "curation.yaml").write_text(RECIPE)
    words = ["plan", "curate", "--recipe", str(tmp_path / "curation.yaml"), "--width", "384", "--cores", "8"]
    assert main([*words, "--pictures", "1000000"]) == 0
    told = capsys.readouterr().out
    assert "1,000,000, vectors of 384 as float16" in told
    assert re.search(r"clusters +1,000, 50", told)
    assert re.search(r"disk, .* 732\.4 MiB", told)  # 2 x 384 x 10^6 bytes
    for line in ("process that leads", "each core's worker", "traffic", "time"):
        assert re.search(rf"{line}.* about \d|{line}.* at most .*\d", told), line


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ([], "--pictures, --width, --cores: must be above 0"),
        (["--pictures", "900"], "900 points cannot have 1,000 clusters"),
        (["--pictures", "9000", "cluster=null", "sample.by=pictures"], "has no `cluster`"),
        (["--pictures", "9000", "clustre.levels=[]"], "did you mean `cluster`"),
    ],
)
def test_a_curation_that_cannot_be_planned(
    tmp_path: Path, words: list[str], message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "curation.yaml").write_text(RECIPE)
    recipe = str(tmp_path / "curation.yaml")
    assert main(["plan", "curate", "--recipe", recipe, "--width", "384", "--cores", "8", *words]) == 2
    assert message in capsys.readouterr().err


def test_students_on_many_numbers_of_gpus(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    plan = ["plan", "distill", "--recipe", "demo/distill", "--gpus", "2"]
    assert main([*plan, "--to", "5"]) == 0
    said = capsys.readouterr().out
    assert "costs: counted operations" in said
    assert [line.split()[0] for line in said.splitlines()[-3:]] == ["2", "4", "5"]
    assert main([*plan, "--to", "1"]) == 2
    assert "1 is less than --gpus 2" in capsys.readouterr().err
    assert main([*plan, "--costs", str(tmp_path)]) == 2
    assert "no steps of these students were measured" in capsys.readouterr().err
    measured = Measured(
        "EPYC", together=False, teacher={32: 0.32}, students={"vit": {64: 0.64}, "convnext": {64: 1.28}}
    )
    measured.write(open_objects(str(tmp_path)))
    assert main([*plan, "--costs", str(tmp_path)]) == 0
    said = capsys.readouterr().out
    assert "costs: measured on EPYC" in said
    # 0.64 s and 1.28 s of the students, and 64 pictures of the teacher of 0.01 s each where there is time.
    assert "2 GPUs: a step takes 1.28 s, and 0.0% of their time is waiting" in said
