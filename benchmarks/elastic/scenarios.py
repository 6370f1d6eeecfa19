"""What happens to an elastic run when nodes come, go, hang or lose their line; seconds until it goes on.

    python benchmarks/elastic/scenarios.py FOLDER [NAME ...]

Real launchers, stores and signals; each node is a network namespace with its own address and host name
where this machine allows it. Prints a Markdown table and writes FOLDER/scenarios.json.
"""

from __future__ import annotations

import argparse
import json
import os
import signal
import sys
import time
from collections.abc import Callable, Sequence
from contextlib import nullcontext, suppress
from pathlib import Path
from typing import Any

from counting import SAVE_EVERY as SAVE_EVERY
from network import Machines, why_not
from nodes import Process, Store, node, wait

STEP_SECONDS = 0.1
RECOVERY_LIMIT = 150.0
PORT = 29400
Options = Sequence[str]


class Cluster:
    """An elastic run on some machines.

    Args:
        folder: of this scenario.
        nodes: "MIN:MAX".
        machines: namespaces; None: all nodes on this very machine.
        options: more for the launcher.
    """

    def __init__(self, folder: Path, nodes: str, machines: Machines | None, options: Options = ()) -> None:
        folder.mkdir(parents=True)
        self.folder, self.machines, self.nodes = folder, machines, nodes
        self.options = ("--stall", "60", "--collective-timeout", "60", *options)
        self.began: dict[int, Process] = {}
        self.dead: list[Process] = []
        self.starts = 0
        self.store = self._store(PORT if machines else 0)
        self.port = self.store.port

    def _store(self, port: int) -> Store:
        prefix = self.machines.prefix(0) if self.machines else ()
        return Store(self.folder / f"store-{time.monotonic_ns()}.log", prefix, port)

    def start(self, *numbers: int) -> None:
        """Starts nodes, 1 and up."""
        for number in numbers:
            self.starts += 1
            host = self.machines.names[0] if self.machines else "localhost"
            options = ("--module", "counting", "--nodes", self.nodes, "--rendezvous", f"{host}:{self.port}")
            prefix = self.machines.prefix(number) if self.machines else ()
            arguments = (str(self.folder), str(STEP_SECONDS))
            log = self.folder / f"node-{number}-{self.starts}.log"
            self.began[number] = node(log, (*options, *self.options), arguments, prefix)

    def kill(self, number: int) -> None:
        """A whole node, at once."""
        self.began[number].kill()
        self.dead.append(self.began.pop(number))

    def first(self) -> int:
        """The node that holds rank 0."""
        for number, process in self.began.items():
            for worker in process.workers():
                path = self.folder / f"worker-{worker.pid}"
                if path.exists() and path.read_text() == "0":
                    return number
        raise LookupError("no node holds rank 0")

    def events(self) -> list[dict[str, Any]]:
        """Steps so far."""
        path = self.folder / "events.jsonl"
        return [json.loads(line) for line in path.read_text().splitlines()] if path.exists() else []

    def steps_at(self, world: int, since: float) -> bool:
        """Whether a step was done by `world` workers after `since`, seconds since 1970."""
        return any(event["world"] == world and event["time"] > since for event in self.events())

    def until(self, world: int, since: float | None = None) -> float:
        """Seconds from `since` (now) until `world` workers do steps."""
        since = since or time.time()
        wait(lambda: self.steps_at(world, since), RECOVERY_LIMIT, f"{world} workers")
        return next(e["time"] for e in self.events() if e["world"] == world and e["time"] > since) - since

    def finish(self) -> list[int]:
        """Ends the run as done; exit codes of the nodes."""
        (self.folder / "finish").touch()
        return [process.end(RECOVERY_LIMIT) for process in self.began.values()]

    def close(self) -> None:
        """Kills whatever is left."""
        for process in (*self.began.values(), self.store):
            process.kill()

    def lost_steps(self) -> int:
        """Steps that were done twice."""
        steps = [event["step"] for event in self.events()]
        return len(steps) - len(set(steps))


Found = dict[str, Any]


def grow(cluster: Cluster) -> Found:
    """A: a third node joins a run of two later."""
    cluster.start(1, 2)
    cluster.until(2)
    since = time.time()
    cluster.start(3)
    return {"seconds": cluster.until(3, since), "measured": "start of the node to the first step of three"}


def replace_node(cluster: Cluster) -> Found:
    """B, I: node 2 of 2:3 is killed, another one comes 5 s later."""
    cluster.start(1, 2, 3)
    cluster.until(3)
    cluster.kill(2)
    time.sleep(5)
    since = time.time()
    cluster.start(2)
    return {
        "seconds": cluster.until(3, since),
        "measured": "start of the new node to the first step of three",
    }


def shrink(cluster: Cluster) -> Found:
    """C, G: a node that does not hold rank 0 is killed and nobody comes."""
    cluster.start(1, 2, 3)
    cluster.until(3)
    cluster.kill(next(number for number in (1, 2, 3) if number != cluster.first()))
    return {"seconds": cluster.until(2), "measured": "kill to the first step of two"}


def shrink_first(cluster: Cluster) -> Found:
    """D, E, H: the node that holds rank 0 is killed and nobody comes."""
    cluster.start(1, 2, 3)
    cluster.until(3)
    cluster.kill(cluster.first())
    return {"seconds": cluster.until(2), "measured": "kill to the first step of two"}


def replace_first(cluster: Cluster) -> Found:
    """F, J: fixed 3:3, the node that holds rank 0 is killed, another one comes 5 s later."""
    cluster.start(1, 2, 3)
    cluster.until(3)
    first = cluster.first()
    cluster.kill(first)
    time.sleep(5)
    since = time.time()
    cluster.start(first)
    return {
        "seconds": cluster.until(3, since),
        "measured": "start of the new node to the first step of three",
    }


def cut(cluster: Cluster) -> Found:
    """K: the line of the node that holds rank 0 is cut without a reset, and mended after the others go on."""
    assert cluster.machines is not None
    cluster.start(1, 2, 3)
    cluster.until(3)
    first = cluster.first()
    cluster.machines.cut(first)
    try:
        seconds = cluster.until(2)
        time.sleep(5)
    finally:
        cluster.machines.mend(first)
    back = cluster.until(3)
    return {
        "seconds": seconds,
        "measured": f"cut to the first step of two; back at three {back:.1f} s after the mend",
    }


def hang(cluster: Cluster) -> Found:
    """A worker is stopped (SIGSTOP); stall after 5 s."""
    cluster.start(1, 2, 3)
    cluster.until(3)
    victim = cluster.began[2].workers()[0]
    os.kill(victim.pid, signal.SIGSTOP)
    since = time.time()
    time.sleep(3)
    seconds = cluster.until(3, since + 3) + 3
    assert "hangs" in cluster.began[2].text, cluster.began[2].text
    return {"seconds": seconds, "measured": "SIGSTOP to the first step of three, 5 s of stall among them"}


def drain(cluster: Cluster) -> Found:
    """One node gets SIGTERM: it ends with 75, the others go on and no step is lost."""
    cluster.start(1, 2, 3)
    cluster.until(3)
    leaving = cluster.began.pop(2)
    leaving.signal(signal.SIGTERM)
    seconds = cluster.until(2)
    assert leaving.end(RECOVERY_LIMIT) == 75, leaving.text
    assert cluster.lost_steps() == 0
    return {"seconds": seconds, "measured": "signal to the first step of two"}


def store(cluster: Cluster) -> Found:
    """The store is killed and another one comes at its address 2 s later."""
    cluster.start(1, 2, 3)
    cluster.until(3)
    cluster.store.kill()
    time.sleep(2)
    since = time.time()
    cluster.store = cluster._store(cluster.port)
    # Steps go on until the nodes notice; those that count are of the world after that.
    wait(lambda: all("does not answer" in p.text for p in cluster.began.values()), 90, "the loss is noticed")
    noticed = time.time()
    return {
        "seconds": cluster.until(3, noticed) + noticed - since,
        "measured": "new store to the first step of three",
    }


SCENARIOS: dict[str, tuple[Callable[[Cluster], Found], str, Options]] = {
    "grow": (grow, "2:3", ()),
    "replace": (replace_node, "2:3", ()),
    "shrink": (shrink, "2:3", ()),
    "shrink-first": (shrink_first, "2:3", ()),
    "replace-first": (replace_first, "3:3", ()),
    "cut": (cut, "2:3", ()),
    "hang": (hang, "2:3", ("--stall", "5")),
    "drain": (drain, "2:3", ()),
    "store": (store, "2:3", ()),
}


def run(name: str, folder: Path, machines: Machines | None) -> Found:
    """Carries out one scenario to the end of its run; never raises for what it is to find."""
    act, nodes, options = SCENARIOS[name]
    result: Found = {"name": name, "what": (act.__doc__ or "").strip(), "nodes": nodes}
    cluster = None
    try:
        cluster = Cluster(folder / name, nodes, machines, options)
        result |= act(cluster)
        result["exit_codes"] = cluster.finish()
        result["lost_steps"] = cluster.lost_steps()
    except (AssertionError, TimeoutError, LookupError) as error:
        result["failed"] = str(error)[:500]
    finally:
        if cluster is not None:
            with suppress(Exception):
                cluster.close()
    return result


def line(found: Found) -> str:
    """A row of the table."""
    if "failed" in found:
        return f"| {found['what']} | {found['nodes']} | FAILED: {found['failed']} | | |"
    codes = ", ".join(map(str, found["exit_codes"]))
    seconds = f"{found['seconds']:.1f} s, {found['measured']}"
    return f"| {found['what']} | {found['nodes']} | {seconds} | {found['lost_steps']} | {codes} |"


def main() -> int:
    """Runs the scenarios; 1 when one failed."""
    parser = argparse.ArgumentParser()
    parser.add_argument("folder", type=Path)
    parser.add_argument("names", nargs="*")
    options = parser.parse_args()
    reason = why_not()
    if reason:
        print(f"without namespaces, and so without `cut`: {reason}")
    results = []
    machines = None if reason else Machines(4)
    with machines.made() if machines else nullcontext():
        for name in options.names or SCENARIOS:
            if machines is None and name == "cut":
                continue
            results.append(run(name, options.folder, machines))
            print(line(results[-1]), flush=True)
    (options.folder / "scenarios.json").write_text(json.dumps(results, indent=1))
    return int(any("failed" in found for found in results))


if __name__ == "__main__":
    sys.exit(main())
