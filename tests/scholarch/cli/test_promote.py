"""`scholarch promote` on a real registry: two runs of two steps, evaluated, promoted, refused and rolled back."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import yaml
from scholarch.cli import main
from scholarch.config.promotion import policy_names, read_policy
from scholarch.registry.client import connect
from tiny_training import TINY

QUICK = (*TINY, "training.workers=0", "training.steps=2", "evaluation.at_most=32")
MODEL = "demo-digits"


@pytest.fixture(scope="module")
def registry(tmp_path_factory: pytest.TempPathFactory) -> str:
    """Two versions of demo-digits, the second from a run that learns nothing."""
    folder = tmp_path_factory.mktemp("promote")
    uri = f"sqlite:///{folder}/mlflow/mlflow.db"
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        patch.setenv("MLFLOW_TRACKING_URI", uri)
        for name, more in (("first", ()), ("second", ("optimizer.lr=0.0", "seed=1"))):
            assert main(["pretrain", "--recipe", "demo/digits", "--run", name, *QUICK, *more]) == 0
    assert sorted(path.name for path in folder.iterdir()) == ["first", "mlflow", "second"], (
        "artifacts stand beside the database"
    )
    return uri


@pytest.fixture(autouse=True)
def _here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)


def policy_file(**gate: Any) -> str:
    """The demo's policy with another gate."""
    spec = read_policy("demo/digits").manifest()
    spec["gates"] = [{"suite": "digits", "metric": "knn/top1", **gate}]
    whole = {"apiVersion": "scholarch.dev/v1alpha1", "kind": "PromotionPolicy", "spec": spec}
    Path("policy.yaml").write_text(yaml.safe_dump(whole))
    return "policy.yaml"


def aliases(uri: str) -> dict[str, str]:
    found = connect(uri).get_registered_model(MODEL).aliases
    return {alias: str(version) for alias, version in found.items() if alias != "candidate"}


def test_promotion_refusal_and_rollback(
    registry: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("MLFLOW_TRACKING_URI", registry)
    version = (f"models:/{MODEL}/1", "--policy", policy_file(bound=0.2))
    assert main(["promote", *version, "--dry-run"]) == 0
    assert "version 1 is to be champion" in capsys.readouterr().out
    assert aliases(registry) == {}

    assert main(["promote", *version]) == 0
    printed = capsys.readouterr().out
    assert "digits: knn/top1" in printed
    assert "first promotion" in printed
    assert "knn/mean_class_accuracy" not in printed, "the result of the dry run was found, not made again"
    assert aliases(registry) == {"champion": "1"}
    assert main(["promote", *version, "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["verdict"] == "unchanged"

    strict = policy_file(allowedRegression=0.0, confidence=0.99)
    assert main(["promote", MODEL, "--policy", strict]) == 1
    printed = capsys.readouterr().out
    assert f"{MODEL} version 2 is refused, against version 1" in printed
    assert "with confidence 0.99" in printed
    assert aliases(registry) == {"champion": "1"}

    assert (
        main(["promote", f"models:/{MODEL}@candidate", "--policy", policy_file(allowedRegression=1.0)]) == 0
    )
    assert aliases(registry) == {"champion": "2", "previous": "1"}
    assert main(["promote", MODEL, "--rollback", "--why", "a test"]) == 0
    assert aliases(registry) == {"champion": "1"}
    assert main(["promote", MODEL, "--policy", policy_file(allowedRegression=1.0)]) == 1
    assert "version 2 was rolled back by act 4" in capsys.readouterr().out

    connect(registry).set_registered_model_alias(MODEL, "champion", "2")
    assert main(["promote", MODEL, "--policy", policy_file(allowedRegression=1.0)]) == 2
    assert "--rollback puts it back" in capsys.readouterr().err
    assert main(["promote", MODEL, "--rollback"]) == 0
    capsys.readouterr()
    assert main(["promote", MODEL, "--history"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert [line.split()[0] for line in lines] == ["no", "5", "4", "3", "2", "1", "champion:"]
    assert "2 -> 1, rolled back" in lines[2]
    assert lines[-1] == "champion: 1"


@pytest.mark.parametrize(
    ("words", "says"),
    [
        ((MODEL,), "by which rule"),
        ((MODEL, "--policy", "demo/digitz"), "one of: demo/digits"),
        ((MODEL, "--policy", "none.yaml"), "no policy none.yaml"),
        (("other", "--policy", "demo/digits"), "is a policy for demo-digits, not for other"),
        ((MODEL, "--history", "--rollback"), "two commands"),
        (("nothing", "--history"), "no registered model nothing"),
        ((f"models:/{MODEL}@best", "--policy", "demo/digits"), "no version has the alias best"),
        ((f"models:/{MODEL}/9", "--policy", "demo/digits"), "there is no such version"),
        ((MODEL, "--policy", "other-data.yaml"), "evaluated on other data: digits is ef14"),
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
    spec = read_policy("demo/digits").manifest()
    spec["suites"][0]["data"] = {"digits": "ab" * 16}
    Path("other-data.yaml").write_text(yaml.safe_dump(spec))
    assert main(["promote", *words]) == 2
    assert says in capsys.readouterr().err
    assert [path.name for path in Path().iterdir()] == ["other-data.yaml"]


def test_without_a_registry(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    assert main(["promote", MODEL, "--history"]) == 2
    assert "which is not set" in capsys.readouterr().err
    assert policy_names() == ["demo/digits"]


def test_an_mlflow_that_is_away(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "http://127.0.0.1:9")
    assert main(["promote", MODEL, "--history"]) == 1
    assert "cannot be reached" in capsys.readouterr().err
