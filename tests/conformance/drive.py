"""The client that the suite's client scenarios are tried with: `python -m tests.conformance.drive URL`.

CONFORMANCE_THROUGH says how it reaches the suite's server: `direct` (the official SDK alone), or `legacy` or `modern`:
through a gateway of its own, of which it is a client of that era. It does what each scenario demands of a client:
lists, calls, answers forms with their defaults. The suite passes the scenario's name and its data in the environment.
"""

from __future__ import annotations

import json
import os
import sys
from contextlib import asynccontextmanager
from typing import TYPE_CHECKING, Any

import mcp_types as types
import trio
from mcp.client.client import Client
from mcp.shared.exceptions import MCPError

from tests.support.gateway_process import open_gateway_process

if TYPE_CHECKING:
    from collections.abc import AsyncGenerator

DRIVE_WITHIN = 25.0  # seconds; the suite gives up after 30
READY_WITHIN = 6.0  # seconds for the gateway to have the suite's server ready
POLL = 0.05  # seconds between two looks at whether it is


async def fill_in(_context: Any, params: types.ElicitRequestParams) -> types.ElicitResult:
    """Accept a form with the defaults of its fields."""
    properties = getattr(params, "requested_schema", {}).get("properties", {})
    defaults = {name: field["default"] for name, field in properties.items() if "default" in field}
    await trio.lowlevel.checkpoint()
    return types.ElicitResult(action="accept", content=defaults or {"confirmed": True})


async def sample(_context: Any, _params: types.CreateMessageRequestParams) -> types.CreateMessageResult:
    await trio.lowlevel.checkpoint()
    return types.CreateMessageResult(role="assistant", content=types.TextContent(text="Paris"), model="none")


async def list_roots(_context: Any) -> types.ListRootsResult:
    await trio.lowlevel.checkpoint()
    return types.ListRootsResult(roots=[])


def make_client(target: str, mode: Any) -> Client:
    return Client(
        target,
        mode=mode,
        elicitation_callback=fill_in,
        sampling_callback=sample,
        list_roots_callback=list_roots,
        cache=None,
    )


@asynccontextmanager
async def open_target(through: str, url: str, version: str) -> AsyncGenerator[tuple[str, str]]:
    """The URL to connect to, and the mode of the client."""
    era = "modern" if version >= "2026" else "legacy"
    if through == "direct":
        yield url, "auto" if era == "modern" else "legacy"
        return
    # The URLs of some scenarios do not end in /mcp, so that the transport cannot be read from them.
    server = {"url": url, "transport": "streamable-http", "namespace": "", "era": era}
    async with open_gateway_process({"mcpServers": {"suite": server}}, status=None) as gateway:
        assert gateway.url is not None
        try:
            yield gateway.url, "legacy" if through == "legacy" else "2026-07-28"
        finally:
            print(gateway.stderr_text, file=sys.stderr)


async def play(client: Client, scenario: str, context: dict[str, Any]) -> None:
    """Do what the scenario's server waits for."""
    tools = {tool.name: tool for tool in await wait_for_tools(client, scenario)}
    match scenario:
        case "tools_call":
            await call(client, "add_numbers", {"a": 2, "b": 3})
        case "json-schema-2020-12-preservation":
            schema = tools["json_schema_2020_12_tool"].input_schema
            await call(client, "json_schema_echo", {"schema": schema})
        case "json-schema-ref-no-deref":
            pass  # it offers nothing but the list
        case _ if "toolCalls" in context:
            for wanted in context["toolCalls"]:
                await call(client, wanted["name"], wanted["arguments"])
        case _:
            for name in tools:
                await call(client, name, {})
    if scenario == "http-standard-headers":
        for resource in (await client.list_resources()).resources:
            await tolerate(client.read_resource(resource.uri))
        for prompt in (await client.list_prompts()).prompts:
            await tolerate(client.get_prompt(prompt.name))


async def wait_for_tools(client: Client, scenario: str) -> list[types.Tool]:
    """The tools; those behind a gateway may be some moments away."""
    empty_ones = {"initialize", "request-metadata"}
    with trio.move_on_after(READY_WITHIN):
        while True:
            tools = (await client.list_tools()).tools
            if tools or scenario in empty_ones:
                return tools
            await trio.sleep(POLL)
    return []


async def call(client: Client, name: str, arguments: dict[str, Any]) -> None:
    await tolerate(client.call_tool(name, arguments))


async def tolerate(awaitable: Any) -> None:
    """Report an error and go on: the checks are the suite's."""
    try:
        print(await awaitable)
    except (MCPError, RuntimeError, ValueError) as error:
        print(f"{type(error).__name__}: {error}", file=sys.stderr)


async def main(url: str) -> None:
    scenario = os.environ["MCP_CONFORMANCE_SCENARIO"]
    version = os.environ["MCP_CONFORMANCE_PROTOCOL_VERSION"]
    context = json.loads(os.environ.get("MCP_CONFORMANCE_CONTEXT", "{}"))
    through = os.environ.get("CONFORMANCE_THROUGH", "direct")
    with trio.fail_after(DRIVE_WITHIN):
        async with open_target(through, url, version) as (target, mode), make_client(target, mode) as client:
            await play(client, scenario, context)


if __name__ == "__main__":
    trio.run(main, sys.argv[1])
