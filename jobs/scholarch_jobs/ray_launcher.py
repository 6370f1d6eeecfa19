"""The second launcher: the same verbs on the workers of Ray Train, for teams that have a Ray cluster.

    python -m scholarch_jobs.ray_launcher --workers 2:8 -- pretrain --recipe demo/digits --run s3://runs/a

Ray gives each worker its place and joins them in a process group; the verb runs inside, unchanged, and its
checkpoints, metrics and MLflow records are its own. After a fault Ray begins again with as many workers as it
has, and the run goes on from its last checkpoint.
"""

from __future__ import annotations

import argparse
import os
import re
import sys
import tempfile
import uuid
from collections.abc import Mapping, Sequence
from typing import Any

from scholarch.errors import EXIT_DONE, EXIT_FAILED, EXIT_INTERRUPTED, EXIT_WRONG_INPUT, UserError

ENDS = (EXIT_DONE, EXIT_WRONG_INPUT, EXIT_INTERRUPTED)
"""Exit codes after which nothing is tried again."""


class Ended(Exception):  # noqa: N818 - it names what happened
    """A worker's verb ended with a code that is worth another try."""


class Codes:
    """An actor that keeps the workers' exit codes of the last try, and counts the tries."""

    def __init__(self) -> None:
        self.tries: set[str] = set()
        self.codes: dict[int, int] = {}

    def begin(self, group: str) -> bool:
        """Whether an earlier group of workers has begun before this one."""
        earlier = bool(self.tries - {group})
        self.tries.add(group)
        return earlier

    def end(self, rank: int, code: int) -> None:
        """Keeps the code of one worker."""
        self.codes[rank] = code

    def worst(self) -> int:
        """The highest code."""
        return max(self.codes.values(), default=EXIT_FAILED)


def work(job: dict[str, Any]) -> None:
    """What each worker of Ray Train runs."""
    import ray
    import ray.train
    import torch.distributed as dist
    from scholarch.cli import main

    os.environ.update(job["environment"])
    rank = ray.train.get_context().get_world_rank()
    box: list[Any] = [uuid.uuid4().hex if rank == 0 else None]
    dist.broadcast_object_list(box)  # one name for the workers of this try
    if ray.get(job["codes"].begin.remote(box[0])):
        os.environ["SCHOLARCH_RESTART"] = "1"
    code = main(job["verb"])
    ray.get(job["codes"].end.remote(rank, code))
    if code not in ENDS:
        raise Ended(f"exit code {code}")


def launch(
    verb: Sequence[str],
    workers: tuple[int, int],
    *,
    address: str = "",
    gpus: bool = False,
    failures: int = 3,
    environment: Mapping[str, str] | None = None,
) -> int:
    """Runs a verb on Ray Train; gives its exit code.

    Args:
        workers: at least and at most.
        address: of a Ray cluster; empty: begin one on this machine.
        gpus: each worker has one.
        failures: faults after which workers are started again.
        environment: of the workers.

    Raises:
        UserError: if there is no such cluster.
    """
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    import ray
    from ray.train import FailureConfig, RunConfig, ScalingConfig
    from ray.train.torch import TorchConfig, TorchTrainer

    # "local": else Ray joins a cluster that it finds on this machine.
    begun: dict[str, Any] = {"address": "local", "num_cpus": workers[1] + 1, "include_dashboard": False}
    try:
        ray.init(**({"address": address} if address else begun))
    except (ConnectionError, ValueError) as error:
        raise UserError(f"there is no Ray cluster: {error}", where=f"--ray {address}") from None
    with tempfile.TemporaryDirectory(prefix="scholarch-ray-") as folder:
        codes = ray.remote(num_cpus=0)(Codes).remote()
        job = {"verb": list(verb), "environment": dict(environment or {}), "codes": codes}
        trainer = TorchTrainer(
            work,
            train_loop_config=job,
            scaling_config=ScalingConfig(
                num_workers=workers if workers[0] < workers[1] else workers[1], use_gpu=gpus
            ),
            run_config=RunConfig(storage_path=folder, failure_config=FailureConfig(max_failures=failures)),
            torch_config=TorchConfig(backend="cpu:gloo,cuda:nccl" if gpus else "gloo"),
        )
        try:
            trainer.fit()
        except ray.train.TrainingFailedError as error:
            sys.stderr.write(f"scholarch: the workers failed {failures + 1} times: {error}\n")
            return EXIT_FAILED
        finally:
            found = int(ray.get(codes.worst.remote()))
            ray.shutdown()
    return found


def main(argv: Sequence[str] | None = None) -> int:
    """The command line."""
    parser = argparse.ArgumentParser(prog="python -m scholarch_jobs.ray_launcher", description=__doc__)
    parser.add_argument("--workers", default="1", metavar="N|MIN:MAX")
    parser.add_argument("--ray", default="", metavar="ADDRESS", help="of a Ray cluster, or auto")
    parser.add_argument("--gpus", action="store_true", help="each worker has a GPU")
    parser.add_argument(
        "--failures", type=int, default=3, help="faults after which workers are started again"
    )
    parser.add_argument("verb", nargs="+", help="behind --: the command of each worker")
    asked = parser.parse_args(argv)
    try:
        workers = worker_range(asked.workers)
        return launch(asked.verb, workers, address=asked.ray, gpus=asked.gpus, failures=asked.failures)
    except UserError as error:
        sys.stderr.write(f"scholarch: {error}\n")
        return error.exit_code


def worker_range(text: str) -> tuple[int, int]:
    """N, or MIN:MAX.

    Raises:
        UserError: if it is neither.
    """
    found = re.fullmatch(r"([1-9]\d*)(?::([1-9]\d*))?", text)
    least, most = (int(found[1]), int(found[2] or found[1])) if found else (1, 0)
    if least > most:
        raise UserError(f"{text!r} is no number of workers", where="--workers", fix="N, or MIN:MAX")
    return least, most


if __name__ == "__main__":
    sys.exit(main())
