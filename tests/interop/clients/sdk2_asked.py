"""A client on the official Python SDK 2.x that answers every request: `sdk2_asked.py JOB`.

JOB, in JSON, has "url", or "command" and "args", "mode" ("legacy", "auto") and "calls", a list of [tool, arguments].
Printed are the protocol "version" and, for each call, its "text" and the sorted kinds of what was "asked".
"""

# ruff: noqa: RUF029 - callbacks are async whether they wait or not

from __future__ import annotations

import json
import os
import sys
from typing import Any

import mcp_types as types
import trio
from mcp import Client, StdioServerParameters

WITHIN = 60.0  # seconds for the whole conversation
ASKED: set[str] = set()


async def elicit(_context: Any, params: Any) -> types.ElicitResult:
    ASKED.add("elicitation")
    fields = params.requested_schema.get("properties", {})
    content = {name: True if field.get("type") == "boolean" else "Ada" for name, field in fields.items()}
    return types.ElicitResult(action="accept", content=content)


async def sample(_context: Any, _params: Any) -> types.CreateMessageResult:
    ASKED.add("sampling")
    text = types.TextContent(type="text", text="four")
    return types.CreateMessageResult(role="assistant", content=text, model="m")


async def list_roots(_context: Any) -> types.ListRootsResult:
    ASKED.add("roots")
    return types.ListRootsResult(roots=[types.Root(uri="file:///home/ada", name="ada")])


async def call(client: Client, tool: str, arguments: dict[str, Any]) -> dict[str, Any]:
    ASKED.clear()
    result = await client.call_tool(tool, arguments)
    return {"text": str(result.structured_content or result.content), "asked": sorted(ASKED)}


async def main() -> None:
    job = json.loads(sys.argv[1])
    target = job.get("url") or StdioServerParameters(command=job["command"], args=job["args"], env=dict(os.environ))
    with trio.fail_after(WITHIN):
        async with Client(
            target,
            mode=job["mode"],
            cache=None,
            elicitation_callback=elicit,
            sampling_callback=sample,
            list_roots_callback=list_roots,
        ) as client:
            report = {
                "version": client.session.protocol_version,
                "calls": [await call(client, tool, arguments) for tool, arguments in job["calls"]],
            }
    print(json.dumps(report))


if __name__ == "__main__":
    trio.run(main)
