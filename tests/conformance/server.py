"""The conformance suite's test server: every fixture of its scenarios, on the official SDK.

`python -m tests.conformance.server` speaks on stdio; `--transport sse` or `streamable-http` serves on 127.0.0.1 at
`--port` (0: a free one) and says `listening on URL` on stderr. It serves both eras, as the client chooses, except on
SSE, which has only the legacy one. Tables are in content.py, behaviour in fixtures.py; this module connects them to the
SDK.
"""

from __future__ import annotations

import argparse
import inspect
import json
import re
import warnings
from typing import TYPE_CHECKING, Any

import anyio
import mcp_types as types
from mcp.server.lowlevel.server import Server
from mcp.server.request_state import RequestStateBoundary, RequestStateSecurity
from mcp.server.subscriptions import ListenHandler
from mcp.shared.exceptions import MCPDeprecationWarning, MCPError
from mcp_types.methods import CACHEABLE_METHODS
from mcp_types.version import MODERN_PROTOCOL_VERSIONS

from tests.conformance.content import (
    CONTEXT_FORM,
    IMAGE,
    NO_ARGUMENTS,
    PROMPTS,
    RESOURCES,
    SCHEMAS,
    TEMPLATE,
    Json,
    ask_form,
    text,
    text_resource,
)
from tests.conformance.fixtures import TOOLS, Turn, bus, require
from tests.conformance.transports import serve_http, serve_stdio

if TYPE_CHECKING:
    from collections.abc import Awaitable

NAME = "conformance-fixtures"
CACHE_HINTS = {"ttlMs": 5000, "cacheScope": "public"}
_TEMPLATED = re.compile(r"test://template/([^/]+)/data")


def make_turn(ctx: Any, params: Any) -> Turn:
    return Turn(ctx, params.arguments or {}, params.input_responses or {}, params.request_state)


# -- handlers --------------------------------------------------------------------------------------------------------


def list_tools(_ctx: Any, _params: Any) -> Json:
    return {
        "tools": [
            {"name": name, "description": f"Fixture {name}.", "inputSchema": SCHEMAS.get(name, NO_ARGUMENTS)}
            for name in TOOLS
        ]
    }


def call_tool(ctx: Any, params: types.CallToolRequestParams) -> Json | Awaitable[Json]:
    tool = TOOLS.get(params.name)
    if tool is None:
        raise MCPError(code=types.INVALID_PARAMS, message=f"Unknown tool: {params.name}")
    return tool(make_turn(ctx, params))


def list_prompts(_ctx: Any, _params: Any) -> Json:
    return {
        "prompts": [
            {
                "name": name,
                "description": f"Fixture {name}.",
                "arguments": [{"name": argument, "required": True} for argument in arguments],
            }
            for name, arguments in PROMPTS.items()
        ]
    }


def get_prompt(ctx: Any, params: types.GetPromptRequestParams) -> Json:
    turn = make_turn(ctx, params)
    given = turn.arguments
    if any(argument not in given for argument in PROMPTS.get(params.name, [])):
        raise MCPError(code=types.INVALID_PARAMS, message=f"{params.name} needs {PROMPTS[params.name]}")
    match params.name:
        case "test_simple_prompt":
            contents = [text("This is a simple prompt for testing.")]
        case "test_prompt_with_arguments":
            contents = [text(f"Prompt with arguments: arg1='{given['arg1']}', arg2='{given['arg2']}'")]
        case "test_prompt_with_embedded_resource":
            embedded = text_resource(given["resourceUri"], "text/plain", "Embedded resource content for testing.")
            contents = [embedded, text("Please process the embedded resource above.")]
        case "test_prompt_with_image":
            contents = [IMAGE, text("Please analyze the image above.")]
        case "test_input_required_result_prompt":
            if "user_context" not in turn.answers:
                return require(user_context=ask_form("What context should the prompt use?", CONTEXT_FORM))
            contents = [text(f"The context is {turn.content_of('user_context').get('context')}.")]
        case name if name in PROMPTS:
            contents = [text("I come and go.")]
        case _:
            raise MCPError(code=types.INVALID_PARAMS, message=f"Unknown prompt: {params.name}")
    return {"messages": [{"role": "user", "content": content} for content in contents]}


def list_resources(_ctx: Any, _params: Any) -> Json:
    shown = ("name", "description", "mimeType")
    return {
        "resources": [{"uri": uri, **{key: found[key] for key in shown}} for uri, found in RESOURCES.items()],
    }


def list_resource_templates(_ctx: Any, _params: Any) -> Json:
    return {"resourceTemplates": [TEMPLATE]}


def read_resource(_ctx: Any, params: types.ReadResourceRequestParams) -> Json:
    uri = str(params.uri)
    if (match := _TEMPLATED.fullmatch(uri)) is not None:
        data = {"id": match[1], "templateTest": True, "data": f"Data for ID: {match[1]}"}
        return {"contents": [{"uri": uri, "mimeType": "application/json", "text": json.dumps(data)}]}
    found = RESOURCES.get(uri)
    if found is None:
        raise MCPError(code=types.INVALID_PARAMS, message="Resource not found", data={"uri": uri})
    return {"contents": [{"uri": uri, **{key: found[key] for key in ("mimeType", "text", "blob") if key in found}}]}


def complete(_ctx: Any, params: types.CompleteRequestParams) -> Json:
    known = ["paris", "park", "party"]
    values = [value for value in known if value.startswith(params.argument.value)]
    return {"completion": {"values": values, "total": len(values), "hasMore": False}}


def accept(_ctx: Any, _params: Any) -> Json:
    """Accept: log levels and subscriptions have no effect here, since nothing changes."""
    return {}


def whole(handler: Any) -> Any:
    """Make a handler async, and add the members that every modern result must have.

    The SDK adds that to its models, not to JSON.
    """

    async def answer(ctx: Any, params: Any) -> Json:
        found = handler(ctx, params)
        result: Json = await found if inspect.isawaitable(found) else found
        if ctx.protocol_version not in MODERN_PROTOCOL_VERSIONS:
            return result
        hints = CACHE_HINTS if ctx.method in CACHEABLE_METHODS and "inputRequests" not in result else {}
        return {"resultType": "complete", **hints, **result}

    return answer


def make_server() -> Server[Any]:
    server: Server[Any] = Server(
        NAME,
        version="1.0.0",
        instructions="Fixtures for the conformance suite.",
        get_tool_input_schema=SCHEMAS.get,
        on_list_tools=whole(list_tools),
        on_call_tool=whole(call_tool),
        on_list_prompts=whole(list_prompts),
        on_get_prompt=whole(get_prompt),
        on_list_resources=whole(list_resources),
        on_list_resource_templates=whole(list_resource_templates),
        on_read_resource=whole(read_resource),
        on_subscribe_resource=whole(accept),
        on_unsubscribe_resource=whole(accept),
        on_subscriptions_listen=ListenHandler(bus),
        on_completion=whole(complete),
        on_set_logging_level=whole(accept),
    )
    server.middleware.append(RequestStateBoundary(RequestStateSecurity.ephemeral(), default_audience=NAME))
    return server


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--transport", choices=["stdio", "sse", "streamable-http"], default="stdio")
    parser.add_argument("--port", type=int, default=0)
    options = parser.parse_args()
    warnings.simplefilter("ignore", MCPDeprecationWarning)  # what it deprecates is what is tested here
    server = make_server()
    if options.transport == "stdio":
        anyio.run(serve_stdio, server)
    else:
        serve_http(server, options.transport, options.port)


if __name__ == "__main__":
    main()
