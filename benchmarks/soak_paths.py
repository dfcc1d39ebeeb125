"""The clients of a long soak: on every path through the gateway, and destructive ones.

The clients of the ordinary soak run beside them.
"""

from __future__ import annotations

import json

import trio

from benchmarks.reload import Caller
from benchmarks.soak_client import BREAKAGES, ODDITIES, WITHIN, Client, text_of
from tests.support.wire import initialize_params, make_notification, make_request

LARGE = (100_000, 2_000_000)  # bytes of a large result
HUGE = 9_000_000  # bytes of one that is handled in steps, and that no socket buffer holds
HUGE_SHARE = 0.1
CRASH_PAUSE = 6.0  # seconds between two crashes, at most
LOGIN_PAUSE = 4.0


class PathClient(Caller):
    """Calls every backend transport, in one era, with small and large results."""

    async def run(self, until):
        steps = {
            self.step_remote: 4,
            self.step_sse_backend: 2,
            self.step_change: 2,
            self.step_come: 2,
            self.step_large: 2,
            self.step_vanish: 0.3,
        }
        while trio.current_time() < until:
            if self.era == "legacy":
                await self.step({self.step_initialize: 1}, self.random)
            for _ in range(self.random.randint(10, 40)):
                if trio.current_time() < until:
                    await self.step(steps, self.random)
                    await self.think(self.random)
            if self.era == "legacy" and self.random.random() < 0.7:  # others abandon the session
                await self.step({self.step_delete: 1}, self.random)

    async def step_initialize(self, _random):
        await self.http.initialize()

    async def step_delete(self, _random):
        assert (await self.http.delete_session()).status == 200

    async def step_remote(self, _random):
        await self.echo("remote.echo")

    async def step_sse_backend(self, _random):
        await self.echo("sse.echo")

    async def echo(self, tool):
        nonce = self.nonce()
        self.judge(await self.request(tool, {"text": nonce}), nonce, tool)

    async def step_large(self, random):
        size = HUGE if random.random() < HUGE_SHARE else random.randint(*LARGE)
        answer = await self.request("large.big", {"n": size})
        if answer is not None and len(text_of(answer)) != size:
            self.fail("misdirected", f"{len(text_of(answer))} bytes instead of {size}")

    async def step_vanish(self, _random):
        """Disconnect while the gateway is still writing a large result."""
        params = {"name": "large.big", "arguments": {"n": HUGE}}
        if self.era == "legacy":
            self.http.last_id += 1
            exchange = self.http.stream(make_request(self.http.last_id, "tools/call", params))
        else:
            exchange = self.http.stream_modern("tools/call", params)
        async with exchange as response:
            assert response.status == 200, response.status


class SseClient(Client):
    """Sessions of the SSE transport, with an open stream and a POST for each message."""

    era = "sse"

    async def run(self, until):
        while trio.current_time() < until:
            try:
                async with self.http.exchange("GET", path="/sse", headers={"Accept": "text/event-stream"}) as stream:
                    await self.live(stream, until)
            except BREAKAGES + ODDITIES as exc:
                self.fail("unexpected", f"a session: {exc!r}")

    async def live(self, stream, until):
        self.stream, self.path = stream, (await stream.next_sse(within=WITHIN)).data
        await self.request("initialize", initialize_params("2024-11-05"))
        await self.post(make_notification("notifications/initialized"))
        for _ in range(self.random.randint(5, 40)):
            if trio.current_time() < until:
                await self.step({self.step_echo: 4, self.step_large: 1}, self.random)
                await self.think(self.random)

    async def post(self, message):
        response = await self.http.send("POST", json.dumps(message).encode(), path=self.path, within=WITHIN)
        assert response.status == 202, response

    async def request(self, method, params):
        self.http.last_id += 1
        await self.post(make_request(self.http.last_id, method, params))
        while "method" in (message := (await self.stream.next_sse(within=WITHIN)).json()):
            pass
        if message["id"] != self.http.last_id:
            self.fail("misdirected", f"{message} instead of {self.http.last_id}")
        return message

    async def step_echo(self, random):
        nonce, tool = self.nonce(), random.choice(("shared.echo", "remote.echo", "sse.echo"))
        self.judge(await self.request("tools/call", {"name": tool, "arguments": {"text": nonce}}), nonce, tool)

    async def step_large(self, random):
        size = HUGE if random.random() < HUGE_SHARE else random.randint(*LARGE)
        answer = await self.request("tools/call", {"name": "large.big", "arguments": {"n": size}})
        if len(text_of(answer)) != size:
            self.fail("misdirected", f"{len(text_of(answer))} bytes instead of {size}")


class Crasher(Caller):
    """Makes a backend exit during a call, again and again; then calls it."""

    async def run(self, until):
        while trio.current_time() < until:
            await self.step({self.step_crash: 1}, self.random)
            await trio.sleep(self.random.uniform(1, CRASH_PAUSE))

    async def step_crash(self, _random):
        answer = await self.request("fragile.crash", {})
        if answer is not None and "error" not in answer:
            self.fail("unexpected", f"after a crash: {answer}")
        nonce = self.nonce()
        self.judge(await self.request("fragile.echo", {"text": nonce}), nonce, "fragile.echo")


class LoginClient(Client):
    """Calls a server whose OAuth tokens are revoked before each call: a new login."""

    era = "legacy"

    def __init__(self, name, url, seed, tally, peer):
        super().__init__(name, url, seed, tally)
        self.peer = peer

    async def run(self, until):
        while trio.current_time() < until:
            await self.step({self.step_log_in: 1}, self.random)
            await trio.sleep(self.random.uniform(0, LOGIN_PAUSE))

    async def step_log_in(self, _random):
        self.peer.revoke()
        await self.http.initialize()
        answer = await self.http.call_tool("locked.echo", within=WITHIN)
        self.judge(answer, "well done", "locked.echo")
        assert (await self.http.delete_session()).status == 200
