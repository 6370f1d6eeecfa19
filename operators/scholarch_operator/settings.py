"""What the operator knows of the platform it serves; the chart sets it."""

from __future__ import annotations

import json
import os
from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True)
class Settings:
    """The same for all runs.

    Attributes:
        s3_endpoint: of the store, as the workers reach it.
        tracking_uri: of MLflow, where a run names none.
        egress: NetworkPolicy egress rules beside DNS, a run's own pods and the platform's.
    """

    s3_endpoint: str = ""
    tracking_uri: str = ""
    egress: tuple[dict[str, Any], ...] = ()

    @classmethod
    def from_environment(cls) -> Settings:
        """`AWS_ENDPOINT_URL`, `MLFLOW_TRACKING_URI` and `SCHOLARCH_EGRESS`, a JSON list of rules."""
        return cls(
            s3_endpoint=os.environ.get("AWS_ENDPOINT_URL", ""),
            tracking_uri=os.environ.get("MLFLOW_TRACKING_URI", ""),
            egress=tuple(json.loads(os.environ.get("SCHOLARCH_EGRESS") or "[]")),
        )
