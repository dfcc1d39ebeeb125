"""The metadata of a protected resource: where clients get a token (RFC 9728)."""

from __future__ import annotations

from typing import TYPE_CHECKING

from gateway import jsonrpc
from gateway.access.resource import metadata, metadata_path
from gateway.frontends.http.authentication import PREFLIGHT_FOR
from gateway.frontends.http.host_policy import ANY_PAGE

if TYPE_CHECKING:
    from gateway.access.table import Access
    from gateway.frontends.http.exchange import Exchange
    from gateway.frontends.http.host_policy import HostPolicy


async def show_resource(exchange: Exchange, policy: HostPolicy, access: Access | None) -> None:
    """Answer a request below the well-known path, from any origin. Raises ClientGone."""
    oauth = None if access is None else access.settings.oauth
    refusal = policy.refusal({b"host": exchange.headers.get(b"host", b"")})
    exchange.always = (ANY_PAGE,)
    if refusal is not None:
        await exchange.json(403, jsonrpc.encode({"error": refusal.text, "code": refusal.code}))
    elif oauth is None or exchange.scope["path"].rstrip("/") != metadata_path(oauth):
        await exchange.json(404, jsonrpc.encode({"error": "Not Found"}))
    elif exchange.method == "OPTIONS":  # pages also send MCP-Protocol-Version, which needs a preflight
        await exchange.empty(204, (b"access-control-allow-headers", b"*"), PREFLIGHT_FOR)
    elif exchange.method not in {"GET", "HEAD"}:
        await exchange.empty(405, (b"allow", b"GET, HEAD"))
    else:
        await exchange.json(200, metadata(oauth))
