"""Accounts of a real MLflow server with basic auth."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
from mlflow.exceptions import MlflowException
from mlflow_server import MlflowServer
from scholarch.registry.accounts import PERMISSIONS, Server, main
from scholarch.registry.client import connect
from scholarch.registry.evidence import EXPERIMENT

pytestmark = pytest.mark.service
PASSWORD = "of the administrator"


@pytest.fixture
def server(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    pytest.importorskip("flask_wtf", reason="MLflow's auth is an extra of the image: uv sync --extra server")
    (tmp_path / "auth.ini").write_text(
        f"[mlflow]\ndefault_permission = READ\ndatabase_uri = sqlite:///{tmp_path}/accounts.db\n"
        "admin_username = admin\nauthorization_function = mlflow.server.auth:authenticate_request_basic_auth\n"
    )
    environment = {
        "MLFLOW_AUTH_CONFIG_PATH": str(tmp_path / "auth.ini"),
        "MLFLOW_AUTH_ADMIN_PASSWORD": PASSWORD,
        "MLFLOW_FLASK_SERVER_SECRET_KEY": "key",
    }
    server = MlflowServer(tmp_path, ("--app-name", "basic-auth"), environment)
    server.start()
    try:
        monkeypatch.setenv("MLFLOW_TRACKING_URI", server.uri)
        monkeypatch.setenv("MLFLOW_TRACKING_USERNAME", "admin")
        monkeypatch.setenv("MLFLOW_TRACKING_PASSWORD", PASSWORD)
        yield
    finally:
        server.kill()


@pytest.mark.usefixtures("server")
def test_accounts_are_made_once_and_take_new_passwords(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = tmp_path / "accounts"
    (folder / "..data").mkdir(parents=True)
    (folder / "vision").write_text("the first password\n")
    assert main([str(folder), "--check"]) == 1
    assert capsys.readouterr().err == "vision does not log in\n"
    assert main([str(folder)]) == 0
    assert main([str(folder)]) == 0, "a second time"
    assert main([str(folder), "--check"]) == 0
    (folder / "vision").write_text("another password")
    assert main([str(folder)]) == 0
    assert main([str(folder), "--check"]) == 0
    assert not Server().logs_in("vision:the first password")
    (folder / "speech").write_text("short")
    assert main([str(folder)]) == 1, "the server refuses a short password"
    assert "speech" in capsys.readouterr().err


@pytest.mark.usefixtures("server")
def test_every_account_writes_evaluations_and_only_its_own_experiments(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    folder, passwords = (
        tmp_path / "accounts",
        {"vision": "the password of one", "speech": "the password of two"},
    )
    folder.mkdir()
    for name, password in passwords.items():
        (folder / name).write_text(password)
    uri = Server().uri
    assert main([str(folder)]) == 0
    assert main([str(folder), "--check"]) == 0
    revoked = {
        "username": "speech",
        "resource_type": "experiment",
        "resource_id": Server().experiment(EXPERIMENT),
    }
    assert Server().ask("POST", f"{PERMISSIONS}/revoke", revoked) == 200
    assert main([str(folder), "--check"]) == 1
    assert capsys.readouterr().err == "speech may not write evaluations\n"
    assert main([str(folder)]) == 0, "it is given back"
    for name, password in passwords.items():
        monkeypatch.setenv("MLFLOW_TRACKING_USERNAME", name)
        monkeypatch.setenv("MLFLOW_TRACKING_PASSWORD", password)
        client = connect(uri)
        assert client.create_run(client.get_experiment_by_name(EXPERIMENT).experiment_id)
        if name == "vision":
            own = client.create_experiment("of one team")
    with pytest.raises(MlflowException, match="Permission denied"):
        client.create_run(own)


def test_missing_environment_is_told(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    assert main([str(tmp_path)]) == 2
    assert "MLFLOW_TRACKING_URI" in capsys.readouterr().err
