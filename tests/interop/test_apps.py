"""Public MCP Apps servers and hosts: the same directly and through the gateway.

Apps run in Node, where the script of a page would run, and in Chromium, where there is one. With PICTURE=FILE in the
environment the test in Chromium writes what it has seen, which is how the picture in the documentation is made.
"""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
from typing import TYPE_CHECKING, Any

import pytest
import trio

from tests.support.gateway_process import open_gateway_process

if TYPE_CHECKING:
    from tests.interop.conftest import AppPeers

pytestmark = pytest.mark.real("servers")

SHOW_WITHIN = 90.0  # seconds; a host calls six tools at most
CHROMIUM = shutil.which("chromium") or shutil.which("google-chrome")
CLASH = "ui://mcp+react/get-time/mcp-app.html"


async def show(host: list[str], **job: Any) -> Any:
    """Return what the host found: see `clients/app_host.mjs` and `clients/app_browser.mjs`."""
    command = [*host, json.dumps(job)]
    with trio.fail_after(SHOW_WITHIN):
        done = await trio.run_process(
            command, stdin=subprocess.DEVNULL, capture_stdout=True, capture_stderr=True, check=False
        )
    assert done.returncode == 0, done.stderr.decode()
    return json.loads(done.stdout)


def shape(result: dict[str, Any]) -> list[str]:
    """Return the parts that are equal in each call."""
    return sorted(result["structuredContent"])


@pytest.mark.parametrize("mode", ["legacy", "auto"])
async def test_apps_work_through_the_gateway_as_directly(app_peers: AppPeers, mode: str) -> None:
    pairs = {"monitor": ("get-system-info", "poll-system-stats"), "vanilla": ("get-time", "get-time")}
    config = {"mcpServers": app_peers.servers, "gateway": {"start_grace": 30}}
    async with open_gateway_process(config) as gateway:
        shows = [[f"{name}.{tool}", called] for name, (tool, called) in pairs.items()]
        through = await show(app_peers.host, url=gateway.url, mode=mode, shows=[*shows, ["react.get-time", "get-time"]])
    *found, clash = through["found"]
    for (name, pair), entry in zip(pairs.items(), found, strict=True):
        direct = await show(app_peers.host, **app_peers.servers[name], mode=mode, shows=[pair])
        (wanted,) = direct["found"]
        assert entry["page"] == wanted["page"]
        assert entry["context"] == f"{name}.{wanted['context']}"
        assert shape(entry["result"]) == shape(wanted["result"])
        visible = {f"{name}.{tool}": visibility for tool, visibility in direct["visibility"].items()}
        assert visible.items() <= through["visibility"].items()
    assert through["visibility"]["monitor.poll-system-stats"] == ["app"]
    # The same page and tool again: the page is disambiguated, and the call reaches only its own server.
    assert clash["page"] == found[1]["page"] | {"uri": CLASH}
    assert "react.get-time or vanilla.get-time" in clash["error"]


async def test_a_view_per_server_has_no_clash(app_peers: AppPeers) -> None:
    servers = {name: app_peers.servers[name] for name in ("vanilla", "react")}
    views = {name: {"servers": [name]} for name in servers}
    config = {"mcpServers": servers, "views": views, "gateway": {"start_grace": 30}}
    async with open_gateway_process(config) as gateway:
        for name in servers:
            shows = [[f"{name}.get-time", "get-time"]]
            found = (await show(app_peers.host, url=f"{gateway.url}/{name}", mode="auto", shows=shows))["found"]
            assert found[0]["result"]["content"][0]["text"].endswith("Z")  # the time


PAGES = [("monitor", "get-system-info", None, 3), ("vanilla", "get-time", "#get-time-btn", 1)]
"""Server, tool, the button that has the page call its server, and for how many calls to wait: one page polls."""


@pytest.mark.skipif(CHROMIUM is None, reason="chromium is not on PATH")
async def test_browser_pages_work_the_same_through_the_gateway(app_peers: AppPeers) -> None:
    config = {"mcpServers": {name: app_peers.servers[name] for name, *_ in PAGES}, "gateway": {"start_grace": 30}}
    async with open_gateway_process(config) as gateway:
        shows: list[dict[str, Any]] = []
        for name, tool, click, calls in PAGES:
            page = {"click": click, "calls": calls}
            shows += [
                page | {"title": f"{name}, directly", "target": app_peers.servers[name], "tool": tool},
                page
                | {"title": f"{name}, through the gateway", "target": {"url": gateway.url}, "tool": f"{name}.{tool}"},
            ]
        picture = os.environ.get("PICTURE")
        found = await show(app_peers.browser, browser=CHROMIUM, mode="auto", picture=picture, shows=shows)
    for direct, through in zip(found[::2], found[1::2], strict=True):
        assert set(through["called"]) == set(direct["called"])
        assert re.sub(r"[\d.]+", "0", through["after"]) == re.sub(r"[\d.]+", "0", direct["after"])
        assert through["after"] != through["before"]
