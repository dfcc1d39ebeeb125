"""The leak check: snapshots of children, threads and open files, and their difference.

`leaked` compares two moments and polls for a short while, since the kernel needs a moment to close and to reap. An
orphaned process is not a descendant and is not seen here: tests about orphans look for it by pid.
"""

from __future__ import annotations

import gc
import os
import threading
import time
import tracemalloc
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Callable, Generator, Mapping

GRACE = 10.0  # seconds after which leftovers count as leaked; a test that leaks nothing never waits so long
POLL = 0.01  # seconds between two looks
PROC = Path("/proc")


@dataclass(frozen=True)
class Snapshot:
    """The resources of this process at one moment; equal keys identify the same one."""

    children: Mapping[tuple[int, str], str]  # (pid, start time) -> state and command line, descendants included
    files: Mapping[tuple[int, str], str]  # (fd, target) -> target
    threads: Mapping[int, str]  # id of the thread object -> name


@contextmanager
def traced_growth() -> Generator[Callable[[], int]]:
    """Yield a function that returns, after the block, its allocated bytes still alive."""
    growth = 0
    tracemalloc.start()
    try:
        yield lambda: growth
        gc.collect()
        growth = tracemalloc.get_traced_memory()[0]
    finally:
        tracemalloc.stop()


def take() -> Snapshot:
    return Snapshot(_children(), _files(), _threads())


def leaked(before: Snapshot, grace: float = GRACE) -> list[str]:
    """Describe each resource not there `before` and not gone within `grace` seconds."""
    deadline = time.monotonic() + grace
    while (found := _new(before, take())) and time.monotonic() < deadline:
        time.sleep(POLL)
    return found


def _new(before: Snapshot, after: Snapshot) -> list[str]:
    return [
        *(f"child process {key[0]}: {text}" for key, text in after.children.items() if key not in before.children),
        *(f"open file {key[0]}: {text}" for key, text in after.files.items() if key not in before.files),
        *(f"thread: {name}" for key, name in after.threads.items() if key not in before.threads),
    ]


def _children() -> dict[tuple[int, str], str]:
    processes: dict[int, tuple[int, str, str]] = {}  # pid -> (parent, state, start time)
    for entry in PROC.glob("[0-9]*") if PROC.is_dir() else ():
        try:
            stat = (entry / "stat").read_text(encoding="utf-8", errors="replace")
        except OSError:
            continue
        # The command's name, in parentheses, may itself hold spaces and parentheses.
        fields = stat.rpartition(")")[2].split()
        processes[int(entry.name)] = (int(fields[1]), fields[0], fields[19])
    ours = {os.getpid()}
    while more := {pid for pid, (parent, _, _) in processes.items() if parent in ours} - ours:
        ours |= more
    found = sorted(ours - {os.getpid()})
    return {(pid, processes[pid][2]): f"{processes[pid][1]} {_command_line(pid)}" for pid in found}


def _command_line(pid: int) -> str:
    try:
        words = (PROC / str(pid) / "cmdline").read_bytes().split(b"\0")
    except OSError:
        words = []
    return b" ".join(words).decode(errors="replace").strip() or "(ended, but not reaped)"


def _files() -> dict[tuple[int, str], str]:
    folder = Path("/proc/self/fd") if PROC.is_dir() else Path("/dev/fd")
    files: dict[tuple[int, str], str] = {}
    for name in os.listdir(folder):
        try:
            target = os.readlink(folder / name) if PROC.is_dir() else str(os.fstat(int(name)).st_ino)
        except OSError:  # the descriptor of the listing itself
            continue
        files[int(name), target] = target
    return files


def _threads() -> dict[int, str]:
    # Trio keeps idle worker threads for some seconds, under this name; busy ones carry their task's.
    return {id(thread): thread.name for thread in threading.enumerate() if not thread.name.startswith("Trio thread ")}
