"""`scholarch doctor`: what this machine and configuration can do, and what is missing."""

from __future__ import annotations

import argparse
import importlib.metadata
import os
import platform
import shutil
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Literal
from urllib.parse import urlsplit

from scholarch.errors import EXIT_DONE, EXIT_FAILED

Verdict = Literal["ok", "note", "missing"]
PACKAGES = ("torch", "torchvision", "mlflow", "torchx-nightly", "pydantic", "torchmetrics", "safetensors")
WANTED_DISK = 5 * 2**30
WANTED_SHARED = 1 * 2**30
TIMEOUT_SECONDS = 3.0


@dataclass(frozen=True)
class Finding:
    """One line of the report.

    Attributes:
        verdict: `missing` is what no run can do without.
        what: the thing looked at.
        words: what was found, and how to mend it.
    """

    verdict: Verdict
    what: str
    words: str


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Arguments of the verb."""
    parser.add_argument("--run", type=Path, default=Path("runs"), help="where runs would go (default: runs)")


def run(arguments: argparse.Namespace) -> int:
    """Prints the findings; 1 when something that every run needs is missing."""
    findings = list(examine(arguments.run))
    width = max(len(finding.what) for finding in findings)
    for finding in findings:
        print(f"  {finding.verdict:<7}  {finding.what:<{width}}  {finding.words}")
    return EXIT_FAILED if any(finding.verdict == "missing" for finding in findings) else EXIT_DONE


def examine(folder: Path) -> Iterator[Finding]:
    """Everything that is looked at, in order."""
    yield Finding("ok", "python", f"{platform.python_version()} on {platform.system()} {platform.machine()}")
    yield from _packages()
    yield from _compute()
    yield from _disk(folder)
    yield _tracking()
    yield _object_store()
    yield from _cluster()


def _packages() -> Iterator[Finding]:
    for name in PACKAGES:
        try:
            yield Finding("ok", name, importlib.metadata.version(name))
        except importlib.metadata.PackageNotFoundError:
            yield Finding("missing", name, "install it: pip install scholarch")


def _compute() -> Iterator[Finding]:
    import psutil
    import torch

    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    memory = psutil.virtual_memory()
    yield Finding(
        "ok", "cpu", f"{cores} cores, {memory.available / 2**30:.1f} of {memory.total / 2**30:.1f} GiB free"
    )
    if not torch.cuda.is_available():
        yield Finding("note", "gpu", "none: demo recipes run on the CPU, the others want GPUs")
    for index in range(torch.cuda.device_count()):
        name = torch.cuda.get_device_name(index)
        free, total = torch.cuda.mem_get_info(index)
        bf16 = "bf16" if torch.cuda.is_bf16_supported() else "no bf16: set training.precision=fp32"
        yield Finding(
            "ok", f"gpu {index}", f"{name}, {free / 2**30:.0f} of {total / 2**30:.0f} GiB free, {bf16}"
        )
    shared = Path("/dev/shm")
    if shared.is_dir():
        free = shutil.disk_usage(shared).free
        enough = free >= WANTED_SHARED
        words = f"{free / 2**30:.1f} GiB" + ("" if enough else ": loader workers may die; enlarge it")
        yield Finding("ok" if enough else "note", "/dev/shm", words)
    compiler = shutil.which("c++") or shutil.which("g++") or shutil.which("clang++")
    words = compiler or "none: training.compile=true will not work on the CPU"
    yield Finding("ok" if compiler else "note", "compiler", words)


def _disk(folder: Path) -> Iterator[Finding]:
    from scholarch.errors import UserError
    from scholarch.storage.local import check_writable, nearest_existing

    try:
        check_writable(folder)
    except UserError as error:
        yield Finding("missing", "runs", str(error).replace("\n  fix:", ";"))
        return
    free = shutil.disk_usage(nearest_existing(folder)).free
    verdict: Verdict = "ok" if free >= WANTED_DISK else "note"
    yield Finding(verdict, "runs", f"{folder.absolute()}, {free / 2**30:.0f} GiB free")


def _tracking() -> Finding:
    uri = os.environ.get("MLFLOW_TRACKING_URI", "")
    if not uri:
        return Finding("ok", "MLflow", "SQLite inside each run; set MLFLOW_TRACKING_URI to share one server")
    parts = urlsplit(uri)
    if parts.scheme not in ("http", "https"):
        return Finding("ok", "MLflow", f"{parts.scheme} store")
    return _answers("MLflow", f"{parts.scheme}://{parts.hostname}:{parts.port or 80}/health")


def _object_store() -> Finding:
    endpoint = os.environ.get("AWS_ENDPOINT_URL", "")
    keys = all(os.environ.get(name) for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"))
    if not endpoint:
        return Finding("note", "S3", "AWS_ENDPOINT_URL is not set: data and runs are local folders")
    if not keys:
        return Finding("note", "S3", "AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY are not both set")
    return _answers("S3", endpoint)


def _answers(what: str, address: str) -> Finding:
    """Whether a server answers at all; its status does not matter here."""
    from urllib.error import HTTPError, URLError
    from urllib.request import urlopen

    try:
        urlopen(address, timeout=TIMEOUT_SECONDS).close()
    except HTTPError as error:
        return Finding("ok", what, f"{urlsplit(address).netloc} answers ({error.code})")
    except (URLError, OSError, ValueError) as error:
        reason = getattr(error, "reason", error)
        return Finding("note", what, f"{urlsplit(address).netloc} does not answer ({reason}): is it up?")
    return Finding("ok", what, f"{urlsplit(address).netloc} answers")


def _cluster() -> Iterator[Finding]:
    for tool, use in (("kubectl", "runs on Kubernetes"), ("helm", "installing the platform")):
        path = shutil.which(tool)
        yield Finding("ok" if path else "note", tool, path or f"not on PATH; needed only for {use}")
