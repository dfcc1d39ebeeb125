"""`mcp-gateway call`, `read` and `prompt`: one request to a server, and its result."""

from __future__ import annotations

import base64
import json
import os
import sys
from functools import partial
from pathlib import Path
from typing import Any, cast

import trio

from gateway.catalog.listing import Listing
from gateway.catalog.names import public_name
from gateway.cli.arguments import read_object, split_words, typed
from gateway.cli.flags import JSON, Command, Flag, Values
from gateway.cli.options import state_directory
from gateway.cli.output import UsageError, counted, print_json
from gateway.cli.ps import command, find_running
from gateway.cli.target import FLAGS, open_target
from gateway.cli.terminal import Terminal
from gateway.config import load_config
from gateway.eras.methods import Kind
from gateway.errors import GatewayError
from gateway.store import Store


def run_call(values: Values) -> int:
    """Call a tool and print the result; return 1 if it has `isError`."""
    texts = split_words(values.argument)
    if texts and values.args is not None:
        problem = "give the arguments as words or as --args, not both"
        raise UsageError(problem)

    async def call() -> dict[str, Any]:
        async with open_target(values, values.tool) as target:
            schema: dict[str, Any] = {}
            if texts:
                tools = await target.list(Kind.TOOLS)
                schema = next((tool.get("inputSchema") for tool in tools if tool["name"] == values.tool), None) or {}
            params = {"name": values.tool, "arguments": values.args or typed(texts, schema)}
            with Terminal(values.tool) as terminal:
                return await target.request("tools/call", values.tool, params, terminal)

    result = trio.run(call)
    if values.json:
        print_json(result)
    else:
        blocks: list[dict[str, Any]] = result.get("content") or []
        for block in blocks:
            print(show_block(block))
        if not blocks and "structuredContent" in result:
            print_json(result["structuredContent"])
    return 1 if result.get("isError") else 0


def run_read(values: Values) -> int:
    """Read a resource and print it; binary data unchanged, unless to a terminal."""

    async def read() -> dict[str, Any]:
        async with open_target(values) as target:
            await target.list(Kind.RESOURCES)  # before that the backend of the URI is unknown
            with Terminal(values.uri) as terminal:
                return await target.request("resources/read", values.uri, {"uri": values.uri}, terminal)

    result = trio.run(read)
    if values.json:
        print_json(result)
        return 0
    contents: list[dict[str, Any]] = result.get("contents") or []
    for resource in contents:
        if "blob" in resource and not sys.stdout.isatty():
            sys.stdout.flush()
            sys.stdout.buffer.write(base64.b64decode(resource["blob"]))
        else:
            print(show_resource(resource))
    return 0


def run_prompt(values: Values) -> int:
    """Fill in a prompt and print its messages."""
    params = {"name": values.name, "arguments": split_words(values.argument)}

    async def get() -> dict[str, Any]:
        async with open_target(values, values.name) as target:
            with Terminal(values.name) as terminal:
                return await target.request("prompts/get", values.name, params, terminal)

    result = trio.run(get)
    if values.json:
        print_json(result)
        return 0
    messages: list[dict[str, Any]] = result.get("messages") or []
    for message in messages:
        content: Any = message.get("content")
        blocks = cast("list[dict[str, Any]]", content if isinstance(content, list) else [content])
        for block in blocks:
            print(f"{message.get('role')}: {show_block(block)}")
    return 0


def show_block(block: dict[str, Any]) -> str:
    """Return a content block for display: text, or a description (2025-11-25 server/tools, "Tool Result")."""
    match block.get("type"):
        case "text":
            return str(block.get("text", ""))
        case "image" | "audio":
            return f"[{block['type']}: {block.get('mimeType', '?')}, {_size(block.get('data'))}]"
        case "resource_link":
            return f"[resource: {block.get('uri')}]" + (f" {block['name']}" if block.get("name") else "")
        case "resource":
            return show_resource(block.get("resource") or {})
        case _:
            return json.dumps(block, ensure_ascii=False)


def show_resource(resource: dict[str, Any]) -> str:
    """Return a resource's contents for display."""
    if "text" in resource:
        return str(resource["text"])
    return f"[{resource.get('uri')}: {resource.get('mimeType', '?')}, {_size(resource.get('blob'))}]"


def _size(encoded: Any) -> str:
    return counted(len(encoded) * 3 // 4, "byte") if isinstance(encoded, str) else "no data"


def _offered(kind: Kind, given: dict[str, Any]) -> list[str]:
    """Return shell completions from the running gateway, or --config's last lists."""
    values = Values(url=given.get("url"), state_dir=Path(given["state_dir"]) if given.get("state_dir") else None)
    try:
        if not given.get("config"):
            return [str(item[kind.key]) for item in command(find_running(values), "list")["items"][kind.member]]
        config, store = load_config(Path(given["config"]), environ=os.environ), Store(state_directory(values))
        separator, most = config.gateway.separator, config.gateway.max_name_length
        return [
            public_name(server.effective_namespace, separator, item.own, most) if kind.namespaced else item.own
            for server in config.servers.values()
            for item in (store.load_catalog(server) or Listing()).items.get(kind, ())
        ]
    except (GatewayError, KeyError):
        return []


COMMANDS = (
    Command(
        "call",
        "call a tool",
        run_call,
        (
            Flag(
                "TOOL",
                "public name of the tool, as `list` shows it: SERVER.TOOL",
                required=True,
                complete=partial(_offered, Kind.TOOLS),
            ),
            Flag("ARGUMENT", "KEY=VALUE; VALUE is converted according to the tool's schema", many=True),
            Flag("--args", "all arguments as one JSON object", "JSON", parse=read_object),
            *FLAGS,
            JSON,
        ),
    ),
    Command(
        "read",
        "read a resource",
        run_read,
        (
            Flag(
                "URI",
                "URI of the resource, as `list` shows it",
                required=True,
                complete=partial(_offered, Kind.RESOURCES),
            ),
            *FLAGS,
            JSON,
        ),
    ),
    Command(
        "prompt",
        "get a prompt with its arguments filled in",
        run_prompt,
        (
            Flag(
                "NAME",
                "public name of the prompt, as `list` shows it: SERVER.PROMPT",
                required=True,
                complete=partial(_offered, Kind.PROMPTS),
            ),
            Flag("ARGUMENT", "KEY=VALUE; values are text", many=True),
            *FLAGS,
            JSON,
        ),
    ),
)
