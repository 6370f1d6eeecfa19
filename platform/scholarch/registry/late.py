"""A run's record brought to MLflow after the run, by a process that did not train it."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from scholarch.errors import RunFailed
from scholarch.registry.client import reason, tracking_uri
from scholarch.registry.delivery import Delivery, Target, known_run
from scholarch.registry.machine import MachineSampler
from scholarch.registry.outbox import Outbox
from scholarch.registry.redaction import redact_text


def send_record(
    run_folder: Path, experiment: str, outbox: Outbox, kept: Callable[[], None] = lambda: None
) -> str:
    """Sends `metrics.jsonl` and what an outbox holds; what MLflow has already is not doubled.

    Args:
        run_folder: of the run, or a copy of it.
        experiment: of a run that MLflow has never heard of.
        kept: called when that one has an id, which is in the folder from then on.

    Returns:
        what MLflow refused, in words; empty: nothing.

    Raises:
        RunFailed: if MLflow cannot be reached.
    """
    uri, before = tracking_uri(run_folder), known_run(run_folder)
    # No samples: this machine's load is not the run's.
    target = Target(uri, experiment, run_folder.name, before)
    delivery = Delivery(run_folder, target, outbox, MachineSampler(run_folder))
    try:
        delivery.send()
    except Exception as error:
        raise RunFailed(
            f"MLflow at {redact_text(uri)} did not take the run's record: {reason(error)}. Try again later"
        ) from error
    finally:
        if known_run(run_folder) != before:
            kept()
    return "; ".join(delivery.refused)
