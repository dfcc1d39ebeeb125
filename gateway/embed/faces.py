"""The gateway's HTTP frontends without a socket: what a program mounts into an application of its own.

One `AsgiFrontends` for each place where it is mounted, with the sessions of the clients that connected there. Owns the
tasks of those sessions; the exchanges themselves run in the task that serves them, and are only counted.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

import trio

from gateway.access.resource import WELL_KNOWN
from gateway.frontends.http import view_routing
from gateway.frontends.http.authentication import AuthMiddleware
from gateway.frontends.http.endpoint import McpEndpoint
from gateway.frontends.http.exchange import Exchange
from gateway.frontends.http.host_policy import HostPolicy
from gateway.frontends.http.metadata import show_resource
from gateway.frontends.legacy.sse import SseFrontend

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Iterable

    from gateway.access.principals import Principal
    from gateway.access.table import Access
    from gateway.catalog.snapshot import ListNews
    from gateway.frontends.http.exchange import Receive, Scope, Send
    from gateway.frontends.request_handler import RequestHandler

LAST_WORDS: Final = 2.0
"""Seconds that exchanges get to write their last answers and end, once all calls have ended."""


class MountPolicy(HostPolicy):
    """Inside an application the host name is the application's affair; pages may come from where they are allowed to.

    An origin is checked although CORS stands before it: that keeps pages from reading answers, not from calling tools.
    """

    def __init__(self, origins: Iterable[str]) -> None:
        super().__init__("")
        self._allowed: frozenset[bytes] = frozenset()
        self.allow(origins)

    def allow(self, origins: Iterable[str]) -> None:
        """From now on allow these origins and loopback; `*` allows all."""
        self._allowed = frozenset(origin.encode("utf-8") for origin in origins)

    def refusal(self, headers: dict[bytes, bytes]) -> str | None:
        """Why a request with these headers is refused, or None."""
        origin = headers.get(b"origin")
        if origin is None or b"*" in self._allowed or origin in self._allowed or self.origin_is_ours(origin):
            return None
        return "the Origin header names a web page that may not use this gateway (allow_origins)"


class Paths:
    """Where the faces are found; `None` where one is not wanted."""

    __slots__ = ("mcp", "messages", "sse")

    def __init__(self, mcp: str | None = "/mcp", sse: str | None = "/sse", messages: str = "/messages/") -> None:
        self.mcp = None if mcp is None else view_routing.without_slash(mcp)
        self.sse = None if sse is None else view_routing.without_slash(sse)
        self.messages = messages

    def all(self) -> list[str]:
        """Every path that is answered, without the slash at its end that some clients add."""
        found = [] if self.mcp is None else [self.mcp]
        return found if self.sse is None else [*found, self.sse, self.messages.rstrip("/")]


class AsgiFrontends:
    """An ASGI application: streamable HTTP of both eras, and the older SSE transport beside it.

    With `origins` None, pages are those of the config's `access.allow_origins`, as it is now; such an application puts
    the headers of CORS on its answers itself, and shows the metadata of a resource server below its root. With origins
    of its own it leaves both to what stands before it.
    """

    def __init__(
        self, answers: RequestHandler, paths: Paths, origins: Iterable[str] | None, access: Access | None = None
    ) -> None:
        self.policy = MountPolicy(origins or ())
        self._stands_alone = origins is None
        self.paths = paths
        self._answers = answers
        self._closing = trio.Event()
        self._access = access
        self._entrance = AuthMiddleware(self.policy, access)
        self._endpoint = McpEndpoint(answers, self._entrance, self._closing)
        self._sse = SseFrontend(answers, paths.messages, self._closing)
        self._messages = paths.messages.rstrip("/")
        self._serving = 0
        self._quiet = trio.lowlevel.ParkingLot()

    async def run(self, *, task_status: trio.TaskStatus[None]) -> None:
        """Keep the sessions until `close`; returns when all exchanges have ended, or have had time to."""
        async with trio.open_nursery() as nursery:
            await nursery.start(self._endpoint.sessions.run)
            self._answers.fleet.subscribe(self._notify_list_changed)
            if self._access is not None:
                self._access.on_end.insert(0, self._end_principal)  # sessions end before their calls do
                self._access.on_rules.append(self._update_principal)
                self._access.on_change.append(self._permit)
                self._permit()
            try:
                task_status.started()
                await self._closing.wait()
            finally:
                self._answers.fleet.unsubscribe(self._notify_list_changed)
                if self._access is not None:
                    self._access.on_end.remove(self._end_principal)
                    self._access.on_rules.remove(self._update_principal)
                    self._access.on_change.remove(self._permit)
                self._endpoint.sessions.close_all()
                self._sse.end_all()
            with trio.move_on_after(LAST_WORDS):
                while self._serving:
                    await self._quiet.park()
            nursery.cancel_scope.cancel(reason="the faces were closed")

    def close(self) -> None:
        """End all sessions and streams. Safe to repeat."""
        self._closing.set()

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer one HTTP request; the lifespan of a server that runs nothing else is acknowledged."""
        if scope["type"] == "lifespan":
            await _live(receive, send)
        if scope["type"] != "http":
            return
        self._serving += 1
        try:
            await self._serve(scope, receive, send)
        finally:
            self._serving -= 1
            if not self._serving:
                self._quiet.unpark_all()

    async def _serve(self, scope: Scope, receive: Receive, send: Send) -> None:
        path = view_routing.without_slash(scope["path"].removeprefix(scope.get("root_path", "").rstrip("/")))
        view = view_routing.view_in(path, self.paths.mcp, self._answers.fleet.config.views)
        if path == self.paths.mcp or view is not None:
            await self._endpoint(scope, receive, send, view)
            return
        exchange = Exchange(scope, receive, send)
        if self._stands_alone and path.startswith(WELL_KNOWN):
            await show_resource(exchange, self.policy, self._access)
            return
        await self._entrance.serve(exchange, self._handler(path, exchange))

    def _handler(self, path: str, exchange: Exchange) -> Callable[[Exchange], Awaitable[None]]:
        """What answers a request of the older transport; the exchange is told whose view it is for."""
        views = self._answers.fleet.config.views
        places = () if self.paths.sse is None else ((self.paths.sse, self._sse.open), (self._messages, self._sse.post))
        for place, handle in places:
            if path == place:
                return handle
            exchange.view = view_routing.view_in(path, place, views)
            if exchange.view is not None:
                return handle if exchange.view in views else view_routing.refuse
        return _not_found

    def _permit(self) -> None:
        if self._access is not None and self._stands_alone:
            self.policy.permit(self._access.settings.allow_origins, ())

    def _update_principal(self, principal: Principal) -> None:
        self._endpoint.update_principal(principal)
        self._sse.update_principal(principal)

    def _end_principal(self, principal: Principal) -> None:
        self._endpoint.sessions.close_of(principal.name)

    def _notify_list_changed(self, news: ListNews) -> None:
        self._endpoint.sessions.notify_list_changed(news)
        self._sse.notify_list_changed(news)


async def _not_found(exchange: Exchange) -> None:
    await exchange.empty(404)


async def _live(receive: Receive, send: Send) -> None:
    while True:
        phase = (await receive())["type"]
        await send({"type": f"{phase}.complete"})
        if phase == "lifespan.shutdown":
            return
