"""The gateway with two buttons: `python -m benchmarks.instrumented serve ...` is `mcp-gateway serve ...`.

SIGUSR1 raises a KeyError in the first supervisor, as a programming error would; SIGUSR2 is that of `reporting`.
"""

from __future__ import annotations

import os
import signal
import sys

import trio

from benchmarks.reporting import tell
from gateway.cli import main
from gateway.supervisor.supervisor import Supervisor

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


if __name__ == "__main__":
    Supervisor._wait_until_idle_or_stopping = serve_until_the_bug
    signal.signal(signal.SIGUSR1, lambda _number, _frame: os.write(bug_write, b"x"))
    signal.signal(signal.SIGUSR2, tell)
    sys.exit(main())
