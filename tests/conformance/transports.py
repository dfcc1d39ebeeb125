"""Transports of the conformance server: stdio, SSE, and streamable HTTP with resumable streams."""

from __future__ import annotations

import socket
import sys
from typing import TYPE_CHECKING, Any

from mcp.server.lowlevel.server import NotificationOptions, Server
from mcp.server.streamable_http import EventMessage, EventStore

if TYPE_CHECKING:
    import mcp_types as types
    from starlette.applications import Starlette

RETRY = 300  # milliseconds: the `retry` value sent to clients whose stream was closed


class Events(EventStore):
    """Keeps every event of the run: a run is short."""

    def __init__(self) -> None:
        self.kept: list[tuple[str, types.JSONRPCMessage | None]] = []

    async def store_event(self, stream_id: str, message: types.JSONRPCMessage | None) -> str:
        self.kept.append((stream_id, message))
        return str(len(self.kept))

    async def replay_events_after(self, last_event_id: str, send_callback: Any) -> str | None:
        last = int(last_event_id) if last_event_id.isdigit() else 0
        if not 0 < last <= len(self.kept):
            return None
        stream = self.kept[last - 1][0]
        for number, (stream_id, message) in enumerate(self.kept[last:], last + 1):
            if stream_id == stream and message is not None:
                await send_callback(EventMessage(message, str(number)))
        return stream


def initialization(server: Server[Any]) -> Any:
    return server.create_initialization_options(
        NotificationOptions(prompts_changed=True, resources_changed=True, tools_changed=True)
    )


def make_sse_app(server: Server[Any]) -> Starlette:
    from mcp.server.sse import SseServerTransport
    from starlette.applications import Starlette
    from starlette.requests import Request
    from starlette.responses import Response
    from starlette.routing import Mount, Route

    transport = SseServerTransport("/messages/")

    async def connect(request: Request) -> Response:
        async with transport.connect_sse(request.scope, request.receive, request._send) as (incoming, outgoing):
            await server.run(incoming, outgoing, initialization(server))
        return Response()

    return Starlette(routes=[Route("/sse", connect), Mount("/messages/", transport.handle_post_message)])


def serve_http(server: Server[Any], transport: str, port: int) -> None:
    import uvicorn

    if transport == "sse":
        app, path = make_sse_app(server), "/sse"
    else:
        app, path = server.streamable_http_app(event_store=Events(), retry_interval=RETRY), "/mcp"
    # With h11, which strips the whitespace around a header's value: uvicorn prefers httptools, which does not.
    # With IPPROTO_TCP named: asyncio turns Nagle's algorithm off only then, and each answer would take 40 ms longer.
    with socket.socket(socket.AF_INET, socket.SOCK_STREAM, socket.IPPROTO_TCP) as listener:
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listener.bind(("127.0.0.1", port))
        listener.listen(100)
        print(f"listening on http://127.0.0.1:{listener.getsockname()[1]}{path}", file=sys.stderr, flush=True)
        uvicorn.Server(uvicorn.Config(app, http="h11", log_level="warning", timeout_graceful_shutdown=1)).run(
            sockets=[listener]
        )


async def serve_stdio(server: Server[Any]) -> None:
    from mcp.server.stdio import stdio_server

    async with stdio_server() as (incoming, outgoing):
        await server.run(incoming, outgoing, initialization(server))
