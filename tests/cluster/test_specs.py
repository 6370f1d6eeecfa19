"""The API server refuses what the model refuses, with the same words, before anything is made of it."""

from __future__ import annotations

import re
import time
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
LOOK_SECONDS = 20.0
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


def told(api: Api, namespace: str, kind: str, spec: Manifest, of: str) -> Manifest:
    """The condition `of` an object `new` that the operator does not understand."""
    body = {"apiVersion": f"{GROUP}/{VERSION}", "kind": kind, "metadata": {"name": "new"}, "spec": spec}
    kinds = api.of(kind, f"{GROUP}/{VERSION}")

    def once() -> Manifest | None:
        """A watch from before the change shows an object of its moment without the key, and never again."""
        kinds.create(body=body, namespace=namespace)
        until = time.monotonic() + LOOK_SECONDS
        while time.monotonic() < until:
            found = condition(api.get(namespace, "new", kind), of)
            if found.get("reason") == "InvalidSpec":
                return found
            time.sleep(0.5)
        kinds.delete(name="new", namespace=namespace)
        wait_for("its end", lambda: api.get(namespace, "new", kind) is None)
        return None

    found: Manifest = wait_for(f"{kind} that is not understood", once)
    return found


def test_objects_of_a_newer_version_are_told(api: Api, namespace: str) -> None:
    """An operator that does not know all of a spec does nothing about it, says so, and looks after the others."""
    with newer(api, PLURAL), newer(api, PROMOTIONS):
        run = told(api, namespace, KIND, {**TABLE["valid"], "tomorrow": "x"}, "Scheduled")
        promotion = told(api, namespace, PROMOTION, {"policy": "none", "tomorrow": "x"}, "Failed")
        assert "tomorrow" in run["message"]
        assert "tomorrow" in promotion["message"]
        wait_for("no Job", lambda: not api.jobs(namespace, "new"))
        api.run(namespace, "old", {**TABLE["valid"], "image": "scholarch.invalid/nowhere:1"})
        wait_for("the other one's Job", lambda: api.jobs(namespace, "old"))
