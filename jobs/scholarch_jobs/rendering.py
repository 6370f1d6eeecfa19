"""The one function behind all components: what is to run, on what, as an app of TorchX."""

from __future__ import annotations

import os
import re
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import scholarch
from scholarch.config.command import LAUNCHER, RENDEZVOUS_PORT, launch_arguments
from torchx import specs
from torchx.specs.finder import ComponentValidationException

IMAGE = f"scholarch:{scholarch.__version__}"
METADATA = "scholarch"
"""Key of a role's metadata: the same work for the scheduler `scholarch`, as keys of a `TrainingRun`."""
RESTARTS_UNSET = -1


def app(
    verb: Sequence[str],
    run: Mapping[str, Any],
    *,
    image: str,
    resource: specs.Resource,
    nodes: str = "1",
    processes: int = 0,
    env: Mapping[str, str] | None = None,
    mounts: Sequence[str] | None = None,
    restarts: int = RESTARTS_UNSET,
    retries: int = 0,
    store: str = "",
) -> specs.AppDef:
    """An app whose one role starts our launcher on each node.

    Args:
        verb: command of each worker.
        run: the same work as keys of a `TrainingRun`.
        nodes: N or MIN:MAX.
        processes: workers on each node; 0: one for each GPU, and 1 without GPUs.
        mounts: as TorchX has them on the command line.
        restarts: faults after which a node starts its workers again; RESTARTS_UNSET: the launcher's rule.
        retries: times that the scheduler starts the job again.
        store: HOST:PORT at which the nodes meet, where the scheduler brings none; the first node when empty.

    Raises:
        ComponentValidationException: `nodes` is neither N nor MIN:MAX. It is the one exception that
            `torchx run` shows as a message, without a traceback.
    """
    found = re.fullmatch(r"([1-9]\d*)(?::([1-9]\d*))?", nodes)
    least, most = (int(found[1]), int(found[2] or found[1])) if found else (1, 0)
    if least > most:
        raise ComponentValidationException(f"nodes: {nodes!r}; write N, or MIN:MAX with 1 <= MIN <= MAX")
    _find_python()
    # The first node's host stands in a variable whose name only the scheduler knows: $$ is TorchX's $.
    meeting = store or f"$${{{specs.macros.rank0_env}}}:{RENDEZVOUS_PORT}"
    python, *launcher = LAUNCHER
    tried_again: dict[str, Any] = {"inPlace": restarts} if restarts >= 0 else {}
    tried_again |= {"attempts": retries + 1} if retries else {}
    role = specs.Role(
        name=verb[0],  # a dash here would break the scheduler's variable names
        image=image,
        entrypoint=python,
        args=launcher
        + launch_arguments(
            verb,
            nodes=nodes,
            processes=processes or max(resource.gpu, 1),
            run_id=specs.macros.app_id,
            rendezvous=meeting if most > 1 else "",
            max_restarts=restarts if restarts >= 0 else None,
        ),
        env=dict(env or {}),
        num_replicas=most,
        min_replicas=least,
        max_retries=retries,
        port_map={"rendezvous": RENDEZVOUS_PORT} if most > 1 else {},
        resource=resource,
        mounts=specs.parse_mounts(list(mounts)) if mounts else [],
        metadata={METADATA: {"verb": verb[0], **run, "processes": processes, "retries": tried_again}},
    )
    return specs.AppDef(name=verb[0], roles=[role])


def ray_app(
    verb: Sequence[str],
    workers: str,
    address: str,
    gpus: bool,
    failures: int,
    *,
    image: str,
    resource: specs.Resource,
    env: Mapping[str, str] | None = None,
) -> specs.AppDef:
    """An app whose one role starts a verb on the workers of Ray Train."""
    _find_python()
    arguments = ["-m", "scholarch_jobs.ray_launcher", "--workers", workers, "--failures", str(failures)]
    arguments += ["--ray", address] if address else []
    arguments += ["--gpus"] if gpus else []
    role = specs.Role(
        name=verb[0],
        image=image,
        entrypoint=LAUNCHER[0],
        args=[*arguments, "--", *verb],
        env=dict(env or {}),
        resource=resource,
    )
    return specs.AppDef(name=verb[0], roles=[role])


def resource_of(name: str, cpu: int, gpu: int, memory: int) -> specs.Resource:
    """A named resource, or one of so many cores, GPUs and megabytes.

    Raises:
        ComponentValidationException: if there is no resource of this name.
    """
    if not name:
        return specs.Resource(cpu=cpu, gpu=gpu, memMB=memory)
    try:
        found: specs.Resource = specs.resource(h=name)
    except KeyError:
        known = "h200, h100, a100 (with _8, _4, _2, _1), cpu (with _64 to _4)"
        raise ComponentValidationException(f"resource: {name!r} is unknown; ours are {known}") from None
    return found


def stages(recipes: Sequence[str]) -> list[dict[str, str]]:
    """Stages of a `TrainingRun`: a recipe's file on this machine goes along as text, for no node has it."""
    found = []
    for recipe in recipes:
        file = Path(recipe)
        local = file.suffix in (".yaml", ".yml") and file.is_file()
        found.append({"inline": file.read_text()} if local else {"recipe": recipe})
    return found


def _find_python() -> None:
    """Lets local schedulers, which search the PATH, find the Python that runs TorchX.

    Without it `.venv/bin/torchx` of an environment that is not activated would start another one.
    """
    folder = str(Path(sys.executable).parent)
    path = os.environ.get("PATH", "")
    if folder not in path.split(os.pathsep):
        os.environ["PATH"] = f"{folder}{os.pathsep}{path}"
