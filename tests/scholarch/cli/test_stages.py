"""Stages chained in one run, killed between and within them; and as separate runs."""

from __future__ import annotations

import json
import shutil
from dataclasses import asdict
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from gloo import run_ranks
from scholarch.cli import main, stages
from scholarch.cli.plan import Chain, Request
from scholarch.cli.sources import open_run
from scholarch.config.load import to_yaml
from scholarch.storage.records import RECORDS_NAME, read_records
from scholarch.training.checkpoint import committed
from scholarch.training.distributed import World
from scholarch.training.recipe import load_recipe
from tiny_training import TINY
from torch.distributed.device_mesh import init_device_mesh

QUICK = (*TINY, "training.workers=0", "training.checkpoint_every=2", "evaluation.at_most=32")
FIRST = {"extends": "demo/digits"}
SECOND = {
    "extends": "demo/digits",
    "init_from": {"stage": "pretrain"},
    "teachers": {"gram": {"weights": "snapshot", "of": "ema"}},
    "terms": {"gram": {"teacher": "gram", "teacher_view": "global"}},
}


@pytest.fixture(autouse=True)
def _here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    Path("first.yaml").write_text(yaml.safe_dump(FIRST))
    Path("second.yaml").write_text(yaml.safe_dump(SECOND))


BOTH = ("pretrain", "--recipe", "first.yaml", "--recipe", "second.yaml", "--run", "run")


def curve(stage: str) -> list[float]:
    return [
        r["loss/total"] for r in read_records(Path("run/stages", stage, RECORDS_NAME)) if "loss/total" in r
    ]


def test_a_chain_runs_and_resumes_in_the_right_stage(capsys: pytest.CaptureFixture[str]) -> None:
    assert main([*BOTH, *QUICK]) == 0
    assert json.loads(Path("run/stages.json").read_text())["recipes"] == ["first.yaml", "second.yaml"]
    first, second = Path("run/stages/1-first"), Path("run/stages/2-second")
    whole = curve("2-second")
    assert len(whole) == len(curve("1-first")) == 6
    assert all("loss/gram" in r for r in read_records(second / RECORDS_NAME) if "loss/total" in r)
    assert open_run(Path("run")).model.origin == "2-second, step 6"

    # As if killed in the second stage, after step 2.
    for checkpoint in committed(second / "checkpoints")[1:]:
        shutil.rmtree(checkpoint.address)
    shutil.rmtree(second / "export")
    before = (first / RECORDS_NAME).read_text()
    capsys.readouterr()
    assert main(["pretrain", "--run", "run", "--resume"]) == 0
    assert "resumed from step 2 of run/stages/2-second" in capsys.readouterr().err
    assert curve("2-second") == whole
    assert (first / RECORDS_NAME).read_text() == before


@pytest.mark.gloo
def test_each_process_reads_what_it_has_of_a_run_in_s3() -> None:
    """A stage is gone on with by each process from its own folder: the first one's may be on another machine."""

    def stage_folders(group: Any) -> tuple[bool, bool]:
        here = Path(f"rank-{group.rank()}").resolve()
        stage = here / "stages/1-first"
        stage.mkdir(parents=True)
        (here / "stages.json").write_text(
            json.dumps(asdict(Chain(("first.yaml", "second.yaml"), (), "full")))
        )
        (stage / "recipe.yaml").write_text(to_yaml(load_recipe("first.yaml")))
        seen: list[Request] = []

        class Seen:
            def __init__(self, request: Request, _: World) -> None:
                seen.append(request)

            def run(self) -> int:
                return 75

        stages.Session = Seen  # type: ignore[assignment,misc]
        mesh = init_device_mesh("cpu", (2,))
        world = World(group.rank(), 2, 0, 1, torch.device("cpu"), mesh, group)
        request = Request(None, (), str(here), resume=True, run=here)
        assert stages.run_stages([], request, world) == 75
        return seen[0].run == stage, seen[0].recipe is None

    assert run_ranks(2, stage_folders) == [(True, True)] * 2


def test_a_stage_by_itself_needs_the_run_before(capsys: pytest.CaptureFixture[str]) -> None:
    alone = ("pretrain", "--recipe", "second.yaml", "--run", "run", *QUICK)
    before = sorted(Path().rglob("*"))
    assert main(list(alone)) == 2
    assert "init_from.checkpoint=RUN" in capsys.readouterr().err
    assert main([*alone, "init_from.checkpoint=nowhere"]) == 2
    assert "nowhere does not exist" in capsys.readouterr().err
    assert (
        main(["pretrain", "--recipe", "second.yaml", "--recipe", "first.yaml", "--run", "run", *QUICK]) == 2
    )
    assert "first.yaml begins from no stage before it" in capsys.readouterr().err
    assert main([*BOTH, *QUICK, "data=nowhere"]) == 2
    assert sorted(Path().rglob("*")) == before
