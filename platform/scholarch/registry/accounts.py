"""`python -m scholarch.registry.accounts FOLDER [--check]`: accounts of an MLflow server with basic auth.

FOLDER has a file for each account, its name that of the account and its content the password. All of them may write
into the experiment of evaluations, where promotions look for results. The environment names the server and its
administrator (`MLFLOW_TRACKING_URI`, `MLFLOW_TRACKING_USERNAME`, `MLFLOW_TRACKING_PASSWORD`). A second call changes
nothing. With `--check` each account logs in and may do that, and the server refuses who has none.
"""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import urllib3

from scholarch.errors import EXIT_WRONG_INPUT, UserError
from scholarch.registry.evidence import EXPERIMENT

USERS = "/api/2.0/mlflow/users"
EXPERIMENTS = "/api/2.0/mlflow/experiments"
PERMISSIONS = "/api/3.0/mlflow/users/permissions"


class Server:
    """The server, as its administrator.

    Raises:
        UserError: if the environment does not name it.
    """

    def __init__(self) -> None:
        names = ("MLFLOW_TRACKING_URI", "MLFLOW_TRACKING_USERNAME", "MLFLOW_TRACKING_PASSWORD")
        missing = [name for name in names if not os.environ.get(name)]
        if missing:
            raise UserError(f"{', '.join(missing)} not set", where="environment")
        self.uri, self._user, self._password = (os.environ[name] for name in names)
        retries = urllib3.Retry(
            total=20, backoff_factor=0.2, backoff_max=10, status_forcelist=[502, 503, 504]
        )
        self._http = urllib3.PoolManager(retries=retries, timeout=30.0)

    def ask(self, method: str, path: str, body: dict[str, Any], login: str | None = None) -> int:
        """Sends a request as the administrator or as NAME:PASSWORD; gives the answer's status."""
        status: int = self._sent(method, path, login, json=body).status
        return status

    def told(self, path: str, **fields: str) -> dict[str, Any]:
        """What the server answers the administrator; empty where it refuses."""
        answer = self._sent("GET", path, fields=fields)
        found: dict[str, Any] = answer.json() if answer.status == 200 else {}
        return found

    def experiment(self, name: str) -> str:
        """Id of an experiment, which is made where there is none; empty: the server does neither."""
        for _ in range(2):
            found = self.told(f"{EXPERIMENTS}/get-by-name", experiment_name=name)
            if found:
                return str(found["experiment"]["experiment_id"])
            self.ask("POST", f"{EXPERIMENTS}/create", {"name": name})
        return ""

    def may_write(self, account: str, experiment: str) -> bool:
        """Whether an account may add to an experiment."""
        of = {"username": account, "resource_type": "experiment", "resource_id": experiment}
        return self.told(f"{PERMISSIONS}/get", **of).get("permission") in ("EDIT", "MANAGE")

    def _sent(self, method: str, path: str, login: str | None = None, **what: Any) -> Any:
        account = f"{self._user}:{self._password}" if login is None else login
        headers = urllib3.make_headers(basic_auth=account) if account else {}
        return self._http.request(method, f"{self.uri.rstrip('/')}{path}", headers=headers, **what)

    def logs_in(self, login: str) -> bool:
        """Whether NAME:PASSWORD is an account; empty: whether none is needed."""
        return self.ask("POST", f"{EXPERIMENTS}/search", {"max_results": 1}, login) == 200


def provision(server: Server, accounts: dict[str, str]) -> list[str]:
    """Makes accounts, or sets their passwords; says what the server refused."""
    refused = []
    for name, password in accounts.items():
        if server.logs_in(f"{name}:{password}"):
            continue
        account = {"username": name, "password": password}
        status = server.ask("POST", f"{USERS}/create", account)
        if status != 200:
            status = server.ask("PATCH", f"{USERS}/update-password", account)
        if status != 200:
            refused.append(f"{name}: the server answers {status}")
    return refused or _let_in(server, accounts)


def _let_in(server: Server, accounts: Iterable[str]) -> list[str]:
    """Lets accounts write evaluations; else only the one that wrote the first one might."""
    experiment = server.experiment(EXPERIMENT)
    refused = []
    for name in accounts:
        if server.may_write(name, experiment):
            continue
        right = {"resource_type": "experiment", "resource_id": experiment, "permission": "EDIT"}
        status = server.ask("POST", f"{PERMISSIONS}/grant", {"username": name, **right})
        if status != 200:
            refused.append(f"{name} in experiment {EXPERIMENT}: the server answers {status}")
    return refused


def faults(server: Server, accounts: dict[str, str]) -> list[str]:
    """Accounts that do not log in, and a server that asks for none."""
    found = [
        f"{name} does not log in"
        for name, secret in accounts.items()
        if not server.logs_in(f"{name}:{secret}")
    ]
    if not found:
        experiment = server.experiment(EXPERIMENT)
        found = [
            f"{name} may not write evaluations" for name in accounts if not server.may_write(name, experiment)
        ]
    return [*found, *(["the server lets everyone in"] if server.logs_in("") else [])]


def main(arguments: list[str]) -> int:
    """The command; returns its exit code."""
    parser = argparse.ArgumentParser(prog="python -m scholarch.registry.accounts")
    parser.add_argument("folder", type=Path)
    parser.add_argument("--check", action="store_true")
    given = parser.parse_args(arguments)
    try:
        if not given.folder.is_dir():
            raise UserError("is no folder", where=str(given.folder))
        # What Kubernetes mounts has further entries, with a dot before their names.
        files = sorted(path for path in given.folder.iterdir() if path.is_file() and path.name[0] != ".")
        accounts = {path.name: path.read_text().strip() for path in files}
        found = (faults if given.check else provision)(Server(), accounts)
    except UserError as error:
        sys.stderr.write(f"{error}\n")
        return EXIT_WRONG_INPUT
    except urllib3.exceptions.HTTPError as error:
        sys.stderr.write(f"the server does not answer: {type(error).__name__}\n")
        return 1
    sys.stderr.write("".join(f"{line}\n" for line in found))
    return 1 if found else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
