"""The guided first run: a gateway, two servers behind it, one real client, one call, and what to paste where."""

from __future__ import annotations

import json
import shutil
import sys
from pathlib import Path
from typing import TYPE_CHECKING

import trio

from gateway.app import Options, serve
from gateway.config import Config, ServerConfig

if TYPE_CHECKING:
    from collections.abc import Callable

    Say = Callable[[str], None]

CALL_WITHIN = 30.0
"""Seconds that the client's whole visit may take."""


def demo_config() -> Config:
    """Two built-in stdio servers."""
    program = str(Path(__file__).with_name("servers.py"))
    names = ("calculator", "echo")
    return Config(
        servers={
            name: ServerConfig(name=name, transport="stdio", command=sys.executable, args=(program, name))
            for name in names
        },
        source="demo",
    )


def run_demo(*, host: str, port: int, path: str, say: Say) -> bool:
    """Run the tour and serve until a signal; returns whether the gateway ended cleanly."""
    return trio.run(_demo, Options(transports=("streamable-http",), host=host, port=port, path=path), say)


async def _demo(options: Options, say: Say) -> bool:
    found: list[str] = []
    opened = trio.Event()

    def ready(url: str) -> None:
        found.append(url)
        opened.set()

    async with trio.open_nursery() as nursery:

        async def visit() -> None:
            await opened.wait()
            await _visit(found[0], say)

        nursery.start_soon(visit)
        clean = await serve(demo_config(), options, ready)
        nursery.cancel_scope.cancel(reason="the gateway has stopped")
    return clean


async def _visit(url: str, say: Say) -> None:
    """Let the official SDK's client call a tool through the gateway, and say what happened."""
    from mcp import Client

    say(f"gateway: listening on {url}, in front of two stdio servers: calculator and echo")
    with trio.fail_after(CALL_WITHIN):
        async with Client(url) as client:
            say(f"client:  connected (the official Python SDK), protocol version {client.protocol_version}")
            tools = [tool.name for tool in (await client.list_tools()).tools]
            say(f"client:  tools/list -> {', '.join(tools)}")
            result = await client.call_tool("calculator.add", {"a": 2, "b": 40})
            text = next((block.text for block in result.content if block.type == "text"), "")
            say(f"client:  tools/call calculator.add {{'a': 2, 'b': 40}} -> {text}")
    say("")
    say("Try it yourself. For a client that speaks HTTP:")
    say(json.dumps({"mcpServers": {"gateway": {"type": "http", "url": url}}}, indent=2))
    say("For a desktop client that starts programs (put your servers into config.json, same format):")
    snippet = {"command": _command(), "args": ["serve", "--config", str(Path.cwd() / "config.json")]}
    say(json.dumps({"mcpServers": {"gateway": snippet}}, indent=2))
    say("")
    say("Serving until Ctrl-C.")


def _command() -> str:
    """How this gateway is started: the clone's script, or the installed command."""
    script = Path(__file__).parents[2] / "bin" / "mcp-gateway"
    if script.is_file():
        return str(script)
    return shutil.which("mcp-gateway") or "mcp-gateway"
