"""A real MinIO for tests: `minio` from PATH, .tools/bin (put there by .ci/bring_minio) or ~/.cache/cluster/bin."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import time
import urllib.request
from dataclasses import dataclass, field
from pathlib import Path

from ports import free_port

PLACES = (Path(__file__).parents[1] / ".tools/bin/minio", Path("~/.cache/cluster/bin/minio").expanduser())
USER, PASSWORD = "scholarch-tests", "scholarch-tests-secret"


def find_minio() -> str | None:
    """Path of the server; None if this machine has none."""
    return shutil.which("minio") or next((str(path) for path in PLACES if path.is_file()), None)


@dataclass
class MinioServer:
    """A server on loopback with one drive, `folder`; a context manager that ends it."""

    folder: Path
    port: int = field(default_factory=free_port)
    process: subprocess.Popen[bytes] | None = None

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    @property
    def environment(self) -> dict[str, str]:
        """What a process that talks to it needs."""
        return {
            "AWS_ENDPOINT_URL": self.url,
            "AWS_ACCESS_KEY_ID": USER,
            "AWS_SECRET_ACCESS_KEY": PASSWORD,
            "AWS_REGION": "us-east-1",
        }

    def start(self) -> None:
        """Starts it, or starts it again on the same port and data, and waits until it answers."""
        binary = find_minio()
        assert binary is not None
        self.folder.mkdir(parents=True, exist_ok=True)
        self.process = subprocess.Popen(
            [binary, "server", "--quiet", "--address", f"127.0.0.1:{self.port}", str(self.folder)],
            env={
                **os.environ,
                "MINIO_ROOT_USER": USER,
                "MINIO_ROOT_PASSWORD": PASSWORD,
                "MINIO_BROWSER": "off",
            },
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
        )
        deadline = time.monotonic() + 60
        while True:
            try:
                with urllib.request.urlopen(f"{self.url}/minio/health/ready", timeout=2):
                    return
            except OSError:
                if time.monotonic() > deadline or self.process.poll() is not None:
                    raise RuntimeError("MinIO does not start") from None
                time.sleep(0.1)

    def stop(self) -> None:
        """Kills it; what it acknowledged is on its drive."""
        if self.process is not None:
            self.process.send_signal(signal.SIGCONT)
            self.process.kill()
            self.process.wait()
            self.process = None

    def make_bucket(self, name: str) -> str:
        """Makes a bucket; gives its address."""
        from minio import Minio

        Minio(f"127.0.0.1:{self.port}", USER, PASSWORD, secure=False).make_bucket(name)
        return f"s3://{name}"

    def __enter__(self) -> MinioServer:
        self.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.stop()
