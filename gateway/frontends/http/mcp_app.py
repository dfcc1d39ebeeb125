"""MCP over HTTP without a socket: streamable HTTP in both eras, and HTTP+SSE.

`McpApp` answers the requests for one set of paths, and owns the sessions of the clients that connect there. The command
serves one on a socket (`server.HttpFrontend`); an embedded gateway gives one to each application that mounts it.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import trio

from gateway import jsonrpc
from gateway.access.resource import WELL_KNOWN
from gateway.eras.requests import find_second_spelling
from gateway.frontends.http import view_routing
from gateway.frontends.http.authentication import AuthMiddleware
from gateway.frontends.http.endpoint import McpEndpoint
from gateway.frontends.http.exchange import Exchange
from gateway.frontends.http.metadata import show_resource
from gateway.frontends.legacy.sse import SseFrontend

if TYPE_CHECKING:
    from gateway.access.principals import Principal
    from gateway.access.table import Access
    from gateway.catalog.snapshot import ListNews
    from gateway.frontends.http.exchange import Receive, Request, Scope, Send
    from gateway.frontends.http.host_policy import HostPolicy
    from gateway.frontends.request_handler import RequestHandler


class Paths:
    """The paths of the transports; `None` for one that is not served."""

    __slots__ = ("mcp", "messages", "sse")

    def __init__(self, mcp: str | None = "/mcp", sse: str | None = "/sse", messages: str = "/messages/") -> None:
        self.mcp = mcp
        self.sse = sse
        self.messages = messages

    def all(self) -> list[str]:
        """Every path that is served, without the trailing slash that some clients add."""
        paths = [self.mcp] if self.sse is None else [self.mcp, self.sse, self.messages]
        return [view_routing.without_slash(path) for path in paths if path is not None]


class McpApp:
    """Implements `gateway.access.table.AccessObserver`.

    `policy` follows the settings of `access`. With `shows_metadata` the metadata of the protected resource (RFC 9728)
    is served too. Sessions and streams end when `closing` is set.
    """

    def __init__(
        self,
        handler: RequestHandler,
        access: Access,
        paths: Paths,
        *,
        policy: HostPolicy,
        closing: trio.Event,
        shows_metadata: bool = True,
    ) -> None:
        self.handler = handler
        self.paths = paths
        self.policy = policy
        self.entrance = AuthMiddleware(policy, access)
        self.endpoint = McpEndpoint(handler, self.entrance, closing)
        self.sse = SseFrontend(handler, paths.messages, closing)
        self._access = access
        self._closing = closing
        self._shows_metadata = shows_metadata
        self._mcp_path = None if paths.mcp is None else view_routing.without_slash(paths.mcp)
        self._beginnings = {} if self._mcp_path is None else {self._mcp_path: self.endpoint.begin}
        if paths.sse is not None:
            self._beginnings[paths.messages] = self.sse.begin
        self._sse_handlers = (
            {}
            if paths.sse is None
            else {
                view_routing.without_slash(paths.messages): self.sse.post,
                view_routing.without_slash(paths.sse): self.sse.open,
            }
        )

    @property
    def sessions(self) -> int:
        """Sessions of legacy clients."""
        return len(self.endpoint.sessions) + len(self.sse)

    @property
    def streams(self) -> int:
        """Open streams of server-to-client notifications."""
        return self.endpoint.sessions.streams + len(self.sse) + len(self.handler.listeners)

    async def run(self, *, task_status: trio.TaskStatus[None]) -> None:
        """Own the sessions until cancelled; requests may still arrive after `closing` has ended them."""
        async with trio.open_nursery() as nursery:
            await nursery.start(self.endpoint.sessions.run)
            self.handler.fleet.subscribe(self._notify_list_changed)
            self._access.attach(self)
            try:
                task_status.started()
                await self._closing.wait()
                self._end_sessions()
                await trio.sleep_forever()
            finally:
                self.handler.fleet.unsubscribe(self._notify_list_changed)
                self._access.detach(self)
                self._end_sessions()

    def begin(self, request: Request) -> bool:
        """Submit a tool call without a task; return False, without effect, if it needs one."""
        path, view, fleet = request.scope["path"], None, self.handler.fleet
        if request.scope["method"] != "POST":
            return False
        begin = self._beginnings.get(path)
        if begin is None:
            views = fleet.config.views
            for place, handle in self._beginnings.items():
                view = view_routing.view_in(path, place, views)
                if view in views:
                    begin = handle
                    break
            else:
                return False
        exchange = Exchange(request.scope, request.receive, request.send, view, request)
        given, body = exchange.headers, request.body
        if (
            not self.entrance.admits(exchange)
            or not given.get(b"content-type", b"").lower().startswith(b"application/json")
            or b"content-encoding" in given
            or len(body) > fleet.config.gateway.max_body_bytes
        ):
            return False
        if self.handler.tracing is not None:
            self.handler.tracing.arrived(request.scope, given)
        try:
            message = jsonrpc.decode(body)
        except jsonrpc.Malformed:  # perhaps a batch
            return False
        request_id = message.id
        if message.method != "tools/call" or not isinstance(request_id, int | str):
            return False
        if fleet.is_limited(exchange.identity.scope) and find_second_spelling(body, message):
            return False
        return begin(exchange, message, request_id)

    async def serve(self, scope: Scope, receive: Receive, send: Send) -> bool:
        """Answer one HTTP request; return False, without a response, for an unknown path."""
        path = view_routing.without_slash(scope["path"].removeprefix(scope.get("root_path", "").rstrip("/")))
        if path == self._mcp_path:
            await self.endpoint(scope, receive, send)
            return True
        if handle := self._sse_handlers.get(path):
            await self.entrance.serve(Exchange(scope, receive, send), handle)
            return True
        if self._shows_metadata and path.startswith(WELL_KNOWN):
            await show_resource(Exchange(scope, receive, send), self.policy, self._access)
            return True
        views = self.handler.fleet.config.views
        if (view := view_routing.view_in(path, self._mcp_path, views)) is not None:
            await self.endpoint(scope, receive, send, view)
            return True
        for place, handle in self._sse_handlers.items():
            if (view := view_routing.view_in(path, place, views)) is not None:
                exchange = Exchange(scope, receive, send, view)
                await self.entrance.serve(exchange, handle if view in views else view_routing.refuse)
                return True
        return False

    def _end_sessions(self) -> None:
        self.endpoint.sessions.close_all()
        self.sse.end_all()

    def _notify_list_changed(self, news: ListNews) -> None:
        self.endpoint.sessions.notify_list_changed(news)
        self.sse.notify_list_changed(news)

    # `AccessObserver`

    def apply_access(self) -> None:
        """Apply the settings of the access control."""
        self.policy.permit(self._access.settings.allow_origins, self._access.settings.allow_hosts)

    def update_principal(self, principal: Principal) -> None:
        """Apply a principal's present rules to its sessions and streams."""
        self.endpoint.update_principal(principal)
        self.sse.update_principal(principal)

    def end_principal(self, principal: Principal) -> None:
        """End the sessions of a principal; streams end with their exchanges (`Principal.end`)."""
        self.endpoint.sessions.close_of(principal.name)
