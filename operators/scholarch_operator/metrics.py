"""Prometheus metrics: of the operator itself, and of the runs as their status has them."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator

from prometheus_client import Counter, Histogram
from prometheus_client.core import GaugeMetricFamily, Metric
from prometheus_client.registry import Collector

from scholarch_operator.observed import Body
from scholarch_operator.status import CONDITIONS, RunStatus

RECONCILES = Counter("scholarch_reconciles", "Looks at a run", ["outcome"])
RECONCILE_SECONDS = Histogram("scholarch_reconcile_seconds", "Time of one look at a run")
PROMOTIONS = Counter("scholarch_promotions", "Looks at a promotion, by its verdict", ["verdict"])

_OF_RUN = ["namespace", "run"]
_VALUES: tuple[tuple[str, str, Callable[[RunStatus], float | None]], ...] = (
    ("step", "Last finished step", lambda s: s.progress.step if s.progress else None),
    ("steps", "Steps of the whole run", lambda s: s.progress.total if s.progress else None),
    ("loss", "Total loss of the last step", lambda s: s.progress.loss if s.progress else None),
    ("images_per_second", "Of all workers", lambda s: s.progress.images_per_second if s.progress else None),
    ("eta_seconds", "Until the last step", lambda s: s.progress.eta_seconds if s.progress else None),
    ("nodes", "Running pods", lambda s: s.nodes),
    ("world_size", "Workers", lambda s: s.world_size),
    ("attempt", "Number of the attempt", lambda s: s.attempt),
    ("restarts", "Pods that ended early", lambda s: s.restarts),
    ("counted_restarts", "Pods that ended by a fault", lambda s: s.counted_restarts),
)


class RunCollector(Collector):
    """Reads the runs at each scrape, so that no series outlives its run.

    Args:
        bodies: gives all runs.
    """

    def __init__(self, bodies: Callable[[], Iterable[Body]]) -> None:
        self._bodies = bodies

    def collect(self) -> Iterator[Metric]:
        families = {
            name: GaugeMetricFamily(f"scholarch_run_{name}", text, labels=_OF_RUN)
            for name, text, _ in _VALUES
        }
        conditions = GaugeMetricFamily(
            "scholarch_run_condition", "1 where the condition holds", labels=[*_OF_RUN, "condition"]
        )
        for body in self._bodies():
            meta, status = body["metadata"], RunStatus.parse(body.get("status"))
            of_run = [meta["namespace"], meta["name"]]
            for name, _, value in _VALUES:
                found = value(status)
                if found is not None:
                    families[name].add_metric(of_run, found)
            for condition in CONDITIONS:
                conditions.add_metric([*of_run, condition], float(status.is_true(condition)))
        yield from [*families.values(), conditions]
