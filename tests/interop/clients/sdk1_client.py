"""One conversation of a client on the official Python SDK 1.x: `sdk1_client.py JOB`.

JOB, in JSON, is {"url": ...} or {"command", "args"}, and "calls": a list of [tool, arguments]. It prints, as JSON,
{"version", "tools": [...], "results": [...]}. Runs on a Python whose packages are that SDK and nothing of ours.
"""

from __future__ import annotations

import json
import os
import sys
from contextlib import asynccontextmanager
from typing import Any

import anyio
from mcp import ClientSession, StdioServerParameters
from mcp.client.stdio import stdio_client
from mcp.client.streamable_http import streamablehttp_client

WITHIN = 60.0  # seconds for the whole conversation


@asynccontextmanager
async def open_streams(job: dict[str, Any]):
    if "url" in job:
        async with streamablehttp_client(job["url"]) as (incoming, outgoing, _session_id):
            yield incoming, outgoing
    else:
        parameters = StdioServerParameters(command=job["command"], args=job["args"], env=dict(os.environ))
        async with stdio_client(parameters) as (incoming, outgoing):
            yield incoming, outgoing


def plain(model: Any) -> Any:
    return model.model_dump(mode="json", by_alias=True, exclude_none=True)


async def converse(job: dict[str, Any]) -> dict[str, Any]:
    async with open_streams(job) as (incoming, outgoing), ClientSession(incoming, outgoing) as session:
        started = await session.initialize()
        listed = await session.list_tools()
        return {
            "version": started.protocolVersion,
            "tools": [plain(tool) for tool in listed.tools],
            "results": [plain(await session.call_tool(name, arguments)) for name, arguments in job["calls"]],
        }


async def main() -> None:
    with anyio.fail_after(WITHIN):
        report = await converse(json.loads(sys.argv[1]))
    print(json.dumps(report))


if __name__ == "__main__":
    anyio.run(main)
