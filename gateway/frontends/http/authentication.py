"""The checks of every request to an MCP frontend: Host, Origin, CORS preflight, authentication.

Before a request has passed, its body is not read and nothing is looked up for it. All responses get the headers that
let a page read them, even refusals: the page could not read the reason otherwise.
"""

from __future__ import annotations

import logging
import re
from typing import TYPE_CHECKING, Final

from gateway.access.keys import repeated_header, repeated_text
from gateway.access.refusal import Refusal
from gateway.errors import Revoked
from gateway.frontends.http import view_routing
from gateway.frontends.http.exchange import ClientGone, Exchange

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable

    from gateway.access.table import Access
    from gateway.frontends.http.host_policy import HostPolicy

    Handler = Callable[[Exchange], Awaitable[None]]

ALLOWED_METHODS: Final = (b"access-control-allow-methods", b"POST, GET, DELETE")
PREFLIGHT_FOR: Final = (b"access-control-max-age", b"600")
"""Seconds for which a browser may cache a preflight."""
USUAL_HEADERS: Final = (
    b"accept, authorization, content-type, last-event-id, mcp-method, mcp-name, mcp-protocol-version, mcp-session-id,"
    b" x-api-key"
)
"""Headers that clients of both eras send; each tool may have further header parameters of its own."""
_HEADER_LIST = re.compile(rb"[A-Za-z0-9!#$%&'*+.^_`|~, -]{1,2048}")
CUT_OFF: Final = Refusal(401, Revoked.code, "API key revoked", challenge='Bearer error="invalid_token"')

log = logging.getLogger("gateway.http")


class AuthMiddleware:
    """The authentication of the MCP frontends."""

    def __init__(self, policy: HostPolicy, access: Access | None = None) -> None:
        self._policy = policy
        self._access = access

    def admits(self, exchange: Exchange) -> bool:
        """Return whether a request passes without waiting; otherwise `serve` decides, and responds."""
        headers, policy, access = exchange.headers, self._policy, self._access
        if (
            len(headers) != len(exchange.scope["headers"])
            or b"origin" in headers
            or not policy.host_is_ours(headers.get(b"host", b""))
        ):
            return False
        if exchange.scope.get("query_string"):
            try:
                view_routing.choose_names(exchange)
            except ValueError:
                return False
        if access is None or not access.requires_credentials:
            return True
        principal = exchange.principal = access.find(headers)
        return principal is not None and principal.may_use_view(exchange.view)

    async def serve(self, exchange: Exchange, handle: Handler) -> None:
        """Pass a request to `handle`, or refuse it; return even if its client has disconnected."""
        headers = exchange.headers
        try:
            pairs = exchange.scope["headers"]
            if len(headers) != len(pairs) and (twice := repeated_header(pairs)):
                await self._refuse(exchange, Refusal(400, "repeated_header", repeated_text(twice)))
                return
            refusal = self._policy.refusal(headers)
            if refusal is not None:
                await self._refuse(exchange, refusal)
                return
            if b"origin" in headers:
                exchange.always = self._policy.cors_headers(headers[b"origin"])
                if exchange.always and exchange.method == "OPTIONS" and b"access-control-request-method" in headers:
                    # A preflight has no key (Fetch, "CORS-preflight request").
                    wanted = headers.get(b"access-control-request-headers", b"")
                    if _HEADER_LIST.fullmatch(wanted) is None:
                        wanted = USUAL_HEADERS
                    allowed_headers = (b"access-control-allow-headers", wanted)
                    await exchange.empty(204, ALLOWED_METHODS, allowed_headers, PREFLIGHT_FOR)
                    return
            try:
                view_routing.choose_names(exchange)
            except ValueError as exc:
                await exchange.refuse(400, str(exc))
                return
            access = self._access
            if access is None or not access.requires_credentials:
                await handle(exchange)
                return
            principal = access.find(headers)
            if principal is None:
                verdict = await access.authenticate_token(headers, exchange.counted_address)
                if isinstance(verdict, Refusal):
                    await self._refuse(exchange, verdict)
                    return
                principal, exchange.valid_until = verdict
            exchange.principal = principal
            if not principal.may_use_view(exchange.view):  # also refuses an unknown view
                text = f"this key is for the views {', '.join(principal.rules.views or ())} only"
                await self._refuse(exchange, Refusal(403, "view_not_allowed", text))
                return
            if exchange.method != "GET":
                await handle(exchange)  # its calls end with the session or on their own; see `Router.cut_off`
                return
            # A stream lasts as long as the client likes, but ends when its key or token does.
            with principal.track_stream(exchange.valid_until) as scope:
                await handle(exchange)
            if scope.cancelled_caught:
                await (exchange.end_stream() if exchange.begun else _answer(exchange, CUT_OFF))
        except* ClientGone:  # alone, or in the group of the nursery that watched for it
            log.debug("a client hung up")

    async def _refuse(self, exchange: Exchange, refusal: Refusal) -> None:
        """Record the refusal in the audit and send it."""
        if self._access is not None:
            principal = None if exchange.principal is None else exchange.principal.name
            path = exchange.scope["path"]
            self._access.note_denied(refusal.status, refusal.code, refusal.text, principal, exchange.address, path)
        await _answer(exchange, refusal)


async def _answer(exchange: Exchange, refusal: Refusal) -> None:
    headers: list[tuple[bytes, bytes]] = []
    if refusal.challenge:
        headers.append((b"www-authenticate", refusal.challenge.encode("latin-1")))
    if refusal.retry_after is not None:
        headers.append((b"retry-after", str(refusal.retry_after).encode()))
    await exchange.json(refusal.status, refusal.encode(), *headers)
