"""The command lines of a run, for whatever starts it: TorchX's components and the operator."""

from __future__ import annotations

import json
from collections.abc import Sequence

LAUNCHER = ("python", "-m", "scholarch.training.launch")
STORE = ("python", "-m", "scholarch.training.store")
RENDEZVOUS_PORT = 29400


def pretrain_arguments(
    recipes: Sequence[str] = (),
    *,
    run: str = "",
    resume: bool = False,
    data: str = "",
    overrides: Sequence[str] = (),
) -> list[str]:
    """`pretrain ...`; several recipes are the stages of a chain."""
    arguments = ["pretrain"]
    for recipe in recipes:
        arguments += ["--recipe", recipe]
    arguments += ["--run", run] if run else []
    arguments += ["--resume"] if resume else []
    arguments += [f"data={data}"] if data else []
    return [*arguments, *overrides]


ALIGN_RECIPE = "dinov3/text"
"""What `align` carries out where no recipe is named."""


def align_arguments(
    backbone: str,
    recipe: str = "",
    *,
    run: str = "",
    resume: bool = False,
    data: str = "",
    overrides: Sequence[str] = (),
) -> list[str]:
    """`align ...`: a locked backbone, and a text tower that learns to name what it sees."""
    _, *rest = pretrain_arguments(
        [recipe] if recipe else [], run=run, resume=resume, data=data, overrides=overrides
    )
    return ["align", *(["--backbone", backbone] if backbone else []), *rest]


def distill_arguments(
    recipe: str,
    students: Sequence[str] = (),
    *,
    run: str = "",
    resume: bool = False,
    data: str = "",
    overrides: Sequence[str] = (),
) -> list[str]:
    """`distill ...`: the students of a recipe, or some of them, from one frozen teacher."""
    _, *rest = pretrain_arguments([recipe], run=run, resume=resume, data=data, overrides=overrides)
    chosen = [word for name in students for word in ("--student", name)]
    return ["distill", *chosen, *rest]


def backbone_override(backbone: str) -> str:
    """`align --backbone BACKBONE` as an override of a recipe."""
    return f"init_from={json.dumps({'checkpoint': backbone, 'what': ['backbone']})}"


def evaluate_arguments(
    model: str, *, data: str = "", suite: str = "", overrides: Sequence[str] = ()
) -> list[str]:
    """`evaluate ...`, with the result as JSON in the log; that of a suite goes to MLflow too."""
    if suite:
        return ["evaluate", model, "--suite", suite, "--to", "/tmp/evaluation", "--json", *overrides]
    return ["evaluate", model, *(["--data", data] if data else []), "--json"]


def curate_arguments(
    recipe: str, *, run: str = "", ray: str = "", overrides: Sequence[str] = ()
) -> list[str]:
    """`curate ...`."""
    arguments = ["curate", "--recipe", recipe]
    arguments += ["--run", run] if run else []
    arguments += ["--ray", ray] if ray else []
    return [*arguments, *overrides]


def launch_arguments(
    verb: Sequence[str],
    *,
    nodes: str,
    processes: int,
    run_id: str,
    rendezvous: str = "",
    max_restarts: int | None = None,
    grace: int | None = None,
    stall: int | None = None,
    join: int | None = None,
    termination_message: str = "",
    code: str = "",
) -> list[str]:
    """What follows `python -m scholarch.training.launch`.

    Args:
        verb: the command of each worker.
        nodes: N or MIN:MAX.
        processes: workers on a node.
        run_id: the same on all nodes of an attempt.
        rendezvous: HOST:PORT; empty for one node alone.
        max_restarts: None: the launcher's own rule.
        grace: seconds that workers have to save in after a signal; None: the launcher's own.
        stall: seconds without a step after which workers are started again; None: the launcher's own.
        join: seconds to wait for the meeting place and for enough nodes; None: the launcher's own.
        termination_message: file for a JSON message about how the node ended.
        code: archive of packages that take the place of the installed ones.
    """
    arguments = ["--nodes", nodes, "--run-id", run_id, "--processes", str(processes)]
    arguments += ["--max-restarts", str(max_restarts)] if max_restarts is not None else []
    arguments += ["--rendezvous", rendezvous] if rendezvous else []
    arguments += ["--grace", str(grace)] if grace is not None else []
    arguments += ["--stall", str(stall)] if stall is not None else []
    arguments += ["--join", str(join)] if join is not None else []
    arguments += ["--termination-message", termination_message] if termination_message else []
    arguments += ["--code", code] if code else []
    return [*arguments, "--", *verb]
