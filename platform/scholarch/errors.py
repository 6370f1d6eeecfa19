"""The errors that a user sees as one message, and the exit codes of every command."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

EXIT_DONE = 0
EXIT_FAILED = 1
EXIT_WRONG_INPUT = 2
EXIT_KILLED = 130
"""A second Ctrl-C: 128 + SIGINT, as shells have it."""
EXIT_INTERRUPTED = 75
"""EX_TEMPFAIL of sysexits.h: interrupted, saved, and resumable by the same command."""


class UserError(Exception):
    """Something the user can put right. Shown without a traceback; the command exits with 2.

    Args:
        what: what is wrong, with the offending value.
        where: the key, file or argument it was found in; empty when `what` says it.
        fix: what to change, as an instruction.
    """

    exit_code = EXIT_WRONG_INPUT

    def __init__(self, what: str, *, where: str = "", fix: str = "") -> None:
        self.what, self.where, self.fix = what, where, fix
        super().__init__(what, where, fix)

    def __reduce__(self) -> tuple[Callable[..., UserError], tuple[str]]:
        # Errors come back from other processes whole.
        return partial(type(self), where=self.where, fix=self.fix), (self.what,)

    def __str__(self) -> str:
        where = f"{self.where}: " if self.where else ""
        fix = f"\n  fix: {self.fix}" if self.fix else ""
        return f"{where}{self.what}{fix}"


class RunFailed(Exception):  # noqa: N818 - it names what happened, as UserError does not fit
    """A run that cannot go on and that no changed argument would mend; the command exits with 1."""

    exit_code = EXIT_FAILED


class SaveFailed(RunFailed):
    """A checkpoint could not be written; those before it stand, and the run can be resumed (exit code 75)."""

    exit_code = EXIT_INTERRUPTED
