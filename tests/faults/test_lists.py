"""Backends whose lists go wrong, in both eras and every transport: the rest is served."""

from __future__ import annotations

import json
from contextlib import asynccontextmanager
from typing import TYPE_CHECKING, Any

import pytest
import trio

import gateway
from gateway.eras.methods import Kind
from tests.faults.corpus import lists
from tests.faults.corpus.http_player import HttpPlayer, SsePlayer
from tests.faults.corpus.player import server
from tests.peers.http_peer import HttpPeer
from tests.support.gateway_process import ANSWER_WITHIN

if TYPE_CHECKING:
    from collections.abc import AsyncGenerator, Mapping

    from gateway.embed.native import EmbeddedGateway
    from gateway.inflight.pending import PendingCall
    from gateway.supervisor.supervisor import Supervisor

WAYS = [("stdio", "legacy"), ("stdio", "modern"), ("http", "legacy"), ("http", "modern"), ("sse", "legacy")]
QUICK = {"connect_timeout": 4, "shutdown_grace": [0.3, 0.3, 1]}


@asynccontextmanager
async def open_rows(
    rows: Mapping[str, Any], transport: str, era: str, **kwargs: Any
) -> AsyncGenerator[EmbeddedGateway]:
    """A gateway with one backend for each row."""
    servers: dict[str, Any] = {}
    async with trio.open_nursery() as nursery:
        for name, row in rows.items():
            rules = lists.rules(row, era)
            if transport == "stdio":
                servers[name] = server(rules, era=era, **QUICK)
                continue
            peer = HttpPeer(HttpPlayer(rules) if transport == "http" else SsePlayer(rules))
            (listener,) = await nursery.start(peer.listen)
            url = f"http://127.0.0.1:{listener.socket.getsockname()[1]}/mcp"
            kind = {"http": "streamable-http", "sse": "sse"}[transport]
            servers[name] = {"url": url, "transport": kind, "era": era, **QUICK}
        config = {"mcpServers": servers, "gateway": {"start_grace": 10, **kwargs}}
        async with gateway.open_gateway(config) as gw:
            yield gw
        nursery.cancel_scope.cancel()


async def wait_warnings(gw: EmbeddedGateway, name: str, *, wanted: bool) -> tuple[str, ...]:
    """Wait until a backend has warnings, or has none."""
    while bool(warnings := gw.status()[name].warnings) is not wanted:
        changed = trio.Event()

        def note(
            _supervisor: Supervisor, _pending: PendingCall | None, _seconds: float, event: trio.Event = changed
        ) -> None:
            event.set()

        gw.fleet.observe(note)
        await changed.wait()
        gw.fleet.unobserve(note)
    return warnings


def names(gw: EmbeddedGateway, kind: Kind) -> dict[str, list[str]]:
    return {
        name: [public.removeprefix(f"{name}.") for public, _ in gw.fleet.snapshot().listed_by_backend(kind)[name]]
        for name in gw.status()
        if name in gw.fleet.snapshot().listed_by_backend(kind)
    }


@pytest.mark.parametrize("way", WAYS, ids="-".join)
async def test_valid_entries_are_served_with_a_warning(way: tuple[str, str]) -> None:
    rows = lists.ROWS | lists.HTTP_ROWS if way[0] == "http" else lists.ROWS
    with trio.fail_after(ANSWER_WITHIN * 2):
        async with open_rows(rows, *way) as gw:
            await gw.fleet.first_starts()
            status = gw.status()
            tools, prompts = names(gw, Kind.TOOLS), names(gw, Kind.PROMPTS)
    for name, row in rows.items():
        assert status[name].state == "ready", (name, status[name].last_error)
        assert (name, tools.get(name, [])) == (name, row["tools"])
        assert (name, prompts.get(name, [])) == (name, row["prompts"])
        assert len(status[name].warnings) == len(row["warnings"]), status[name].warnings
        for warning, text in zip(status[name].warnings, row["warnings"], strict=True):
            assert text in warning


RELISTED = {
    # name: the second answer to tools/list, what is listed then, part of the warning
    "unknown": (lists.error(-32601, "gone"), ["t"], "keeping the 1 tools listed before"),
    "broken": (lists.error(-32603, "broken"), ["t"], "keeping the 1 tools listed before"),
    "wrong_type": (lists.result(tools="none"), ["t"], "keeping the 1 tools listed before"),
    "null": (lists.result(tools=None), [], "it counts as an empty list"),
    "other": (lists.result(tools=[lists.tool("u"), lists.tool("bad", {})]), ["u"], "tools[1] left out"),
}


@pytest.mark.parametrize("transport", ["stdio", "sse"])
async def test_a_failed_list_update_keeps_the_old_one(transport: str) -> None:
    rows = {
        name: {
            "rules": [
                lists.rule("tools/list", lists.result(tools=[lists.tool("t")]), times=1),
                lists.rule("tools/list", answer, times=1),
                lists.rule("tools/list", lists.result(tools=[lists.tool("well")])),
                lists.rule("tools/call", lists.CHANGED, lists.result(content=[])),
            ]
        }
        for name, (answer, _, _) in RELISTED.items()
    }
    with trio.fail_after(ANSWER_WITHIN * 2):
        async with open_rows(rows, transport, "legacy") as gw:
            await gw.fleet.first_starts()
            for name, (_, served, warning) in RELISTED.items():
                await gw.call_tool(f"{name}.t", {})
                assert warning in json.dumps(await wait_warnings(gw, name, wanted=True))
                assert names(gw, Kind.TOOLS).get(name, []) == served
                if served:
                    await gw.call_tool(f"{name}.{served[0]}", {})
                    await wait_warnings(gw, name, wanted=False)
                    assert names(gw, Kind.TOOLS)[name] == ["well"]
