"""Machines on one machine: network namespaces with an address and a host name of their own."""

from __future__ import annotations

import os
import subprocess
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

BRIDGE = "elastic-br"
SUBNET = "10.87.5"


def ip(*words: str) -> None:
    """`ip WORDS`, which must succeed."""
    subprocess.run(["ip", *words], check=True, capture_output=True, text=True)


def why_not() -> str:
    """Why there can be no namespaces here; empty when there can."""
    if os.geteuid() != 0:
        return "network namespaces need root"
    try:
        ip("netns", "add", "elastic-probe")
        ip("netns", "delete", "elastic-probe")
    except (OSError, subprocess.CalledProcessError) as error:
        return f"network namespaces do not work here: {getattr(error, 'stderr', None) or error}"
    return ""


class Machines:
    """`count` namespaces joined by a bridge; number 0 is for the store."""

    def __init__(self, count: int) -> None:
        self.names = [f"elastic-{number}" for number in range(count)]

    @contextmanager
    def made(self) -> Iterator[Machines]:
        """They exist while the context lasts."""
        try:
            ip("link", "add", BRIDGE, "type", "bridge")
            ip("link", "set", BRIDGE, "up")
            hosts = "127.0.0.1 localhost\n" + "".join(
                f"{self.address(number)} {name}\n" for number, name in enumerate(self.names)
            )
            for number, name in enumerate(self.names):
                self._make(number, name, hosts)
            yield self
        finally:
            for number, name in enumerate(self.names):
                for words in (("link", "delete", f"{name}-b"), ("netns", "delete", name)):
                    subprocess.run(["ip", *words], check=False, capture_output=True)
                folder = Path("/etc/netns") / name
                (folder / "hosts").unlink(missing_ok=True)
                if folder.is_dir():
                    folder.rmdir()
                del number
            subprocess.run(["ip", "link", "delete", BRIDGE], check=False, capture_output=True)

    def _make(self, number: int, name: str, hosts: str) -> None:
        ip("netns", "add", name)
        ip("link", "add", f"{name}-b", "type", "veth", "peer", "name", "eth0", "netns", name)
        ip("link", "set", f"{name}-b", "master", BRIDGE)
        ip("link", "set", f"{name}-b", "up")
        ip("-n", name, "addr", "add", f"{self.address(number)}/24", "dev", "eth0")
        ip("-n", name, "link", "set", "eth0", "up")
        ip("-n", name, "link", "set", "lo", "up")
        folder = Path("/etc/netns") / name
        folder.mkdir(parents=True, exist_ok=True)
        (folder / "hosts").write_text(hosts)

    @staticmethod
    def address(number: int) -> str:
        """Of a machine."""
        return f"{SUBNET}.{number + 10}"

    def prefix(self, number: int) -> Sequence[str]:
        """Runs a command on a machine, under its host name."""
        name = self.names[number]
        named = f'hostname {name}; exec "$@"'
        return ("ip", "netns", "exec", name, "unshare", "--uts", "sh", "-c", named, "sh")

    def cut(self, number: int) -> None:
        """Silently: nobody is told that the line is dead."""
        ip("link", "set", f"{self.names[number]}-b", "down")

    def mend(self, number: int) -> None:
        """The line is back."""
        ip("link", "set", f"{self.names[number]}-b", "up")
