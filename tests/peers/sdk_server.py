"""An MCP server on the official Python SDK, typical of users' backends, for realistic figures.

`python sdk_server.py` speaks on stdio; `--transport streamable-http` serves on 127.0.0.1 at `--port` (0: a free one)
and says `listening on http://127.0.0.1:PORT/mcp` on stderr. `--json` answers JSON instead of SSE, `--stateless` keeps
no sessions. Tools echo, add, progress, structured, fail; prompt greet; resources note://today and note://{name}.
"""

from __future__ import annotations

import argparse
import socket
import sys

from mcp.server.mcpserver import Context, MCPServer
from pydantic import BaseModel

server = MCPServer("sdk", instructions="A server made with the SDK.", log_level="WARNING")


class Point(BaseModel):
    x: float
    y: float
    label: str | None = None


@server.tool(structured_output=False)
def echo(text: str) -> str:
    """Answer the text."""
    return text


@server.tool()
def add(a: float, b: float) -> float:
    """Add two numbers."""
    return a + b


@server.tool(structured_output=False)
async def progress(n: int, ctx: Context) -> str:
    """Report progress n times."""
    for i in range(n):
        await ctx.report_progress(i + 1, n, f"step {i + 1}")
    return f"{n} steps"


@server.tool()
def structured(x: float, y: float) -> Point:
    """Answer with structured content and an output schema."""
    return Point(x=x, y=y)


@server.tool(structured_output=False)
def fail(message: str) -> str:
    """Fail, as a tool does: with isError."""
    raise ValueError(message)


@server.prompt()
def greet(name: str) -> str:
    """Ask for a greeting."""
    return f"Greet {name}."


@server.resource("note://today")
def today() -> str:
    """One fixed note."""
    return "Nothing today."


@server.resource("note://{name}")
def note(name: str) -> str:
    """Any note."""
    return f"The note {name}."


def serve_http(options):
    import uvicorn

    app = server.streamable_http_app(json_response=options.json, stateless_http=options.stateless)
    # With IPPROTO_TCP named: asyncio turns Nagle's algorithm off only then, and each answer would take 40 ms longer.
    with socket.socket(socket.AF_INET, socket.SOCK_STREAM, socket.IPPROTO_TCP) as listener:
        listener.bind(("127.0.0.1", options.port))
        listener.listen(100)
        print(f"listening on http://127.0.0.1:{listener.getsockname()[1]}/mcp", file=sys.stderr, flush=True)
        uvicorn.Server(uvicorn.Config(app, log_level="warning")).run(sockets=[listener])


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--transport", choices=["stdio", "streamable-http"], default="stdio")
    parser.add_argument("--port", type=int, default=0)
    parser.add_argument("--json", action="store_true")
    parser.add_argument("--stateless", action="store_true")
    options = parser.parse_args()
    if options.transport == "stdio":
        server.run("stdio")
    else:
        serve_http(options)


if __name__ == "__main__":
    main()
