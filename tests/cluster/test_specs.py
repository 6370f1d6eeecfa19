"""The API server refuses what the model refuses, with the same words, before anything is made of it."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest
import yaml
from kubernetes.client.exceptions import ApiException
from runs_api import Api

pytestmark = [pytest.mark.cluster, pytest.mark.usefixtures("operator")]
TABLE = yaml.safe_load((Path(__file__).parents[1] / "scholarch_operator/invalid_specs.yaml").read_text())


def changed(change: dict[str, Any]) -> dict[str, Any]:
    return {key: value for key, value in {**TABLE["valid"], **change}.items() if value is not None}


def refusal(api: Api, namespace: str, name: str, spec: dict[str, Any]) -> str:
    """What the API server says to a run that is to be made, without making it; empty where it takes it."""
    try:
        api.run(namespace, name, spec, dry_run="All")
    except ApiException as error:
        return str(error.body)
    return ""


def test_every_mistake_is_refused(api: Api, namespace: str) -> None:
    taken = []
    for case in TABLE["invalid"]:
        said = refusal(api, namespace, "digits", changed(case["change"]))
        place = f"spec.{case['at']}".rstrip(".")
        if place not in said or not re.search(case["says"], said, re.IGNORECASE):
            taken.append(f"{case['name']}: {said or 'taken'}")
    assert not taken, "\n".join(taken)


def test_names(api: Api, namespace: str) -> None:
    for case in TABLE["names"]:
        assert case["says"] in refusal(api, namespace, case["name"], TABLE["valid"]), case["name"]


def test_what_is_allowed(api: Api, namespace: str) -> None:
    for case in TABLE["allowed"]:
        assert refusal(api, namespace, "digits", changed(case["change"])) == "", case["name"]


def test_what_may_not_change(api: Api, namespace: str) -> None:
    for number, case in enumerate(TABLE["changes"]):
        api.run(namespace, f"digits-{number}", changed(case["before"]))
        with pytest.raises(ApiException) as caught:
            api.replace(namespace, f"digits-{number}", TABLE["valid"])
        assert case["says"] in str(caught.value.body), case["name"]
