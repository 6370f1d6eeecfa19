"""`python -m scholarch_operator`: runs the operator in the namespaces of `SCHOLARCH_NAMESPACES`, or in all."""

from __future__ import annotations

import os
import sys

import kopf

from scholarch_operator import handlers

LIVENESS = "http://0.0.0.0:8080/healthz"


def main() -> int:
    """The command; returns its exit code."""
    assert handlers.METRICS_PORT  # importing them is what registers them
    kopf.configure(verbose=False)
    namespaces = [name for name in os.environ.get("SCHOLARCH_NAMESPACES", "").split(",") if name]
    # One replica, recreated: peering would freeze two operators of the same priority, and has no lease.
    kopf.run(
        standalone=True,
        clusterwide=not namespaces,
        namespaces=namespaces,
        liveness_endpoint=LIVENESS,
    )
    return 0


if __name__ == "__main__":
    sys.exit(main())
