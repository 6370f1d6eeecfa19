"""From a training run to a champion, on the platform alone: its store, its MLflow, its operator.

Two runs register a version each; for every disturbance the versions are taken into a model of its own, of which
the first is champion without a result, so that the operator evaluates both, side by side.
"""

from __future__ import annotations

import secrets
import time
from collections.abc import Callable, Iterator
from typing import Any

import pytest
from platform_release import TEAM, away
from runs_api import Api, Manifest, condition, wait_for
from scholarch.config.promotion import POLICY, PROMOTION, read_policy
from scholarch.config.training_run import GROUP, KIND, VERSION
from scholarch.registry.history import SUFFIX
from stores import SECRETS, new_model, registry_at_hand, small

from operators import Operator

pytestmark = [pytest.mark.cluster, pytest.mark.timeout(1800)]
API_VERSION = f"{GROUP}/{VERSION}"
MINUTES = 60.0
AWAY_SECONDS = 30


@pytest.fixture(scope="module")
def trained(api: Api, image: str) -> Iterator[list[Any]]:
    """Two versions of one model, each registered by a run of its own at its end."""
    model = f"digits-{secrets.token_hex(3)}"
    names = [f"{model}-{steps}" for steps in (10, 20)]
    for name in names:
        steps = name.rsplit("-", 1)[1]
        overrides = (f"registered_name={model}", f"training.steps={steps}")
        api.run(TEAM, name, small(image, name, *overrides))
    for name in names:
        wait_for(
            f"the end of {name}",
            lambda name=name: condition(api.get(TEAM, name), "Complete").get("status") == "True",
            15 * MINUTES,
        )
    with registry_at_hand() as client:
        versions = [client.get_model_version(model, number) for number in ("1", "2")]
        assert client.get_registered_model(model).aliases == {"candidate": "2"}
    yield versions
    for name in names:
        api.runs.delete(name=name, namespace=TEAM)


@pytest.fixture
def model(trained: list[Any]) -> str:
    """A registered model of the two versions: champion and candidate."""
    with registry_at_hand() as client:
        return new_model(client, [(version.source, version.run_id) for version in trained])


def ask(api: Api, model: str, image: str) -> None:
    evaluation = small(image, model)
    policy = {
        "model": model,
        "suites": [suite.manifest() for suite in read_policy("demo/digits").suites],
        "gates": [{"suite": "digits", "metric": "knn/top1", "bound": 0.05, "allowedRegression": 0.9}],
        "evaluation": {key: evaluation[key] for key in ("image", "resources", "env")} | {"secrets": SECRETS},
    }
    for kind, spec in ((POLICY, policy), (PROMOTION, {"policy": model})):
        body = {"apiVersion": API_VERSION, "kind": kind, "metadata": {"name": model}, "spec": spec}
        api.of(kind, API_VERSION).create(body=body, namespace=TEAM)


@pytest.mark.parametrize(
    "part",
    [
        "operator",
        pytest.param("mlflow", marks=pytest.mark.long),
        pytest.param("minio", marks=pytest.mark.long),
    ],
)
def test_the_champion_changes_whatever_goes_away(
    api: Api, operator: Operator, image: str, model: str, part: str
) -> None:
    ask(api, model, image)

    def promotion() -> Manifest:
        found = api.get(TEAM, model, PROMOTION)
        assert found is not None
        return found

    def evaluations() -> list[Manifest]:
        label = f"{GROUP}/promotion={model}"
        found: list[Manifest] = (
            api.of(KIND, API_VERSION).get(namespace=TEAM, label_selector=label).to_dict()["items"]
        )
        return found

    def said(kind: str, status: str) -> Callable[[], bool]:
        return lambda: condition(promotion(), kind).get("status") == status

    def side_by_side() -> bool:
        runs = evaluations()
        return len(runs) == 2 and all(condition(one, "Running").get("status") == "True" for one in runs)

    wait_for("both evaluations at once", side_by_side, 5 * MINUTES)
    assert {one["spec"]["model"] for one in evaluations()} == {f"models:/{model}/{n}" for n in (1, 2)}
    if part == "operator":
        operator.kill()
    else:
        with away(part):
            if part == "mlflow":
                wait_for("MLflow is missed", said("Reachable", "False"))
            time.sleep(AWAY_SECONDS)
    wait_for("the new champion", said("Promoted", "True"), 15 * MINUTES)
    with registry_at_hand() as client:
        aliases = client.get_registered_model(model).aliases
        assert aliases == {"candidate": "2", "champion": "2", "previous": "1"}
        assert len(client.search_model_versions(f"name = '{model}{SUFFIX}'")) == 1, "it is done once"
    api.of(PROMOTION, API_VERSION).delete(name=model, namespace=TEAM)
    api.of(POLICY, API_VERSION).delete(name=model, namespace=TEAM)
