"""The gateway with two buttons: `python -m benchmarks.instrumented serve ...` is `mcp-gateway serve ...`.

SIGUSR1 raises a KeyError in the first supervisor, as a programming error would. SIGUSR2 writes one JSON line about the
gateway to stderr: trio's tasks, threads, file descriptors and memory.
"""

from __future__ import annotations

import gc
import json
import os
import signal
import sys
import threading
from pathlib import Path

import trio

from gateway.cli import main
from gateway.supervisor.supervisor import Supervisor

PAGE = os.sysconf("SC_PAGE_SIZE")

bug_read, bug_write = os.pipe()
serve_session = Supervisor._wait_until_idle_or_stopping
chosen = []


async def serve_until_the_bug(self, session):
    if not chosen:
        chosen.append(self.name)
    if self.name != chosen[0]:
        await serve_session(self, session)
        return
    async with trio.open_nursery() as nursery:
        nursery.start_soon(meet_the_bug)
        await serve_session(self, session)
        nursery.cancel_scope.cancel()


async def meet_the_bug():
    await trio.lowlevel.wait_readable(bug_read)
    raise KeyError("an injected bug")


def tell(_number, _frame):
    gc.collect()
    said = {
        "tasks": trio.lowlevel.current_statistics().tasks_living,
        "threads": threading.active_count(),
        "fds": len(os.listdir("/proc/self/fd")) - 1,
        "rss": int(Path("/proc/self/statm").read_bytes().split()[1]) * PAGE,
    }
    os.write(2, b"\nstatistics " + json.dumps(said).encode() + b"\n")


if __name__ == "__main__":
    Supervisor._wait_until_idle_or_stopping = serve_until_the_bug
    signal.signal(signal.SIGUSR1, lambda _number, _frame: os.write(bug_write, b"x"))
    signal.signal(signal.SIGUSR2, tell)
    sys.exit(main())
