"""An early `initialize` on stdio: it waits for the backends without blocking anything else."""

from __future__ import annotations

import json
import os
from contextlib import asynccontextmanager
from typing import TYPE_CHECKING, Any

import trio

from gateway.frontends.stdio import StdioFrontend
from tests.support.fakes import SOON, FakeBackend, make_listing, settle
from tests.support.http_frontends import HELLO, open_harness
from tests.support.playbook import Playbook

if TYPE_CHECKING:
    from collections.abc import AsyncGenerator


class Pipe:
    """A stdio client of a frontend whose one backend starts when `here` is set."""

    def __init__(self, stdin: int, stdout: int) -> None:
        self.here = trio.Event()
        self.stdin = trio.lowlevel.FdStream(stdin)
        self._stdout = trio.lowlevel.FdStream(stdout)
        self._read = b""
        self.play = Playbook(self.send, self.receive, within=SOON)
        self.play.values["hello"] = HELLO

    async def send(self, message: Any) -> None:
        await self.stdin.send_all(json.dumps(message).encode() + b"\n")

    async def receive(self) -> Any:
        while b"\n" not in self._read:
            data = await self._stdout.receive_some()
            assert data, "stdout has ended"
            self._read += data
        line, _, self._read = self._read.partition(b"\n")
        return json.loads(line)

    async def aclose(self) -> None:
        await self.stdin.aclose()
        await self._stdout.aclose()


@asynccontextmanager
async def open_pipe() -> AsyncGenerator[Pipe]:
    (theirs_in, ours_in), (ours_out, theirs_out) = os.pipe(), os.pipe()
    client = Pipe(ours_in, ours_out)

    async def on_start(_number: int) -> None:
        await client.here.wait()

    fake = FakeBackend(make_listing("x", instructions="how to"), on_start=on_start)
    try:
        async with open_harness(fake, start_grace=60.0) as harness:
            frontend = StdioFrontend(harness.answers, theirs_in, theirs_out, trio.Event())
            harness.nursery.start_soon(frontend.run)
            yield client
    finally:
        os.close(theirs_in)
        await client.aclose()


async def test_it_waits_for_first_starts_without_blocking_others() -> None:
    async with open_pipe() as client:
        await client.play("""
            >> {"id": 1, "method": "initialize", "params": "$hello"}
            >> {"id": 2, "method": "ping", "params": {}}
            << {"id": 2, "result": {}}
        """)
        await settle()
        client.here.set()
        await client.play("""
            << {"id": 1, "result": {"instructions": "$instructions", "...": "..."}}
            >> {"id": 3, "method": "initialize", "params": "$hello"}
            << {"id": 3, "result": "..."}
        """)  # all had come when the last one was sent: it waited for nothing
        assert "how to" in client.play.values["instructions"]


async def test_it_cannot_be_cancelled() -> None:
    async with open_pipe() as client:
        await client.play("""
            >> {"id": 1, "method": "initialize", "params": "$hello"}
            >> {"method": "notifications/cancelled", "params": {"requestId": 1}}
            >> {"id": 2, "method": "ping", "params": {}}
            << {"id": "$first", "result": "..."}
        """)
        client.here.set()
        await client.play('<< {"id": "$second", "result": "..."}')
        assert sorted([client.play.values["first"], client.play.values["second"]]) == [1, 2]


async def test_it_is_answered_though_stdin_has_ended() -> None:
    async with open_pipe() as client:
        await client.play('>> {"id": 1, "method": "initialize", "params": "$hello"}')
        await settle()
        await client.stdin.aclose()
        await client.play('<< {"id": 1, "result": {"protocolVersion": "...", "...": "..."}}')
