"""A client on the official Python SDK 2.x for requests, notifications and cancels: `sdk2_rows.py JOB`.

JOB and what is printed are those of sdk1_rows.py; JOB has "mode" besides.
"""

# ruff: noqa: RUF029 - callbacks are async whether they wait or not

from __future__ import annotations

import json
import os
import sys
from contextlib import nullcontext
from typing import Any

import mcp_types as types
import trio
from mcp import Client, StdioServerParameters
from mcp.client.subscriptions import ResourceUpdated, ToolsListChanged

WITHIN = 60.0  # seconds for the whole conversation
NEWS = {
    ToolsListChanged: "notifications/tools/list_changed",
    ResourceUpdated: "notifications/resources/updated",
}


class Received:
    """What arrived during one row, and all notifications."""

    def __init__(self) -> None:
        self.asked: list[str] = []
        self.logs = self.progress = 0
        self.methods: list[str] = []
        self.news = trio.Event()

    async def elicit(self, _context: Any, params: Any) -> types.ElicitResult:
        self.asked.append(f"{params.mode} elicitation")
        return types.ElicitResult(action="accept", content={"name": "Ada"} if params.mode == "form" else None)

    async def sample(self, _context: Any, params: Any) -> Any:
        self.asked.append("sampling with tools" if params.tools else "sampling")
        if params.tools:
            use = types.ToolUseContent(type="tool_use", id="use-1", name="add", input={"a": 2})
            return types.CreateMessageResultWithTools(role="assistant", content=[use], model="m", stop_reason="toolUse")
        text = types.TextContent(type="text", text="four")
        return types.CreateMessageResult(role="assistant", content=text, model="m")

    async def list_roots(self, _context: Any) -> types.ListRootsResult:
        self.asked.append("roots")
        return types.ListRootsResult(roots=[types.Root(uri="file:///home/ada", name="ada")])

    async def log(self, _params: Any) -> None:
        self.logs += 1

    async def receive(self, message: Any) -> None:
        if (method := getattr(message, "method", None)) is not None:
            self.methods.append(method)
            self.news.set()

    async def wait_for(self, method: str) -> bool:
        while method not in self.methods:
            await self.news.wait()
            self.news = trio.Event()
        return True

    async def wait_on(self, stream: Any, method: str) -> bool:
        """As `wait_for`, on a stream of the modern era."""
        async for event in stream:
            if NEWS.get(type(event)) == method:
                return True
        return False


async def come_true(client: Client, wish: list[str] | None) -> None:
    if wish is not None:
        tool, key, value = wish
        while value not in (await client.call_tool(tool, {})).structured_content[key]:
            pass


def listen(client: Client, row: dict[str, Any], mode: str) -> Any:
    """The stream on which this row's notification comes, in the modern era."""
    if mode == "legacy" or "wait" not in row:
        return nullcontext()
    uris = [row["subscribe"]] if "subscribe" in row else []
    return client.listen(tools_list_changed="listed" in row, resource_subscriptions=uris)


async def run_row(client: Client, received: Received, row: dict[str, Any], mode: str) -> dict[str, Any]:
    async with listen(client, row, mode) as stream:
        return await converse(client, received, row, stream)


async def converse(client: Client, received: Received, row: dict[str, Any], stream: Any) -> dict[str, Any]:
    received.asked.clear()
    received.methods.clear()
    received.logs = received.progress = 0

    async def step(_progress: float, _total: float | None, _message: str | None) -> None:
        received.progress += 1
        if row.get("cancel"):
            stop.cancel()

    async def wait() -> bool:
        return await (received.wait_for(row["wait"]) if stream is None else received.wait_on(stream, row["wait"]))

    if "subscribe" in row and stream is None:
        await client.subscribe_resource(row["subscribe"])
    await come_true(client, row.get("before"))
    structured = None
    with trio.CancelScope() as stop:
        result = await client.call_tool(row["tool"], row["arguments"], progress_callback=step)
        structured = result.structured_content
    waited = await wait() if "wait" in row else None
    while "listed" in row and row["listed"] not in [tool.name for tool in (await client.list_tools()).tools]:
        received.methods.clear()
        await wait()
    await come_true(client, row.get("after"))
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
    target = job.get("url") or StdioServerParameters(command=job["command"], args=job["args"], env=dict(os.environ))
    with trio.fail_after(WITHIN):
        async with Client(
            target,
            mode=job["mode"],
            cache=None,
            elicitation_callback=received.elicit,
            sampling_callback=received.sample,
            sampling_capabilities=types.SamplingCapability(tools=types.SamplingToolsCapability()),
            list_roots_callback=received.list_roots,
            logging_callback=received.log,
            log_level="info" if job["mode"] != "legacy" else None,
            message_handler=received.receive,
        ) as client:
            if job["mode"] == "legacy":
                await client.set_logging_level("info")
            report = {"rows": [await run_row(client, received, row, job["mode"]) for row in job["rows"]]}
    print(json.dumps(report))


if __name__ == "__main__":
    trio.run(main)
