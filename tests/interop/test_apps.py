"""Public example servers of MCP Apps, and a host and apps on its SDK: what works directly works through the gateway.

The apps run in Node, where the script of a page would run; the pages themselves need a browser.
"""

from __future__ import annotations

import json
import subprocess
from typing import TYPE_CHECKING, Any

import pytest
import trio

from tests.support.gateway_process import open_gateway_process

if TYPE_CHECKING:
    from tests.interop.conftest import Peers

SHOW_WITHIN = 90.0  # seconds; a host calls six tools at most
CLASH = "ui://mcp+react/get-time/mcp-app.html"


async def show(peers: Peers, **job: Any) -> dict[str, Any]:
    """What the host found: see `clients/app_host.mjs`."""
    command = [*peers.clients["app-host"], json.dumps(job)]
    with trio.fail_after(SHOW_WITHIN):
        done = await trio.run_process(
            command, stdin=subprocess.DEVNULL, capture_stdout=True, capture_stderr=True, check=False
        )
    assert done.returncode == 0, done.stderr.decode()
    return json.loads(done.stdout)


def shape(result: dict[str, Any]) -> list[str]:
    """What does not differ from one call to the next."""
    return sorted(result["structuredContent"])


@pytest.mark.parametrize("mode", ["legacy", "auto"])
async def test_apps_work_through_the_gateway_as_directly(peers: Peers, mode: str) -> None:
    pairs = {"monitor": ("get-system-info", "poll-system-stats"), "vanilla": ("get-time", "get-time")}
    config = {"mcpServers": peers.apps, "gateway": {"start_grace": 30}}
    async with open_gateway_process(config) as gateway:
        shows = [[f"{name}.{tool}", called] for name, (tool, called) in pairs.items()]
        through = await show(peers, url=gateway.url, mode=mode, shows=[*shows, ["react.get-time", "get-time"]])
    *found, clash = through["found"]
    for (name, pair), entry in zip(pairs.items(), found, strict=True):
        direct = await show(peers, **peers.apps[name], mode=mode, shows=[pair])
        (wanted,) = direct["found"]
        assert entry["page"] == wanted["page"]
        assert entry["context"] == f"{name}.{wanted['context']}"
        assert shape(entry["result"]) == shape(wanted["result"])
        visible = {f"{name}.{tool}": visibility for tool, visibility in direct["visibility"].items()}
        assert visible.items() <= through["visibility"].items()
    assert through["visibility"]["monitor.poll-system-stats"] == ["app"]
    # The same page and tool again: the page is told apart, and the call reaches no other server than it is meant for.
    assert clash["page"] == found[1]["page"] | {"uri": CLASH}
    assert "react.get-time or vanilla.get-time" in clash["error"]


async def test_a_view_for_each_server_has_no_clash(peers: Peers) -> None:
    servers = {name: peers.apps[name] for name in ("vanilla", "react")}
    views = {name: {"servers": [name]} for name in servers}
    config = {"mcpServers": servers, "views": views, "gateway": {"start_grace": 30}}
    async with open_gateway_process(config) as gateway:
        for name in servers:
            shows = [[f"{name}.get-time", "get-time"]]
            found = (await show(peers, url=f"{gateway.url}/{name}", mode="auto", shows=shows))["found"]
            assert found[0]["result"]["content"][0]["text"].endswith("Z")  # the time
