"""A program that embeds the gateway and then forks, as servers with worker processes do."""

from __future__ import annotations

import signal
import subprocess
import sys
import time

import pytest

from benchmarks import oracle
from tests.support.embedding import WITHIN, config_of
from tests.support.gateway_process import ROOT

pytestmark = pytest.mark.leak_check
PROGRAM = """
import os, signal, sys
import trio
import gateway

manager = gateway.ProxyManager(config={config!r})
kept = []

async def use():
    with trio.fail_after({within}):
        kept.append(await manager.get_client("a").__aenter__())
        result = await kept[-1].call_tool("env")
        os.write(1, b"%d\\n" % result.structured_content["pid"])

async def close():
    await manager.close_all_connections()

trio.run(use)
forked = os.fork()
signal.alarm({within})
if forked:
    sys.stdin.buffer.read()
else:
    trio.run(use)
    trio.run(close)
    os.write(1, b"%d\\n" % os.getpid())
    sys.stdin.buffer.read()
    os._exit(0)
"""


def test_a_fork_has_its_own_gateway() -> None:
    program = PROGRAM.format(config=config_of(), within=int(WITHIN))
    with subprocess.Popen(
        [sys.executable, "-W", "ignore", "-c", program], cwd=ROOT, stdin=subprocess.PIPE, stdout=subprocess.PIPE
    ) as host:
        assert host.stdin is not None
        assert host.stdout is not None
        first, second, fork = (int(host.stdout.readline()) for _ in range(3))
        assert oracle.stat(first) is not None  # the end of the fork's own gateway affected no other
        assert oracle.stat(second) is None
        host.send_signal(signal.SIGKILL)
        assert oracle.wait_end(first, time.monotonic() + WITHIN)
        assert oracle.stat(fork) is not None
        host.stdin.close()
        assert host.stdout.read() == b""  # at its own end: it was the last to hold the pipe
