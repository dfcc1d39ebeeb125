"""The kernel's view of processes, independent of the gateway's own bookkeeping.

A process belongs to a run if the run's mark is in its command line. Zombies have no command line: those that a gateway
did not reap before it exited are inherited by this process, a subreaper during the measurement.
"""

from __future__ import annotations

import contextlib
import ctypes
import os
import select
import signal
import time
from pathlib import Path

PR_SET_CHILD_SUBREAPER = 36
SENTINEL = b"processes/sentinel.py"
END_WITHIN = 5.0  # seconds that SIGKILL may take


@contextlib.contextmanager
def subreaper():
    """Become a subreaper, so that orphans cannot escape to init."""
    libc = ctypes.CDLL(None, use_errno=True)
    if libc.prctl(PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0) != 0:
        raise OSError(ctypes.get_errno(), "cannot become a subreaper")
    try:
        yield
    finally:
        libc.prctl(PR_SET_CHILD_SUBREAPER, 0, 0, 0, 0)


def pids():
    return [int(name) for name in os.listdir("/proc") if name.isdigit()]


def read(pid, name):
    """Return the content of a file in /proc; empty if the process is gone."""
    try:
        return Path("/proc", str(pid), name).read_bytes()
    except OSError:
        return b""


def stat(pid):
    """Return (state, parent, start time), or None if the process is gone."""
    fields = read(pid, "stat").rpartition(b")")[2].split()
    return (fields[0].decode(), int(fields[1]), int(fields[19])) if len(fields) > 19 else None


def marked(mark):
    """Return the processes with this mark: pid -> start time."""
    found = {}
    for pid in pids():
        if pid != os.getpid() and mark.encode() in read(pid, "cmdline") and (row := stat(pid)) is not None:
            found[pid] = row[2]
    return found


def still(family):
    """Return the members of a family (pid -> start time) that are alive, without zombies."""
    rows = {pid: stat(pid) for pid in family}
    return {pid for pid, row in rows.items() if row is not None and row[2] == family[pid] and row[0] not in "ZX"}


def sentinels(gateway):
    """Return the sentinel of a gateway: pid -> start time."""
    rows = {pid: stat(pid) for pid in pids() if SENTINEL in read(pid, "cmdline")}
    return {pid: row[2] for pid, row in rows.items() if row is not None and row[1] == gateway}


def zombies(parent):
    rows = {pid: stat(pid) for pid in pids()}
    return {pid for pid, row in rows.items() if row is not None and row[0] == "Z" and row[1] == parent}


def wait_gone(look, until):
    """Wait until `look()` finds no process; return the last one's end, and survivors."""
    last = time.monotonic()
    while there := look():
        for pid in there:
            if not wait_end(pid, until):
                return time.monotonic(), look()
        last = time.monotonic()
    return last, {}


def wait_end(pid, until):
    """Return whether the process ends in time."""
    if not hasattr(os, "pidfd_open"):  # the simulation of macOS
        while (row := stat(pid)) is not None and row[0] not in "ZX" and time.monotonic() < until:
            time.sleep(0.01)
        return row is None or row[0] in "ZX"
    try:
        fd = os.pidfd_open(pid)
    except OSError:
        return True
    try:
        poll = select.poll()
        poll.register(fd, select.POLLIN)
        return bool(poll.poll(max(0.0, until - time.monotonic()) * 1000))
    finally:
        os.close(fd)


def ending_children():
    """Return our children that have ended or are about to.

    The command line of a process disappears first.
    """
    rows = {pid: stat(pid) for pid in pids()}
    return [pid for pid, row in rows.items() if row is not None and row[1] == os.getpid() and not read(pid, "cmdline")]


def reap():
    """Reap every child that has ended or is about to; return their number."""
    count, until = 0, time.monotonic() + END_WITHIN
    while ending := ending_children():  # again after each round: their own children may have been reparented to us
        ended = [wait_end(pid, until) for pid in ending]
        with contextlib.suppress(ChildProcessError):
            while os.waitpid(-1, os.WNOHANG)[0]:
                count += 1
        if not all(ended):
            break
    return count


def end_all(mark):
    """SIGKILL and reap the survivors of a run, so that they affect no other."""
    for pid in still(marked(mark)):
        with contextlib.suppress(ProcessLookupError):
            os.kill(pid, signal.SIGKILL)
    wait_gone(lambda: marked(mark), time.monotonic() + END_WITHIN)
    reap()
