"""A server on the official Python SDK 2.x for both eras: `sdk2_server.py NAME [http]`.

Its tools, prompts and resources answer as those of `tests/peers/bridge_server.py` of the same names do. What it asks in
a legacy call it asks by the SDK's `elicit_form`, `create_message` and `list_roots`, in a modern one by
`input_required`. It serves on stdio, or over HTTP on 127.0.0.1, and then writes `listening on URL` to stderr; it ends
when its stdin does.
"""

# ruff: noqa: RUF029 - handlers are async whether they wait or not

from __future__ import annotations

import json
import socket
import sys
import threading
import warnings
from collections import Counter
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import anyio
import mcp_types as types
from mcp.server.lowlevel.server import NotificationOptions, Server
from mcp.server.subscriptions import (
    InMemorySubscriptionBus,
    ListenHandler,
    PromptsListChanged,
    ResourceUpdated,
    ToolsListChanged,
)
from mcp.shared.exceptions import MCPDeprecationWarning, MCPError
from mcp_types.version import MODERN_PROTOCOL_VERSIONS
from pydantic import TypeAdapter

if TYPE_CHECKING:
    from collections.abc import Generator, Mapping

TOOLS = [
    *("echo", "progress", "log", "sleep", "count", "cancelled_log", "stopped"),
    *("ask", "grow", "touch", "subscribed"),
]
CHANGED = {"tools": ToolsListChanged, "prompts": PromptsListChanged}
ROOTS_ASK = {"one": {"method": "roots/list", "params": {}}}
name, *rest = sys.argv[1:]
warnings.simplefilter("ignore", MCPDeprecationWarning)  # what it deprecates is what is tested here

bus = InMemorySubscriptionBus()
listen = ListenHandler(bus)
uris: list[str] = []
cancelled: list[str] = []
counts: Counter[str] = Counter()
grown = Counter({"tools": 0, "prompts": 0})


def is_modern(ctx: Any) -> bool:
    return ctx.protocol_version in MODERN_PROTOCOL_VERSIONS


@contextmanager
def watching(wanted: list[str]) -> Generator[None]:
    uris.extend(wanted)
    try:
        yield
    finally:
        for uri in wanted:
            uris.remove(uri)


def result(text: str | None = None, structured: Any = None) -> types.CallToolResult:
    content: list[Any] = [] if text is None else [types.TextContent(text=text)]
    return types.CallToolResult(content=content, structured_content=structured)


# -- asking ----------------------------------------------------------------------------------------------------------


async def ask_one(ctx: Any, method: str, params: dict[str, Any]) -> Any:
    session, of_call = ctx.session, {"related_request_id": ctx.request_id}
    if method == "roots/list":
        return await session.list_roots()
    if method == "sampling/createMessage":
        messages = TypeAdapter(list[types.SamplingMessage]).validate_python(params["messages"])
        tools = TypeAdapter(list[types.Tool] | None).validate_python(params.get("tools"))
        choice = TypeAdapter(types.ToolChoice | None).validate_python(params.get("toolChoice"))
        return await session.create_message(
            messages, max_tokens=params["maxTokens"], tools=tools, tool_choice=choice, **of_call
        )
    if params.get("mode") == "url":
        return await session.elicit_url(params["message"], params["url"], params["elicitationId"], **of_call)
    return await session.elicit_form(params["message"], params["requestedSchema"], **of_call)


async def ask(
    ctx: Any, params: Any, requests: Mapping[str, Any], rounds: int = 1
) -> types.InputRequiredResult | dict[str, Any]:
    """Ask, `rounds` times; return the answers, or (modern) the requests for them."""
    if is_modern(ctx):
        done = int(params.request_state or 0)
        if done < rounds:
            wanted = TypeAdapter(types.InputRequests).validate_python(requests)
            return types.InputRequiredResult(input_requests=wanted, request_state=str(done + 1))
        return {key: dump(answer) for key, answer in (params.input_responses or {}).items()}
    answers: dict[str, Any] = {}

    async def one(key: str, wanted: dict[str, Any]) -> None:
        try:
            answers[key] = dump(await ask_one(ctx, wanted["method"], wanted["params"]))
        except MCPError as error:
            answers[key] = {"error": dump(error.error)}

    for _ in range(rounds):
        async with anyio.create_task_group() as group:
            for key, wanted in requests.items():
                group.start_soon(one, key, wanted)
    return answers


def dump(answer: Any) -> dict[str, Any]:
    return answer.model_dump(mode="json", by_alias=True, exclude_none=True)


# -- tools -----------------------------------------------------------------------------------------------------------


async def list_tools(_ctx: Any, _params: Any) -> types.ListToolsResult:
    names = [*TOOLS, *(f"grown_{number}" for number in range(grown["tools"]))]
    return types.ListToolsResult(tools=[types.Tool(name=each, input_schema={"type": "object"}) for each in names])


async def call_tool(ctx: Any, params: types.CallToolRequestParams) -> Any:
    given = params.arguments or {}
    counts[params.name] += 1
    try:
        match params.name:
            case "echo":
                return result(given["text"])
            case "ask":
                found = await ask(ctx, params, given["requests"], given.get("rounds", 1))
                return found if isinstance(found, types.InputRequiredResult) else result(None, {"answers": found})
            case "progress":
                for done in range(1, given["n"] + 1):
                    await ctx.session.report_progress(done, given["n"], f"step {done}")
                    await anyio.sleep(given.get("delay", 0))
                return result(f"{given['n']} steps", {"steps": given["n"]})
            case "log":
                for _ in range(given.get("n", 1)):
                    await ctx.session.send_log_message(
                        given["level"], given.get("data", "line"), "rich", related_request_id=ctx.request_id
                    )
                return result("logged", {})
            case "sleep":
                await anyio.sleep(given["seconds"])
                return result("slept")
            case "grow":
                for feature in given.get("features", ["prompts"]):
                    await grow(ctx, feature)
                return result("grown", {})
            case "touch":
                await bus.publish(ResourceUpdated(given["uri"]))
                if not is_modern(ctx) and given["uri"] in uris:
                    await ctx.session.send_resource_updated(given["uri"])
                return result("touched", {})
            case "count":
                return result(None, dict(counts))
            case "cancelled_log" | "stopped" | "subscribed":
                return result(None, {"cancelled": cancelled, "tools": cancelled, "uris": uris})
            case _:
                raise MCPError(code=types.INVALID_PARAMS, message=f"Unknown tool: {params.name}")
    except anyio.get_cancelled_exc_class():
        cancelled.append(params.name)
        raise


async def grow(ctx: Any, feature: str) -> None:
    grown[feature] += 1
    await bus.publish(CHANGED[feature]())
    if is_modern(ctx):
        return
    if feature == "tools":
        await ctx.session.send_tool_list_changed()
    else:
        await ctx.session.send_prompt_list_changed()


# -- prompts and resources -------------------------------------------------------------------------------------------


async def list_prompts(_ctx: Any, _params: Any) -> types.ListPromptsResult:
    names = ["greet", "asks", *(f"grown_{number}" for number in range(grown["prompts"]))]
    return types.ListPromptsResult(prompts=[types.Prompt(name=each) for each in names])


async def get_prompt(ctx: Any, params: types.GetPromptRequestParams) -> Any:
    text = f"Hello {(params.arguments or {}).get('name')}, says {name}."
    if params.name == "asks":
        found = await ask(ctx, params, {"roots": ROOTS_ASK["one"]})
        if isinstance(found, types.InputRequiredResult):
            return found
        text = json.dumps(found)
    message = types.PromptMessage(role="user", content=types.TextContent(text=text))
    return types.GetPromptResult(messages=[message])


async def list_resources(_ctx: Any, _params: Any) -> types.ListResourcesResult:
    return types.ListResourcesResult(resources=[types.Resource(uri=f"memo://{name}/one", name="one")])


async def list_templates(_ctx: Any, _params: Any) -> types.ListResourceTemplatesResult:
    template = types.ResourceTemplate(uri_template=f"memo://{name}/item/{{id}}", name="item")
    return types.ListResourceTemplatesResult(resource_templates=[template])


async def read_resource(_ctx: Any, params: types.ReadResourceRequestParams) -> types.ReadResourceResult:
    uri = str(params.uri)
    if not uri.startswith(f"memo://{name}/") or uri.endswith("/missing"):
        raise MCPError(code=types.INVALID_PARAMS, message=f"Resource not found: {uri}", data={"uri": uri})
    contents: list[Any] = [types.TextResourceContents(uri=uri, mime_type="text/plain", text=f"{name} read {uri}")]
    return types.ReadResourceResult(contents=contents)


async def complete(_ctx: Any, params: types.CompleteRequestParams) -> types.CompleteResult:
    own = params.ref.name if isinstance(params.ref, types.PromptReference) else params.ref.uri
    context = {"arguments": params.context.arguments} if params.context else {}
    values = [name, own, params.argument.value, json.dumps(context, separators=(",", ":"))]
    return types.CompleteResult(completion=types.Completion(values=values, total=len(values), has_more=False))


# -- subscriptions and levels ----------------------------------------------------------------------------------------


async def subscribe(_ctx: Any, params: types.SubscribeRequestParams) -> types.EmptyResult:
    uris.append(str(params.uri))
    return types.EmptyResult()


async def unsubscribe(_ctx: Any, params: types.UnsubscribeRequestParams) -> types.EmptyResult:
    uris.remove(str(params.uri))
    return types.EmptyResult()


async def serve_listen(ctx: Any, params: types.SubscriptionsListenRequestParams) -> Any:
    with watching([str(uri) for uri in params.notifications.resource_subscriptions or []]):
        return await listen(ctx, params)


async def set_level(_ctx: Any, _params: Any) -> types.EmptyResult:
    return types.EmptyResult()


server: Server[Any] = Server(
    name,
    version="1.0.0",
    on_list_tools=list_tools,
    on_call_tool=call_tool,
    on_list_prompts=list_prompts,
    on_get_prompt=get_prompt,
    on_list_resources=list_resources,
    on_list_resource_templates=list_templates,
    on_read_resource=read_resource,
    on_subscribe_resource=subscribe,
    on_unsubscribe_resource=unsubscribe,
    on_subscriptions_listen=serve_listen,
    on_completion=complete,
    on_set_logging_level=set_level,
)


async def serve_stdio() -> None:
    from mcp.server.stdio import stdio_server

    changing = NotificationOptions(prompts_changed=True, resources_changed=True, tools_changed=True)
    async with stdio_server() as (incoming, outgoing):
        await server.run(incoming, outgoing, server.create_initialization_options(changing))


def serve_http() -> None:
    import uvicorn

    # With IPPROTO_TCP named: asyncio turns Nagle's algorithm off only then, and each answer would take 40 ms longer.
    with socket.socket(socket.AF_INET, socket.SOCK_STREAM, socket.IPPROTO_TCP) as listener:
        listener.bind(("127.0.0.1", 0))
        listener.listen(100)
        config = uvicorn.Config(server.streamable_http_app(), log_level="critical", timeout_graceful_shutdown=1)
        running = uvicorn.Server(config)

        def wait_for_eof() -> None:
            sys.stdin.read()
            running.should_exit = True

        threading.Thread(target=wait_for_eof, daemon=True).start()
        print(f"listening on http://127.0.0.1:{listener.getsockname()[1]}/mcp", file=sys.stderr, flush=True)
        running.run(sockets=[listener])


if __name__ == "__main__":
    if rest:
        serve_http()
    else:
        anyio.run(serve_stdio)
