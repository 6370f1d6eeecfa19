"""The CRD: the file in the chart is the generated one, and says no where the model says no.

The table of mistakes is fed to a real API server by the cluster tests.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml
from scholarch.config.training_run import TrainingRunSpec
from scholarch.errors import UserError
from scholarch_operator import crd

ROOT = Path(__file__).parents[2]
TABLE = yaml.safe_load((Path(__file__).parent / "invalid_specs.yaml").read_text())


def changed(change: dict[str, Any]) -> dict[str, Any]:
    return {key: value for key, value in {**TABLE["valid"], **change}.items() if value is not None}


@pytest.mark.parametrize("plural", crd.DEFINITIONS)
def test_file_in_the_chart_is_the_generated_one(plural: str) -> None:
    path = ROOT / f"charts/scholarch/templates/crds/{plural}.yaml"
    assert path.read_text() == crd.template(plural), "make crds"


@pytest.mark.parametrize("case", TABLE["invalid"], ids=lambda case: case["name"])
def test_mistake_is_refused(case: dict[str, Any]) -> None:
    with pytest.raises(UserError) as caught:
        TrainingRunSpec.parse(changed(case["change"]))
    message = str(caught.value)
    assert f"spec.{case['at']}".rstrip(".") in message
    assert re.search(case["says"], message, re.IGNORECASE)


@pytest.mark.parametrize("case", TABLE["allowed"], ids=lambda case: case["name"])
def test_what_is_allowed(case: dict[str, Any]) -> None:
    spec = TrainingRunSpec.parse(changed(case["change"]))
    assert TrainingRunSpec.parse(spec.manifest()) == spec


def nodes(schema: dict[str, Any], path: str = "") -> Iterator[tuple[str, dict[str, Any]]]:
    yield path, schema
    for key, value in schema.get("properties", {}).items():
        yield from nodes(value, f"{path}.{key}")
    for key in ("items", "additionalProperties"):
        if isinstance(schema.get(key), dict):
            yield from nodes(schema[key], f"{path}[]")


@pytest.mark.parametrize("plural", crd.DEFINITIONS)
def test_schema_is_structural_and_bounded(plural: str) -> None:
    schema = crd.DEFINITIONS[plural]()["spec"]["versions"][0]["schema"]["openAPIV3Schema"]
    for path, node in nodes(schema["properties"]["spec"]):
        assert "$ref" not in node, path
        assert "type" in node or "x-kubernetes-int-or-string" in node, path
        assert node.get("type") != "array" or "maxItems" in node, path
        assert node.get("type") != "string" or "maxLength" in node or "enum" in node, path
        assert "additionalProperties" not in node or "maxProperties" in node, path
    if "status" in schema["properties"]:
        conditions = schema["properties"]["status"]["properties"]["conditions"]
        assert conditions["x-kubernetes-list-map-keys"] == ["type"]
        assert not [path for path, node in nodes(schema["properties"]["status"]) if "default" in node]


def test_defaults_of_sections_are_written_out() -> None:
    schema = crd.training_run()["spec"]["versions"][0]["schema"]["openAPIV3Schema"]
    spec = schema["properties"]["spec"]
    # An object's default is not filled in further before its rules are applied.
    assert spec["properties"]["nodes"]["default"] == {"min": 1, "max": 1, "sizes": []}


def test_fields_are_a_decision() -> None:
    """A new field is public: it is added here too."""
    spec = crd.training_run()["spec"]["versions"][0]["schema"]["openAPIV3Schema"]["properties"]["spec"]
    assert sorted(spec["properties"]) == [
        "cancel", "code", "data", "env", "gang", "graceSeconds", "image", "mlflow", "model", "nodes", "overrides",
        "placement", "priorityClass", "processes", "queue", "resources", "retries", "run", "secrets", "stages",
        "stallSeconds", "suite", "suspend", "ttlSeconds", "verb", "volumes",
    ]  # fmt: skip
