"""The gateway with a report of itself.

`python -m benchmarks.reporting serve ...` is `mcp-gateway serve ...`.

SIGUSR2 writes one JSON line about the gateway to stderr: trio's tasks, threads, file descriptors and memory.
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

PAGE = os.sysconf("SC_PAGE_SIZE")


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
    signal.signal(signal.SIGUSR2, tell)
    sys.exit(main())
