"""`python -m scholarch_operator.values FILE`: writes the schema of the values of the chart `scholarch-run`."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

from scholarch.config.training_run import RULES, TrainingRunSpec

_OF_KUBERNETES = frozenset({RULES, "immutable", "keyed", "title"})


def schema() -> str:
    """JSON schema of a run's spec. Rules between keys are the API server's: JSON schema has no words for them."""
    found = _converted(TrainingRunSpec.model_json_schema(by_alias=True))
    # JSON schema's own key, so that Helm and editors read it as what pydantic writes.
    found = {"$schema": "https://json-schema.org/draft/2020-12/schema", **found}
    return json.dumps(found, indent=2) + "\n"


def _converted(node: Any) -> Any:
    if isinstance(node, list):
        return [_converted(item) for item in node]
    if not isinstance(node, dict):
        return node
    result = {key: _converted(value) for key, value in node.items() if key not in _OF_KUBERNETES}
    if result.pop("x-kubernetes-int-or-string", False):
        result["type"] = ["integer", "string"]
    return result


def main(file: Path) -> int:
    """Writes the schema; returns the exit code."""
    file.write_text(schema())
    return 0


if __name__ == "__main__":
    sys.exit(main(Path(sys.argv[1])))
