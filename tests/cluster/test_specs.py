"""The API server refuses what the model refuses, with the same words, before anything is made of it."""

from __future__ import annotations

import re
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import yaml
from kubernetes.client.exceptions import ApiException
from runs_api import Api, Manifest, condition, wait_for
from scholarch.config.promotion import PROMOTION, PROMOTIONS
from scholarch.config.training_run import GROUP, KIND, PLURAL, VERSION

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


@contextmanager
def newer(api: Api, plural: str) -> Iterator[None]:
    """A kind's CRD is of a version to come meanwhile, with a key `spec.tomorrow`."""
    crds = api.of("CustomResourceDefinition", "apiextensions.k8s.io/v1")
    path = "/spec/versions/0/schema/openAPIV3Schema/properties/spec/properties/tomorrow"

    def patch(change: Manifest) -> None:
        body = [change | {"path": path}]
        crds.patch(body=body, name=f"{plural}.{GROUP}", content_type="application/json-patch+json")

    patch({"op": "add", "value": {"type": "string"}})
    try:
        yield
    finally:
        patch({"op": "remove"})


def test_objects_of_a_newer_version_are_told(api: Api, namespace: str) -> None:
    """An operator that does not know all of a spec does nothing about it, says so, and looks after the others."""

    def made(kind: str, spec: Manifest) -> None:
        body = {"apiVersion": f"{GROUP}/{VERSION}", "kind": kind, "metadata": {"name": "new"}, "spec": spec}
        kinds = api.of(kind, f"{GROUP}/{VERSION}")

        def kept() -> bool:
            """The API server takes a moment to know the key."""
            found = kinds.create(body=body, namespace=namespace).to_dict()
            if "tomorrow" not in found["spec"]:
                kinds.delete(name="new", namespace=namespace)
            return "tomorrow" in found["spec"]

        wait_for("the newer version", kept)

    def said(kind: str, of: str) -> Manifest:
        return condition(api.get(namespace, "new", kind), of)

    with newer(api, PLURAL), newer(api, PROMOTIONS):
        made(KIND, {**TABLE["valid"], "tomorrow": "x"})
        made(PROMOTION, {"policy": "none", "tomorrow": "x"})
        wait_for("the run's condition", lambda: said(KIND, "Scheduled").get("reason") == "InvalidSpec")
        wait_for("the promotion's", lambda: said(PROMOTION, "Failed").get("reason") == "InvalidSpec")
        assert "tomorrow" in said(KIND, "Scheduled")["message"]
        assert "tomorrow" in said(PROMOTION, "Failed")["message"]
        assert not api.jobs(namespace, "new")
        api.run(namespace, "old", {**TABLE["valid"], "image": "scholarch.invalid/nowhere:1"})
        wait_for("the other one's Job", lambda: api.jobs(namespace, "old"))
