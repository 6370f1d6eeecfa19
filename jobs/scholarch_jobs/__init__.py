"""TorchX components of Scholarch: `torchx run -s SCHEDULER scholarch_jobs.pretrain --recipe NAME`."""

# No `from __future__ import annotations` here: TorchX reads the annotations and takes them for strings.
# For the same reason arguments have plain types; an `int | None` arrives as a string.

import os
import re
import sys
from pathlib import Path

import scholarch
from torchx import specs
from torchx.specs.finder import ComponentValidationException

IMAGE = f"scholarch:{scholarch.__version__}"
RENDEZVOUS_PORT = 29500


def pretrain(
    *overrides: str,
    recipe: str = "",
    data: str = "",
    run: str = "",
    resume: bool = False,
    nodes: str = "1",
    processes: int = 0,
    cpu: int = 2,
    gpu: int = 0,
    memory: int = 4096,
    image: str = IMAGE,
    env: dict[str, str] | None = None,
    mounts: list[str] | None = None,
    restarts: int = -1,
    retries: int = 0,
) -> specs.AppDef:
    """Pretrains a backbone: `scholarch pretrain` on the workers of one or more nodes.

    Args:
        overrides: changes to the recipe, as key.path=value
        recipe: name of a recipe or path of its file; the command's default when empty
        data: folder, data set name or URL that replaces the recipe's data
        run: run folder; the command chooses one when empty
        resume: go on from the newest checkpoint in the run folder (True or False)
        nodes: N, or MIN:MAX for a run that may lose and gain nodes
        processes: workers on each node; 0 is one for each GPU, and 1 without GPUs
        cpu: cores of each node
        gpu: GPUs of each node
        memory: megabytes of each node
        image: container image, where the scheduler runs containers
        env: environment of the workers, as KEY=VALUE,KEY=VALUE
        mounts: as type=bind,src=/host,dst=/job[,readonly] or type=volume,src=CLAIM,dst=/job
        restarts: faults after which a node starts its workers again; -1 is 3 with several nodes, 0 with one
        retries: times that the scheduler starts the job again

    Raises:
        ComponentValidationException: `nodes` is neither N nor MIN:MAX
    """
    found = re.fullmatch(r"([1-9]\d*)(?::([1-9]\d*))?", nodes)
    least, most = (int(found[1]), int(found[2] or found[1])) if found else (1, 0)
    if least > most:
        # The one exception that `torchx run` shows as a message, without a traceback.
        raise ComponentValidationException(f"nodes: {nodes!r}; write N, or MIN:MAX with 1 <= MIN <= MAX")
    _find_python()
    launcher = ["-m", "scholarch.training.launch", "--nodes", nodes, "--run-id", specs.macros.app_id]
    launcher += ["--processes", str(processes or max(gpu, 1))]
    launcher += ["--max-restarts", str(restarts)] if restarts >= 0 else []
    if most > 1:
        # The first node's host stands in a variable whose name only the scheduler knows: $$ is TorchX's $.
        launcher += ["--rendezvous", f"$${{{specs.macros.rank0_env}}}:{RENDEZVOUS_PORT}"]
    command = ["pretrain"]
    command += ["--recipe", recipe] if recipe else []
    command += ["--run", run] if run else []
    command += ["--resume"] if resume else []
    command += [f"data={data}"] if data else []
    role = specs.Role(
        name="pretrain",  # a dash here would break the scheduler's variable names
        image=image,
        entrypoint="python",
        args=[*launcher, "--", *command, *overrides],
        env=dict(env or {}),
        num_replicas=most,
        min_replicas=least,
        max_retries=retries,
        port_map={"rendezvous": RENDEZVOUS_PORT} if most > 1 else {},
        resource=specs.Resource(cpu=cpu, gpu=gpu, memMB=memory),
        mounts=specs.parse_mounts(mounts) if mounts else [],
    )
    return specs.AppDef(name="pretrain", roles=[role])


def _find_python() -> None:
    """Lets local schedulers, which search the PATH, find the Python that runs TorchX.

    Without it `.venv/bin/torchx` of an environment that is not activated would start another one.
    """
    folder = str(Path(sys.executable).parent)
    path = os.environ.get("PATH", "")
    if folder not in path.split(os.pathsep):
        os.environ["PATH"] = f"{folder}{os.pathsep}{path}"
