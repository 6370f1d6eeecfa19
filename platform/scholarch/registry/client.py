"""The one way to an MLflow client, and what its errors mean."""

from __future__ import annotations

import logging
import os
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from scholarch.errors import UserError
from scholarch.registry.redaction import redact_text

_SCHEMES = ("", "file", "sqlite", "postgresql", "mysql", "mssql", "http", "https", "databricks", "arn")
_REFUSALS = ("INVALID_PARAMETER_VALUE", "BAD_REQUEST", "MALFORMED_REQUEST", "INVALID_STATE")


def local_uri(folder: Path) -> str:
    """Tracking URI of the SQLite file inside a run folder."""
    return f"sqlite:///{(folder / 'mlflow' / 'mlflow.db').absolute()}"


def tracking_uri(run_folder: Path) -> str:
    """`MLFLOW_TRACKING_URI`, or a SQLite file inside the run folder.

    Raises:
        UserError: if the variable is no address that MLflow knows.
    """
    uri = os.environ.get("MLFLOW_TRACKING_URI", "").strip() or local_uri(run_folder)
    scheme = urlsplit(uri).scheme.split("+")[0]
    if scheme not in _SCHEMES:
        raise UserError(
            f"{redact_text(uri)!r} is no tracking address",
            where="MLFLOW_TRACKING_URI",
            fix="http://HOST:PORT, sqlite:////PATH, or unset it to track inside the run folder",
        )
    return uri


def connect(uri: str) -> Any:
    """An MlflowClient; imports MLflow (seconds) and, for a new SQLite file, makes its tables."""
    # MLflow's own retries would hold one request for minutes; ours are between requests.
    os.environ.setdefault("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "0")
    os.environ.setdefault("MLFLOW_HTTP_REQUEST_TIMEOUT", "30")
    if uri.startswith("sqlite:///"):
        Path(uri.removeprefix("sqlite:///")).parent.mkdir(parents=True, exist_ok=True)
    for name in ("alembic", "mlflow.store.db.utils"):
        logging.getLogger(name).setLevel(logging.WARNING)
    from mlflow import MlflowClient

    return MlflowClient(uri)


def refused(error: Exception) -> bool:
    """Whether the same request would fail again, however often it is made."""
    return getattr(error, "error_code", None) in _REFUSALS


def missing(error: Exception) -> bool:
    """Whether what was asked for does not exist."""
    return getattr(error, "error_code", None) == "RESOURCE_DOES_NOT_EXIST"


def reason(error: Exception) -> str:
    """An error in one line, without secrets."""
    return redact_text(str(error).splitlines()[0] if str(error) else repr(error))[:300]
