"""`scholarch promote` on a real registry: with results that are there, and through training and evaluation."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml
from promotion_parts import a_policy, a_result, send_result
from scholarch.cli import main
from scholarch.config.promotion import policy_names, read_policy
from scholarch.registry.client import artifacts_of, connect
from tiny_training import TINY


@pytest.fixture(scope="module")
def registry(tmp_path_factory: pytest.TempPathFactory) -> str:
    """Two versions of `dino` with results by sample; the second, the candidate, is worse."""
    folder = tmp_path_factory.mktemp("promote")
    uri = f"sqlite:///{folder}/mlflow/mlflow.db"
    client = connect(uri)
    for name in ("training", "evaluations"):
        client.create_experiment(name, artifact_location=artifacts_of(uri))
    run_id = client.create_run(client.get_experiment_by_name("training").experiment_id).info.run_id
    client.create_registered_model("dino")
    right = np.ones(200)
    for version, wrong in (("1", 10), ("2", 30)):
        client.create_model_version("dino", f"runs:/{run_id}/model", run_id)
        samples = right.copy()
        samples[:wrong] = 0
        send_result(client, folder / version, a_result(version, samples))
    client.set_registered_model_alias("dino", "candidate", "2")
    return uri


@pytest.fixture(autouse=True)
def _here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)


def policy_file(**gate: Any) -> str:
    """The whole object, as for `kubectl apply`."""
    spec = a_policy(gate).manifest()
    whole = {"apiVersion": "scholarch.dev/v1alpha1", "kind": "PromotionPolicy", "spec": spec}
    Path("policy.yaml").write_text(yaml.safe_dump(whole))
    return "policy.yaml"


def aliases(uri: str, model: str) -> dict[str, str]:
    found = connect(uri).get_registered_model(model).aliases
    return {alias: str(version) for alias, version in found.items() if alias != "candidate"}


def test_promotion_refusal_rollback_and_drift(
    registry: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("MLFLOW_TRACKING_URI", registry)
    version = ("models:/dino/1", "--policy", policy_file(bound=0.9))
    assert main(["promote", *version, "--dry-run"]) == 0
    assert "dino version 1 is to be champion" in capsys.readouterr().out
    assert aliases(registry, "dino") == {}

    assert main(["promote", *version]) == 0
    printed = capsys.readouterr().out
    assert "digits: knn/top1" in printed
    assert "first promotion" in printed
    assert aliases(registry, "dino") == {"champion": "1"}
    assert main(["promote", *version, "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["verdict"] == "unchanged"

    strict, loose = {"allowedRegression": 0.05, "confidence": 0.95}, {"allowedRegression": 0.2}
    assert main(["promote", "dino", "--policy", policy_file(**strict)]) == 1
    printed = capsys.readouterr().out
    assert "dino version 2 is refused, against version 1" in printed
    assert "0.85 against 0.95: the difference is at least -0.13" in printed
    assert aliases(registry, "dino") == {"champion": "1"}

    assert main(["promote", "models:/dino@candidate", "--policy", policy_file(**loose)]) == 0
    assert aliases(registry, "dino") == {"champion": "2", "previous": "1"}
    assert main(["promote", "dino", "--rollback", "--why", "a test"]) == 0
    assert aliases(registry, "dino") == {"champion": "1"}
    assert main(["promote", "dino", "--policy", policy_file(**loose)]) == 1
    assert "version 2 was rolled back by act 4" in capsys.readouterr().out

    connect(registry).set_registered_model_alias("dino", "champion", "2")
    assert main(["promote", "dino", "--policy", policy_file(**loose)]) == 2
    assert "--rollback puts it back" in capsys.readouterr().err
    assert main(["promote", "dino", "--rollback"]) == 0
    assert aliases(registry, "dino") == {"champion": "1"}
    capsys.readouterr()
    assert main(["promote", "dino", "--history"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert [line.split()[0] for line in lines] == ["no", "5", "4", "3", "2", "1", "champion:"]
    assert "2 -> 1, rolled back" in lines[2]
    assert lines[-1] == "champion: 1"


@pytest.mark.parametrize(
    ("words", "says"),
    [
        (("dino",), "by which rule"),
        (("dino", "--policy", "demo/digitz"), "one of: demo/digits"),
        (("dino", "--policy", "none.yaml"), "no policy none.yaml"),
        (("dino", "--policy", "demo/digits"), "is a policy for demo-digits, not for dino"),
        (("dino", "--policy", "list.yaml"), "a policy is a mapping"),
        (("dino", "--policy", "run.yaml"), "is not a PromotionPolicy"),
        (("dino", "--history", "--rollback"), "two commands"),
        (("nothing", "--history"), "no registered model nothing"),
        (("models:/dino@best", "--policy", "policy.yaml"), "no version has the alias best"),
    ],
)
def test_mistakes(
    registry: str,
    words: tuple[str, ...],
    says: str,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.setenv("MLFLOW_TRACKING_URI", registry)
    policy_file(bound=0.5)
    Path("list.yaml").write_text("[1, 2]")
    Path("run.yaml").write_text("kind: TrainingRun\napiVersion: scholarch.dev/v1alpha1\n")
    assert main(["promote", *words]) == 2
    assert says in capsys.readouterr().err
    assert sorted(path.name for path in Path().iterdir()) == ["list.yaml", "policy.yaml", "run.yaml"]


def test_without_a_registry(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    assert main(["promote", "dino", "--history"]) == 2
    assert "which is not set" in capsys.readouterr().err
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "http://127.0.0.1:9")
    assert main(["promote", "dino", "--history"]) == 1
    assert "cannot be reached" in capsys.readouterr().err
    assert policy_names() == ["demo/digits"]


def test_the_demo_in_small(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Two steps of training, then the evaluation that the policy asks for, by the same command."""
    uri = f"sqlite:///{tmp_path}/mlflow/mlflow.db"
    monkeypatch.setenv("MLFLOW_TRACKING_URI", uri)
    quick = (*TINY, "training.workers=0", "training.steps=2", "evaluation.at_most=32")
    assert main(["pretrain", "--recipe", "demo/digits", "--run", "first", *quick]) == 0
    assert sorted(path.name for path in tmp_path.iterdir()) == ["first", "mlflow"], (
        "artifacts stand beside the database"
    )
    assert main(["promote", "demo-digits", "--policy", "demo/digits"]) == 1
    printed = capsys.readouterr().out
    assert "asked for: at least 0.75" in printed, "two steps are too few"
    assert "models:/demo-digits/1 on suite digits" in printed
    assert "written to" not in printed, "what it was written to is gone"
    spec = read_policy("demo/digits").manifest()
    spec["gates"][0]["bound"] = 0.2
    Path("policy.yaml").write_text(yaml.safe_dump(spec))
    assert main(["promote", "demo-digits", "--policy", "policy.yaml"]) == 0
    assert "on suite digits" not in capsys.readouterr().out, "the result was found, not made again"
    assert aliases(uri, "demo-digits") == {"champion": "1"}
    version = connect(uri).get_model_version("demo-digits", "1")
    assert (version.tags["recipe"], version.tags["data"]) == ("demo/digits", "builtin:digits")
    section = version.description.split("## Evaluation")[1].split("## Licence")[0]
    assert section.count("### digits\n\nPictures and samples: `runs:/") == 1
