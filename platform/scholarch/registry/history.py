"""Who made which version champion, and why: a log in the registry that decides over its aliases.

MLflow moves an alias by a blind overwrite, so two who move one at once would each believe to have done it.
What MLflow does give is numbers: a new version of a registered model gets the next one, in one transaction.
So each act (a promotion, a rollback, a refusal) is first appended as a version of the model `NAME.promotions`,
with what it wants to replace. Acts are read in the order of their numbers, and one whose `before` is not the
champion at its turn is void. Everybody who reads the log thus finds the same champion; the aliases only follow.

Pure: what is read from the registry and written to it is in `promotion`.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Literal

SUFFIX = ".promotions"
Kind = Literal["promotion", "rollback", "refusal"]


@dataclass(frozen=True, kw_only=True)
class Act:
    """One entry of the log.

    Attributes:
        number: its place.
        before: the champion that it replaces; empty: none.
        after: the champion that it makes; of a refusal, the version that was refused.
        by: who did it.
        time: seconds since 1970.
        why: in words.
        decision: digest of the decision that it follows from; empty for a rollback.
        evidence: where the decision and its results are kept.
        done: the aliases have followed.
    """

    number: int
    kind: Kind
    before: str
    after: str
    by: str
    time: float
    why: str = ""
    decision: str = ""
    evidence: str = ""
    done: bool = False

    def tags(self) -> dict[str, str]:
        """As tags of a version; the number and `done` are the registry's."""
        return {
            "kind": self.kind,
            "before": self.before,
            "after": self.after,
            "by": self.by,
            "why": self.why,
            "decision": self.decision,
            "evidence": self.evidence,
        }

    @classmethod
    def of(cls, number: int, time: float, tags: Mapping[str, str]) -> Act | None:
        """The act that a version is; None for one that is none of ours."""
        kind = tags.get("kind")
        if kind not in ("promotion", "rollback", "refusal") or not tags.get("after"):
            return None
        return cls(
            number=number,
            kind=kind,  # type: ignore[arg-type]
            before=tags.get("before", ""),
            after=tags["after"],
            by=tags.get("by", ""),
            time=time,
            why=tags.get("why", ""),
            decision=tags.get("decision", ""),
            evidence=tags.get("evidence", ""),
            done=tags.get("done") == "true",
        )


@dataclass(frozen=True)
class History:
    """The log as it counts.

    Attributes:
        acts: all, in order.
        void: numbers of those that came too late.
        line: champions, the present one last; a rollback takes the last one away.
        last: the last act that changed the champion.
        withdrawn: versions that were rolled back, with the number of the act.
    """

    acts: tuple[Act, ...] = ()
    void: frozenset[int] = frozenset()
    line: tuple[str, ...] = ()
    last: Act | None = None
    withdrawn: Mapping[str, int] = field(default_factory=dict)

    @property
    def champion(self) -> str:
        """Its version; empty: none."""
        return self.line[-1] if self.line else ""

    @property
    def previous(self) -> str:
        """The champion before; empty: none."""
        return self.line[-2] if len(self.line) > 1 else ""

    @property
    def unfinished(self) -> bool:
        """Whether the aliases may not have followed yet."""
        return self.last is not None and not self.last.done


def replay(acts: Iterable[Act]) -> History:
    """What a log comes to."""
    ordered = tuple(sorted(acts, key=lambda act: act.number))
    void, line, withdrawn = set(), [], dict[str, int]()
    last: Act | None = None
    for act in ordered:
        if act.kind == "refusal":
            continue
        if last is None and act.kind == "promotion" and act.before:
            line = [act.before]  # the log begins with a champion that somebody made before there was one
        rolls_back = act.kind == "rollback"
        wanted = line[-2] if rolls_back and len(line) > 1 else None if rolls_back else act.after
        if act.before != (line[-1] if line else "") or act.after != wanted or act.after == act.before:
            void.add(act.number)
            continue
        if rolls_back:
            withdrawn[line.pop()] = act.number
        else:
            line.append(act.after)
            withdrawn.pop(act.after, None)
        last = act
    return History(ordered, frozenset(void), tuple(line), last, withdrawn)
