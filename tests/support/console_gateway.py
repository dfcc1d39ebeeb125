"""A gateway of 300 fake backends that reports a thousand calls a second."""

from __future__ import annotations

import threading
from functools import partial
from typing import Any

import trio

from gateway.access.table import Access
from gateway.admin.access import AdminAccess
from gateway.admin.http import make_admin_app
from gateway.admin.servers import Management
from gateway.config import Config, ServerConfig
from gateway.config.access import NO_ACCESS
from gateway.frontends.http.host_policy import HostPolicy
from gateway.frontends.http.listen_address import ListenAddress
from gateway.frontends.http.mcp_app import McpApp, Paths
from gateway.frontends.http.server import HttpFrontend
from gateway.frontends.modern.request_state import RequestStateCodec
from gateway.frontends.modern.suspended_calls import SuspendedCalls
from gateway.frontends.request_handler import RequestHandler
from gateway.reload.reloader import Reloader
from gateway.reload.source import ConfigSource
from gateway.router import Router
from gateway.supervisor.fleet import Fleet
from gateway.telemetry import now_iso
from tests.support.fakes import FakeBackend, make_listing

BACKENDS = 300
TOOLS = 20
EVENTS_PER_SECOND = 1_000
TICK = 0.02  # seconds
SAMPLES = 180
PREFIX = "/a/prefix"
"""As a reverse proxy would serve the management API."""


class FakeGateway:
    """Runs in a thread of its own; `url` is valid once `listening` is set."""

    def __init__(self) -> None:
        self.url = ""
        self.listening = threading.Event()
        self._stop: Any = None

    def run(self) -> None:
        trio.run(self._serve)

    def stop(self) -> None:
        self._stop()

    async def _serve(self) -> None:
        closing = trio.Event()
        self._stop = partial(trio.lowlevel.current_trio_token().run_sync_soon, closing.set)
        names = [f"server-{number}" for number in range(BACKENDS)]
        config = Config({name: ServerConfig(name=name, command="x") for name in names})
        listing = make_listing(*(f"tool_{number}" for number in range(TOOLS)))
        fleet = Fleet(config, lambda server, listener, **_: FakeBackend(listing)(server, listener))
        router = Router(fleet)
        reloader = Reloader(ConfigSource(None, environ={}, given=config), fleet)
        management = Management(router, reloader, transport="http", draining=closing.is_set, closing=closing)
        for number in range(SAMPLES):
            for supervisor in fleet.supervisors.values():
                supervisor.history.calls += 5 + number % 7
                supervisor.history.buckets[2 + number % 5] += 5 + number % 7
            management.history.sample(100_000_000, 2_000_000_000, BACKENDS)
        app = make_admin_app(management, AdminAccess("token", host="127.0.0.1"))
        handler = RequestHandler(router, "0", SuspendedCalls(RequestStateCodec([])))
        mcp = McpApp(handler, Access(NO_ACCESS), Paths(sse=None), policy=HostPolicy("127.0.0.1"), closing=closing)

        async def behind_prefix(scope: Any, receive: Any, send: Any) -> None:
            await app({**scope, "path": scope["path"].removeprefix(PREFIX)}, receive, send)

        frontend = HttpFrontend(mcp, others=behind_prefix, closing=closing)
        async with trio.open_nursery() as nursery:
            await nursery.start(fleet.run)
            await nursery.start(partial(reloader.run, watching=False))
            await nursery.start(management.history.run)
            (url,) = await nursery.start(frontend.run, ListenAddress(port=0).open())
            self.url = url.removesuffix("/mcp") + PREFIX
            self.listening.set()
            while not closing.is_set():
                for number in range(int(EVENTS_PER_SECOND * TICK)):
                    call = {"at": now_iso(), "server": names[number], "method": "tools/call", "name": "x", "ms": 1.5}
                    management.feed._publish("call", {**call, "outcome": "answered", "reason": None})
                with trio.move_on_after(TICK):
                    await closing.wait()
            reloader.stop()
            fleet.stop()
            nursery.cancel_scope.cancel()
