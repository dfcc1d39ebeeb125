"""A gateway of fakes with all its HTTP endpoints and access control, in memory: the test plays clients and backend."""

from __future__ import annotations

import json
from contextlib import asynccontextmanager
from functools import partial
from typing import TYPE_CHECKING, Any

import trio

from gateway.access.keys import hash_key
from gateway.access.table import Access
from gateway.admin.access import AdminAccess
from gateway.admin.http import make_admin_app
from gateway.admin.servers import Management
from gateway.calls import Complete, Era
from gateway.config import Config, parse_config
from gateway.config.access import NO_ACCESS
from gateway.frontends.http.endpoint import HttpFrontend
from gateway.frontends.http.listen_address import ListenAddress
from gateway.frontends.modern.request_state import RequestStateCodec
from gateway.frontends.modern.suspended_calls import SuspendedCalls
from gateway.frontends.request_handler import RequestHandler
from gateway.reload.reloader import Reloader
from gateway.reload.source import ConfigSource
from gateway.router import Router
from gateway.supervisor.fleet import Fleet
from tests.support.fakes import FakeBackend, FakeExchange, backends, make_listing, settle

if TYPE_CHECKING:
    from collections.abc import AsyncGenerator

ADMIN_TOKEN = "correct-horse-battery-staple"
ALICE, BOB = "mcpgw_key-of-alice", "mcpgw_key-of-bob"
HELLO = {"protocolVersion": "2025-11-25", "capabilities": {}, "clientInfo": {"name": "c", "version": "1"}}
MODERN_META = {
    "io.modelcontextprotocol/protocolVersion": "2026-07-28",
    "io.modelcontextprotocol/clientCapabilities": {},
}
ANSWER = {"content": [{"type": "text", "text": "done"}]}


def keys(*more: dict[str, Any], **rules: Any) -> dict[str, Any]:
    """A section `access` with the keys of alice, who has these rules, and bob."""
    alice = {"name": "alice", "hash": hash_key(ALICE), **rules}
    return {"keys": [alice, {"name": "bob", "hash": hash_key(BOB)}, *more]}


def make_config(access: object, *servers: str) -> Config:
    raw = {
        "mcpServers": {name: {"command": "x"} for name in servers or ("a",)},
        "views": {"small": {"tools": ["*.x"]}},
        "access": access,
    }
    return parse_config(json.dumps(raw), environ={})


class House:
    """All of it; `ask` is one HTTP request."""

    def __init__(self, config: Config, host: str = "127.0.0.1", send: Any = None, opener: Any = None) -> None:
        self.fakes = {name: FakeBackend(make_listing("x", "y")) for name in config.servers}
        self.fleet = Fleet(config, opener or backends(self.fakes))
        self.router = Router(self.fleet)
        self.access = self.router.admission = Access(config.access or NO_ACCESS, send)
        self.parking = SuspendedCalls(RequestStateCodec())
        self.access.on_end += [lambda principal: self.parking.close_of(principal.name), self.router.cut_off]
        self.answers = RequestHandler(self.router, config.gateway, "9", self.parking)
        self.closing = trio.Event()
        reloader = Reloader(ConfigSource(None, environ={}, given=config), self.fleet)
        management = Management(
            self.router, reloader, transport="http", draining=self.closing.is_set, closing=self.closing
        )
        self.admin = make_admin_app(management, AdminAccess("token", host=host, token=ADMIN_TOKEN))
        self.face = HttpFrontend(
            self.answers,
            binding=ListenAddress(host=host, port=0),
            path="/mcp",
            sse_path="/sse",
            others=self.admin,
            closing=self.closing,
            access=self.access,
        )
        self.reloader = reloader
        self.nursery: Any = None
        self._last_id = 0

    @property
    def sent(self) -> int:
        """Calls that any backend has ever seen."""
        return sum(len(batch) for fake in self.fakes.values() for session in fake.sessions for batch in session.batches)

    async def start(
        self,
        method: str,
        path: str,
        body: object = None,
        *,
        key: str | None = None,
        address: str | None = None,
        **headers: str,
    ) -> FakeExchange:
        """Begin a request, and go on when all tasks wait. Header names are spelled with underscores."""
        target, _, query = path.partition("?")
        given = {"host": "localhost", "accept": "application/json, text/event-stream"}
        if body is not None:
            given["content-type"] = "application/json"
        if key is not None:
            given["authorization"] = f"Bearer {key}"
        given |= {name.replace("_", "-"): value for name, value in headers.items()}
        data = body if isinstance(body, bytes) else b"" if body is None else json.dumps(body).encode()
        exchange = FakeExchange(data, method=method, headers=given)
        exchange.scope |= {"path": target, "query_string": query.encode()}
        if address is not None:
            exchange.scope["client"] = (address, 12_345)
        self.nursery.start_soon(self.face._route, exchange.scope, exchange.receive, exchange.send)
        await settle()
        return exchange

    async def initialize(self, key: str | None = ALICE) -> str:
        """Begin a legacy session; returns its id."""
        message = {"jsonrpc": "2.0", "id": 0, "method": "initialize", "params": HELLO}
        exchange = await self.start("POST", "/mcp", message, key=key)
        assert exchange.status == 200, exchange.body
        return exchange.headers["mcp-session-id"]

    async def call(
        self, session: str | None = None, *, key: str | None = ALICE, name: str = "a.x", **headers: str
    ) -> FakeExchange:
        """Begin a tool call: in a legacy session, or a modern one."""
        self._last_id += 1
        message = tool_call(name, modern=session is None, request_id=self._last_id)
        given = {"mcp_session_id": session} if session is not None else modern_headers(name)
        return await self.start("POST", "/mcp", message, key=key, **{**given, **headers})

    async def listen(self, *, key: str | None = ALICE) -> FakeExchange:
        """Begin to listen, as a modern client."""
        params = {"notifications": {"toolsListChanged": True}, "_meta": MODERN_META}
        message = {"jsonrpc": "2.0", "id": 1, "method": "subscriptions/listen", "params": params}
        given = {"mcp_protocol_version": "2026-07-28", "mcp_method": "subscriptions/listen"}
        return await self.start("POST", "/mcp", message, key=key, **given)

    async def answer(self, name: str = "a") -> None:
        """Have a backend answer its oldest call."""
        self.fakes[name].session.answer(outcome=Complete(json.dumps(ANSWER).encode(), Era.LEGACY))
        await settle()


def tool_call(name: str = "a.x", *, modern: bool, request_id: object = 1) -> dict[str, Any]:
    params: dict[str, Any] = {"name": name, "arguments": {}}
    if modern:
        params["_meta"] = MODERN_META
    return {"jsonrpc": "2.0", "id": request_id, "method": "tools/call", "params": params}


def modern_headers(name: str = "a.x", method: str = "tools/call") -> dict[str, str]:
    return {"mcp_protocol_version": "2026-07-28", "mcp_method": method, "mcp_name": name}


@asynccontextmanager
async def open_house(access: object, *servers: str, host: str = "127.0.0.1", send: Any = None) -> AsyncGenerator[House]:
    house = House(make_config(access, *servers), host, send)
    with trio.fail_after(1e7):  # of the clock that jumps
        async with running(house):
            yield house


@asynccontextmanager
async def running(house: House) -> AsyncGenerator[None]:
    """All that runs of a house, but its socket."""
    async with trio.open_nursery() as services:
        await services.start(house.fleet.run)
        await services.start(partial(house.reloader.run, watching=False))
        services.start_soon(house.parking.run)
        await services.start(house.face._endpoint.sessions.run)
        house.face._watch_access()
        await settle()
        async with trio.open_nursery() as house.nursery:
            yield  # ruff: ignore[fallible-context-manager]
            house.nursery.cancel_scope.cancel()
        house.fleet.stop()
        await house.fleet.ended.wait()
        services.cancel_scope.cancel()
