"""A server on the official Python SDK 1.x with server requests: `sdk1_server.py NAME [http]`.

Tools, which answer as those of `tests/peers/bridge_server.py` do: `ask` {requests}, all at once, by the SDK's own calls
· `progress` {n, delay?} · `log` {level, n} · `grow` -> one tool more, and says so · `touch` {uri} · `subscribed` ·
`stopped` -> `{"tools": [names of the calls that the client has cancelled]}`. It serves on stdio, or over HTTP on
127.0.0.1, and then writes `listening on URL` to stderr; it ends when its stdin does.
"""

# ruff: noqa: RUF029 - handlers are async whether they wait or not

from __future__ import annotations

import sys
from typing import Any

import anyio
from mcp import types
from mcp.server.lowlevel import NotificationOptions, Server
from pydantic import AnyUrl, TypeAdapter

TOOLS = ["ask", "progress", "log", "grow", "touch", "subscribed", "stopped"]
name, *rest = sys.argv[1:]


class Subscribing(Server[Any, Any]):
    """Declares `resources.subscribe`, which this SDK says no to even where a handler is there."""

    def create_initialization_options(self, *_args: Any, **_options: Any) -> Any:
        changing = NotificationOptions(tools_changed=True, resources_changed=True)
        options = super().create_initialization_options(changing)
        options.capabilities.resources.subscribe = True
        return options


server = Subscribing(name)
uris: list[str] = []
stopped: list[str] = []
grown = 0


@server.list_tools()
async def list_tools() -> list[types.Tool]:
    names = TOOLS + [f"grown_{number}" for number in range(grown)]
    return [types.Tool(name=each, inputSchema={"type": "object"}) for each in names]


@server.list_resources()
async def list_resources() -> list[types.Resource]:
    return [types.Resource(uri=AnyUrl(f"memo://{name}/one"), name="one")]


@server.subscribe_resource()
async def subscribe(uri: AnyUrl) -> None:
    uris.append(str(uri))


@server.unsubscribe_resource()
async def unsubscribe(uri: AnyUrl) -> None:
    uris.remove(str(uri))


@server.set_logging_level()
async def set_level(_level: types.LoggingLevel) -> None:
    pass


async def ask_one(method: str, params: dict[str, Any]) -> dict[str, Any]:
    context = server.request_context
    session, request_id = context.session, context.request_id
    if method == "roots/list":
        result: Any = await session.list_roots()
    elif method == "sampling/createMessage":
        messages = TypeAdapter(list[types.SamplingMessage]).validate_python(params["messages"])
        tools = TypeAdapter(list[types.Tool] | None).validate_python(params.get("tools"))
        result = await session.create_message(
            messages, max_tokens=params["maxTokens"], tools=tools, related_request_id=request_id
        )
    elif params.get("mode") == "url":
        result = await session.elicit_url(params["message"], params["url"], params["elicitationId"], request_id)
    else:
        result = await session.elicit_form(params["message"], params["requestedSchema"], request_id)
    return result.model_dump(mode="json", by_alias=True, exclude_none=True)


async def ask(requests: dict[str, Any]) -> dict[str, Any]:
    answers: dict[str, Any] = {}

    async def one(key: str, wanted: dict[str, Any]) -> None:
        answers[key] = await ask_one(wanted["method"], wanted["params"])

    async with anyio.create_task_group() as group:
        for key, wanted in requests.items():
            group.start_soon(one, key, wanted)
    return {"answers": answers}


async def report(n: int, delay: float) -> dict[str, Any]:
    context = server.request_context
    token = context.meta.progressToken if context.meta else None
    for done in range(1, n + 1):
        if token is not None:
            await context.session.send_progress_notification(
                token, done, n, f"step {done}", related_request_id=str(context.request_id)
            )
        await anyio.sleep(delay)
    return {"steps": n}


async def answer(tool: str, arguments: dict[str, Any]) -> dict[str, Any]:
    global grown
    context = server.request_context
    session = context.session
    if tool == "ask":
        return await ask(arguments["requests"])
    if tool == "progress":
        return await report(arguments["n"], arguments.get("delay", 0))
    if tool == "log":
        for _ in range(arguments["n"]):
            await session.send_log_message(arguments["level"], "line", related_request_id=context.request_id)
    elif tool == "grow":
        grown += 1
        await session.send_tool_list_changed()
    elif tool == "touch":
        await session.send_resource_updated(AnyUrl(arguments["uri"]))
    return {"uris": uris, "tools": stopped}


@server.call_tool()
async def call_tool(tool: str, arguments: dict[str, Any]) -> dict[str, Any]:
    try:
        return await answer(tool, arguments)
    except anyio.get_cancelled_exc_class():
        stopped.append(tool)
        raise


async def serve_stdio() -> None:
    from mcp.server.stdio import stdio_server

    async with stdio_server() as (incoming, outgoing):
        await server.run(incoming, outgoing, server.create_initialization_options())


async def serve_http() -> None:
    import contextlib
    import socket

    import uvicorn
    from mcp.server.streamable_http_manager import StreamableHTTPSessionManager
    from starlette.applications import Starlette
    from starlette.routing import Mount

    manager = StreamableHTTPSessionManager(server)

    @contextlib.asynccontextmanager
    async def lifespan(_app: Any) -> Any:
        async with manager.run():
            yield

    app = Starlette(routes=[Mount("/mcp", manager.handle_request)], lifespan=lifespan)
    with socket.create_server(("127.0.0.1", 0)) as listener:
        uvicorn_server = uvicorn.Server(
            uvicorn.Config(app, log_level="warning", timeout_graceful_shutdown=1, ws="none")
        )
        print(f"listening on http://127.0.0.1:{listener.getsockname()[1]}/mcp/", file=sys.stderr, flush=True)
        await uvicorn_server.serve(sockets=[listener])


if __name__ == "__main__":
    anyio.run(serve_http if rest else serve_stdio)
