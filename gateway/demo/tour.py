"""The guided first run: a gateway with two servers, one client, one call, config snippets."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import TYPE_CHECKING

import trio

from gateway.app import Options, serve
from gateway.config import Config, ServerConfig

if TYPE_CHECKING:
    from collections.abc import Callable

    Say = Callable[[str], None]

ROOT = Path(__file__).resolve().parents[2]
PYTHON = Path(sys.executable).absolute()
CALL_WITHIN = 30.0
"""Seconds for the client's whole session."""


def demo_config() -> Config:
    """Return a config of two built-in stdio servers."""
    program = str(Path(__file__).with_name("servers.py"))
    names = ("calculator", "echo")
    return Config(
        servers={
            name: ServerConfig(name=name, transport="stdio", command=sys.executable, args=(program, name))
            for name in names
        },
        source="demo",
    )


def own_command(root: Path, python: Path) -> list[str]:
    """Return a command line that starts this gateway from any folder, with any PATH."""
    for script in (root / "bin" / "mcp-gateway", python.with_name("mcp-gateway")):
        if script.is_file():
            return [str(script)]
    return [str(python), "-m", "gateway"]


def run_demo(config: Config, options: Options, say: Say) -> bool:
    """Run the tour and serve until a signal; return whether the gateway ended cleanly."""

    async def run() -> bool:
        urls: list[str] = []
        listening = trio.Event()

        def on_listening(url: str) -> None:
            urls.append(url)
            listening.set()

        async with trio.open_nursery() as nursery:

            async def visit_when_listening() -> None:
                await listening.wait()
                await visit(urls[0], list(config.servers), say)

            nursery.start_soon(visit_when_listening)
            clean = await serve(config, options, on_listening)
            nursery.cancel_scope.cancel(reason="the gateway has stopped")
        return clean

    return trio.run(run)


async def visit(url: str, servers: list[str], say: Say) -> None:
    """Call a tool through the gateway with the official SDK's client, and print what happens."""
    from mcp import Client

    say(f"gateway: listening on {url}, in front of {len(servers)} stdio servers: {' and '.join(servers)}")
    with trio.fail_after(CALL_WITHIN):
        async with Client(url) as client:
            say(f"client:  connected (the official Python SDK), protocol version {client.protocol_version}")
            tools = [tool.name for tool in (await client.list_tools()).tools]
            say(f"client:  tools/list -> {', '.join(tools)}")
            late = [name for name in servers if not any(tool.startswith(f"{name}.") for tool in tools)]
            if late:
                say(f"gateway: not listed yet, still starting: {', '.join(late)}")
            result = await client.call_tool("calculator.add", {"a": 2, "b": 40})
            text = next((block.text for block in result.content if block.type == "text"), "")
            say(f"client:  tools/call calculator.add {{'a': 2, 'b': 40}} -> {text}")
    say("")
    say("Try it yourself. For a client that speaks HTTP:")
    say(json.dumps({"mcpServers": {"gateway": {"type": "http", "url": url}}}, indent=2))
    say("For a desktop client, which starts the gateway (put your servers into config.json, in the same format):")
    command, *words = own_command(ROOT, PYTHON)
    names = ["--separator", "__", "--max-name-length", "64"]  # Claude Desktop refuses a list with dots in names
    snippet = {"command": command, "args": [*words, "serve", "--config", str(Path.cwd() / "config.json"), *names]}
    say(json.dumps({"mcpServers": {"gateway": snippet}}, indent=2))
    say("")
    say("Serving until Ctrl-C.")
