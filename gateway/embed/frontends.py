"""The gateway's HTTP frontends without a socket, for mounting into a program's application.

There is one `AsgiFrontends` for each mount, with the sessions of the clients that connected there. It owns the tasks of
those sessions; the exchanges run in the task that serves them and are only counted.
"""

from __future__ import annotations

from functools import partial
from typing import TYPE_CHECKING, Any

import trio

from gateway.access.refusal import Refusal
from gateway.budget import Share
from gateway.frontends.http.exchange import Exchange
from gateway.frontends.http.host_policy import HostPolicy
from gateway.frontends.http.mcp_app import McpApp
from gateway.runtime import CLOSE_GRACE

if TYPE_CHECKING:
    from collections.abc import Iterable

    from gateway.access.table import Access
    from gateway.frontends.http.exchange import Receive, Scope, Send
    from gateway.frontends.http.mcp_app import Paths
    from gateway.frontends.request_handler import RequestHandler


class MountPolicy(HostPolicy):
    """Policy inside an application, which checks the host name itself; restricts origins.

    Origins are checked in addition to CORS, which prevents pages from reading responses but not from calling tools.
    With `origins` None, the config's `access.allow_origins` are allowed.
    """

    def __init__(self, origins: Iterable[str] | None) -> None:
        super().__init__("")
        self._follows_config = origins is None
        self._allowed: frozenset[bytes] = frozenset()
        self.allow(origins or ())

    def permit(self, origins: Iterable[str], hosts: Iterable[str]) -> None:
        """Allow the origins of the config, unless the program has given its own."""
        del hosts
        if self._follows_config:
            super().permit(origins, ())

    def allow(self, origins: Iterable[str]) -> None:
        """Allow these origins and loopback; `*` allows all."""
        self._allowed = frozenset(origin.encode("utf-8") for origin in origins)

    def refusal(self, headers: dict[bytes, bytes]) -> Refusal | None:
        """Return why a request with these headers is refused, or None."""
        origin = headers.get(b"origin")
        if origin is None or b"*" in self._allowed or origin in self._allowed or self.origin_is_ours(origin):
            return None
        text = "the Origin header names a web page that may not use this gateway (allow_origins)"
        return Refusal(403, "unknown_origin", text)


class AsgiFrontends:
    """An ASGI application: streamable HTTP of both eras, and the older SSE transport.

    With `origins` None it allows the config's current `access.allow_origins`, sends CORS headers itself, and serves the
    resource server's metadata below its root. With its own origins it leaves both to the surrounding application.
    """

    def __init__(self, handler: RequestHandler, access: Access, paths: Paths, origins: Iterable[str] | None) -> None:
        self.policy = MountPolicy(origins)
        self.paths = paths
        self.unsent = handler.buffers
        self._closing = trio.Event()
        self._mcp = McpApp(
            handler, access, paths, policy=self.policy, closing=self._closing, shows_metadata=origins is None
        )
        self._serving = 0
        self._quiet = trio.lowlevel.ParkingLot()

    async def run(self, closing: trio.Event, *, task_status: trio.TaskStatus[None]) -> None:
        """Keep the sessions until `close` or `closing`, then wait for all exchanges."""
        async with trio.open_nursery() as nursery:
            await nursery.start(self._mcp.run)
            nursery.start_soon(self._close_with, closing)
            task_status.started()
            await self._closing.wait()
            with trio.move_on_after(CLOSE_GRACE):
                while self._serving:
                    await self._quiet.park()
            nursery.cancel_scope.cancel(reason="the frontends were closed")

    def close(self) -> None:
        """End all sessions and streams. Idempotent."""
        self._closing.set()

    async def _close_with(self, closing: trio.Event) -> None:
        await closing.wait()
        self.close()

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer one HTTP request; acknowledge the lifespan of a server that runs only this application."""
        phase = ""
        while scope["type"] == "lifespan" and phase != "lifespan.shutdown":
            phase = (await receive())["type"]
            await send({"type": f"{phase}.complete"})
        if scope["type"] != "http":
            return
        ending = trio.CancelScope()
        unsent = Share(self.unsent, partial(ending.cancel, reason="too many bytes wait for slow clients"))

        async def counted_send(message: Any) -> None:
            size = len(message.get("body", b""))
            unsent.add(size)
            try:
                await send(message)
            finally:
                unsent.remove(size)

        with ending:
            await self.serve(scope, receive, counted_send)

    async def serve(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer one HTTP request; the caller counts its client's unsent bytes in `unsent`."""
        self._serving += 1
        try:
            if not await self._mcp.serve(scope, receive, send):
                await self._mcp.entrance.serve(Exchange(scope, receive, send), _not_found)
        finally:
            self._serving -= 1
            if not self._serving:
                self._quiet.unpark_all()


async def _not_found(exchange: Exchange) -> None:
    await exchange.empty(404)
