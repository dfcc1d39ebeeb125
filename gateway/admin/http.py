"""The management API beside the MCP endpoint, as an ASGI app that `app` hands to the HTTP face.

Routed by Starlette, which is imported only when the gateway serves HTTP at all.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from gateway import jsonrpc

if TYPE_CHECKING:
    from collections.abc import Callable

    from starlette.requests import Request
    from starlette.responses import Response

    from gateway.supervisor.fleet import Fleet


def make_admin_app(fleet: Fleet, *, transport: str, draining: Callable[[], bool]) -> Any:
    """The ASGI app: `GET /health`."""
    from starlette.applications import Starlette
    from starlette.responses import Response
    from starlette.routing import Route

    async def health(_request: Request) -> Response:  # noqa: RUF029, ASYNC124 - plain ones run in threads
        """Answer 200 as soon as the socket is open, whatever the backends are doing."""
        return Response(health_report(fleet, transport, draining()), media_type="application/json")

    return Starlette(routes=[Route("/health", health, methods=["GET"])])


def health_report(fleet: Fleet, transport: str, draining: bool) -> bytes:
    """`{"status", "transport", "servers", "backends": {name: {state, since, ...}}}`."""
    return jsonrpc.encode({
        "status": "draining" if draining else "ok",
        "transport": transport,
        "servers": list(fleet.supervisors),
        "backends": fleet.statuses(),
    })
