"""The guard: sentinel, zombies, descriptors, and children cancelled at any moment."""

import logging
import os
import random
import resource
import signal
import subprocess
import sys
import threading
from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest
import trio

from gateway.clock import elapsed_time
from gateway.errors import BackendUnavailable
from gateway.processes import child as child_module
from gateway.processes import process_tree, spawn
from gateway.processes.child import Child, ChildCommand, open_child
from gateway.processes.guard import ChildGuard, open_guard
from gateway.processes.sentinel_client import COMMAND, SentinelClient
from tests.children.support import (
    PATIENT,
    QUICK,
    ROOT,
    all_ended,
    command,
    ended,
    linux_only,
    marked,
    new_mark,
    nothing_left,
    read_line,
    ready_child,
    zombies,
)
from tests.support.log_events import logged_events


async def until(happens, *, bound: float = 10) -> None:
    """Poll a fact about other processes that nothing announces."""
    with trio.fail_after(bound):
        while not happens():  # ruff: ignore[async-busy-wait]
            await trio.sleep(0.01)


def facts(pid: int) -> dict[str, str]:
    lines = Path(f"/proc/{pid}/status").read_text(encoding="utf-8").splitlines()
    return dict(line.split(":", 1) for line in lines)


# The sentinel.


RESTART = {"event": "sentinel_restart"}


async def test_a_replaced_sentinel_learns_the_living_processes(caplog) -> None:
    mark = new_mark()
    with trio.fail_after(20), nothing_left(mark):
        async with open_guard(subreaper=True) as guard, ready_child("echo", mark, guard=guard):
            first = guard.sentinel_pid
            assert first is not None
            os.kill(first, signal.SIGKILL)
            await until(lambda: guard.sentinel_pid not in {None, first})
            assert logged_events(caplog, "sentinel_restart") == [RESTART | {"problem": "died", "status": -9}]
            assert guard._announcements()[1]["pid"] == guard.snapshot()[0].pid


@asynccontextmanager
async def running_sentinel(**options: Any) -> AsyncGenerator[SentinelClient]:
    client = SentinelClient(list, **options)
    with trio.fail_after(20):
        async with trio.open_nursery() as nursery:
            nursery.start_soon(client.run)
            await client.ensure()
            try:
                yield client
            finally:
                nursery.cancel_scope.cancel()
        await client.aclose(all_gone=True)


async def test_a_sentinel_that_does_not_read_is_replaced(caplog) -> None:
    async with running_sentinel(stuck_timeout=0.1, pipe_size=4096) as client:
        first = client.pid
        assert first is not None
        os.kill(first, signal.SIGSTOP)
        for _ in range(1000):  # more than a pipe whose size cannot be set
            client.announce({"op": "nothing", "padding": "x" * 100})
        await until(lambda: client.pid not in {None, first})
        assert RESTART | {"problem": "does not read", "status": -9} in logged_events(caplog, "sentinel_restart")


async def test_sentinel_restarts_are_rate_limited(caplog) -> None:
    async with running_sentinel(command=[sys.executable, "-I", "-S", "-E", "-c", "raise SystemExit(7)"]):
        await until(lambda: len(logged_events(caplog, "sentinel_restart")) >= 3)
        restarts = logged_events(caplog, "sentinel_restart")
        assert len(restarts) <= 4
        assert all(one == RESTART | {"problem": "died", "status": 7} for one in restarts)


async def test_a_failed_sentinel_start_is_retried(tmp_path, caplog) -> None:
    python = tmp_path / "python"
    async with running_sentinel(command=[str(python), *COMMAND[1:]]) as client:
        assert client.pid is None
        assert "cannot start the sentinel" in caplog.text
        python.symlink_to(sys.executable)
        await until(lambda: client.pid is not None)


@linux_only("there is no pidfd, and the simulation takes memory")
async def test_the_sentinel_is_small_and_alone() -> None:
    mark = new_mark()
    with trio.fail_after(20), nothing_left(mark):
        async with open_guard(subreaper=True) as guard:
            assert guard.sentinel_pid is None, "no child, no sentinel"
            async with ready_child("daemon", mark, guard=guard):
                pid = guard.sentinel_pid
                assert pid is not None
                # pipe, two times /dev/null, the pidfd of the gateway
                await until(lambda: sorted(os.listdir(f"/proc/{pid}/fd")) == ["0", "1", "2", "3"])
                # It may have been seen before its first line of Python: then it ignores the signals soon.
                for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP):
                    await until(lambda bit=number - 1: int(facts(pid)["SigIgn"], 16) >> bit & 1 == 1)
                assert int(facts(pid)["VmHWM"].split()[0]) <= 12 * 1024
                assert os.getsid(pid) == pid
                assert os.readlink(f"/proc/{pid}/cwd") == "/"
            assert guard.sentinel_pid == pid, "it is not among what the shutdown sequence ends"


# Zombies and exit codes.


@linux_only("there is no subreaper")
async def test_exited_orphans_are_reaped_during_their_backends_life() -> None:
    mark = new_mark()
    with trio.fail_after(20), nothing_left(mark):
        async with open_guard(subreaper=True) as guard, ready_child("briefly", mark, "0.3", guard=guard):
            await until(lambda: len(zombies(os.getpid())) >= 1)
            await until(lambda: zombies(os.getpid()) == [], bound=5)
            assert guard.snapshot()[0].descendants == ()


async def test_exit_codes_survive_orphan_reaping_and_spawning() -> None:
    """Reaping must not take the status of a child that dies during its spawn."""
    mark, seen = new_mark(), {}

    async def one(code: int, guard: ChildGuard) -> None:
        argv = ("/bin/sh", "-c", f"(setsid sleep 0.0{code % 10} &) ; exit {code}", mark)
        async with open_child(
            ChildCommand(argv, {"PATH": "/usr/bin:/bin"}), grace=QUICK, guard=guard, backend="x"
        ) as c:
            seen[code] = await c.wait()

    with trio.fail_after(30), nothing_left(mark):
        async with open_guard(subreaper=True) as guard, trio.open_nursery() as looking:

            async def look_on() -> None:
                while True:
                    await guard.scan()

            looking.start_soon(look_on)
            async with trio.open_nursery() as nursery:
                for code in range(60):
                    nursery.start_soon(one, code, guard)
            looking.cancel_scope.cancel()
        assert seen == {code: code for code in range(60)}


@linux_only("there is no subreaper")
async def test_unknown_zombies_are_reaped_only_between_spawns() -> None:
    with trio.fail_after(20):
        async with open_guard(subreaper=True, sentinel=False, unknown_zombie_grace=0.0) as guard:
            pid = os.spawnv(os.P_NOWAIT, "/bin/true", ["true"])  # ruff: ignore[create-subprocess-in-async-function]
            await ended(pid)
            tree = guard.register("being spawned", QUICK)
            await guard.scan()
            await guard.scan()
            assert pid in zombies(os.getpid())
            guard.remove(tree, spawned=False)
            await guard.scan()
            assert pid not in zombies(os.getpid())


async def test_the_status_survives_the_end_of_the_context() -> None:
    mark = new_mark()
    with trio.fail_after(20), nothing_left(mark):
        async with open_guard(subreaper=False) as guard:
            async with open_child(command("exits", mark, "3"), grace=QUICK, guard=guard, backend="x") as child:
                assert await child.wait() == 3
                assert child.returncode == 3
            assert (await child.wait(), child.describe_exit()) == (3, "exited with status 3")


@linux_only("needs waitid")
async def test_a_status_reaped_elsewhere_is_reported(caplog) -> None:
    mark = new_mark()
    with trio.fail_after(20), nothing_left(mark):
        async with open_guard(subreaper=False) as guard:
            exits = open_child(command("exits", mark, "3"), grace=QUICK, guard=guard, backend="x")
            async with exits as child:
                await trio.to_thread.run_sync(os.waitpid, child.pid, 0)
                assert await child.wait() == child_module.STATUS_UNKNOWN
                assert "was collected by other code" in caplog.text


# What is there.


async def test_snapshot_names_the_descendants() -> None:
    mark = new_mark()
    with trio.fail_after(20), nothing_left(mark):
        async with open_guard(subreaper=True) as guard, ready_child("daemon", mark, guard=guard) as child:
            await guard.scan()
            (report,) = guard.snapshot()
            assert (report.backend, report.pid) == ("daemon", child.pid)
            assert abs(report.started_at - elapsed_time()) < 5
            assert set(report.descendants) == set(marked(mark)) - {child.pid}
            assert len(report.descendants) == 1


async def test_the_periodic_scan_finds_descendants() -> None:
    mark = new_mark()
    with trio.fail_after(20), nothing_left(mark):
        async with open_guard(subreaper=True) as guard, ready_child("grandchild_pipes", mark, guard=guard):
            await until(lambda: guard.snapshot()[0].descendants != (), bound=3)


# Starting.


@pytest.mark.parametrize(
    ("argv", "cwd", "says"),
    [
        (("no-such-program",), None, r"command 'no-such-program' not found \(PATH=/usr/bin:/bin\)"),
        (("/no/such/program",), None, r"command '/no/such/program' not found \(a path"),
        (("{tmp}/plain",), None, r"command '.*plain' may not be executed"),
        (("cat",), "/no/such/place", r"working directory '/no/such/place' does not exist"),
        (("cat",), "/etc/hostname", r"working directory '/etc/hostname' is not a directory"),
        ((), None, "the command is empty"),
        (("cat", "a\0b"), None, "null byte"),
        (("{tmp}/script",), None, r"interpreter in the first line of '.*script'"),
        (("{tmp}/garbage",), None, "not a program for this system"),
    ],
)
async def test_a_failed_spawn_reports_the_reason(argv, cwd, says, tmp_path) -> None:
    for name, mode, text in (
        ("script", 0o755, "#!/no/such/interpreter\n"),
        ("garbage", 0o755, "hi"),
        ("plain", 0o644, ""),
    ):
        (tmp_path / name).write_text(text)
        (tmp_path / name).chmod(mode)
    wanted = ChildCommand(tuple(arg.format(tmp=tmp_path) for arg in argv), {"PATH": "/usr/bin:/bin"}, cwd)
    with trio.fail_after(20), nothing_left(new_mark()):
        async with open_guard(subreaper=False) as guard:
            with pytest.raises(BackendUnavailable, match=f"backend 'broken' cannot start: .*{says}"):
                async with open_child(wanted, grace=QUICK, guard=guard, backend="broken"):
                    pytest.fail("it started")
            assert guard.snapshot() == ()


async def test_a_child_has_three_descriptors_and_a_session() -> None:
    mark = new_mark()
    with trio.fail_after(20), nothing_left(mark):
        async with (
            open_guard(subreaper=False) as guard,
            ready_child("echo", mark, guard=guard) as first,
            ready_child("echo", mark, guard=guard) as second,
        ):
            for child in (first, second):
                assert sorted(os.listdir(f"/proc/{child.pid}/fd")) == ["0", "1", "2"]
                assert os.getsid(child.pid) == os.getpgid(child.pid) == child.pid


@linux_only("needs prlimit")
async def test_raising_the_file_limit_spares_children(monkeypatch) -> None:
    before = resource.getrlimit(resource.RLIMIT_NOFILE)
    monkeypatch.setattr(spawn, "_children_nofile", None)
    mark = new_mark()
    try:
        resource.setrlimit(resource.RLIMIT_NOFILE, (300, before[1]))
        assert spawn.raise_nofile_limit() == (300, min(before[1], 65536))
        assert spawn.raise_nofile_limit() == (min(before[1], 65536),) * 2
        assert resource.getrlimit(resource.RLIMIT_NOFILE) == (min(before[1], 65536), before[1])
        with trio.fail_after(20), nothing_left(mark):
            async with open_guard(subreaper=False) as guard:
                limits = open_child(command("limits", mark), grace=QUICK, guard=guard, backend="x")
                async with limits as child:
                    assert await read_line(child.stdout) == f"300 {before[1]} [0, 1, 2]"
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, before)


async def test_cancelled_at_any_moment_nothing_is_left() -> None:
    """Before, while and after the thread forks; in the handshake; while the shutdown sequence runs."""
    mark, rng = new_mark(), random.Random(7)

    async def one(guard: ChildGuard, after: float) -> None:
        with trio.move_on_after(after):
            async with open_child(command("echo", mark), grace=PATIENT, guard=guard, backend="x") as child:
                await read_line(child.stdout)
                await trio.sleep(0.002)

    with trio.fail_after(60), nothing_left(mark):
        async with open_guard(subreaper=True) as guard:
            for _ in range(15):
                async with trio.open_nursery() as nursery:
                    for _ in range(8):
                        nursery.start_soon(one, guard, rng.choice([0.0, 0.001, 0.003, 0.01, 0.03]) * rng.random() * 2)
            assert marked(mark) == []
            assert guard.snapshot() == ()
            assert guard._spawning == 0


@linux_only("each stop runs `ps`, which is slow")
async def test_five_hundred_starts_and_stops_grow_nothing() -> None:
    mark = new_mark()
    argv = ("/bin/cat", "-")

    async def batch(guard: ChildGuard, count: int) -> None:
        async def one() -> None:
            async with open_child(ChildCommand(argv, {}), grace=PATIENT, guard=guard, backend="x") as child:
                await child.stdin.send_all(b"hello\n")
                assert await read_line(child.stdout) == "hello"

        for _ in range(count // 10):
            async with trio.open_nursery() as nursery:
                for _ in range(10):
                    nursery.start_soon(one)

    def held() -> tuple[int, int, int]:
        return (
            len(os.listdir("/proc/self/fd")),
            threading.active_count(),
            trio.lowlevel.current_statistics().tasks_living,
        )

    with trio.fail_after(60), nothing_left(mark):
        async with open_guard(subreaper=True) as guard:
            await batch(guard, 50)
            before = held()
            await batch(guard, 500)
            after = held()
            assert after[0] == before[0]
            assert after[1] <= before[1] + 1
            assert after[2] == before[2]
            assert guard._tracked == {}


# Where there is no /proc.


@pytest.mark.parametrize("temper", ["echo", "ignores_eof", "ignores_term", "grandchild_pipes", "shell"])
async def test_without_proc_and_pidfds_the_group_ends(temper: str, monkeypatch) -> None:
    monkeypatch.setattr(process_tree, "HAS_PROC", False)
    monkeypatch.setattr(process_tree, "CAN_SCAN", False)
    monkeypatch.setattr(spawn, "open_pidfd", lambda _: -1)
    monkeypatch.setattr(child_module, "open_pidfd", lambda _: -1)
    mark = new_mark()
    with trio.fail_after(20):
        async with open_guard(subreaper=False) as guard:
            async with ready_child(temper, mark, guard=guard):
                pass
            await all_ended(mark)


@pytest.mark.skipif(sys.platform != "darwin", reason="needs the simulation of macOS")
@pytest.mark.parametrize("temper", ["echo", "shell"])
async def test_without_ps_the_group_ends(temper: str, monkeypatch, tmp_path, caplog) -> None:
    mark = new_mark()
    with trio.fail_after(60):
        async with open_guard(subreaper=False) as guard:
            async with ready_child(temper, mark, guard=guard):
                await guard.scan()
                (tmp_path / "ps").symlink_to("/bin/false")
                monkeypatch.setenv("PATH", str(tmp_path))
            await all_ended(mark)
            assert guard.snapshot() == ()
    assert caplog.text.count("scan of processes failed: ps failed (status 1, 0 bytes)") == 1


def test_importing_the_package_loads_nothing_heavy() -> None:
    code = (
        "import sys, trio; before = set(sys.modules); import gateway.processes.child, gateway.processes.guard;"
        "print([m for m in ('ctypes', 'mcp', 'anyio', 'fcntl') if m in set(sys.modules) - before])"
    )
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, check=True)
    assert done.stdout.strip() == b"[]"


@pytest.fixture(autouse=True)
def _warnings_are_seen(caplog) -> None:
    caplog.set_level(logging.DEBUG, logger="gateway.children")


def test_describe_exit_of_unknown_signals() -> None:
    child = object.__new__(Child)
    child._status = -40
    assert child.describe_exit() == "was killed by signal 40"
