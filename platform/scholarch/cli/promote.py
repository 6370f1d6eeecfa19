"""`scholarch promote`: makes a registered version champion if it passes the gates of a policy; and back."""

from __future__ import annotations

import argparse
import getpass
import json
import os
import socket
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from scholarch.errors import EXIT_DONE, EXIT_FAILED, RunFailed, UserError

if TYPE_CHECKING:
    from scholarch.config.promotion import PolicySpec
    from scholarch.registry.decision import Decision
    from scholarch.registry.promotion import Promoter, Standing
    from scholarch.storage.results import Result

ROUNDS = 3


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Arguments of the verb."""
    parser.add_argument(
        "model",
        help="name of a registered model (its candidate), or models:/NAME/VERSION, models:/NAME@ALIAS",
    )
    parser.add_argument("--policy", default="", metavar="FILE", help="the rule: suites and gates, as YAML")
    parser.add_argument(
        "--dry-run", action="store_true", help="evaluate and print the decision, and change nothing"
    )
    parser.add_argument(
        "--approve", action="store_true", help="you have looked at it: for policies that hold candidates"
    )
    parser.add_argument("--rollback", action="store_true", help="make the champion before this one champion")
    parser.add_argument(
        "--history", action="store_true", help="print what was promoted, refused, rolled back"
    )
    parser.add_argument("--why", default="", help="with --rollback: the reason, for the history")
    parser.add_argument("--json", action="store_true", help="print the decision as JSON")


def run(arguments: argparse.Namespace) -> int:
    """0: the version is champion, or would be; 1: it is not, and the reasons are printed."""
    from scholarch.registry.client import connect, reason, refused, tracking_uri
    from scholarch.registry.redaction import redact_text

    if arguments.history and arguments.rollback:
        raise UserError("--history and --rollback are two commands", fix="leave one out")
    if not (arguments.history or arguments.rollback or arguments.policy):
        raise UserError("by which rule?", where="--policy", fix="name a policy; docs/promotion.md has one")
    if not os.environ.get("MLFLOW_TRACKING_URI"):
        raise UserError(
            "the registry of MLFLOW_TRACKING_URI is meant, which is not set",
            fix="set it (for a run that tracked itself: sqlite:///RUN/mlflow/mlflow.db)",
        )
    uri = tracking_uri(Path())
    try:
        return _run(arguments, connect(uri))
    except (UserError, RunFailed):
        raise
    except Exception as error:
        what = "did not take it" if refused(error) else "cannot be reached"
        raise RunFailed(
            f"MLflow at {redact_text(uri)} {what}: {reason(error)}. The same command goes on where this one ended"
        ) from error


def _run(arguments: argparse.Namespace, client: Any) -> int:
    from scholarch.config.promotion import read_policy
    from scholarch.registry.promotion import Names, Promoter
    from scholarch.registry.table import history_text

    policy = read_policy(arguments.policy) if arguments.policy else None
    name, wanted = _named(arguments.model)
    if policy is not None and policy.model != name:
        raise UserError(f"is a policy for {policy.model}, not for {name}", where=arguments.policy)
    promoter = Promoter(client, Names.of(policy) if policy else Names(name), _who())
    if arguments.history:
        standing = promoter.look()
        print(history_text(standing.history))
        print(f"champion: {standing.champion or 'none'}" + (f"; {standing.drift}" if standing.drift else ""))
        return EXIT_DONE
    if arguments.rollback:
        return _roll_back(promoter, arguments.why)
    assert policy is not None
    return _promote(arguments, client, promoter, policy, wanted)


def _named(model: str) -> tuple[str, str]:
    """Name, and version or @alias; empty: whichever the policy's candidate is."""
    name = model.removeprefix("models:/")
    for mark in "@/":
        if mark in name:
            name, _, rest = name.partition(mark)
            return name, rest if mark == "/" else f"@{rest}"
    return name, ""


def _who() -> str:
    try:
        return f"{getpass.getuser()}@{socket.gethostname()}"
    except (OSError, KeyError):  # a container's user may have no name
        return socket.gethostname()


def _roll_back(promoter: Promoter, why: str) -> int:
    standing = promoter.settle()
    if standing.drift:
        print(standing.drift)
        print(f"put back: champion is version {promoter.restore().champion}")
        return EXIT_DONE
    act = promoter.roll_back(why)
    print(f"rolled back: champion is version {act.after}; version {act.before} may not come back by itself")
    return EXIT_DONE


def _promote(
    arguments: argparse.Namespace, client: Any, promoter: Promoter, policy: PolicySpec, wanted: str
) -> int:
    from scholarch.registry.promotion import Overtaken
    from scholarch.registry.table import decision_text

    for left in reversed(range(ROUNDS)):
        standing = promoter.look() if arguments.dry_run else promoter.settle()
        if standing.drift:
            raise UserError(
                standing.drift,
                where=policy.model,
                fix=f"scholarch promote {policy.model} --rollback puts it back",
            )
        version = _version(standing, policy, wanted)
        decision, results = _decided(client, policy, standing, version, approved=arguments.approve)
        print(json.dumps(decision.document()) if arguments.json else decision_text(decision))
        if arguments.dry_run:
            break
        try:
            act = promoter.record(policy, decision, results)
        except Overtaken as overtaken:
            if not left:
                raise
            print(f"{overtaken}; deciding again")
            continue
        if act is not None and act.kind == "promotion" and not arguments.json:
            print(f"{policy.model} version {act.after} is {policy.champion_alias} now")
        break
    return EXIT_DONE if decision.verdict in ("promote", "unchanged") else EXIT_FAILED


def _version(standing: Standing, policy: PolicySpec, wanted: str) -> str:
    if wanted and not wanted.startswith("@"):
        return wanted
    alias = wanted.removeprefix("@") or policy.candidate_alias
    if alias not in standing.aliases:
        raise UserError(
            f"no version has the alias {alias}",
            where=policy.model,
            fix="register a finished run, or name a version: models:/NAME/VERSION",
        )
    return standing.aliases[alias]


def _decided(
    client: Any, policy: PolicySpec, standing: Standing, version: str, *, approved: bool
) -> tuple[Decision, Mapping[str, Mapping[str, Result]]]:
    """The decision, after evaluations that were missing."""
    from scholarch.registry.decision import Contender, decide
    from scholarch.registry.evidence import find_results

    suites = [suite.name for suite in policy.suites]
    overrides = {suite.name: suite.overrides for suite in policy.suites}
    found: dict[str, dict[str, Result]] = {}

    def contender(number: str) -> Contender:
        if number not in found:
            found[number] = find_results(client, policy.model, number, suites)
        withdrawn = standing.history.withdrawn.get(number)
        words = f"was rolled back by act {withdrawn}" if withdrawn else ""
        return Contender(number, found[number], approved=approved and number == version, withdrawn=words)

    def decision() -> Decision:
        return decide(policy, contender(version), contender(standing.champion) if standing.champion else None)

    decided = decision()
    for _ in range(2):  # what the candidate's result shows may ask for the champion's anew
        for number, suite in decided.missing:
            found[number][suite] = _evaluate(f"models:/{policy.model}/{number}", suite, overrides[suite])
        decided = decision()
    if decided.verdict == "evaluate":
        raise UserError(
            "; ".join(decided.reasons),
            where="the policy's data",
            fix="write the fingerprints of the suite's data into the policy, if it is the data that you mean",
        )
    results = {
        suite: {number: by_suite[suite] for number, by_suite in found.items() if suite in by_suite}
        for suite in suites
    }
    return decided, results


def _evaluate(model: str, suite: str, overrides: Sequence[str]) -> Result:
    """Runs a suite on this machine; the result goes to MLflow as that of `scholarch evaluate`."""
    from tempfile import TemporaryDirectory

    from scholarch.cli.suites import Asked, run_suite
    from scholarch.storage.results import read_result
    from scholarch.training.distributed import world

    with TemporaryDirectory(prefix="scholarch-") as folder, world() as processes:
        to = f"{folder}/result"
        run_suite(Asked(model, suite, overrides, to, "", 64, as_json=False, kept=False), processes)
        return read_result(to)
