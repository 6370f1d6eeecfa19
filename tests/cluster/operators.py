"""The operator that tests talk about: the cluster's own, or, where none is installed, one beside the cluster."""

from __future__ import annotations

import re
import subprocess
import sys
import tempfile
import urllib.request
from pathlib import Path
from typing import Any

from runs_api import Api, wait_for
from scholarch_operator import crd

LABELS = "app.kubernetes.io/component=operator,app.kubernetes.io/name=scholarch"


class Installed:
    """A Deployment that the chart made."""

    def __init__(self, api: Api, namespace: str) -> None:
        self._api, self._namespace = api, namespace

    def kill(self) -> None:
        """Ends its pod almost without a word; Kubernetes starts another one."""
        for pod in self._pods():
            # Of none at all the kubelet of 1.34 panics, where the pod has just begun.
            how = {"gracePeriodSeconds": 1}
            self._api.of("Pod").delete(name=pod["metadata"]["name"], namespace=self._namespace, body=how)

    def wait(self) -> None:
        """Until it looks at runs."""
        wait_for("the operator's pod", lambda: any(self._ready(pod) for pod in self._pods()))

    def looks(self) -> float:
        """How often it has looked at runs."""
        for pod in self._pods():
            return counted(self._api.page(self._namespace, pod["metadata"]["name"], 9090, "metrics"))
        return 0.0

    def end(self) -> None:
        """It is not the tests' to end."""

    def _pods(self) -> list[dict[str, Any]]:
        found: list[dict[str, Any]] = (
            self._api.of("Pod").get(namespace=self._namespace, label_selector=LABELS).to_dict()["items"]
        )
        return found

    @staticmethod
    def _ready(pod: dict[str, Any]) -> bool:
        conditions = pod["status"].get("conditions", [])
        return any(c["type"] == "Ready" and c["status"] == "True" for c in conditions)


class Beside:
    """A process on this machine."""

    def __init__(self, api: Api) -> None:
        for define in crd.DEFINITIONS.values():
            body = define()
            api.of("CustomResourceDefinition", "apiextensions.k8s.io/v1").server_side_apply(
                body=body, name=body["metadata"]["name"], field_manager="tests", force_conflicts=True
            )
        self._log = Path(tempfile.mkdtemp(prefix="operator-")) / "log"
        self._process = self._started()

    def kill(self) -> None:
        """SIGKILL, and another one at once."""
        self.end()
        self._process = self._started()

    def wait(self) -> None:
        """Until it looks at runs."""
        wait_for("the operator", self.looks_at_all)

    def looks_at_all(self) -> bool:
        assert self._process.poll() is None, self._log.read_text()[-3000:]
        try:
            self.looks()
        except OSError:
            return False
        return True

    def looks(self) -> float:
        """How often it has looked at runs."""
        with urllib.request.urlopen("http://127.0.0.1:9090/metrics", timeout=5) as answer:
            return counted(answer.read().decode())

    def end(self) -> None:
        self._process.kill()
        self._process.wait()

    def _started(self) -> subprocess.Popen[bytes]:
        with self._log.open("ab") as log:
            return subprocess.Popen([sys.executable, "-m", "scholarch_operator"], stdout=log, stderr=log)


Operator = Installed | Beside


def the_operator(api: Api) -> Operator:
    """The cluster's, or one beside it."""
    # By its pod: a second one beside it would be at work on the same runs.
    found = api.of("Pod").get(label_selector=LABELS).to_dict()["items"]
    operator = Installed(api, found[0]["metadata"]["namespace"]) if found else Beside(api)
    operator.wait()
    return operator


def counted(text: str) -> float:
    """Of Prometheus' text: looks at runs, however they ended."""
    return sum(
        float(value) for value in re.findall(r"^scholarch_reconciles_total\{.*\} (\S+)$", text, re.MULTILINE)
    )
