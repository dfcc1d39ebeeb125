"""A FastAPI application that serves MCP at /mcp (and /sse), with an API key, beside its own pages.

Run it: `python docs/examples/embed_fastapi.py [PORT]`, then send MCP clients to the URL that it prints, with the
header `X-API-Key: secret`. `POST /narrow` reduces the offer to one tool; connected clients are notified.
"""

from __future__ import annotations

import sys
from contextlib import asynccontextmanager
from typing import TYPE_CHECKING

import uvicorn
from fastapi import FastAPI
from mcp_gateway.demo import servers

import mcp_gateway

if TYPE_CHECKING:
    from collections.abc import AsyncGenerator
    from socket import socket

manager = mcp_gateway.ProxyManager(
    name="my application",
    auth_enabled=True,
    api_key="secret",
    config={
        "mcpServers": {
            "calculator": {"command": sys.executable, "args": [servers.__file__, "calculator"]},
            "echo": {"command": sys.executable, "args": [servers.__file__, "echo"]},
        }
    },
)


@asynccontextmanager
async def lifespan(app: FastAPI) -> AsyncGenerator[None]:
    await manager.mount_to_app(app, allow_origins=["http://localhost:3000"])
    yield  # ruff: ignore[fallible-context-manager]
    await manager.shutdown()


app = FastAPI(lifespan=lifespan)


@app.get("/")
async def home() -> dict[str, object]:
    return {"servers": {name: manager.get_server_status(name) for name in manager.get_all_servers()}}


@app.get("/add")
async def add(a: float, b: float) -> dict[str, str]:
    """The application may use the servers itself."""
    result = await manager.call_tool("calculator", "add", {"a": a, "b": b}, timeout_ms=5000)
    return {"sum": result.content[0].text}


@app.post("/narrow")
async def narrow() -> dict[str, str]:
    tools = [{"name": "calculator.add", "description": "Add two prices."}]
    await manager.update_and_remount(app, tools, allow_origins=["http://localhost:3000"])
    return {"offered": "calculator.add"}


class Server(uvicorn.Server):
    """A server that prints its URL, and first ends the event streams of MCP clients: uvicorn would wait for them.

    With `uvicorn embed_fastapi:app`, add `--timeout-graceful-shutdown 2` instead.
    """

    async def startup(self, sockets: list[socket] | None = None) -> None:
        await super().startup(sockets)
        if self.started:
            print(f"http://127.0.0.1:{self.servers[0].sockets[0].getsockname()[1]}/mcp", flush=True)

    async def shutdown(self, sockets: list[socket] | None = None) -> None:
        await manager.shutdown()
        await super().shutdown(sockets)


if __name__ == "__main__":
    port = int(sys.argv[1]) if len(sys.argv) > 1 else 0
    Server(uvicorn.Config(app, port=port, log_level="warning")).run()
