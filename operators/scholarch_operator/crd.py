"""`python -m scholarch_operator.crd FOLDER`: writes the CRDs, as templates of the chart, from the models."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import yaml
from pydantic import BaseModel
from scholarch.config.promotion import POLICIES, POLICY, PROMOTION, PROMOTIONS, PolicySpec, PromotionSpec
from scholarch.config.training_run import (
    GROUP,
    KIND,
    NAME_LENGTH,
    NAME_PATTERN,
    PLURAL,
    VERSION,
    TrainingRunSpec,
)

from scholarch_operator.promotion_status import PromotionStatus
from scholarch_operator.schema import structural
from scholarch_operator.status import RunStatus

COLUMNS = (
    ("Running", "string", '.status.conditions[?(@.type=="Running")].status', 0),
    ("Nodes", "integer", ".status.nodes", 0),
    ("Step", "integer", ".status.progress.step", 0),
    ("Of", "integer", ".status.progress.total", 0),
    ("Loss", "number", ".status.progress.loss", 0),
    ("ETA", "integer", ".status.progress.etaSeconds", 0),
    ("Complete", "string", '.status.conditions[?(@.type=="Complete")].status', 0),
    ("Failed", "string", '.status.conditions[?(@.type=="Failed")].status', 0),
    ("Age", "date", ".metadata.creationTimestamp", 0),
    ("Suspended", "string", '.status.conditions[?(@.type=="Suspended")].status', 1),
    ("Attempt", "integer", ".status.attempt", 1),
    ("Restarts", "integer", ".status.restarts", 1),
    ("Images/s", "number", ".status.progress.imagesPerSecond", 1),
    ("Checkpoint", "string", ".status.lastCheckpoint", 1),
)
POLICY_COLUMNS = (
    ("Model", "string", ".spec.model", 0),
    ("Hold", "boolean", ".spec.hold", 0),
    ("Age", "date", ".metadata.creationTimestamp", 0),
)
PROMOTION_COLUMNS = (
    ("Policy", "string", ".spec.policy", 0),
    ("Candidate", "string", ".status.candidate", 0),
    ("Champion", "string", ".status.champion", 0),
    ("Verdict", "string", ".status.verdict", 0),
    ("Promoted", "string", '.status.conditions[?(@.type=="Promoted")].status', 0),
    ("Drifted", "string", '.status.conditions[?(@.type=="Drifted")].status', 0),
    ("Age", "date", ".metadata.creationTimestamp", 0),
    ("Model", "string", ".status.model", 1),
    ("Reasons", "string", ".status.reasons", 1),
)
Columns = tuple[tuple[str, str, str, int], ...]
"""Heading, type, path and priority: those of priority 1 are shown by `-o wide`."""

HEADER = """\
{{- /* Written by `python -m scholarch_operator.crd FOLDER` from the models of the spec and the status. */ -}}
{{- if .Values.crds.enabled }}
"""
FOOTER = "{{- end }}\n"


def training_run() -> dict[str, Any]:
    """The CustomResourceDefinition of `TrainingRun`."""
    more = {
        "scale": {
            "specReplicasPath": ".spec.nodes.max",
            "statusReplicasPath": ".status.nodes",
            "labelSelectorPath": ".status.selector",
        }
    }
    return _definition(KIND, PLURAL, ["run", "runs"], TrainingRunSpec, RunStatus, COLUMNS, more)


def promotion_policy() -> dict[str, Any]:
    """The CustomResourceDefinition of `PromotionPolicy`."""
    return _definition(POLICY, POLICIES, [], PolicySpec, None, POLICY_COLUMNS)


def model_promotion() -> dict[str, Any]:
    """The CustomResourceDefinition of `ModelPromotion`."""
    return _definition(
        PROMOTION, PROMOTIONS, ["promotion"], PromotionSpec, PromotionStatus, PROMOTION_COLUMNS
    )


def _definition(
    kind: str,
    plural: str,
    short: list[str],
    spec: type[BaseModel],
    status: type[BaseModel] | None,
    columns: Columns,
    subresources: dict[str, Any] | None = None,
) -> dict[str, Any]:
    named = {
        "rule": f"self.metadata.name.size() <= {NAME_LENGTH} && self.metadata.name.matches('{NAME_PATTERN}')",
        "message": f"a name has at most {NAME_LENGTH} characters of a-z, 0-9 and -, with a letter first",
    }
    schema = {
        "type": "object",
        "required": ["spec"],
        "properties": {
            "apiVersion": {"type": "string"},
            "kind": {"type": "string"},
            "metadata": {"type": "object"},
            "spec": structural(spec),
            **({"status": _status(status)} if status else {}),
        },
        "x-kubernetes-validations": [named],
    }
    version = {
        "name": VERSION,
        "served": True,
        "storage": True,
        "schema": {"openAPIV3Schema": schema},
        **({"subresources": {"status": {}, **(subresources or {})}} if status else {}),
        "additionalPrinterColumns": [
            {"name": name, "type": type_, "jsonPath": path, **({"priority": priority} if priority else {})}
            for name, type_, path, priority in columns
        ],
    }
    names = {"kind": kind, "listKind": f"{kind}List", "plural": plural, "singular": kind.lower()}
    return {
        "apiVersion": "apiextensions.k8s.io/v1",
        "kind": "CustomResourceDefinition",
        "metadata": {
            "name": f"{plural}.{GROUP}",
            # Uninstalling the platform must not delete what everybody has made.
            "annotations": {"helm.sh/resource-policy": "keep"},
        },
        "spec": {
            "group": GROUP,
            "scope": "Namespaced",
            "names": {**names, **({"shortNames": short} if short else {}), "categories": ["scholarch"]},
            "versions": [version],
        },
    }


def _status(status: type[BaseModel]) -> dict[str, Any]:
    # The operator writes the whole status; the API server is not to fill in what it left out.
    schema: dict[str, Any] = _without_defaults(structural(status))
    schema["properties"]["conditions"] |= {
        "x-kubernetes-list-type": "map",
        "x-kubernetes-list-map-keys": ["type"],
    }
    return schema


def _without_defaults(node: Any) -> Any:
    if isinstance(node, dict):
        return {
            key: _without_defaults(value)
            for key, value in node.items()
            if key != "default" or not isinstance(node.get("type"), str)
        }
    return [_without_defaults(item) for item in node] if isinstance(node, list) else node


DEFINITIONS = {PLURAL: training_run, POLICIES: promotion_policy, PROMOTIONS: model_promotion}
"""What makes each CRD, by its plural."""


def template(plural: str) -> str:
    """The chart's template of a CRD."""
    body = yaml.safe_dump(DEFINITIONS[plural](), sort_keys=False, width=110, allow_unicode=True)
    if "{{" in body:
        raise ValueError("Helm would read the CRD's own {{ as its own")
    return HEADER + body + FOOTER


def main(folder: Path) -> int:
    """Writes the templates; returns the exit code."""
    folder.mkdir(parents=True, exist_ok=True)
    for plural in DEFINITIONS:
        (folder / f"{plural}.yaml").write_text(template(plural))
    return 0


if __name__ == "__main__":
    sys.exit(main(Path(sys.argv[1])))
