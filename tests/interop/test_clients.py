"""Unmodified clients and servers through the gateway: the newest and the previous releases.

One server is on the Python SDK 2 and speaks the modern era, the other on the TypeScript SDK 1 and knows only the
handshake, so that each client meets one of its own era and one of the other.
"""

from __future__ import annotations

import json
import subprocess
import sys
from typing import TYPE_CHECKING, Any

import pytest
import trio

from tests.support.gateway_process import LATEST_LEGACY, MODERN, ROOT, open_gateway_process, run_process
from tests.support.wire import StdioClient

if TYPE_CHECKING:
    from pathlib import Path

    from tests.interop.conftest import Peers

pytestmark = pytest.mark.real("clients")

CONVERSE_WITHIN = 90.0  # seconds, of which a client gives itself 60
START_GRACE = 20  # seconds that the first list may wait for both servers, on a machine that runs other things too

CALLS: list[tuple[str, dict[str, Any]]] = [
    ("time.convert_time", {"source_timezone": "UTC", "time": "12:00", "target_timezone": "Asia/Tokyo"}),
    ("time.convert_time", {"source_timezone": "nowhere", "time": "12:00", "target_timezone": "UTC"}),
    ("everything.echo", {"message": "grüezi 🌍\n"}),
    ("everything.get-sum", {"a": 2, "b": 40}),
    ("everything.get-tiny-image", {}),
    ("everything.get-structured-content", {"location": "New York"}),
    ("everything.get-annotated-message", {"messageType": "success", "includeImage": False}),
]

CLIENTS = [
    ("python-1", "legacy"),
    ("typescript-1", "legacy"),
    ("python-2", "legacy"),
    ("python-2", "auto"),
    ("typescript-2", "legacy"),
    ("typescript-2", "auto"),
]
"""Each with how it begins; `auto` probes for the modern era, and must find it."""


def make_config(peers: Peers) -> dict[str, Any]:
    # A client on the Python SDK 1 breaks if it is notified while it disconnects: changes come well before.
    return {"mcpServers": peers.servers, "gateway": {"start_grace": START_GRACE, "list_change_delay": 0.01}}


async def converse(peers: Peers, client: str, job: dict[str, Any]) -> dict[str, Any]:
    """Run the client's script; its report."""
    with trio.fail_after(CONVERSE_WITHIN):
        done = await trio.run_process(
            [*peers.clients[client], json.dumps(job)],
            stdin=subprocess.DEVNULL,
            capture_stdout=True,
            capture_stderr=True,
            check=False,
            cwd=ROOT,
        )
    assert done.returncode == 0, done.stderr.decode(errors="replace")
    return json.loads(done.stdout)


def check_report(report: dict[str, Any], mode: str) -> None:
    if report["version"] is not None:
        assert report["version"] == (LATEST_LEGACY if mode == "legacy" else MODERN)
    names = [tool["name"] for tool in report["tools"]]
    assert {name.partition(".")[0] for name in names} == {"time", "everything"}
    assert {name for name, _ in CALLS} <= set(names)
    converted, refused, echo, total, image, structured, annotated = report["results"]
    assert "+9.0h" in converted["content"][0]["text"]
    assert refused["isError"] is True
    assert echo["content"] == [{"type": "text", "text": "Echo: grüezi 🌍\n"}]
    assert "42" in total["content"][0]["text"]
    assert "image" in {content["type"] for content in image["content"]}
    assert structured["structuredContent"]["temperature"] == 33
    assert annotated["content"][0]["annotations"]["audience"] == ["user"]


@pytest.mark.parametrize(("client", "mode"), CLIENTS)
async def test_lists_and_calls_over_http(peers: Peers, client: str, mode: str) -> None:
    async with open_gateway_process(make_config(peers)) as gateway:
        check_report(await converse(peers, client, {"url": gateway.url, "mode": mode, "calls": CALLS}), mode)


@pytest.mark.parametrize(("client", "mode"), CLIENTS)
async def test_lists_and_calls_over_stdio(peers: Peers, client: str, mode: str, tmp_path: Path) -> None:
    path = tmp_path / "config.json"
    path.write_text(json.dumps(make_config(peers)), encoding="utf-8")
    arguments = ["-m", "gateway", "serve", "--config", str(path)]
    job = {"command": sys.executable, "args": arguments, "mode": mode, "calls": CALLS}
    check_report(await converse(peers, client, job), mode)


async def test_only_names_are_changed(peers: Peers) -> None:
    """Tools and results of a legacy server, as JSON, against what it says directly."""
    server = peers.servers["everything"]
    async with run_process([server["command"], *server["args"]]) as running:
        assert running.process.stdin is not None
        assert running.process.stdout is not None
        direct = await ask_all(StdioClient(running.process.stdin, running.process.stdout), "")
    config = {"mcpServers": {"everything": server}, "gateway": {"start_grace": START_GRACE}}
    async with open_gateway_process(config, transport="stdio") as gateway:
        assert gateway.stdio is not None
        through = await ask_all(gateway.stdio, "everything.")
    assert through["results"] == direct["results"]
    for name, tool in direct["tools"].items():
        if tool["execution"] != {"taskSupport": "forbidden"}:
            del tool["execution"]  # whether a call becomes a task is between the gateway and the server
            through["tools"][name].pop("execution", None)
    # It offers more to a client that can be asked, and to the server the gateway is one.
    assert {name: through["tools"].get(name) for name in direct["tools"]} == direct["tools"]


async def ask_all(client: StdioClient, prefix: str) -> dict[str, Any]:
    """What the server lists and answers, with the prefix taken off."""
    await client.initialize()
    tools = (await client.request("tools/list"))["result"]["tools"]
    for tool in tools:
        tool["name"] = tool["name"].removeprefix(prefix)
    calls = [(name.removeprefix("everything."), given) for name, given in CALLS if name.startswith("everything.")]
    results = [(await client.call_tool(prefix + name, given))["result"] for name, given in calls]
    return {"tools": {tool["name"]: tool for tool in tools}, "results": results}
