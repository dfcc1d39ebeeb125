"""No child outlives its gateway: a zoo of ten, and every kind of ending.

One round of `python -m benchmarks lifetimes`, which runs many; see there for what counts as left behind.
"""

from __future__ import annotations

import os
import resource
import secrets
import signal
import subprocess
import sys
import time

import pytest

from benchmarks import oracle
from benchmarks.endings import (
    ENDINGS,
    FIRST,
    KILLED,
    SHUTDOWN_GRACE,
    SLACK,
    ZOO,
    ZOO_SERVER,
    Outcome,
    Run,
    run_once,
)

STDIO, HTTP = "stdio", "streamable-http"
LATE = 4.0  # seconds that a busy machine may add to the stop sequence; SLACK defines a survivor
SEEN_LATE = 0.4  # seconds that a scan of all processes may take there; the stop sequence is longer
CELLS = [(ending, HTTP if number % 2 else STDIO) for number, ending in enumerate(ENDINGS)]
CELLS += [("SIGTERM", STDIO), ("SIGKILL", STDIO), ("restart", HTTP)]


@pytest.fixture(autouse=True)
def orphans_come_here():
    with oracle.subreaper():
        yield


def zombies(outcome: Outcome) -> int:
    """Return how many processes the gateway has not reaped; on macOS init reaps all orphans."""
    return outcome.zombies if sys.platform == "linux" else 0


@pytest.mark.parametrize(("ending", "transport"), CELLS)
def test_no_process_is_left(ending, transport) -> None:
    # `ps` of macOS shows nothing of the origin of a daemon without an environment.
    zoo = [temper for temper in ZOO if sys.platform == "linux" or temper != "scrubbed_daemon"]
    outcome = run_once(ending, transport, zoo=zoo)
    assert outcome.processes >= len(zoo) + 6  # ten children, and whom they started
    assert (outcome.survivors, zombies(outcome), outcome.leaked_fds) == (0, 0, 0)
    assert outcome.gone < sum(SHUTDOWN_GRACE) + LATE
    if ending not in KILLED | FIRST:  # the gateway's own exit waits for the last child
        assert outcome.exited > outcome.gone - SEEN_LATE


def zoo_of(mark: str, *tempers: str) -> dict[str, list[str]]:
    return {temper: [sys.executable, "-I", "-S", "-E", str(ZOO_SERVER), temper, mark] for temper in tempers}


def test_a_second_signal_skips_the_shutdown_sequence() -> None:
    zoo = ["ignores_term", "stubborn_daemon", "stopped"]
    outcome = run_once("SIGINT twice", zoo=zoo, shutdown_grace=(20.0, 20.0, 1.0))
    assert (outcome.survivors, zombies(outcome)) == (0, 0)
    assert outcome.exited < 12  # of twenty


def test_the_survivor_scan_finds_survivors(tmp_path) -> None:
    """Gateway and sentinel killed together is the only uncovered case: the oracle detects it."""
    mark = f"zoo-{secrets.token_hex(8)}"
    run = Run(tmp_path, zoo_of(mark, "ignores_term", "stubborn_daemon", "echo"))
    try:
        run.wait_ready()
        family, (sentinel,) = oracle.marked(mark), oracle.sentinels(run.pid)
        os.kill(sentinel, signal.SIGSTOP)
        run.process.kill()
        os.kill(sentinel, signal.SIGKILL)
        _, left = oracle.wait_gone(lambda: oracle.marked(mark), time.monotonic() + 0.5)
        assert len(left) == 2  # the echo has seen the end of its stdin
        assert oracle.still(family) == set(left)
        run.process.wait()
        assert oracle.reap() >= 1
    finally:
        run.clean_up()
        oracle.end_all(mark)


NAMESPACE = ["unshare", "--pid", "--fork", "--mount-proc", "--kill-child"]


def namespaces_work() -> bool:
    try:
        return subprocess.run([*NAMESPACE, "true"], capture_output=True, timeout=10, check=False).returncode == 0
    except FileNotFoundError:
        return False


@pytest.mark.skipif(sys.platform != "linux" or not namespaces_work(), reason="no PID namespaces here")
@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT, signal.SIGKILL])
def test_pid_1_handles_signals_and_reaps_everything(number, tmp_path) -> None:
    mark = f"zoo-{secrets.token_hex(8)}"
    run = Run(tmp_path, zoo_of(mark, "echo", "ignores_term", "stubborn_daemon", "shell"), prefix=NAMESPACE)
    try:
        run.wait_ready()
        (init,) = [pid for pid in oracle.pids() if (row := oracle.stat(pid)) is not None and row[1] == run.pid]
        assert oracle.read(init, "status").split(b"NSpid:")[1].split()[:2] == [str(init).encode(), b"1"]
        assert len(oracle.marked(mark)) >= 7
        os.kill(init, number)
        assert run.wait_exit(time.monotonic() + SLACK) is not None
        if number != signal.SIGKILL:
            assert run.process.returncode == 0
        assert oracle.marked(mark) == {}
    finally:
        run.clean_up()
        oracle.end_all(mark)


def soft_nofile(pid: int) -> int:
    line = next(line for line in oracle.read(pid, "limits").splitlines() if line.startswith(b"Max open files"))
    return int(line.split()[3])


@pytest.mark.skipif(sys.platform != "linux", reason="needs prlimit")
def test_the_gateways_file_limit_spares_its_children(tmp_path) -> None:
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    mark = f"zoo-{secrets.token_hex(8)}"
    resource.setrlimit(resource.RLIMIT_NOFILE, (300, hard))
    try:
        run = Run(tmp_path, zoo_of(mark, "echo", "shell"))
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
    try:
        run.wait_ready()
        assert soft_nofile(run.pid) == min(hard, 65536)
        assert {soft_nofile(pid) for pid in oracle.marked(mark)} == {300}
        run.process.terminate()
        assert run.wait_exit(time.monotonic() + SLACK) is not None
    finally:
        run.clean_up()
        oracle.end_all(mark)


def test_the_injected_bug_is_a_bug(tmp_path) -> None:
    """The crash in the grid acts like a programming error: traceback, exit status 1."""
    mark = f"zoo-{secrets.token_hex(8)}"
    run = Run(tmp_path, zoo_of(mark, "ignores_eof"), program="benchmarks.instrumented")
    try:
        run.wait_ready()
        os.kill(run.pid, signal.SIGUSR1)
        assert run.wait_exit(time.monotonic() + SLACK) is not None
        assert run.process.returncode == 1
        assert "KeyError: 'an injected bug'" in run.log()
        assert oracle.marked(mark) == {}
    finally:
        run.clean_up()
        oracle.end_all(mark)
