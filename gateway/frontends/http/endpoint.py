"""The endpoint of streamable HTTP: both eras at one address, as an ASGI app.

The version header and `_meta` of each POST determine its era.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from gateway import jsonrpc
from gateway.calls import Era
from gateway.eras import headers, requests, versions
from gateway.frontends.http import view_routing
from gateway.frontends.http.exchange import Exchange, read_json
from gateway.frontends.legacy.sessions import SessionTable
from gateway.frontends.legacy.streamable import StreamableFrontend
from gateway.frontends.modern.endpoint import ModernFrontend

if TYPE_CHECKING:
    import trio

    from gateway.access.principals import Principal
    from gateway.frontends.http.authentication import AuthMiddleware
    from gateway.frontends.http.exchange import Receive, Scope, Send
    from gateway.frontends.request_handler import RequestHandler
    from gateway.jsonrpc import Id, Message

ALLOW: Final = (b"allow", b"POST, GET, DELETE")


class McpEndpoint:
    """The MCP endpoint as an ASGI app."""

    def __init__(self, answers: RequestHandler, entrance: AuthMiddleware, closing: trio.Event) -> None:
        settings = answers.settings
        self.sessions = SessionTable(
            most=settings.max_sessions,
            idle_timeout=settings.session_idle_timeout,
            max_requests=settings.max_client_requests,
            buffers=answers.buffers,
            welcome=answers.welcome,
        )
        self._answers = answers
        self._entrance = entrance
        self._streamable = StreamableFrontend(answers, self.sessions)
        self._modern = ModernFrontend(answers, closing)

    async def __call__(self, scope: Scope, receive: Receive, send: Send, view: str | None = None) -> None:
        """Answer one HTTP request, at the endpoint of a view if one is named."""
        await self._entrance.serve(Exchange(scope, receive, send, view), self._serve)

    def begin(self, exchange: Exchange, message: Message, request_id: Id) -> bool:
        """Submit a tool call without a task; return False, without effect, if it needs one."""
        if not exchange.accepts_json:
            return False
        header = exchange.headers.get(headers.VERSION_HEADER)
        era = _era(exchange, None if header is None else header.decode("latin-1"), message)
        if era is None:
            return False
        return (self._modern if era is Era.MODERN else self._streamable).begin(exchange, message, request_id)

    def update_principal(self, principal: Principal) -> None:
        """Apply a principal's present rules to its sessions and streams."""
        self.sessions.update_principal(principal)
        for subscription in self._answers.listeners:
            subscription.update_principal(principal)

    async def _serve(self, exchange: Exchange) -> None:
        if self._answers.tracing is not None:
            self._answers.tracing.arrived(exchange.scope, exchange.headers)
        if exchange.view is not None and exchange.view not in self._answers.fleet.config.views:
            await view_routing.refuse(exchange)
            return
        if exchange.method in {"GET", "DELETE"} and headers.SESSION_HEADER in exchange.headers:
            await (self._streamable.get if exchange.method == "GET" else self._streamable.delete)(exchange)
            return
        if exchange.method != "POST":
            # A modern client has no GET or DELETE; a legacy one has a session by then.
            await exchange.empty(405, ALLOW)
            return
        if not (exchange.accepts_json or exchange.accepts_stream):
            text = "the Accept header must list application/json and text/event-stream"
            await exchange.refuse(406, text)
            return
        body = await read_json(exchange, self._answers.settings.max_body_bytes, self._answers.buffers)
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
        era = _era(exchange, version, message)
        if era is not None:
            await (self._modern if era is Era.MODERN else self._streamable).post(exchange, message)
        else:
            problem = requests.UnsupportedVersion(version or "")
            request_id = message.id if isinstance(message.id, int | str) else None
            await exchange.json(400, self._answers.encode_error(request_id, problem, Era.MODERN)[0])


def _era(exchange: Exchange, version: str | None, message: Message) -> Era | None:
    """Return a message's era (2026-07-28 basic/versioning); None if its protocol version is not supported."""
    if version in versions.MODERN_VERSIONS or requests.is_modern(message):
        return Era.MODERN
    is_legacy = version is None or version in versions.LEGACY_VERSIONS or headers.SESSION_HEADER in exchange.headers
    return Era.LEGACY if is_legacy else None
