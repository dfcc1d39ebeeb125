"""The management API of a gateway over fake backends, called in process."""

from __future__ import annotations

import json
from contextlib import asynccontextmanager
from typing import TYPE_CHECKING, Any

import trio

from gateway.admin.access import AdminAccess
from gateway.admin.http import make_admin_app
from gateway.admin.servers import Management
from gateway.reload.reloader import Reloader
from gateway.reload.source import ConfigSource
from gateway.router import Router
from gateway.store import Store
from gateway.supervisor.fleet import Fleet
from tests.support.fakes import FakeBackend, FakeExchange, backends, make_listing
from tests.support.supervision import run_reloader

if TYPE_CHECKING:
    from collections.abc import AsyncGenerator
    from pathlib import Path

TOKEN = "correct-horse-battery-staple"
SECRET = "s3cr3t-value"
JSON = {"content-type": "application/json"}
BEARER = {"authorization": f"Bearer {TOKEN}"}
CONFIG = {
    "mcpServers": {
        "a": {"command": "run-a", "env": {"KEY": SECRET}, "args": ["--api-key", SECRET, f"--token={SECRET}", "x"]},
        "b": {"command": "run-b", "required": True},
        "off": {"command": "run-off", "disabled": True},
    }
}


class Harness:
    """A running gateway without frontends; `ask` is one HTTP request to its management app."""

    def __init__(self, path: Path, access: AdminAccess, *, store: Store | None = None, **counts: Any) -> None:
        self.fakes = {name: FakeBackend(make_listing("x")) for name in ("a", "b", "c", "off")}
        self.path = path
        self.source = ConfigSource(path, environ={}, store=store)
        self.fleet = Fleet(self.source.open(), backends(self.fakes))
        self.router = Router(self.fleet)
        self.reloader = Reloader(self.source, self.fleet)
        self.draining = False
        self.closing = trio.Event()
        self.management = Management(
            self.router,
            self.reloader,
            transport="http",
            draining=lambda: self.draining,
            closing=self.closing,
            **counts,
        )
        self.app = make_admin_app(self.management, access)

    async def ask(
        self, method: str, path: str, body: Any = b"", *, headers: dict[str, str] | None = None, query: bytes = b""
    ) -> tuple[int, Any]:
        exchange = await self.exchange(method, path, body, headers=headers, query=query)
        assert exchange.headers["content-type"] == "application/json"
        return exchange.status, json.loads(exchange.body)

    async def exchange(
        self, method: str, path: str, body: Any = b"", *, headers: dict[str, str] | None = None, query: bytes = b""
    ) -> FakeExchange:
        data = body if isinstance(body, bytes) else json.dumps(body).encode()
        exchange = FakeExchange(data, method=method, headers={**BEARER, **JSON} if headers is None else headers)
        exchange.scope |= {"path": path, "query_string": query}
        await self.app(exchange.scope, exchange.receive, exchange.send)
        return exchange

    @property
    def starts(self) -> dict[str, int]:
        return {name: len(fake.starts) for name, fake in self.fakes.items()}


@asynccontextmanager
async def open_harness(
    folder: Path,
    *,
    mode: Any = "token",
    host: str = "127.0.0.1",
    config: Any = CONFIG,
    store: Store | None = None,
    **counts: Any,
) -> AsyncGenerator[Harness]:
    path = folder / "config.json"
    if config is not None:
        path.write_text(json.dumps(config), encoding="utf-8")
    harness = Harness(path, AdminAccess(mode, host=host, token=TOKEN), store=store, **counts)
    async with run_reloader(harness.reloader, harness.fleet, within=100_000):  # seconds of the clock that jumps
        yield harness
