"""Looks at promotions one after another: reads the registry, asks what follows, and does it."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Iterable, Mapping
from contextlib import suppress
from dataclasses import replace
from datetime import UTC, datetime
from typing import Any

from kubernetes.client.exceptions import ApiException
from scholarch.config.promotion import PROMOTION, PolicySpec
from scholarch.errors import UserError
from scholarch.registry.client import connect, reason
from scholarch.registry.decision import Decision
from scholarch.registry.evidence import find_results
from scholarch.registry.promotion import Names, Overtaken, Promoter, Standing
from scholarch.storage.results import Result
from urllib3.exceptions import HTTPError

from scholarch_operator.cluster import Cluster, OutdatedError, refusal
from scholarch_operator.controller import PERIOD_SECONDS, Key
from scholarch_operator.evaluation_run import evaluation_run
from scholarch_operator.metrics import PROMOTIONS
from scholarch_operator.observed import Body
from scholarch_operator.promotion import EvaluationRun, Promotion, Seen, candidate_of, next_step, unreadable
from scholarch_operator.promotion_status import PromotionStatus
from scholarch_operator.settings import Settings

logger = logging.getLogger(__name__)
Results = dict[str, dict[str, Result]]


class PromotionController:
    """One per operator, beside that of runs. The indexes are live views that kopf keeps up to date.

    Args:
        promotions, policies: objects by their key.
        runs: evaluations by the promotion's key.
    """

    def __init__(
        self,
        cluster: Cluster,
        settings: Settings,
        promotions: Mapping[Key, Iterable[Body]],
        policies: Mapping[Key, Iterable[Body]],
        runs: Mapping[Key, Iterable[EvaluationRun]],
    ) -> None:
        self._cluster, self._settings = cluster, settings
        self._promotions, self._policies, self._runs = promotions, policies, runs
        self._results: dict[Key, Results] = {}

    async def work(self) -> None:
        """Goes on until it is cancelled. No event tells of MLflow, so everything is looked at in turn."""
        while True:
            for key in list(self._promotions):
                body = next(iter(self._promotions.get(key, ())), None)
                if body is not None:
                    await asyncio.to_thread(self._look_at, key, body)
            for key in self._results.keys() - set(self._promotions):
                del self._results[key]
            await asyncio.sleep(PERIOD_SECONDS)

    def _look_at(self, key: Key, body: Body) -> None:
        outcome = "error"
        try:
            outcome = self._reconcile(key, body)
        except OutdatedError:
            outcome = "outdated"
        except ApiException as error:
            logger.warning("promotion %s/%s: %s", *key, refusal(error) or error)
        except (HTTPError, OSError) as error:
            logger.warning("promotion %s/%s: the API server does not answer: %s", *key, error)
        except Exception:
            # One promotion's defect must not end the care for all others.
            logger.exception("promotion %s/%s", *key)
        PROMOTIONS.labels(outcome).inc()

    def _reconcile(self, key: Key, body: Body) -> str:
        now = datetime.now(UTC).replace(microsecond=0)
        try:
            promotion = Promotion.parse(body)
        except UserError as error:  # written under another version of the CRD
            return self._unreadable(key, body, str(error), now)
        policy, trouble = self._policy(key[0], promotion.spec.policy)
        seen = Seen(
            now=now,
            policy=policy,
            trouble=trouble,
            runs=tuple(self._runs.get(key, ())),
        )
        client: Any = None
        if policy is not None and not promotion.spec.suspend:
            client, seen = self._with_registry(key, promotion, policy, seen)
        step = next_step(promotion, seen)
        version = body["metadata"]["resourceVersion"]
        if step.status != promotion.status or not body.get("status"):
            self._cluster.write_status(*key, version, step.status, PROMOTION)
        for what, message in step.events:
            self._cluster.tell(promotion, what, message, PROMOTION)
        for start in step.start:
            assert policy is not None
            self._cluster.create(evaluation_run(promotion, policy, start))
        if step.record is not None:
            assert policy is not None
            self._record(key, client, promotion, policy, step.record)
        return step.status.verdict or "waiting"

    def _unreadable(self, key: Key, body: Body, message: str, now: datetime) -> str:
        before, meta = PromotionStatus.parse(body.get("status")), body["metadata"]
        status = unreadable(before, message, now, meta.get("generation", 0))
        if status != before:
            self._cluster.write_status(*key, meta["resourceVersion"], status, PROMOTION)
        return "invalid"

    def _policy(self, namespace: str, name: str) -> tuple[PolicySpec | None, str]:
        body = next(iter(self._policies.get((namespace, name), ())), None)
        if body is None:
            return None, f"there is no PromotionPolicy {name}"
        try:
            policy = PolicySpec.read(body.get("spec", {}), f"PromotionPolicy {name}")
        except UserError as error:
            return None, str(error)
        if not policy.evaluation.image:
            return None, f"PromotionPolicy {name}: spec.evaluation.image says what evaluations run in"
        return policy, ""

    def _with_registry(
        self, key: Key, promotion: Promotion, policy: PolicySpec, seen: Seen
    ) -> tuple[Any, Seen]:
        """What the registry says; an act that was cut off is finished by this look."""
        uri = policy.evaluation.mlflow.uri or self._settings.tracking_uri
        try:
            client = connect(uri)
            standing = Promoter(client, Names.of(policy), self._name(promotion)).settle()
            results = self._found(key, client, policy, promotion, standing)
        except UserError as error:
            return None, replace(seen, trouble=str(error), policy=None)
        except Exception as error:
            # Whatever MLflow raises when it is away: waited for, and told.
            return None, replace(seen, unreachable=f"MLflow does not answer: {reason(error)}")
        return client, replace(seen, standing=standing, results=results)

    def _found(
        self, key: Key, client: Any, policy: PolicySpec, promotion: Promotion, standing: Standing
    ) -> Results:
        """Results of candidate and champion; read again only where something is missing."""
        before = self._results.get(key, {})
        found: Results = {}
        suites = {suite.name: suite.data for suite in policy.suites}
        for version in {candidate_of(promotion, policy, standing), standing.champion} - {""}:
            known = before.get(version, {})
            fits = all(
                suite in known and {n: d.fingerprint for n, d in known[suite].data.items()} == data
                for suite, data in suites.items()
            )
            found[version] = known if fits else find_results(client, policy.model, version, list(suites))
        self._results[key] = found
        return found

    def _record(
        self, key: Key, client: Any, promotion: Promotion, policy: PolicySpec, decision: Decision
    ) -> None:
        by_suite = {
            suite.name: {
                version: results[suite.name]
                for version, results in self._results[key].items()
                if suite.name in results
            }
            for suite in policy.suites
        }
        promoter = Promoter(client, Names.of(policy), self._name(promotion))
        try:
            # Somebody else came first: the next look is about the champion of then.
            with suppress(Overtaken):
                act = promoter.record(policy, decision, by_suite)
                if act is not None and act.kind == "promotion":
                    words = (
                        f"{policy.model} version {act.after} is {policy.champion_alias}, by act {act.number}"
                    )
                    self._cluster.tell(promotion, "Promoted", words, PROMOTION)
        except ApiException:
            raise
        except Exception as error:
            logger.warning("promotion %s/%s: MLflow does not answer: %s", *key, reason(error))

    @staticmethod
    def _name(promotion: Promotion) -> str:
        return f"operator, {PROMOTION} {promotion.namespace}/{promotion.name}"
