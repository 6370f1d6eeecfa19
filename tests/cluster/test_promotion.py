"""Promotion by the operator on a real API server, with a real MLflow on this machine.

Evaluations have an image that no node has; their results come from here, as their pods would send them.
"""

from __future__ import annotations

import socket
from collections.abc import Iterator
from pathlib import Path

import pytest
from commands import objects
from mlflow_server import MlflowServer
from promotion_parts import FINGERPRINT, a_result, send_result
from runs_api import Api, Manifest, condition, wait_for
from scholarch.config.promotion import POLICY, PROMOTION
from scholarch.config.training_run import GROUP, KIND, VERSION
from scholarch.registry.client import connect
from scholarch.registry.history import SUFFIX

from operators import Installed, Operator

pytestmark = pytest.mark.cluster
API_VERSION = f"{GROUP}/{VERSION}"


def seen_by_nodes() -> str:
    """Address of this machine on the network of the cluster's nodes."""
    addresses = objects("nodes")[0]["status"]["addresses"]
    node = next(one["address"] for one in addresses if one["type"] == "InternalIP")
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as way:
        way.connect((node, 9))  # sends nothing, and chooses the way there
        return str(way.getsockname()[0])


@pytest.fixture
def mlflow(tmp_path: Path, operator: Operator) -> Iterator[MlflowServer]:
    """A server that the operator reaches, with two versions of `dino`, of which the first is champion."""
    host = seen_by_nodes() if isinstance(operator, Installed) else "127.0.0.1"
    server = MlflowServer(tmp_path, host=host)
    server.start()
    try:
        client = connect(server.uri)
        run_id = client.create_run(client.create_experiment("training")).info.run_id
        client.create_registered_model("dino")
        for version in ("1", "2"):
            client.create_model_version("dino", f"runs:/{run_id}/model", run_id)
            alias = "champion" if version == "1" else "candidate"
            client.set_registered_model_alias("dino", alias, version)
        yield server
    finally:
        server.kill()


def ask(api: Api, namespace: str, tracking: str) -> None:
    policy = {
        "model": "dino",
        "suites": [{"name": "digits", "data": {"digits": FINGERPRINT}}],
        "gates": [{"suite": "digits", "metric": "knn/top1", "bound": 0.5, "allowedRegression": 0.02}],
        "evaluation": {"image": "scholarch.invalid/nowhere:1", "mlflow": {"uri": tracking}},
    }
    for kind, spec in ((POLICY, policy), (PROMOTION, {"policy": "dino"})):
        body = {"apiVersion": API_VERSION, "kind": kind, "metadata": {"name": "dino"}, "spec": spec}
        api.of(kind, API_VERSION).create(body=body, namespace=namespace)


def test_the_champion_changes_though_operator_and_mlflow_go_away(
    api: Api, namespace: str, operator: Operator, mlflow: MlflowServer, tmp_path: Path
) -> None:
    client = connect(mlflow.uri)
    ask(api, namespace, mlflow.uri)

    def promotion() -> Manifest:
        found = api.get(namespace, "dino", PROMOTION)
        assert found is not None
        return found

    def evaluations() -> list[Manifest]:
        return api.list(KIND, API_VERSION, namespace)

    wait_for("an evaluation of each version", lambda: len(evaluations()) == 2)
    assert {run["spec"]["model"] for run in evaluations()} == {"models:/dino/1", "models:/dino/2"}
    assert {run["spec"]["suite"] for run in evaluations()} == {"digits"}
    names = {run["metadata"]["name"] for run in evaluations()}

    mlflow.kill()
    wait_for("MLflow is missed", lambda: condition(promotion(), "Reachable").get("status") == "False")
    operator.kill()
    operator.wait()
    mlflow.start()
    wait_for("MLflow is back", lambda: condition(promotion(), "Reachable").get("status") == "True")
    assert {run["metadata"]["name"] for run in evaluations()} == names, "none is started twice"

    send_result(client, tmp_path / "1", a_result("1", 0.90))
    send_result(client, tmp_path / "2", a_result("2", 0.89))
    operator.kill()
    wait_for("promoted", lambda: condition(promotion(), "Promoted").get("status") == "True")
    aliases = client.get_registered_model("dino").aliases
    assert {alias: str(version) for alias, version in aliases.items()} == {
        "candidate": "2", "champion": "2", "previous": "1",
    }  # fmt: skip
    status = promotion()["status"]
    assert (status["candidate"], status["champion"], status["previous"]) == ("2", "2", "1")
    assert status["gates"][0]["candidate"] == "0.89"
    assert len(client.search_model_versions(f"name = 'dino{SUFFIX}'")) == 1, "it is done once"

    client.set_registered_model_alias("dino", "champion", "1")
    drifted = wait_for(
        "drift", lambda: condition(promotion(), "Drifted").get("status") == "True" and promotion()
    )
    assert "by the log of promotions it is version 2" in condition(drifted, "Drifted")["message"]
