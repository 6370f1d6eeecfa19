"""`python -m scholarch_operator.crd FOLDER`: writes the CRDs, as templates of the chart, from the models."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import yaml
from scholarch.config.training_run import (
    GROUP,
    KIND,
    NAME_LENGTH,
    NAME_PATTERN,
    PLURAL,
    VERSION,
    TrainingRunSpec,
)

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
"""Heading, type, path and priority: those of priority 1 are shown by `-o wide`."""

HEADER = """\
{{- /* Written by `python -m scholarch_operator.crd FOLDER` from the models of the spec and the status. */ -}}
{{- if .Values.crds.enabled }}
"""
FOOTER = "{{- end }}\n"


def training_run() -> dict[str, Any]:
    """The CustomResourceDefinition of `TrainingRun`."""
    named = {
        "rule": f"self.metadata.name.size() <= {NAME_LENGTH} && self.metadata.name.matches('{NAME_PATTERN}')",
        "message": f"a run's name has at most {NAME_LENGTH} characters of a-z, 0-9 and -, with a letter first",
    }
    schema = {
        "type": "object",
        "required": ["spec"],
        "properties": {
            "apiVersion": {"type": "string"},
            "kind": {"type": "string"},
            "metadata": {"type": "object"},
            "spec": structural(TrainingRunSpec),
            "status": _status(),
        },
        "x-kubernetes-validations": [named],
    }
    version = {
        "name": VERSION,
        "served": True,
        "storage": True,
        "schema": {"openAPIV3Schema": schema},
        "subresources": {
            "status": {},
            "scale": {
                "specReplicasPath": ".spec.nodes.max",
                "statusReplicasPath": ".status.nodes",
                "labelSelectorPath": ".status.selector",
            },
        },
        "additionalPrinterColumns": [
            {"name": name, "type": kind, "jsonPath": path, **({"priority": priority} if priority else {})}
            for name, kind, path, priority in COLUMNS
        ],
    }
    names = {"kind": KIND, "listKind": f"{KIND}List", "plural": PLURAL, "singular": KIND.lower()}
    return {
        "apiVersion": "apiextensions.k8s.io/v1",
        "kind": "CustomResourceDefinition",
        "metadata": {
            "name": f"{PLURAL}.{GROUP}",
            # Uninstalling the platform must not delete everybody's runs.
            "annotations": {"helm.sh/resource-policy": "keep"},
        },
        "spec": {
            "group": GROUP,
            "scope": "Namespaced",
            "names": {**names, "shortNames": ["run", "runs"], "categories": ["scholarch"]},
            "versions": [version],
        },
    }


def _status() -> dict[str, Any]:
    # The operator writes the whole status; the API server is not to fill in what it left out.
    schema: dict[str, Any] = _without_defaults(structural(RunStatus))
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


def template() -> str:
    """The chart's template of the CRD."""
    body = yaml.safe_dump(training_run(), sort_keys=False, width=110, allow_unicode=True)
    if "{{" in body:
        raise ValueError("Helm would read the CRD's own {{ as its own")
    return HEADER + body + FOOTER


def main(folder: Path) -> int:
    """Writes the template; returns the exit code."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / f"{PLURAL}.yaml").write_text(template())
    return 0


if __name__ == "__main__":
    sys.exit(main(Path(sys.argv[1])))
