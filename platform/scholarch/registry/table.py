"""Decisions and the history of promotions as tables: for a terminal, and in Markdown for MLflow's page."""

from __future__ import annotations

import time
from collections.abc import Sequence

from scholarch.registry.decision import Decision
from scholarch.registry.history import History

_HEAD = ("gate", "candidate", "champion", "outcome", "reason")
_VERDICTS = {
    "promote": "is to be champion",
    "refuse": "is refused",
    "hold": "waits for approval",
    "evaluate": "has to be evaluated first",
    "unchanged": "is champion already",
}


def decision_text(decision: Decision) -> str:
    """The gates, one on a line, then the verdict with its reasons."""
    lines = _aligned([_HEAD, *_rows(decision)]) if decision.gates else []
    reasons = [f"  {reason}" for reason in decision.reasons]
    return "\n".join([*lines, _verdict(decision), *reasons])


def decision_markdown(decision: Decision) -> str:
    """The same for a page."""
    rows = [_HEAD, ("---",) * len(_HEAD), *_rows(decision)]
    table = "\n".join(f"| {' | '.join(cell.replace('|', '/') for cell in row)} |" for row in rows)
    reasons = "\n".join(f"- {reason}" for reason in decision.reasons)
    return "\n\n".join([f"**{_verdict(decision)}**", reasons, *([table] if decision.gates else [])])


def history_text(history: History) -> str:
    """One act on a line, the newest first."""
    rows = [("no", "time", "what", "by", "why")]
    for act in reversed(history.acts):
        what = {
            "promotion": f"{act.before or 'none'} -> {act.after}",
            "rollback": f"{act.before} -> {act.after}, rolled back",
            "refusal": f"{act.after} refused",
        }[act.kind]
        if act.number in history.void:
            what += ", void: came too late"
        elif act.kind != "refusal" and not act.done:
            what += ", unfinished"
        clock = time.strftime("%Y-%m-%d %H:%M:%SZ", time.gmtime(act.time))
        rows.append((str(act.number), clock, what, act.by, act.why))
    return "\n".join(_aligned(rows))


def _verdict(decision: Decision) -> str:
    against = f", against version {decision.champion}" if decision.champion else ""
    return f"{decision.model} version {decision.candidate} {_VERDICTS[decision.verdict]}{against}"


def _rows(decision: Decision) -> list[tuple[str, ...]]:
    return [
        (
            gate.gate,
            "-" if gate.candidate is None else f"{gate.candidate:.4g}",
            "-" if gate.champion is None else f"{gate.champion:.4g}",
            gate.outcome if gate.required else f"{gate.outcome} (advisory)",
            gate.reason,
        )
        for gate in decision.gates
    ]


def _aligned(rows: Sequence[Sequence[str]]) -> list[str]:
    widths = [max(len(row[column]) for row in rows) for column in range(len(rows[0]) - 1)]
    return [
        "  ".join([*(cell.ljust(width) for cell, width in zip(row, widths, strict=False)), row[-1]]).rstrip()
        for row in rows
    ]
