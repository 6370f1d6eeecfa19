"""The act: appends what was decided to the log of a model, and lets its aliases follow.

What is promised (docs/promotion.md says it for users):

- The champion is what the log says, and the log has one order. Of two who act on the same champion at once
  one wins; the other's entry is void, and it is told.
- An act is done in this order: evidence, entry, champion's alias, previous's alias, tags, `done`. Whoever dies
  in between leaves the champion's alias at the old or at the new version. Until the entry is there, nothing
  has happened; from then on the next look by anybody finishes it, and it is not done twice.
- Before each write of an alias, and after the last one, the log is read again, and a newer act goes first. An
  alias can be wrong for longer only if an actor hangs between its look and its write for as long as another's
  whole act takes, and dies before its next request. It then shows as drifted, as an alias does that somebody
  has moved by hand, and `restore` puts it back.
"""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any, NamedTuple

from scholarch.config.promotion import PolicySpec
from scholarch.errors import RunFailed, UserError
from scholarch.registry.card import DESCRIPTION_LENGTH
from scholarch.registry.client import missing
from scholarch.registry.decision import Decision
from scholarch.registry.history import SUFFIX, Act, History, replay
from scholarch.registry.table import decision_markdown
from scholarch.storage.results import Result

EVIDENCE = "promotion"
_TAG_LENGTH = 2000
_ROUNDS = 5


class Names(NamedTuple):
    """A registered model and the aliases that are moved."""

    model: str
    champion: str = "champion"
    previous: str = "previous"

    @classmethod
    def of(cls, policy: PolicySpec) -> Names:
        """Those of a policy."""
        return cls(policy.model, policy.champion_alias, policy.previous_alias)


class Overtaken(RunFailed):
    """Somebody else's act came first; what was decided was decided about another champion."""


@dataclass(frozen=True)
class Standing:
    """A model's aliases and its log, read at one time.

    Attributes:
        aliases: versions by alias.
    """

    aliases: Mapping[str, str]
    history: History
    champion_alias: str

    @property
    def champion(self) -> str:
        """What counts as champion: as the log has it, or without a log the alias. Empty: none."""
        return self.history.champion if self.history.last else self.aliases.get(self.champion_alias, "")

    @property
    def drift(self) -> str:
        """Who else has moved the alias, in words; empty: it is where the log has it, or on its way."""
        holds = self.aliases.get(self.champion_alias, "")
        if self.history.last is None or self.history.unfinished or holds == self.champion:
            return ""
        where = f"is at version {holds}" if holds else "is gone"
        return f"alias {self.champion_alias} {where}; by the log of promotions it is version {self.champion}"


class Promoter:
    """Moves the aliases of one registered model.

    Args:
        client: an MlflowClient.
        by: who acts, for the log.
    """

    def __init__(self, client: Any, names: Names, by: str) -> None:
        self._client, self._names, self._by = client, names, by
        self._log = names.model + SUFFIX

    def look(self) -> Standing:
        """The model's aliases and its log.

        Raises:
            UserError: if there is no such model.
        """
        history = self._history()
        try:
            aliases = self._client.get_registered_model(self._names.model).aliases
        except Exception as error:
            if missing(error):
                raise UserError(
                    f"there is no registered model {self._names.model}", fix="train and register one first"
                ) from error
            raise
        found = {name: str(version) for name, version in aliases.items()}
        return Standing(found, history, self._names.champion)

    def settle(self) -> Standing:
        """Finishes an act that somebody has left in the middle; the standing after it."""
        standing = self.look()
        if not standing.history.unfinished:
            return standing
        self._follow()
        return self.look()

    def record(
        self, policy: PolicySpec, decision: Decision, results: Mapping[str, Mapping[str, Result]]
    ) -> Act | None:
        """Records a promotion or a refusal with its evidence, and makes the champion; safe to repeat.

        Args:
            results: by suite and version.

        Returns:
            the act; None where the verdict leaves nothing to record, or it was recorded before.

        Raises:
            Overtaken: if the champion is not that of the decision any more.
        """
        if decision.verdict not in ("promote", "refuse"):
            return None
        document = _evidence(policy, decision, results)
        digest = hashlib.sha256(json.dumps(document, sort_keys=True).encode()).hexdigest()[:16]
        kind = "promotion" if decision.verdict == "promote" else "refusal"
        history = self._history()
        if any(act.decision == digest and act.kind == kind for act in history.acts) and kind == "refusal":
            return None
        version = self._client.get_model_version(self._names.model, decision.candidate)
        evidence = f"{EVIDENCE}/{digest}/decision.json"
        if version.run_id:
            self._client.log_dict(version.run_id, document, evidence)
        act = Act(
            number=0,
            kind=kind,  # type: ignore[arg-type]
            before=decision.champion or "",
            after=decision.candidate,
            by=self._by,
            time=0.0,
            why="; ".join(decision.reasons),
            decision=digest,
            evidence=f"runs:/{version.run_id}/{evidence}" if version.run_id else "",
        )
        return self._append(act, decision_markdown(decision), version.run_id)

    def roll_back(self, why: str = "") -> Act:
        """Makes the champion before the present one champion again; the present one may not come back.

        Raises:
            UserError: if there is none before it.
            Overtaken: if somebody else moved the champion meanwhile.
        """
        history = self.settle().history
        if not history.previous:
            what = f"there is no champion before version {history.champion}"
            raise UserError(
                what if history.champion else "nothing was promoted yet",
                where=self._names.model,
                fix=f"scholarch promote {self._names.model} --history shows what was promoted",
            )
        act = Act(
            number=0,
            kind="rollback",
            before=history.champion,
            after=history.previous,
            by=self._by,
            time=0.0,
            why=why,
        )
        return self._append(act, f"Version {act.before} was rolled back to version {act.after}. {why}", None)

    def restore(self) -> Standing:
        """Puts aliases that somebody else has moved to where the log has them."""
        if self.look().history.last is not None:
            self._follow()
        return self.look()

    def _history(self) -> History:
        found = self._client.search_model_versions(f"name = '{self._log}'", max_results=10_000)
        acts = (Act.of(int(v.version), v.creation_timestamp / 1000, v.tags) for v in found)
        return replay(act for act in acts if act is not None)

    def _append(self, act: Act, description: str, run_id: str | None) -> Act:
        self._make_log()
        tags = {key: value[:_TAG_LENGTH] for key, value in act.tags().items() if value}
        source = f"models:/{self._names.model}/{act.after}"
        entry = self._client.create_model_version(
            self._log, source, run_id, tags=tags, description=description[:DESCRIPTION_LENGTH]
        )
        number = int(entry.version)
        if act.kind != "refusal":
            history = self._history()
            if number in history.void:
                raise Overtaken(
                    f"somebody else came first: the champion of {self._names.model} is version "
                    f"{history.champion} now"
                )
            self._follow()
        return next(found for found in self._history().acts if found.number == number)

    def _make_log(self) -> None:
        try:
            self._client.create_registered_model(
                self._log,
                tags={"scholarch.log": self._names.model},
                description=f"Who made which version of {self._names.model} champion, and why. "
                "Written by scholarch; not a model, and not for editing.",
            )
        except Exception as error:
            if getattr(error, "error_code", None) != "RESOURCE_ALREADY_EXISTS":
                raise

    def _follow(self) -> None:
        """Brings the aliases and tags to where the newest act has them, as long as there is a newer one."""
        for _ in range(_ROUNDS):
            before = self._history()
            act = before.last
            assert act is not None
            if not self._set(before, self._names.champion, before.champion):
                continue
            if not self._set(before, self._names.previous, before.previous):
                continue
            self._mark(act)
            after = self._history()
            if after.last is not None and after.last.number == act.number:
                self._client.set_model_version_tag(self._log, str(act.number), "done", "true")
                return
        raise Overtaken(f"others keep promoting {self._names.model}; look at it again")

    def _set(self, history: History, alias: str, version: str) -> bool:
        """Moves an alias if it is elsewhere; False: a newer act is there."""
        holds = self._client.get_registered_model(self._names.model).aliases.get(alias)
        if str(holds or "") == version:
            return True
        now = self._history()
        if now.last != history.last:
            return False
        if version:
            self._client.set_registered_model_alias(self._names.model, alias, version)
        else:
            self._client.delete_registered_model_alias(self._names.model, alias)
        return True

    def _mark(self, act: Act) -> None:
        """What a version's own page says of it."""
        rolled_back = act.kind == "rollback"
        words = {act.after: f"champion again by act {act.number}"} if rolled_back else {}
        words |= {act.before: f"rolled back by act {act.number}"} if rolled_back else {}
        words |= {} if rolled_back else {act.after: f"made champion by act {act.number}"}
        for version, text in words.items():
            self._client.set_model_version_tag(self._names.model, version, "promotion", text)
        if act.evidence:
            self._client.set_model_version_tag(
                self._names.model, act.after, "promotion.evidence", act.evidence
            )


def _evidence(
    policy: PolicySpec, decision: Decision, results: Mapping[str, Mapping[str, Result]]
) -> dict[str, Any]:
    """Everything that the decision followed from, but the samples themselves, of which it has the digests."""
    found = {
        suite: {version: _told(result) for version, result in versions.items()}
        for suite, versions in results.items()
    }
    return {"decision": decision.document(), "policy": policy.manifest(), "results": found}


def _told(result: Result) -> dict[str, Any]:
    return {
        "model": asdict(result.model),
        "data": {name: asdict(data) for name, data in result.data.items()},
        "evaluations": {name: dict(options) for name, options in result.evaluations.items()},
        "metrics": {k: v if math.isfinite(v) else str(v) for k, v in sorted(result.metrics.items())},
        "samples": {k: hashlib.sha256(v.tobytes()).hexdigest() for k, v in sorted(result.samples.items())},
        "code": result.code,
    }
