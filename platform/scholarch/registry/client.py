"""The one way to an MLflow client, and what its errors mean."""

from __future__ import annotations

import logging
import os
import sqlite3
import tempfile
from contextlib import closing, suppress
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


def artifacts_of(uri: str) -> str | None:
    """Where new experiments keep their artifacts: beside a SQLite file; None: a server knows for itself."""
    if not uri.startswith("sqlite:///"):
        return None
    return (Path(uri.removeprefix("sqlite:///")).absolute().parent / "artifacts").as_uri()


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
    os.environ.setdefault("MLFLOW_SUPPRESS_PRINTING_URL_TO_STDOUT", "true")
    os.environ.setdefault("MLFLOW_ENABLE_ARTIFACTS_PROGRESS_BAR", "false")
    os.environ.setdefault("GIT_PYTHON_REFRESH", "quiet")  # an image has no git, and that is all right
    from mlflow import MlflowClient

    # After the import, which sets levels itself. What a user should know is said by us.
    logging.getLogger("alembic").setLevel(logging.WARNING)
    logging.getLogger("mlflow").setLevel(logging.WARNING)
    logging.getLogger("mlflow.utils.environment").setLevel(logging.ERROR)  # misses pip in uv's environments
    if uri.startswith("sqlite:///"):
        _make(Path(uri.removeprefix("sqlite:///")))
    return MlflowClient(uri)


def _make(path: Path) -> None:
    """A SQLite file with MLflow's tables, whole or not at all: MLflow opens no file that misses some of them."""
    from mlflow import MlflowClient

    if path.exists():
        return
    path.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix=".mlflow-", dir=path.parent) as folder:
        made, whole = Path(folder) / "made.db", Path(folder) / "whole.db"
        MlflowClient(f"sqlite:///{made}").search_experiments(max_results=1)
        # A copy by SQLite itself: what is made may still stand in files beside it.
        with closing(sqlite3.connect(made)) as source, closing(sqlite3.connect(whole)) as target:
            source.backup(target)
        with suppress(FileExistsError):  # another process was faster
            os.link(whole, path)


def refused(error: Exception) -> bool:
    """Whether the same request would fail again, however often it is made."""
    return getattr(error, "error_code", None) in _REFUSALS


def missing(error: Exception) -> bool:
    """Whether what was asked for does not exist."""
    return getattr(error, "error_code", None) == "RESOURCE_DOES_NOT_EXIST"


def reason(error: BaseException) -> str:
    """What was at the root of an error, in one line, without secrets."""
    # MLflow wraps what requests wraps what urllib3 wraps; "Connection refused" is at the bottom.
    while (inner := error.__cause__ or error.__context__) is not None:
        error = inner
    text = (isinstance(error, OSError) and error.strerror) or str(error) or repr(error)
    return redact_text(text.splitlines()[0])[:300]
