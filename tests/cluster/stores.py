"""Small runs in the team's namespace of the platform: kept in its MinIO, tracked in its MLflow."""

from __future__ import annotations

import secrets
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
from PIL import Image
from platform_release import TEAM, reached, secret
from runs_api import Api, Manifest
from scholarch.cli import main
from scholarch.registry.client import connect
from sklearn.datasets import load_digits

SMALL = (
    "model.embed_dim=24", "model.depth=2", "heads.dino.prototypes=16", "heads.dino.hidden=16",
    "heads.dino.bottleneck=8", "heads.ibot.prototypes=16", "heads.ibot.hidden=16", "heads.ibot.bottleneck=8",
    "views.global.size=16", "views.local.size=8", "views.local.count=2", "terms.koleo.group=4",
    "training.global_batch=8", "training.workers=0",
)  # fmt: skip
"""Makes demo/digits so small that workers on busy cores do some steps in a second."""
RUNS, DIGITS = f"s3://runs/{TEAM}", f"s3://datasets/{TEAM}/digits"
SECRETS = {"storage": "scholarch-storage", "tracking": "scholarch-tracking"}
ENVIRONMENT = {"OMP_NUM_THREADS": "1"}


def small(image: str, name: str, *overrides: str, **changes: object) -> Manifest:
    """The spec of a small run."""
    return {
        "image": image,
        "stages": [{"recipe": "demo/digits"}],
        "overrides": [*SMALL, *overrides],
        "run": f"{RUNS}/{name}",
        "resources": {"cpu": "1", "memory": "1536Mi", "sharedMemory": "64Mi", "scratch": "1Gi"},
        "secrets": SECRETS,
        "env": [{"name": name, "value": value} for name, value in ENVIRONMENT.items()],
        "stallSeconds": 600,
        "graceSeconds": 60,
        **changes,
    }


def new_name(api: Api, kind: str) -> Iterator[str]:
    """A name that no run had; the run is gone afterwards."""
    name = f"{kind}-{secrets.token_hex(3)}"
    yield name
    if api.get(TEAM, name) is not None:
        api.runs.delete(name=name, namespace=TEAM)


@contextmanager
def store_at_hand(purpose: str = "storage") -> Iterator[None]:
    """This process and what it starts reach the platform's MinIO, with the team's key for a purpose."""
    with reached("scholarch-minio", 9000) as address, pytest.MonkeyPatch.context() as patch:
        patch.setenv("AWS_ENDPOINT_URL", f"http://{address}")
        # MLflow keeps its clients by this one: the port is another one each time.
        patch.setenv("MLFLOW_S3_ENDPOINT_URL", f"http://{address}")
        for variable, value in secret(TEAM, f"scholarch-{purpose}").items():
            patch.setenv(variable, value)
        yield


@contextmanager
def registry_at_hand() -> Iterator[Any]:
    """A client of the platform's MLflow, as the team, and commands' way to it; files need `store_at_hand`."""
    with reached("scholarch-mlflow", 5000) as address, pytest.MonkeyPatch.context() as patch:
        patch.setenv("MLFLOW_TRACKING_URI", f"http://{address}")
        for variable, value in secret(TEAM, "scholarch-tracking").items():
            patch.setenv(variable, value)
        yield connect(f"http://{address}")


def new_model(client: Any, sources: list[tuple[str, str]]) -> str:
    """A registered model whose versions, a champion and a candidate, have these sources and runs."""
    name = f"digits-{secrets.token_hex(3)}"
    client.create_registered_model(name)
    for (source, run_id), alias in zip(sources, ("champion", "candidate"), strict=True):
        version = client.create_model_version(name, source, run_id).version
        client.set_registered_model_alias(name, alias, version)
    return name


def pack_digits(folder: Path, number: int) -> None:
    """Handwritten digits as a data set of the team."""
    digits = load_digits()
    for index in range(number):
        path = folder / str(digits.target[index]) / f"{index}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray((digits.images[index] * 15.9).astype("uint8")).save(path)
    with store_at_hand("datasets"):
        assert main(["pack", str(folder), DIGITS]) == 0
