"""The gateway inside a trio program: two servers, a call, and a reload.

Run it: `python docs/examples/embed_trio.py`.
"""

from __future__ import annotations

import sys

import trio
from mcp_gateway.demo import servers

import mcp_gateway

CALCULATOR = {"command": sys.executable, "args": [servers.__file__, "calculator"]}
ECHO = {"command": sys.executable, "args": [servers.__file__, "echo"]}


async def main() -> None:
    patient = {"start_grace": 30}  # seconds that the first list waits for slow servers; the default is 4
    async with mcp_gateway.open_gateway({
        "mcpServers": {"calculator": CALCULATOR, "echo": ECHO},
        "gateway": patient,
    }) as gw:
        print("tools:", ", ".join(tool.name for tool in await gw.list_tools()))
        result = await gw.call_tool("calculator.add", {"a": 20, "b": 22})
        print("20 + 22 =", result.content[0].text)

        await gw.reload({
            "mcpServers": {"calculator": CALCULATOR},
            "gateway": patient,
        })  # the calculator is not disturbed
        for name, status in gw.status().items():
            print(f"{name} is {status.state}")


trio.run(main)
