"""The launcher with real workers: small scripts without torch, and one gloo world."""

from __future__ import annotations

import json
import os
import re
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from textwrap import dedent

import pytest
from launched import SECONDS, Started
from meeting_place import meeting_place
from ports import free_port
from scholarch.storage.code import pack, send
from scholarch.training.agent import exit_code
from scholarch.training.launch import SHORT_TIMERS, main


@pytest.fixture
def stand_in(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[[str], Path]:
    """Writes the workers' program; it finds `rank`, `world`, `restart` and the test's `folder`."""
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join([str(tmp_path), os.environ.get("PYTHONPATH", "")]))
    monkeypatch.delenv("SCHOLARCH_RESTART", raising=False)

    def write(body: str) -> Path:
        head = """
            import os, signal, sys, time
            from pathlib import Path
            rank, world = int(os.environ["RANK"]), int(os.environ["WORLD_SIZE"])
            restart = os.environ.get("SCHOLARCH_RESTART")
            folder = Path(sys.argv[1])
        """
        (tmp_path / "stand_in.py").write_text(dedent(head) + dedent(body))
        return tmp_path

    return write


def wait_for(*paths: Path) -> None:
    limit = time.monotonic() + SECONDS
    while not all(path.exists() for path in paths):
        assert time.monotonic() < limit, f"{paths} did not appear"
        time.sleep(0.02)


@pytest.mark.parametrize(
    ("codes", "interrupted", "expected"),
    [
        ([], False, 0),
        ([0, 0], False, 0),
        ([0, 0], True, 0),
        ([75, 75], False, 75),
        ([75, 0], False, 75),
        ([75, -15], False, 75),
        ([-15, -15], True, 75),
        ([-15], False, 1),
        ([75, -9], False, 1),
        ([75, 1], True, 1),
        ([2, -15], False, 2),
        ([1, 2], False, 2),
        ([1, -6], False, 1),
    ],
)
def test_exit_code(codes: list[int], interrupted: bool, expected: int) -> None:
    assert exit_code(codes, interrupted=interrupted) == expected


def test_workers_get_their_place_and_threads(
    stand_in: Callable[[str], Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("OMP_NUM_THREADS")
    folder = stand_in("""
        threads = os.environ["OMP_NUM_THREADS"]
        (folder / f"worker-{rank}").write_text(f"{world} {restart} {threads} {sys.argv[2:]}")
    """)
    code, output = Started(folder, arguments=(str(folder), "key.path=value"), processes=2).end()
    assert (code, output) == (0, "")
    threads = max(1, len(os.sched_getaffinity(0)) // 2)
    for rank in range(2):
        assert (folder / f"worker-{rank}").read_text() == f"2 None {threads} ['key.path=value']"


def test_wrong_input_is_said_once_and_not_tried_again(stand_in: Callable[[str], Path]) -> None:
    folder = stand_in("""
        with (folder / "starts").open("a") as file:
            file.write(f"{rank} ")
        sys.stderr.write("error: data: no such folder\\n")
        sys.exit(2)
    """)
    code, output = Started(folder, processes=2, max_restarts=2).end()
    assert (code, output) == (2, "error: data: no such folder\n")
    assert sorted((folder / "starts").read_text().split()) in (["0"], ["1"], ["0", "1"])


def test_wrong_input_of_another_worker_is_shown(stand_in: Callable[[str], Path]) -> None:
    folder = stand_in("""
        if rank == 0:
            time.sleep(300)
        sys.stderr.write("error: disk full\\n")
        sys.exit(2)
    """)
    assert Started(folder, processes=2).end() == (2, "error: disk full\n")


def test_fault_is_started_again_and_told(stand_in: Callable[[str], Path]) -> None:
    folder = stand_in("""
        (folder / f"start-{rank}-{restart}").touch()
        if rank == 1 and restart is None:
            sys.stderr.write("ValueError: loss of term koleo is not finite\\n")
            sys.exit(1)
        if restart is None:
            time.sleep(300)
    """)
    code, output = Started(folder, processes=2, max_restarts=1).end()
    assert code == 0
    assert sorted(path.name for path in folder.glob("start-*")) == [
        "start-0-1", "start-0-None", "start-1-1", "start-1-None",
    ]  # fmt: skip
    assert output.splitlines() == [
        "worker 1 ended with exit code 1",
        "ValueError: loss of term koleo is not finite",
        "starting the workers again, 1 restarts left",
    ]


def test_fault_that_comes_back_ends_with_1(stand_in: Callable[[str], Path]) -> None:
    folder = stand_in("os.kill(os.getpid(), signal.SIGKILL)")
    code, output = Started(folder, max_restarts=1).end()
    assert code == 1
    assert output.count("worker 0 ended with signal SIGKILL") == 2
    code, output = Started(folder).end()
    assert (code, output) == (1, "worker 0 ended with signal SIGKILL\n"), "one node alone does not try again"


SAVES_ON_SIGTERM = """
    asked = []
    signal.signal(signal.SIGTERM, lambda *_: asked.append(1))
    (folder / f"up-{rank}").touch()
    while not asked:
        time.sleep(0.02)
    if rank == 0:
        time.sleep(1)
        (folder / "saved").write_text(str(len(asked)))
    sys.exit(75)
"""


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_signal_lets_the_workers_save(stand_in: Callable[[str], Path], number: signal.Signals) -> None:
    folder = stand_in(SAVES_ON_SIGTERM)
    started = Started(folder, processes=2, max_restarts=2)
    wait_for(folder / "up-0", folder / "up-1")
    started.signal(number)
    time.sleep(0.3)
    started.signal(number)
    assert started.end() == (75, "")
    assert (folder / "saved").read_text() == "1", "workers are asked once, however often the launcher is"


def test_one_worker_that_is_interrupted_ends_all(stand_in: Callable[[str], Path]) -> None:
    folder = stand_in(SAVES_ON_SIGTERM.replace("while not asked", "while rank == 0 and not asked"))
    assert Started(folder, processes=2, max_restarts=2).end() == (75, "")
    assert (folder / "saved").exists()


def test_worker_that_does_not_end_is_killed(stand_in: Callable[[str], Path]) -> None:
    folder = stand_in("""
        signal.signal(signal.SIGTERM, signal.SIG_IGN)
        (folder / "up").touch()
        (folder / "pid").write_text(str(os.getpid()))
        time.sleep(300)
    """)
    started = Started(folder, grace=0.5)
    wait_for(folder / "up", folder / "pid")
    started.signal(signal.SIGTERM)
    code, output = started.end()
    assert code == 1
    assert "did not end within 0.5 s of the signal; killed" in output
    assert not Path(f"/proc/{(folder / 'pid').read_text()}").exists()


def test_worker_that_has_saved_and_does_not_end_has_lost_nothing(stand_in: Callable[[str], Path]) -> None:
    folder = stand_in("""
        from scholarch.training.heartbeat import Heartbeat
        signal.signal(signal.SIGTERM, signal.SIG_IGN)
        heartbeat = Heartbeat.from_environment()
        with heartbeat.living(), heartbeat.training(0):
            heartbeat.beat(3, int(sys.argv[2]))
            (folder / "up").touch()
            time.sleep(300)
    """)
    for committed, expected, said in (
        (3, 75, "killed; step 3 is saved"),
        (2, 1, "error: a worker did not end"),
    ):
        (folder / "up").unlink(missing_ok=True)
        started = Started(folder, grace=0.5, arguments=(str(folder), str(committed)))
        wait_for(folder / "up")
        started.signal(signal.SIGTERM)
        code, output = started.end()
        assert (code, output.count(said)) == (expected, 1), output


def test_signal_while_waiting_for_other_nodes(stand_in: Callable[[str], Path]) -> None:
    folder = stand_in("(folder / 'up').touch()")
    started = Started(folder, nodes=(2, 2), rendezvous=f"localhost:{free_port()}")
    time.sleep(1.5)
    started.signal(signal.SIGTERM)
    assert started.end() == (75, "")
    assert not (folder / "up").exists()


HANGS = """
    from scholarch.training.heartbeat import Heartbeat
    heartbeat = Heartbeat.from_environment()
    def waits_long():
        time.sleep(300)
    def exchange():  # stands in for a collective: the name of its file is what counts
        exec(compile("import time; time.sleep(300)", "torch/distributed/distributed_c10d.py", "exec"))
    with heartbeat.living(), heartbeat.training(0):
        for step in range(1, 5):
            heartbeat.beat(step, 2)
            if step == 3 and not restart:
                (folder / f"pid-{rank}").write_text(str(os.getpid()))
                waits_long() if rank == 1 else exchange()
"""


def test_worker_that_hangs_is_named_and_replaced(stand_in: Callable[[str], Path]) -> None:
    folder = stand_in(HANGS)
    message = folder / "message.json"
    started = Started(folder, processes=2, max_restarts=1, stall=2, termination_message=message)
    code, output = started.end()
    assert code == 0, output
    lines = output.splitlines()
    assert re.fullmatch("worker 1 hangs: no step for . s after step 3", lines[0]), output
    assert "in waits_long" in lines[1], "the stack begins where it hangs"
    assert not any("worker 0" in line for line in lines), "the one that waits for it is not blamed"
    assert lines[-1] == "starting the workers again, 1 restarts left"
    assert json.loads(message.read_text()) == {"reason": "done", "step": 4, "checkpoint": 2, "rank": None}


def test_stopped_worker_is_replaced(stand_in: Callable[[str], Path]) -> None:
    folder = stand_in(HANGS)
    message = folder / "message.json"
    started = Started(folder, processes=1, max_restarts=0, stall=3, termination_message=message)
    wait_for(folder / "pid-0")
    os.kill(int((folder / "pid-0").read_text()), signal.SIGSTOP)
    code, output = started.end()
    assert code == 1
    assert "it was stopped by a signal" in output
    found = json.loads(message.read_text())
    assert found["reason"].startswith("worker 0 hangs: no step for")
    assert (found["step"], found["checkpoint"], found["rank"]) == (3, 2, 0)


def test_worker_ends_with_its_agent(stand_in: Callable[[str], Path]) -> None:
    folder = stand_in(HANGS)
    started = Started(folder)
    wait_for(folder / "pid-0")
    started.signal(signal.SIGKILL)
    started.process.join(SECONDS)
    process = Path(f"/proc/{(folder / 'pid-0').read_text()}")
    limit = time.monotonic() + SECONDS
    while process.exists() and "(zombie)" not in (process / "status").read_text():
        assert time.monotonic() < limit, "the worker lives on"
        time.sleep(0.05)


def test_code_takes_the_place_of_what_is_installed(stand_in: Callable[[str], Path]) -> None:
    folder = stand_in("import words; (folder / 'said').write_text(words.SAID)")
    (folder / "words.py").write_text("SAID = 'installed'")
    (folder / "edited").mkdir()
    (folder / "edited" / "words.py").write_text("SAID = 'edited'")
    name, data = pack(folder / "edited")
    send(f"{folder}/kept/{name}", data)
    assert Started(folder, code=f"{folder}/kept/{name}").end()[0] == 0
    assert (folder / "said").read_text() == "edited"
    (folder / "kept" / name).write_bytes(b"other")
    for brought in Path(tempfile.gettempdir()).glob(f"scholarch-code-{os.getuid()}/{name.split('.')[0]}"):
        shutil.rmtree(brought)
    message = folder / "message"
    code, said = Started(folder, code=f"{folder}/kept/{name}", termination_message=message).end()
    assert code == 2
    assert "the archive has SHA-256" in said
    assert "the archive has SHA-256" in json.loads(message.read_text())["reason"]


def test_faults_count_in_a_row_only(stand_in: Callable[[str], Path]) -> None:
    """Four faults and one restart allowed: each time a new checkpoint was written in between."""
    folder = stand_in("""
        from scholarch.training.heartbeat import Heartbeat
        starts = folder / "starts"
        count = len(starts.read_text()) if starts.exists() else 0
        starts.write_text("x" * (count + 1))
        heartbeat = Heartbeat.from_environment()
        with heartbeat.living(), heartbeat.training(count):
            heartbeat.beat(count + 1, count + 1)
            time.sleep(0.5)  # longer than the agent's look
            sys.exit(0 if count == 4 else 1)
    """)
    code, output = Started(folder, max_restarts=1).end()
    assert code == 0, output
    assert output.count("worker 0 ended with exit code 1") == 4


def test_reason_of_a_fault_is_left(stand_in: Callable[[str], Path]) -> None:
    folder = stand_in("""
        from scholarch.errors import RunFailed
        from scholarch.training.heartbeat import Heartbeat
        with Heartbeat.from_environment().living():
            raise RunFailed("step 7: the loss term koleo is not finite")
    """)
    message = folder / "message.json"
    code, _ = Started(folder, termination_message=message).end()
    assert code == 1
    reason = "worker 0 ended with exit code 1: step 7: the loss term koleo is not finite"
    assert json.loads(message.read_text()) == {"reason": reason, "step": 0, "checkpoint": None, "rank": 0}


def test_no_meeting_point(stand_in: Callable[[str], Path], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(SHORT_TIMERS, "read_timeout", 1)
    folder = stand_in("")
    code, output = Started(folder, nodes=(2, 2), rendezvous="no-such-host.invalid:29500", join=1).end()
    assert code == 1
    assert output.splitlines()[-1].startswith(
        "error: no meeting with the other nodes at no-such-host.invalid:29500"
    )
    assert "Traceback" not in output


@pytest.mark.gloo
def test_two_nodes_form_one_world(stand_in: Callable[[str], Path]) -> None:
    folder = stand_in("""
        import torch, torch.distributed as dist
        dist.init_process_group("gloo")
        ranks = torch.tensor([float(rank + 1)])
        dist.all_reduce(ranks)
        (folder / f"sum-{rank}").write_text(f"{world} {ranks.item():g}")
        dist.destroy_process_group()
    """)
    rendezvous = f"localhost:{free_port()}"
    nodes = [
        Started(folder, nodes=(2, 2), processes=1, rendezvous=rendezvous, run_id="two") for _ in range(2)
    ]
    # What torch's C++ store writes when its host leaves first is none of our messages.
    assert [node.end()[0] for node in nodes] == [0, 0]
    assert [(folder / f"sum-{rank}").read_text() for rank in range(2)] == ["2 3", "2 3"]


@pytest.mark.gloo
def test_nodes_that_end_their_workers_unequally_late_meet_at_once(
    stand_in: Callable[[str], Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    """The last call begins when the slowest has come: no round of two in between, which would go on for ever."""
    monkeypatch.setitem(SHORT_TIMERS, "last_call_timeout", 8)  # looks are one to two seconds apart
    folder = stand_in("""
        def save(*_):
            time.sleep(5 if rank == 0 else 0)
            sys.exit(75)
        signal.signal(signal.SIGTERM, save)
        (folder / f"{world}-{rank}-{os.getpid()}").touch()
        while world == 2 or len(list(folder.glob("3-*"))) < 3:
            time.sleep(0.05)
    """)
    with meeting_place() as port:

        def start() -> Started:
            return Started(folder, nodes=(2, 3), rendezvous=f"localhost:{port}", run_id="three")

        nodes = [start(), start()]
        limit = time.monotonic() + SECONDS
        while len(list(folder.glob("2-*"))) < 2:
            assert time.monotonic() < limit, "two nodes do not begin"
            time.sleep(0.1)
        nodes.append(start())
        assert [node.end()[0] for node in nodes] == [0, 0, 0]
    assert len(list(folder.glob("2-*"))) == 2


@pytest.mark.parametrize(
    ("argv", "message"),
    [
        ([], "nothing to run"),
        (["--nodes", "0", "--", "pretrain"], "--nodes: '0': write N, or MIN:MAX"),
        (["--nodes", "4:2", "--", "pretrain"], "--nodes: '4:2': write N, or MIN:MAX"),
        (["--nodes", "two", "--", "pretrain"], "--nodes: 'two': write N, or MIN:MAX"),
        (["--nodes", "2", "--", "pretrain"], "--rendezvous HOST:PORT"),
        (["--nodes", "2", "--rendezvous", "host", "--", "pretrain"], "'host' is not HOST:PORT"),
        (["--nodes", "2", "--rendezvous", "$NO_SUCH_NAME:1", "--", "pretrain"], "'$NO_SUCH_NAME:1' is not"),
        (["--processes", "0", "--", "pretrain"], "--processes is at least 1"),
        (["--stall", "-1", "--", "pretrain"], "--stall are not negative"),
        (["--join", "0", "--", "pretrain"], "--join are at least 1"),
    ],
)
def test_mistakes_end_with_2(argv: list[str], message: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as ended:
        main(argv)
    assert ended.value.code == 2
    assert message in capsys.readouterr().err


def test_command_from_the_repository_root(stand_in: Callable[[str], Path]) -> None:
    folder = stand_in(
        "sys.exit(0 if sys.argv[1:] == ['pretrain', '--recipe', 'demo/digits', 'seed=3'] else 1)"
    )
    command = [sys.executable, "-m", "scholarch.training.launch", "--module", "stand_in"]
    done = subprocess.run(
        [*command, "--", "pretrain", "--recipe", "demo/digits", "seed=3"],
        cwd=Path(__file__).parents[3], capture_output=True, text=True, timeout=SECONDS, check=False,
        env={**os.environ, "PYTHONPATH": str(folder)},
    )  # fmt: skip
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")


def test_the_exit_code_outlives_threads_that_are_inside_torch() -> None:
    """With sys.exit in place of leave: SIGABRT nearly every time."""
    program = """
import threading, time
from torch.distributed import TCPStore
from scholarch.training.launch import leave
store = TCPStore("127.0.0.1", 0, is_master=True, wait_for_workers=False)
def beat():
    client = TCPStore("127.0.0.1", store.port, is_master=False, wait_for_workers=False)
    while True:
        client.add("beats", 1)
for _ in range(8):
    threading.Thread(target=beat, daemon=True).start()
time.sleep(0.3)
print("the last words", end="")
leave(75)
"""
    done = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, timeout=120, check=False
    )
    assert (done.returncode, done.stdout) == (75, "the last words"), done.stderr
