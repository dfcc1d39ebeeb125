"""The HTTP face: Hypercorn on trio, the MCP endpoint as plain ASGI, everything else handed to the management app.

Each POST is told apart by era from its version header and `_meta`: both eras are served on one endpoint at once. Owns
the socket, the sessions and the services that go with them.
"""

from __future__ import annotations

import logging
from functools import partial
from typing import TYPE_CHECKING, Any, Final

import trio

from gateway import jsonrpc
from gateway.access.keys import repeated_header, repeated_text
from gateway.access.resource import WELL_KNOWN
from gateway.calls import Era
from gateway.eras import headers, requests, versions
from gateway.frontends.http import view_routing
from gateway.frontends.http.authentication import AuthMiddleware
from gateway.frontends.http.exchange import Exchange, read_json
from gateway.frontends.http.host_policy import HostPolicy
from gateway.frontends.http.metadata import show_resource
from gateway.frontends.legacy.sessions import SessionTable
from gateway.frontends.legacy.sse import SseFrontend
from gateway.frontends.legacy.streamable import StreamableFrontend
from gateway.frontends.modern.endpoint import ModernFrontend

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable

    from gateway.access.principals import Principal
    from gateway.access.table import Access
    from gateway.catalog.snapshot import ListNews
    from gateway.frontends.http.exchange import Receive, Scope, Send
    from gateway.frontends.http.listen_address import ListenAddress, ListeningSocket
    from gateway.frontends.request_handler import RequestHandler
    from gateway.httpd.connection_limit import Limits

    AsgiApp = Any

ALLOW: Final = (b"allow", b"POST, GET, DELETE")
PROBES: Final = frozenset({"/livez", "/readyz"})
"""Answered also when all connections are taken."""
GRACEFUL_TIMEOUT: Final = 1.0
"""Seconds that connections get after all streams were ended; calls have been drained before."""

log = logging.getLogger("gateway.http")


def find_descriptor_limit() -> int | None:
    """Return how many files this process may have open; None where there is no limit."""
    try:
        import resource
    except ImportError:  # Windows
        return None
    soft = resource.getrlimit(resource.RLIMIT_NOFILE)[0]
    return None if soft == resource.RLIM_INFINITY else soft


class McpEndpoint:
    """The MCP endpoint as an ASGI app."""

    def __init__(self, answers: RequestHandler, entrance: AuthMiddleware, closing: trio.Event) -> None:
        settings = answers.settings
        self.sessions = SessionTable(
            most=settings.max_sessions,
            idle_timeout=settings.session_idle_timeout,
            max_requests=settings.max_client_requests,
            welcome=answers.welcome,
        )
        self._answers = answers
        self._entrance = entrance
        self._streamable = StreamableFrontend(answers, self.sessions)
        self._modern = ModernFrontend(answers, closing)

    async def __call__(self, scope: Scope, receive: Receive, send: Send, view: str | None = None) -> None:
        """Answer one HTTP request, at the endpoint of a view if one is named."""
        await self._entrance.serve(Exchange(scope, receive, send, view), self._serve)

    def update_principal(self, principal: Principal) -> None:
        """Have what a principal has open go by its present rules."""
        self.sessions.update_principal(principal)
        for subscription in self._answers.listeners:
            subscription.update_principal(principal)

    async def _serve(self, exchange: Exchange) -> None:
        if exchange.view is not None and exchange.view not in self._answers.fleet.config.views:
            await view_routing.refuse(exchange)
        elif exchange.method == "POST":
            await self._post(exchange)
        elif exchange.method in {"GET", "DELETE"} and headers.SESSION_HEADER in exchange.headers:
            await (self._streamable.get if exchange.method == "GET" else self._streamable.delete)(exchange)
        else:
            # A modern client has no GET or DELETE, a legacy one has a session by then.
            await exchange.empty(405, ALLOW)

    async def _post(self, exchange: Exchange) -> None:
        if not (exchange.accepts(b"application/json") or exchange.accepts(b"text/event-stream")):
            text = "the Accept header must list application/json and text/event-stream"
            await exchange.refuse(406, text)
            return
        body = await read_json(exchange, self._answers.settings.max_body_bytes)
        if body is None:
            return
        header = exchange.headers.get(headers.VERSION_HEADER)
        version = None if header is None else header.decode("latin-1")
        if jsonrpc.is_batch(body):
            if version in versions.MODERN_VERSIONS:
                await exchange.refuse(400, "the body must be a single JSON-RPC message")
            else:
                await self._streamable.post_batch(exchange, body)
            return
        try:
            message = self._answers.decode(body, exchange.identity)
        except jsonrpc.Malformed as exc:
            await exchange.refuse(400, exc.reason, code=exc.code, request_id=exc.id)
            return
        # The client's first message shows its era (2026-07-28 basic/versioning).
        if version in versions.MODERN_VERSIONS or requests.is_modern(message):
            await self._modern.post(exchange, message)
        elif version is None or version in versions.LEGACY_VERSIONS or headers.SESSION_HEADER in exchange.headers:
            await self._streamable.post(exchange, message)
        else:
            problem = requests.UnsupportedVersion(version)
            request_id = message.id if isinstance(message.id, int | str) else None
            await exchange.json(400, self._answers.encode_error(request_id, problem, Era.MODERN)[0])


class HttpFrontend:
    """Serves the MCP endpoint, the older SSE transport and the management app on one socket.

    `path` and `sse_path` are where the two transports are served, None where one is not wanted.
    """

    def __init__(
        self,
        answers: RequestHandler,
        *,
        binding: ListenAddress,
        path: str | None,
        sse_path: str | None = None,
        message_path: str = "/messages/",
        others: AsgiApp,
        closing: trio.Event,
        access: Access | None = None,
    ) -> None:
        self._answers = answers
        self._access = access
        self._policy = HostPolicy(binding.policy_host)
        self._path = path
        self._place = None if path is None else view_routing.without_slash(path)
        self._others = others
        self._closing = closing
        self._entrance = AuthMiddleware(self._policy, access)
        self._endpoint = McpEndpoint(answers, self._entrance, closing)
        self._sse = SseFrontend(answers, message_path, closing)
        self._sse_path = sse_path
        self._sse_routes: dict[str, Callable[[Exchange], Awaitable[None]]] = {}
        if sse_path is not None:
            self._sse_routes = {
                view_routing.without_slash(message_path): self._sse.post,
                view_routing.without_slash(sse_path): self._sse.open,
            }

    @property
    def sessions(self) -> int:
        """Sessions of legacy clients."""
        return len(self._endpoint.sessions) + len(self._sse)

    @property
    def streams(self) -> int:
        """Streams on which clients hear what is no answer."""
        return self._endpoint.sessions.streams + len(self._sse) + len(self._answers.listeners)

    async def run(self, bound: ListeningSocket, *, task_status: trio.TaskStatus[list[str]]) -> None:
        """Serve on `bound`, and close it, once `closing` is set; `started` gives the URLs, one for each transport."""
        from hypercorn.config import Config as HypercornConfig
        from hypercorn.config import Sockets

        from gateway.httpd.server import serve_http

        config = HypercornConfig()
        config.graceful_timeout = GRACEFUL_TIMEOUT
        config.include_server_header = False
        config.accesslog = None
        config.errorlog = logging.getLogger("hypercorn.error")
        config.keep_alive_timeout = 75.0  # longer than the idle timeouts of usual reverse proxies (60 s)
        secure = bound.binding.set_tls(config)
        async with trio.open_nursery() as services:
            await services.start(self._endpoint.sessions.run)
            services.start_soon(self._end_streams)
            self._answers.fleet.subscribe(self._notify_list_changed)
            self._watch_access()
            try:
                async with trio.open_nursery() as server:
                    sockets = Sockets([bound.socket], [], []) if secure else Sockets([], [bound.socket], [])
                    limits = self._limits()
                    serve = partial(serve_http, sockets=sockets, shutdown_trigger=self._closing.wait, limits=limits)
                    await server.start(serve, self._route, config)
                    paths = [path for path in (self._path, self._sse_path) if path is not None]
                    task_status.started(bound.urls(paths))
            finally:
                self._answers.fleet.unsubscribe(self._notify_list_changed)
                bound.close()
                self._endpoint.sessions.close_all()
            services.cancel_scope.cancel(reason="the HTTP server has ended")

    def _limits(self) -> Limits:
        from gateway.httpd.connection_limit import Limits

        settings = self._answers.settings
        connections = settings.max_connections
        if (descriptors := find_descriptor_limit()) is not None:
            # Backends, the control socket and files need some, too; silent clients must not take them all.
            connections = max(1, min(connections, descriptors - descriptors // 4 - Limits().reserve))
        if connections < settings.max_connections:
            log.info("max_connections is lowered to %d: at most %d files may be open", connections, descriptors)
        return Limits(connections=connections, per_address=settings.max_silent_connections, probes=PROBES)

    async def _end_streams(self) -> None:
        await self._closing.wait()
        self._endpoint.sessions.close_all()
        self._sse.end_all()

    def _watch_access(self) -> None:
        if self._access is not None:
            self._access.on_end.insert(0, self._end_principal)  # sessions end before their calls do
            self._access.on_rules.append(self._update_principal)
            self._access.on_change.append(self._permit)
            self._permit()

    def _permit(self) -> None:
        if self._access is not None:
            self._policy.permit(self._access.settings.allow_origins, self._access.settings.allow_hosts)

    def _end_principal(self, principal: Principal) -> None:
        self._endpoint.sessions.close_of(principal.name)

    def _update_principal(self, principal: Principal) -> None:
        self._endpoint.update_principal(principal)
        self._sse.update_principal(principal)

    def _notify_list_changed(self, news: ListNews) -> None:
        self._endpoint.sessions.notify_list_changed(news)
        self._sse.notify_list_changed(news)

    async def _route(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Serve a request: at an endpoint, below one as a view's, or else by the management app."""
        if scope["type"] != "http":
            return
        path = view_routing.without_slash(scope["path"])
        views = self._answers.fleet.config.views
        if path == self._place:
            await self._endpoint(scope, receive, send)
        elif path in self._sse_routes:
            await self._entrance.serve(Exchange(scope, receive, send), self._sse_routes[path])
        elif path.startswith(WELL_KNOWN):
            await show_resource(Exchange(scope, receive, send), self._policy, self._access)
        elif (view := view_routing.view_in(path, self._place, views)) is not None:
            await self._endpoint(scope, receive, send, view)
        else:
            for place, handle in self._sse_routes.items():
                view = view_routing.view_in(path, place, views)
                if view is not None:
                    exchange = Exchange(scope, receive, send, view)
                    await self._entrance.serve(exchange, handle if view in views else view_routing.refuse)
                    return
            await self._serve_management(scope, receive, send)

    async def _serve_management(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Hand a request to the management app after the checks of Host and Origin."""
        exchange = Exchange(scope, receive, send)
        refusal = self._policy.refusal(exchange.headers)
        if name := repeated_header(scope["headers"]):
            await exchange.json(400, jsonrpc.encode({"error": repeated_text(name)}))
        elif refusal is None:
            await self._others(scope, receive, send)
        else:
            await exchange.json(403, jsonrpc.encode({"error": refusal}))
