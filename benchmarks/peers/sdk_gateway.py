"""A gateway built from the SDK's own server and client, as in an afternoon's work.

`python -m benchmarks.peers.sdk_gateway PORT COMMAND...`: one session with the backend, whose tools are passed on as the
SDK's models; served as the SDK serves, by uvicorn on asyncio, both eras on one endpoint.
"""

from __future__ import annotations

import sys
from contextlib import asynccontextmanager
from importlib.metadata import version

from benchmarks.peers.peer import COMMAND, LEGACY_HTTP, MODERN_HTTP, Peer

PEERS = [
    Peer(
        f"server and client of the SDK, mcp {version('mcp')}",
        argv=("{python}", "-m", "benchmarks.peers.sdk_gateway", "{port}", COMMAND),
        frontends={LEGACY_HTTP: "/mcp", MODERN_HTTP: "/mcp"},
        least=3.5,
    )
]


def make_app(command):
    from mcp import Client, StdioServerParameters
    from mcp.server.lowlevel.server import Server

    backend = Client(StdioServerParameters(command=command[0], args=command[1:]), mode="legacy", cache=None)

    async def list_tools(_context, _params):
        return await backend.list_tools()

    async def call_tool(_context, params):
        return await backend.call_tool(params.name, params.arguments)

    server = Server("sdk-gateway", on_list_tools=list_tools, on_call_tool=call_tool)
    app = server.streamable_http_app()
    inner = app.router.lifespan_context

    @asynccontextmanager
    async def lifespan(scope):
        async with backend, inner(scope) as state:
            yield state

    app.router.lifespan_context = lifespan
    return app


def main(port, *command):
    import uvicorn

    uvicorn.run(make_app(list(command)), host="127.0.0.1", port=int(port), log_level="warning")


if __name__ == "__main__":
    main(*sys.argv[1:])
