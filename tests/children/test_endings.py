"""The grid: children of every temper x every way they or their gateway may end."""

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager

import pytest
import trio

from gateway.config import ShutdownGrace
from gateway.processes.guard import open_guard
from tests.children.support import (
    DRIVER,
    PATIENT,
    QUICK,
    all_ended,
    ended,
    marked,
    new_mark,
    nothing_left,
    read_line,
    ready_child,
    state_and_parent,
)
from tests.children.zoo import TEMPERS as ALL

TEMPERS = [temper for temper in ALL if sys.platform == "linux" or temper not in {"scrubbed_daemon", "hopper"}]
"""`ps` shows nothing of the origin of a daemon without an environment, and may miss a process that lives 20 ms."""
GRACES = {"flusher": PATIENT, "echo": PATIENT}
EXITS = {
    "echo": "exited with status 0",
    "ignores_eof": "was killed by SIGTERM",
    "ignores_term": "was killed by SIGKILL",
    "grandchild_pipes": "exited with status 0",
    "daemon": "exited with status 0",
    "stubborn_daemon": "exited with status 0",
    "scrubbed_daemon": "exited with status 0",
    "shell": "was killed by SIGTERM",
    "stopped": "was killed by SIGTERM",
    "flusher": "exited with status 0",
    "forker": "was killed by SIGKILL",
    "hopper": "exited with status 0",
}


def bound(grace: ShutdownGrace) -> float:
    return grace.close_stdin + grace.terminate + grace.kill + 10  # a loaded machine may be slow


@pytest.mark.parametrize("subreaper", [True, False], ids=["subreaper", "embedded"])
@pytest.mark.parametrize("temper", TEMPERS)
async def test_leaving_the_context_ends_all_processes(temper: str, subreaper: bool) -> None:
    mark, grace = new_mark(), GRACES.get(temper, QUICK)
    with trio.fail_after(60), nothing_left(mark):
        async with open_guard(subreaper=subreaper) as guard:
            async with ready_child(temper, mark, guard=guard, grace=grace) as child:
                assert child.pid in marked(mark)
                began = time.monotonic()
            assert marked(mark) == []
            assert time.monotonic() - began < bound(QUICK)
            assert child.describe_exit() == EXITS[temper]
            assert await child.wait() == child.returncode
            assert guard.snapshot() == ()


async def test_sigterm_is_sent_however_short_its_grace_period() -> None:
    mark, grace = new_mark(), ShutdownGrace(close_stdin=0.0, terminate=0.0, kill=1.0)
    with trio.fail_after(60), nothing_left(mark):
        async with open_guard(subreaper=False) as guard:
            async with ready_child("ignores_eof", mark, guard=guard, grace=grace) as child:
                pass
            assert child.describe_exit() == "was killed by SIGTERM"


@pytest.mark.parametrize("temper", TEMPERS)
async def test_cancellation_ends_all_processes(temper: str) -> None:
    mark, grace = new_mark(), GRACES.get(temper, QUICK)
    with trio.fail_after(60), nothing_left(mark):
        async with open_guard(subreaper=True) as guard:
            with trio.CancelScope() as scope:
                async with ready_child(temper, mark, guard=guard, grace=grace):
                    scope.cancel()
                    await trio.sleep_forever()
            assert scope.cancelled_caught
            assert marked(mark) == []


async def test_an_exception_ends_all_processes_and_propagates() -> None:
    mark = new_mark()
    raised = pytest.RaisesGroup(pytest.RaisesExc(KeyError, match="a bug"), flatten_subgroups=True)
    with trio.fail_after(60), nothing_left(mark), raised:
        async with open_guard(subreaper=True) as guard, ready_child("daemon", mark, guard=guard):
            raise KeyError("a bug")


@asynccontextmanager
async def driver(mark: str, tempers: list[str]) -> AsyncGenerator[tuple[subprocess.Popen[bytes], int]]:
    """A gateway in its own session, and its sentinel's pid; both end with the test."""
    process = subprocess.Popen(  # ruff: ignore[create-subprocess-in-async-function] - trio's would be reaped by trio
        [sys.executable, DRIVER, f"mark={mark}", *tempers],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        start_new_session=True,
        bufsize=0,
    )
    assert process.stdout is not None
    assert process.stdin is not None
    out = trio.lowlevel.FdStream(os.dup(process.stdout.fileno()))
    try:
        hello = json.loads(await read_line(out))
        yield process, hello["sentinel"]
    finally:
        out.close()
        process.stdin.close()
        process.stdout.close()
        process.kill()
        process.wait()
        for pid in marked(mark):
            os.kill(pid, signal.SIGKILL)


def kill_gateway(process: subprocess.Popen[bytes]) -> None:
    process.kill()


def kill_group(process: subprocess.Popen[bytes]) -> None:
    os.killpg(process.pid, signal.SIGKILL)


def terminate_then_kill_group(process: subprocess.Popen[bytes]) -> None:
    """What a service manager does: the sentinel must not heed the first."""
    os.killpg(process.pid, signal.SIGTERM)
    os.killpg(process.pid, signal.SIGKILL)


@pytest.mark.parametrize("ending", [kill_gateway, kill_group, terminate_then_kill_group])
async def test_a_killed_gateway_leaves_no_processes(ending) -> None:
    mark = new_mark()
    with trio.fail_after(60):
        async with driver(mark, [t for t in TEMPERS if t != "flusher"] + ["echo"] * 3) as (process, sentinel):
            assert len(marked(mark)) > len(TEMPERS)
            ending(process)
            with trio.fail_after(bound(QUICK)):
                await all_ended(mark)
            await ended(sentinel)
            assert marked(mark) == []


async def test_well_behaved_children_exit_without_the_sentinel() -> None:
    """The gateway held the only write end of their stdin, so its death ends them."""
    mark = new_mark()
    with trio.fail_after(60):
        async with driver(mark, ["echo"] * 10) as (process, sentinel):
            os.kill(sentinel, signal.SIGSTOP)
            process.kill()
            with trio.fail_after(15):
                await all_ended(mark)
            os.kill(sentinel, signal.SIGCONT)
            await ended(sentinel)


def sentinel_of(gateway: int, not_pid: int) -> int | None:
    for pid in marked("processes/sentinel.py"):
        if state_and_parent(pid)[1] == gateway and pid != not_pid:
            return pid
    return None


async def test_a_second_sentinel_takes_over_the_first() -> None:
    mark = new_mark()
    with trio.fail_after(60):
        async with driver(
            mark, ["ignores_term", "stubborn_daemon" if sys.platform == "darwin" else "scrubbed_daemon"]
        ) as (process, first):
            os.kill(first, signal.SIGKILL)
            while (second := sentinel_of(process.pid, first)) is None:  # ruff: ignore[async-busy-wait]
                await trio.sleep(0.01)
            process.kill()
            await all_ended(mark)
            await ended(second)


@pytest.mark.parametrize("delay", [0.0, 0.005, 0.01, 0.02, 0.03, 0.05, 0.08])
async def test_a_gateway_killed_while_spawning_leaves_none(delay: float) -> None:
    mark = new_mark()
    argv = [sys.executable, DRIVER, f"mark={mark}", *["ignores_term", "stubborn_daemon"] * 10]
    with trio.fail_after(60):
        process = subprocess.Popen(argv, stdin=subprocess.PIPE)  # ruff: ignore[create-subprocess-in-async-function]
        assert process.stdin is not None
        while (sentinel := sentinel_of(process.pid, 0)) is None:  # ruff: ignore[async-busy-wait] - the first child comes after it
            await trio.sleep(0.001)
        await trio.sleep(delay)
        process.kill()
        process.stdin.close()
        await trio.to_thread.run_sync(process.wait)
        await ended(sentinel)
        assert marked(mark) == []


async def test_eof_stops_a_gateway_with_all_processes() -> None:
    mark = new_mark()
    with trio.fail_after(60):
        async with driver(mark, ["echo", "daemon", "shell", "ignores_term"]) as (process, sentinel):
            assert process.stdin is not None
            process.stdin.close()
            await ended(process.pid)
            assert process.wait() == 0
            assert marked(mark) == []
            await ended(sentinel)


async def test_a_forced_stop_skips_all_grace_periods() -> None:
    mark = new_mark()
    with trio.fail_after(60), nothing_left(mark):
        async with open_guard(subreaper=True) as guard, trio.open_nursery() as nursery:
            async with (
                ready_child("ignores_term", mark, guard=guard, grace=PATIENT),
                ready_child("stubborn_daemon", mark, guard=guard, grace=PATIENT),
            ):
                nursery.start_soon(guard.force_stopped.wait)
                began = time.monotonic()
                guard.force_stop()
            assert marked(mark) == []
            assert time.monotonic() - began < 10


async def test_a_forced_stop_cuts_a_running_sequence_short() -> None:
    mark = new_mark()
    with trio.fail_after(60), nothing_left(mark):
        async with open_guard(subreaper=True) as guard, trio.open_nursery() as nursery:

            async def hold(*, task_status: trio.TaskStatus[None]) -> None:
                async with ready_child("ignores_eof", mark, guard=guard, grace=PATIENT) as child:
                    task_status.started()
                assert child.describe_exit() == "was killed by SIGKILL"

            began = time.monotonic()
            await nursery.start(hold)
            await trio.testing.wait_all_tasks_blocked()
            guard.force_stop()
        assert time.monotonic() - began < 10
