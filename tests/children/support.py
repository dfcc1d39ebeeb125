"""Helpers for tests of child lifetimes: zoo commands, and an oracle that reads `/proc`.

The oracle does not use tree ids, limit marks or groups: it finds processes by the mark in their command line, and
zombies by their parent.
"""

import contextlib
import os
import secrets
import sys
from collections.abc import AsyncGenerator, Generator
from contextlib import asynccontextmanager
from pathlib import Path

import pytest
import trio

from gateway.config import ShutdownGrace
from gateway.processes.child import Child, ChildCommand, open_child
from gateway.processes.guard import ChildGuard

ZOO = str(Path(__file__).with_name("zoo.py"))
DRIVER = str(Path(__file__).with_name("driver.py"))
ROOT = str(Path(__file__).parents[2])

QUICK = ShutdownGrace(close_stdin=0.2, terminate=0.2, kill=1.0)
PATIENT = ShutdownGrace(close_stdin=5.0, terminate=5.0, kill=2.0)


def linux_only(reason: str) -> pytest.MarkDecorator:
    """Skip a test in the simulation of macOS."""
    return pytest.mark.skipif(sys.platform != "linux", reason=reason)


def new_mark() -> str:
    return f"zoo-{secrets.token_hex(8)}"


def command(temper: str, mark: str, *args: str) -> ChildCommand:
    return ChildCommand(
        argv=(sys.executable, "-I", "-S", "-E", ZOO, temper, mark, *args), env={"PATH": os.environ["PATH"]}
    )


def marked(mark: str) -> list[int]:
    """The living processes with this mark in their command line (a zombie has none)."""
    found: list[int] = []
    for name in os.listdir("/proc"):
        if name.isdigit() and int(name) != os.getpid():
            with contextlib.suppress(OSError):
                if mark.encode() in Path("/proc", name, "cmdline").read_bytes():
                    found.append(int(name))
    return found


def zombies(parent: int) -> list[int]:
    pids = [int(name) for name in os.listdir("/proc") if name.isdigit()]
    return [pid for pid in pids if state_and_parent(pid) == ("Z", parent)]


def state_and_parent(pid: int) -> tuple[str, int]:
    """The state of a process, `X` if there is none, and its parent."""
    with contextlib.suppress(OSError):
        fields = Path("/proc", str(pid), "stat").read_bytes().rpartition(b")")[2].split()
        return fields[0].decode(), int(fields[1])
    return "X", 0


async def ended(pid: int) -> None:
    """Wait until this process has ended."""
    if not hasattr(os, "pidfd_open"):  # the simulation of macOS
        while True:
            if state_and_parent(pid)[0] in "ZX":
                return
            await trio.sleep(0.01)
    try:
        fd = os.pidfd_open(pid)
    except ProcessLookupError:
        return
    try:
        await trio.lowlevel.wait_readable(fd)
    finally:
        os.close(fd)


async def all_ended(mark: str) -> None:
    """Wait until no process has the mark; the caller bounds the wait."""
    while pids := marked(mark):
        for pid in pids:
            await ended(pid)


async def read_line(stream: trio.lowlevel.FdStream) -> str:
    """Exactly one line: what comes later is left in the pipe."""
    line = b""
    while not line.endswith(b"\n"):
        byte = await stream.receive_some(1)
        assert byte, f"the end after {line!r}"
        line += byte
    return line.decode().strip()


@asynccontextmanager
async def ready_child(
    temper: str, mark: str, *args: str, guard: ChildGuard, grace: ShutdownGrace = QUICK
) -> AsyncGenerator[Child]:
    async with open_child(command(temper, mark, *args), grace=grace, guard=guard, backend=temper) as child:
        assert await read_line(child.stdout) == "ready"
        yield child


@contextlib.contextmanager
def nothing_left(mark: str) -> Generator[None]:
    """No process, zombie or descriptor more than before."""
    fds, dead = len(os.listdir("/proc/self/fd")), zombies(os.getpid())
    yield  # ruff: ignore[fallible-context-manager] - a failed test needs no second error
    assert marked(mark) == []
    assert zombies(os.getpid()) == dead
    assert len(os.listdir("/proc/self/fd")) == fds
