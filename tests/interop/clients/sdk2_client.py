"""One conversation of a client on the official Python SDK 2.x: `sdk2_client.py JOB`.

JOB and what is printed are those of sdk1_client.py; JOB also has "mode": "legacy", "auto", or a modern version.
"""

from __future__ import annotations

import json
import os
import sys
from typing import Any

import trio
from mcp import Client, StdioServerParameters

WITHIN = 60.0  # seconds for the whole conversation


def plain(model: Any) -> Any:
    return model.model_dump(mode="json", by_alias=True, exclude_none=True)


async def main() -> None:
    job = json.loads(sys.argv[1])
    target = job.get("url") or StdioServerParameters(command=job["command"], args=job["args"], env=dict(os.environ))
    with trio.fail_after(WITHIN):
        async with Client(target, mode=job["mode"], cache=None) as client:
            listed = await client.list_tools()
            report = {
                "version": client.session.protocol_version,
                "tools": [plain(tool) for tool in listed.tools],
                "results": [plain(await client.call_tool(name, arguments)) for name, arguments in job["calls"]],
            }
    print(json.dumps(report))


if __name__ == "__main__":
    trio.run(main)
