"""A client on the official Python SDK 1.x for requests, notifications and cancels: `sdk1_rows.py JOB`.

JOB is {"url", or "command" and "args", "rows": [...]}; a row is {"tool", "arguments"} and may have "subscribe" (a URI,
before the call), "before" and "after" ([tool, key, value]: called until its structured content has the value in there),
"wait" (the method of a notification that comes after it), with "listed" (a tool that is then listed), and "cancel" (at
the first progress). Printed are {"rows": [...]}: sorted kinds of what was "asked", "structured" content, "progress" and
"logs" (how many), "waited" and "cancelled".
"""

from __future__ import annotations

import json
import os
import sys
from typing import Any

import anyio
from mcp import ClientSession, StdioServerParameters, types
from mcp.client.stdio import stdio_client
from mcp.client.streamable_http import streamablehttp_client
from pydantic import AnyUrl, FileUrl

WITHIN = 60.0  # seconds for the whole conversation


class Received:
    """What arrived during one row, and all notifications."""

    def __init__(self) -> None:
        self.asked: list[str] = []
        self.logs = self.progress = 0
        self.methods: list[str] = []
        self.news = anyio.Event()

    async def elicit(self, _context: Any, params: Any) -> types.ElicitResult:
        self.asked.append(f"{params.mode} elicitation")
        return types.ElicitResult(action="accept", content={"name": "Ada"} if params.mode == "form" else None)

    async def sample(self, _context: Any, params: Any) -> Any:
        self.asked.append("sampling with tools" if params.tools else "sampling")
        if params.tools:
            use = types.ToolUseContent(type="tool_use", id="use-1", name="add", input={"a": 2})
            return types.CreateMessageResultWithTools(role="assistant", content=[use], model="m", stopReason="toolUse")
        text = types.TextContent(type="text", text="four")
        return types.CreateMessageResult(role="assistant", content=text, model="m")

    async def list_roots(self, _context: Any) -> types.ListRootsResult:
        self.asked.append("roots")
        return types.ListRootsResult(roots=[types.Root(uri=FileUrl("file:///home/ada"), name="ada")])

    async def log(self, _params: Any) -> None:
        self.logs += 1

    async def receive(self, message: Any) -> None:
        if isinstance(message, types.ServerNotification):
            self.methods.append(message.root.method)
            self.news.set()

    async def wait_for(self, method: str) -> bool:
        while method not in self.methods:
            await self.news.wait()
            self.news = anyio.Event()
        return True


async def come_true(session: ClientSession, wish: list[str] | None) -> None:
    if wish is not None:
        tool, key, value = wish
        while value not in (await session.call_tool(tool, {})).structuredContent[key]:
            pass


async def run_row(session: ClientSession, received: Received, row: dict[str, Any]) -> dict[str, Any]:
    received.asked.clear()
    received.methods.clear()
    received.logs = received.progress = 0

    async def step(_progress: float, _total: float | None, _message: str | None) -> None:
        received.progress += 1
        if row.get("cancel"):
            # This SDK leaves it to its user to say so.
            cancelled = types.CancelledNotificationParams(requestId=session._request_id - 1)
            await session.send_notification(types.ClientNotification(types.CancelledNotification(params=cancelled)))
            stop.cancel()

    if "subscribe" in row:
        await session.subscribe_resource(AnyUrl(row["subscribe"]))
    await come_true(session, row.get("before"))
    structured = None
    with anyio.CancelScope() as stop:
        result = await session.call_tool(row["tool"], row["arguments"], progress_callback=step)
        structured = result.structuredContent
    waited = await received.wait_for(row["wait"]) if "wait" in row else None
    while "listed" in row and row["listed"] not in [tool.name for tool in (await session.list_tools()).tools]:
        received.methods.clear()
        await received.wait_for(row["wait"])
    await come_true(session, row.get("after"))
    return {
        "asked": sorted(received.asked),
        "structured": structured,
        "progress": received.progress,
        "logs": received.logs,
        "waited": waited,
        "cancelled": stop.cancelled_caught,
    }


async def main() -> None:
    job, received = json.loads(sys.argv[1]), Received()
    with anyio.fail_after(WITHIN):
        if "url" in job:
            streams: Any = streamablehttp_client(job["url"])
        else:
            streams = stdio_client(
                StdioServerParameters(command=job["command"], args=job["args"], env=dict(os.environ))
            )
        async with (
            streams as (incoming, outgoing, *_),
            ClientSession(
                incoming,
                outgoing,
                elicitation_callback=received.elicit,
                sampling_callback=received.sample,
                sampling_capabilities=types.SamplingCapability(tools=types.SamplingToolsCapability()),
                list_roots_callback=received.list_roots,
                logging_callback=received.log,
                message_handler=received.receive,
            ) as session,
        ):
            await session.initialize()
            await session.set_logging_level("info")
            report = {"rows": [await run_row(session, received, row) for row in job["rows"]]}
    print(json.dumps(report))


if __name__ == "__main__":
    anyio.run(main)
