"""The `initialize` of a stdio client that comes before the backends do: it waits, and holds nothing else up."""

from __future__ import annotations

import json
import os
from contextlib import asynccontextmanager
from typing import TYPE_CHECKING, Any

import trio

from gateway.frontends.stdio import StdioFrontend
from tests.support.fakes import SOON, FakeBackend, make_listing, settle
from tests.support.http_frontends import HELLO, message_of, open_house

if TYPE_CHECKING:
    from collections.abc import AsyncGenerator


class Pipe:
    """A stdio client of a face whose one backend comes when `here` is set."""

    def __init__(self, stdin: int, stdout: int) -> None:
        self.here = trio.Event()
        self.stdin = trio.lowlevel.FdStream(stdin)
        self._stdout = trio.lowlevel.FdStream(stdout)
        self._read = b""

    async def say(self, *messages: dict[str, Any]) -> None:
        await self.stdin.send_all(b"".join(json.dumps(one).encode() + b"\n" for one in messages))

    async def next(self) -> Any:
        with trio.fail_after(SOON):
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
        async with open_house(fake, start_grace=60.0) as house:
            face = StdioFrontend(house.answers, theirs_in, theirs_out, trio.Event())
            house.nursery.start_soon(face.run)
            yield client
    finally:
        os.close(theirs_in)
        await client.aclose()


async def test_it_waits_for_first_starts_and_nothing_waits_for_it() -> None:
    async with open_pipe() as client:
        await client.say(message_of("initialize", HELLO, 1), message_of("ping", {}, 2))
        assert (await client.next()) == {"jsonrpc": "2.0", "id": 2, "result": {}}
        await settle()
        client.here.set()
        greeted = await client.next()
        assert greeted["id"] == 1
        assert "how to" in greeted["result"]["instructions"]
        await client.say(message_of("initialize", HELLO, 3))  # all has come: this one waits for nothing
        assert (await client.next())["id"] == 3


async def test_it_cannot_be_cancelled() -> None:
    async with open_pipe() as client:
        cancel = message_of("notifications/cancelled", {"requestId": 1})
        await client.say(message_of("initialize", HELLO, 1), cancel, message_of("ping", {}, 2))
        got = [await client.next()]
        client.here.set()
        got.append(await client.next())
        assert sorted(one["id"] for one in got) == [1, 2]
        assert all("result" in one for one in got)


async def test_it_is_answered_though_stdin_has_ended() -> None:
    async with open_pipe() as client:
        await client.say(message_of("initialize", HELLO, 1))
        await settle()
        await client.stdin.aclose()
        assert "protocolVersion" in (await client.next())["result"]
