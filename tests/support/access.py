"""A gateway of fakes with its HTTP endpoints and access control, in memory."""

from __future__ import annotations

import json
from contextlib import asynccontextmanager
from functools import partial
from typing import TYPE_CHECKING, Any

import trio

from gateway.access.keys import hash_key
from gateway.admin.access import AdminAccess
from gateway.admin.http import make_admin_app
from gateway.admin.servers import Management
from gateway.calls import Complete, Era
from gateway.config import Config, parse_config
from gateway.frontends.http.host_policy import HostPolicy
from gateway.frontends.http.mcp_app import McpApp, Paths
from gateway.frontends.http.server import HttpFrontend
from gateway.reload.reloader import Reloader
from gateway.reload.source import ConfigSource
from gateway.runtime import GatewayRuntime
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
        **({} if access is None else {"access": access}),
    }
    return parse_config(json.dumps(raw), environ={})


class Unguarded:
    """A guard over no children."""

    def __init__(self) -> None:
        self.force_stopped = trio.Event()


class Harness:
    """The gateway, its fakes and its endpoints; `ask` is one HTTP request."""

    def __init__(
        self,
        config: Config,
        host: str = "127.0.0.1",
        paths: Paths | None = None,
        *,
        send: Any = None,
        opener: Any = None,
    ) -> None:
        self.fakes = {name: FakeBackend(make_listing("x", "y")) for name in config.servers}
        guard: Any = Unguarded()
        self.runtime = GatewayRuntime(config, guard, opener=opener or backends(self.fakes), fetch=send)
        self.fleet, self.router, self.access = self.runtime.fleet, self.runtime.router, self.runtime.access
        self.parking, self.answers, self.audit = self.runtime.suspended_calls, self.runtime.handler, self.runtime.audit
        self.closing = self.runtime.closing
        self.reloader = Reloader(ConfigSource(None, environ={}, given=config), self.fleet, apply=self.runtime.apply)
        management = Management(
            self.router, self.reloader, transport="http", draining=self.closing.is_set, closing=self.closing
        )
        admin = make_admin_app(management, AdminAccess("token", host=host, token=ADMIN_TOKEN))
        policy = HostPolicy(host)
        self.mcp = McpApp(self.answers, self.access, paths or Paths(), policy=policy, closing=self.closing)
        self.frontend = HttpFrontend(self.mcp, others=admin, closing=self.closing)
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
        """Begin a request and return once all tasks wait. Header names are spelled with underscores."""
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
        self.nursery.start_soon(self.frontend, exchange.scope, exchange.receive, exchange.send)
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
async def open_harness(
    access: object, *servers: str, host: str = "127.0.0.1", send: Any = None
) -> AsyncGenerator[Harness]:
    harness = Harness(make_config(access, *servers), host, send=send)
    with trio.fail_after(1e7):  # of the clock that jumps
        async with running(harness):
            yield harness


@asynccontextmanager
async def running(harness: Harness) -> AsyncGenerator[None]:
    """A running gateway without a socket."""

    async def start_frontends() -> None:
        await harness.runtime.start_frontend(partial(harness.reloader.run, watching=False))
        await harness.runtime.start_frontend(harness.mcp.run)

    async with trio.open_nursery() as services:
        await services.start(harness.runtime.run, start_frontends)
        await settle()
        async with trio.open_nursery() as harness.nursery:
            yield  # ruff: ignore[fallible-context-manager]
            harness.nursery.cancel_scope.cancel()
        harness.fleet.stop()
        await harness.fleet.ended.wait()
        services.cancel_scope.cancel()
    harness.runtime.forget_secrets()
