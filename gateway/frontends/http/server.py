"""The HTTP frontend of the command: the MCP app and the management app on Hypercorn.

Owns the socket and its connections.
"""

from __future__ import annotations

import logging
from functools import partial
from typing import TYPE_CHECKING, Any, Final

import trio

from gateway import jsonrpc
from gateway.access.keys import repeated_header, repeated_text
from gateway.frontends.http.exchange import Exchange

if TYPE_CHECKING:
    from gateway.frontends.http.exchange import Receive, Scope, Send
    from gateway.frontends.http.listen_address import ListeningSocket
    from gateway.frontends.http.mcp_app import McpApp
    from gateway.httpd.connection_limit import Limits

    AsgiApp = Any

PROBES: Final = frozenset({"/livez", "/readyz"})
"""Served even if all connections are in use."""
GRACEFUL_TIMEOUT: Final = 1.0
"""Seconds that connections get after all streams were ended; calls have been drained before."""

log = logging.getLogger("gateway.http")


def find_descriptor_limit() -> int | None:
    """Return the limit of open files of this process; None without one."""
    import resource

    soft = resource.getrlimit(resource.RLIMIT_NOFILE)[0]
    return None if soft == resource.RLIM_INFINITY else soft


class HttpFrontend:
    """The MCP app and the management app (`others`) on one socket, until `closing`.

    Once `stopping` is set, an inherited socket accepts nothing: new connections wait in it for the next process.
    """

    def __init__(
        self, mcp: McpApp, *, others: AsgiApp, closing: trio.Event, stopping: trio.Event | None = None
    ) -> None:
        self._mcp = mcp
        self._stopping = closing if stopping is None else stopping
        self._others = others
        self._closing = closing

    async def run(self, bound: ListeningSocket, *, task_status: trio.TaskStatus[list[str]]) -> None:
        """Serve on `bound` until `closing` is set, then close it.

        `started` gives the URLs, one for each transport.
        """
        from hypercorn.config import Config as HypercornConfig
        from hypercorn.config import Sockets

        from gateway.httpd.server import serve_http

        config = HypercornConfig()
        config.graceful_timeout = GRACEFUL_TIMEOUT
        config.include_server_header = False
        config.accesslog = None
        config.errorlog = logging.getLogger("hypercorn.error")
        config.keep_alive_timeout = 75.0  # longer than the idle timeouts of usual reverse proxies (60 s)
        tls = bound.open_tls(config)
        async with trio.open_nursery() as services:
            await services.start(self._mcp.run)
            try:
                async with trio.open_nursery() as server:
                    sockets = Sockets([bound.socket], [], []) if tls else Sockets([], [bound.socket], [])
                    last_accept = self._closing if bound.binding.inherited is None else self._stopping
                    serve = partial(
                        serve_http,
                        sockets=sockets,
                        tls=tls,
                        accept_until=last_accept.wait,
                        shutdown_trigger=self._closing.wait,
                        limits=self._limits(),
                        handle_nowait=self._mcp.begin,
                        unsent=self._mcp.handler.buffers,
                    )
                    await server.start(serve, self, config)
                    paths = [path for path in (self._mcp.paths.mcp, self._mcp.paths.sse) if path is not None]
                    task_status.started(bound.urls(paths))
            finally:
                bound.close()
            services.cancel_scope.cancel(reason="the HTTP server has ended")

    def _limits(self) -> Limits:
        from gateway.httpd.connection_limit import Limits

        settings = self._mcp.handler.settings
        connections = settings.max_connections
        if (descriptors := find_descriptor_limit()) is not None:
            # Backends, the control socket and files need some, too; silent clients must not use them all.
            connections = max(1, min(connections, descriptors - descriptors // 4 - Limits().reserve))
        if connections < settings.max_connections:
            log.info("max_connections lowered to %d: the limit of open files is %d", connections, descriptors)
        return Limits(connections=connections, per_address=settings.max_silent_connections, probes=PROBES)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer one HTTP request."""
        if scope["type"] != "http" or await self._mcp.serve(scope, receive, send):
            return
        # The management app is behind the same checks of Host and Origin.
        exchange = Exchange(scope, receive, send)
        refusal = self._mcp.policy.refusal(exchange.headers)
        if name := repeated_header(scope["headers"]):
            await exchange.json(400, jsonrpc.encode({"error": repeated_text(name)}))
        elif refusal is None:
            await self._others(scope, receive, send)
        else:
            await exchange.json(403, jsonrpc.encode({"error": refusal.text, "code": refusal.code}))
