"""The fault grid of HTTP backends: moment x fault x transport.

The six ways are those of a child on pipes (`test_backends`, `test_starting`, `test_draining`), in the sense that each
has here: exit = every connection is cut · hang = no answer · garbage = a page of HTML (on an event stream: events that
are not messages) · half line = an event cut in the middle · flood = far more notifications than expected ·
closes stdout only = the stream ends well, without the answer, and the server lives. The backend is a raw server in this
process; above it are the gateway's own supervisor, fleet and router. Another backend must notice nothing.
"""

from __future__ import annotations

import json
from contextlib import asynccontextmanager
from typing import TYPE_CHECKING, Any

import pytest
import trio

from gateway.backends.http.detect import HttpOpener
from gateway.calls import Complete, Notification
from gateway.config import parse_server
from gateway.config.model import Config, ServerConfig
from gateway.errors import BackendError
from gateway.router import Router
from gateway.supervisor.fleet import Fleet
from gateway.supervisor.lifecycle import State
from tests.contract.support import FAST
from tests.peers.http_peer import Cut, LegacyServer, Reply, Request, SseServer, open_peer, text, tool
from tests.support.fakes import FakeBackend, make_call
from tests.support.http_sessions import HOP, WITHIN

if TYPE_CHECKING:
    from collections.abc import AsyncGenerator

    from gateway.inflight.pending import PendingCall
    from tests.peers.http_peer import HttpPeer

FAULTS = ("exit", "hang", "garbage", "half line", "flood", "closes stdout only")
TRANSPORTS = ("http", "sse")
SURVIVED = {("flood", "http"), ("flood", "sse"), ("garbage", "sse")}
"""What does no harm: the answer that follows is the call's."""
CUT_OFF = {"half line", "closes stdout only"}
"""What does no harm before the session is open: `initialize` is sent once more."""
FLOOD = b'data: {"jsonrpc":"2.0","method":"notifications/message","params":{"level":"info","data":"flood"}}\n\n' * 100
FLOODS = 50
PATIENCE = 0.5  # seconds for what hangs; all else may take long, on a machine that runs other things too
NOTIFIED = {  # what people read of it
    ("exit", "http"): "closed|broke|failed|reset|disconnect|reach",
    ("exit", "sse"): "stream|closed|broke|failed|reset|disconnect|reach",
    ("hang", "http"): "did not answer|connect_timeout|cut off",
    ("hang", "sse"): "did not answer|connect_timeout|cut off",
    ("garbage", "http"): "text/html",
    ("half line", "http"): "stream|closed|broke|ended",
    ("half line", "sse"): "stream|closed|broke|ended",
    ("closes stdout only", "http"): "stream|ended|closed",
    ("closes stdout only", "sse"): "closed its event stream",
}
INITIALIZED = {
    "protocolVersion": "2025-11-25",
    "capabilities": {"tools": {}},
    "serverInfo": {"name": "peer", "version": "1"},
}


def result_of(request: Request) -> Any:
    return INITIALIZED if request.rpc == "initialize" else text("well")


class BreakingHttp(LegacyServer):
    """Streamable HTTP; `fault` is committed once, at a request of this method (and this tool)."""

    def __init__(self, fault: str) -> None:
        super().__init__(sessions=False)
        self.fault, self.when, self.is_down = fault, "", False
        self.met = trio.Event()
        self.go = trio.Event()

    async def __call__(self, request: Request, reply: Reply) -> None:
        if self.is_down:
            raise Cut
        if request.params.get("name") == "waits":
            await reply.hung_up()
        elif request.rpc == self.when:
            self.when = ""
            self.met.set()
            await self.go.wait()
            await self.commit(request, reply)
        else:
            await super().__call__(request, reply)

    def repair(self) -> None:
        self.is_down = False

    async def commit(self, request: Request, reply: Reply) -> None:
        match self.fault:
            case "exit":
                self.is_down = True
                raise Cut
            case "hang":
                await reply.hung_up()
            case "garbage":
                await reply.send(200, b"<html>It works!</html>", "text/html")
            case "half line":
                await reply.begin()
                await reply.raw(b'data: {"jsonrpc":"2.0","id":')
                raise Cut
            case "flood":
                await reply.begin()
                for _ in range(FLOODS):
                    await reply.raw(FLOOD)
                await reply.answer_event(result_of(request))
            case _:
                await reply.begin()
                await reply.end()


class BreakingSse(SseServer):
    """The same on the older transport, where all comes on one stream."""

    def __init__(self, fault: str) -> None:
        super().__init__()
        self.fault, self.when, self.is_down = fault, "", False
        self.met = trio.Event()
        self.go = trio.Event()
        self.streaming = trio.CancelScope()
        self.is_cut = False

    async def __call__(self, request: Request, reply: Reply) -> None:
        if self.is_down:
            raise Cut
        if request.params.get("name") == "waits":
            await reply.send(202)
        elif request.rpc == self.when:
            self.when = ""
            await reply.send(202, connection="close")  # what follows on it would wait for this handler
            self.met.set()
            await self.go.wait()
            await self.commit(request)
        else:
            await super().__call__(request, reply)

    async def on_get(self, request: Request, reply: Reply) -> None:
        await reply.begin()
        self.stream = reply
        await reply.event(self.endpoint, event="endpoint")
        with trio.CancelScope() as self.streaming:
            await reply.hung_up(10 * WITHIN)
        if self.is_cut:
            raise Cut

    def repair(self) -> None:
        self.is_down = self.is_cut = False

    async def commit(self, request: Request) -> None:
        assert self.stream is not None
        match self.fault:
            case "exit":
                self.is_down = self.is_cut = True
                self.streaming.cancel()
            case "hang":
                pass
            case "half line":
                await self.stream.raw(b'event: message\ndata: {"jsonrpc":"2.0","id":')
                self.is_cut = True
                self.streaming.cancel()
            case "closes stdout only":
                self.streaming.cancel()
            case _:
                for _ in range(FLOODS if self.fault == "flood" else 1):
                    await self.stream.raw(FLOOD if self.fault == "flood" else b"data: <html>\n\ndata: 7\n\n")
                await self.say({"jsonrpc": "2.0", "id": request.message["id"], "result": result_of(request)})


class Harness:
    """The gateway's core with a breaking backend `b` and a good one."""

    def __init__(self, server: Any, peer: HttpPeer, good: FakeBackend, router: Router) -> None:
        self.server, self.peer, self.good, self.router = server, peer, good, router
        self.backend = router.fleet.supervisors["b"]

    async def call(self, name: str) -> Any:
        pending = await self.router.submit(make_call(name))
        try:
            return await ended(pending)
        finally:
            self.router.release(pending)

    async def is_undisturbed(self) -> None:
        """The other backend answers."""
        pending = await self.router.submit(make_call("good.x"))
        while not self.good.session.working:
            await trio.lowlevel.checkpoint()
        self.good.session.answer()
        assert isinstance(await ended(pending), Complete)
        self.router.release(pending)

    async def works_again(self) -> None:
        """A new call is answered; until the backend is back, callers get an error."""
        self.server.repair()
        while isinstance(found := await self.call("b.echo"), BackendError):
            assert found.backend == "b"
            await trio.sleep(0.02)
        assert isinstance(found, Complete)


async def ended(pending: PendingCall) -> Any:
    with trio.fail_after(WITHIN):
        while isinstance(found := await pending.next(), Notification):
            pass
    return found


@asynccontextmanager
async def open_harness(fault: str, transport: str, *, when: str = "") -> AsyncGenerator[Harness]:
    server = BreakingHttp(fault) if transport == "http" else BreakingSse(fault)
    server.when = when
    server.tools.append(tool("waits"))
    good = FakeBackend()
    http = HttpOpener()

    def opener(config: ServerConfig, listener: Any, **_: Any) -> Any:
        return good(config, listener) if config.name == "good" else http.open(config, listener, hop=HOP)

    async with open_peer(server) as peer:
        fields = {"transport": "sse" if transport == "sse" else "streamable-http", "era": "legacy", "restart": FAST}
        if fault == "hang" and when:
            fields["connect_timeout"] = PATIENCE
        elif fault == "hang":
            fields["call_timeout"] = PATIENCE
        servers = {"b": parse_server("b", {"url": peer.url, **fields}, environ={}), "good": ServerConfig(name="good")}
        fleet = Fleet(Config(servers=servers), opener)
        with trio.fail_after(2 * WITHIN):
            async with trio.open_nursery() as nursery:
                await nursery.start(fleet.run)
                if not when:
                    await fleet.supervisors["b"].settled.wait()
                    assert fleet.supervisors["b"].state is State.READY
                await fleet.supervisors["good"].settled.wait()
                yield Harness(server, peer, good, Router(fleet))  # ruff: ignore[fallible-context-manager]
                fleet.stop()
        await peer.wait(lambda: peer.open_connections == 0)


def grid(test: Any) -> Any:
    return pytest.mark.parametrize("transport", TRANSPORTS)(pytest.mark.parametrize("fault", FAULTS)(test))


@grid
async def test_a_fault_before_initialize_is_recovered_from(fault: str, transport: str) -> None:
    async with open_harness(fault, transport, when="initialize") as harness:
        await harness.server.met.wait()
        await harness.is_undisturbed()
        harness.server.go.set()
        if (fault, transport) not in SURVIVED and fault not in CUT_OFF:
            while harness.backend.last_error is None:
                await harness.backend.settled.wait()
                await trio.lowlevel.checkpoint()
            check_notified(fault, transport, harness.backend.last_error)
        await harness.works_again()


@grid
async def test_a_fault_during_a_call_ends_it(fault: str, transport: str) -> None:
    async with open_harness(fault, transport) as harness:
        harness.server.when = "tools/call"
        found: dict[str, Any] = {}

        async def call(name: str) -> None:
            found[name] = await harness.call(name)

        async with trio.open_nursery() as nursery:
            nursery.start_soon(call, "b.echo")
            await harness.server.met.wait()
            other = await harness.router.submit(make_call("b.waits"))
            await harness.peer.received("tools/call", 2)
            await harness.is_undisturbed()
            harness.server.go.set()
        if (fault, transport) in SURVIVED:
            assert json.loads(found["b.echo"].result) == text("well")
        else:
            assert isinstance(found["b.echo"], BackendError)
            assert found["b.echo"].backend == "b"
            check_notified(fault, transport, found["b.echo"].reason)
        if transport == "sse" and fault in {"exit", "half line", "closes stdout only"}:
            assert isinstance(await ended(other), BackendError)  # there is one stream for all
        else:
            assert (fault in {"exit", "hang"}) or not other.over  # where each call has its own, only that one ends
        harness.router.release(other)
        await harness.works_again()
        await harness.is_undisturbed()


@grid
async def test_drain_ends_despite_a_fault(fault: str, transport: str) -> None:
    async with open_harness(fault, transport) as harness:
        harness.server.when = "tools/call"
        pending = await harness.router.submit(make_call("b.echo"))
        await harness.server.met.wait()
        drained: list[bool] = []

        async def drain() -> None:
            drained.append(await harness.router.drain(0.2 if fault == "hang" else WITHIN))

        async with trio.open_nursery() as nursery:
            nursery.start_soon(drain)
            await trio.lowlevel.checkpoint()
            harness.server.go.set()
            found = await ended(pending)
            harness.router.release(pending)
        assert drained == [fault != "hang"]
        if (fault, transport) in SURVIVED:
            assert json.loads(found.result) == text("well")
        else:
            assert isinstance(found, BackendError)
            check_notified(fault, transport, found.reason)


def check_notified(fault: str, transport: str, said: str) -> None:
    assert any(word in said for word in NOTIFIED[fault, transport].split("|")), said
