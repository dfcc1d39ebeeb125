"""What a gateway meets in months of uptime: suspension, lost networks, full disks, upgrades."""

from __future__ import annotations

import json
import os
import signal
from typing import TYPE_CHECKING, Any

import trio

from tests.support.gateway_process import echo_backend, open_gateway_process

if TYPE_CHECKING:
    from tests.support.gateway_process import StdioClient

STOPPED = 4.0
"""Seconds for which processes are stopped: longer than the limits that the test sets."""


def text(answer: dict[str, Any]) -> str:
    assert "result" in answer, answer
    return answer["result"]["content"][0]["text"]


async def pid_of(client: StdioClient, name: str) -> int:
    return json.loads(text(await client.call_tool(f"{name}.env")))["pid"]


async def test_answers_come_before_the_deadlines_of_a_stop() -> None:
    """The backends continue later than the gateway, as after SIGCONT in any order."""
    limits = {"call_timeout": 2.5, "ping_interval": 1.0, "connect_timeout": 2.5}
    servers = {"b": {**echo_backend(), **limits}, "idle": {**echo_backend(), **limits}}
    async with open_gateway_process({"mcpServers": servers}, transport="stdio") as gateway:
        client = gateway.stdio
        assert client is not None
        await client.initialize()
        pids = {name: await pid_of(client, name) for name in servers}
        slow = await client.start("tools/call", {"name": "b.sleep", "arguments": {"seconds": 1, "text": "slept"}})
        stopped = [gateway.pid, *pids.values()]
        for pid in stopped:
            os.kill(pid, signal.SIGSTOP)
        await trio.sleep(STOPPED)
        os.kill(gateway.pid, signal.SIGCONT)
        await trio.sleep(0.3)
        for pid in pids.values():
            os.kill(pid, signal.SIGCONT)
        assert text(await client.response(slow)) == "slept"
        for name, pid in pids.items():
            assert await pid_of(client, name) == pid
        assert "did not answer a ping" not in gateway.stderr_text
