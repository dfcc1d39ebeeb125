"""Era records: when a server is probed, and how the record changes."""

from __future__ import annotations

import json
import os
import time
from contextlib import asynccontextmanager
from typing import TYPE_CHECKING, Any

import pytest
import trio

from gateway.backends.http.detect import HttpOpener
from gateway.backends.opening import EraRecords
from gateway.calls import Era
from gateway.config import parse_server
from gateway.errors import BackendError
from gateway.store import ERA_MAX_AGE, Store
from tests.faults.corpus.http_player import HttpPlayer
from tests.faults.corpus.player import read_log, server
from tests.peers.http_peer import HttpPeer, LegacyServer, ModernServer, SseServer, open_peer
from tests.support.fakes import SOON
from tests.support.gateway_process import HttpClient, open_gateway_process
from tests.support.http_sessions import make_config, open_session

if TYPE_CHECKING:
    from collections.abc import AsyncGenerator
    from pathlib import Path

PROBE = "server/discover"


class Clock:
    def __init__(self) -> None:
        self.now = time.time()

    def __call__(self) -> float:
        return self.now


class Rig:
    """One server, and gateways that start it one after the other over one state directory."""

    def __init__(self, peer: HttpPeer, store: Store | None) -> None:
        self.peer = peer
        self.store = store
        self.clock = Clock()
        self.records = EraRecords(store, clock=self.clock)

    def restart_gateway(self) -> None:
        self.records = EraRecords(self.store, clock=self.clock)

    async def start(self, query: str = "", **fields: Any) -> list[str]:
        """Open a session and end it; return the first request to the server."""
        seen = len(self.peer.requests)
        async with open_session(self.peer.url + query, opener=HttpOpener(self.records), **fields):
            pass
        return [request.rpc for request in self.peer.requests[seen:]][:2]

    async def is_probed(self, query: str = "", **fields: Any) -> bool:
        return (await self.start(query, **fields))[0] == PROBE

    def kept(self) -> list[Path]:
        assert self.store is not None
        return sorted((self.store.directory / "eras").glob("*.json"))


@asynccontextmanager
async def rig(tmp_path: Path | None, rules: Any = (), handler: Any = None) -> AsyncGenerator[Rig]:
    async with open_peer(handler or HttpPlayer(list(rules))) as peer:
        yield Rig(peer, None if tmp_path is None else Store(tmp_path / "state"))


def info(version: str, **kwargs: Any) -> dict[str, Any]:
    """A rule with which the server names this version of its own."""
    result = {
        "protocolVersion": "2025-11-25",
        "capabilities": {"tools": {}},
        "serverInfo": {"name": "player", "version": version},
    }
    return {"method": "initialize", "body": {"jsonrpc": "2.0", "id": "$id", "result": result}, **kwargs}


@pytest.mark.parametrize("is_stored", [True, False])
async def test_a_server_is_probed_once(is_stored: bool, tmp_path: Path) -> None:
    async with rig(tmp_path if is_stored else None) as one:
        assert [await one.is_probed() for _ in range(3)] == [True, False, False]
        one.restart_gateway()
        assert await one.is_probed() is not is_stored


@pytest.mark.parametrize(
    ("changed", "is_probed"),
    [
        ({}, False),
        ({"query": "?other=1"}, True),
        ({"transport": "streamable-http"}, True),
        ({"call_timeout": 5}, False),
    ],
)
async def test_another_url_is_another_server(changed: dict[str, Any], is_probed: bool, tmp_path: Path) -> None:
    async with rig(tmp_path) as one:
        await one.start()
        assert await one.is_probed(**changed) is is_probed
        one.restart_gateway()
        assert await one.is_probed() is False  # that of the first one is kept


@pytest.mark.parametrize(
    ("fields", "is_other"),
    [
        ({"command": "y"}, True),
        ({"args": ["b"]}, True),
        ({"args": ["a", "b"]}, True),
        ({"cwd": "/"}, True),
        ({"era": "legacy"}, True),
        ({"env": {"A": "1"}}, False),
        ({"start": "lazy"}, False),
    ],
)
async def test_another_command_line_is_another_server(fields: dict[str, Any], is_other: bool, tmp_path: Path) -> None:
    store = Store(tmp_path / "state")
    async with rig(None) as one:
        await one.start()
        record = one.records._known["b"].record
    assert record is not None
    base = {"command": "x", "args": ["a"]}
    store.save_era(parse_server("b", base, environ={}), record)
    found = store.load_era(parse_server("b", base | fields, environ={}))
    assert (found is None) is is_other


@pytest.mark.parametrize(("days", "is_probed"), [(0.1, False), (6.9, False), (7.1, True), (400, True), (-0.1, True)])
@pytest.mark.parametrize("restarts", [False, True])
async def test_a_record_holds_for_seven_days(days: float, is_probed: bool, restarts: bool, tmp_path: Path) -> None:
    async with rig(tmp_path) as one:
        await one.start()
        await one.start()  # using a record does not make it younger
        one.clock.now += days * 86_400
        if restarts:
            one.restart_gateway()
        assert await one.is_probed() is is_probed
        assert await one.is_probed() is False


async def test_another_version_of_the_server_discards_the_record(tmp_path: Path) -> None:
    async with rig(tmp_path, [info("1", times=3), info("2", times=2)]) as one:
        # the fourth start goes by the record, and finds version 2
        assert [await one.is_probed() for _ in range(5)] == [True, False, False, False, True]


@pytest.mark.parametrize("restarts", [False, True])
async def test_a_failed_start_discards_the_record(restarts: bool, tmp_path: Path) -> None:
    async with rig(tmp_path) as one:
        await one.start()
        one.peer.handler.rules = [{"method": "tools/list", "status": 500}]  # type: ignore[attr-defined] - a scripted handler
        one.peer.handler.played = [0]  # type: ignore[attr-defined] - a scripted handler
        assert one.kept()
        with pytest.raises(BackendError):
            await one.start()
        assert not one.kept()
        one.peer.handler.rules = []  # type: ignore[attr-defined] - a scripted handler
        if restarts:
            one.restart_gateway()
        assert await one.is_probed()


async def test_an_unreachable_server_keeps_its_record(tmp_path: Path) -> None:
    async with rig(tmp_path) as one:
        await one.start()
        url = one.peer.url
    with pytest.raises(BackendError, match="reached"):
        async with open_session(url, opener=HttpOpener(one.records)):
            pytest.fail("opened")
    assert one.kept()


@pytest.mark.parametrize(
    ("make", "era", "transport", "asked"),
    [
        (LegacyServer, Era.LEGACY, "streamable-http", "2025-11-25"),
        (ModernServer, Era.MODERN, "streamable-http", ""),
        (SseServer, Era.LEGACY, "sse", "2025-11-25"),
    ],
)
async def test_a_record_holds_era_and_transport(
    make: Any, era: Era, transport: str, asked: str, tmp_path: Path
) -> None:
    async with rig(tmp_path, handler=make()) as one:
        await one.start()
        assert one.store is not None
        record = one.store.load_era(make_config(one.peer.url))
    assert record is not None
    assert (record.era, record.transport, record.asked, record.eras) == (era, transport, asked, [era])
    assert record.offered == (record.version,)
    if era is Era.LEGACY:
        assert json.loads(bytes(record.server_info)) == {"name": "peer", "version": "1"}


async def test_a_dual_era_server_is_recorded_with_both(tmp_path: Path) -> None:
    meta = {"io.modelcontextprotocol/serverInfo": {"name": "two", "version": "3"}}
    offered = ["2026-07-28", "2025-11-25", "2025-06-18"]
    result = {"resultType": "complete", "supportedVersions": offered, "capabilities": {}, "_meta": meta}
    rules = [{"method": PROBE, "body": {"jsonrpc": "2.0", "id": "$id", "result": result}}]
    async with rig(tmp_path, rules) as one:
        await one.start()
        record = one.records._known["b"].record
    assert record is not None
    assert (record.era, record.eras, record.offered) == (Era.MODERN, [Era.LEGACY, Era.MODERN], tuple(offered))
    assert json.loads(bytes(record.server_info)) == {"name": "two", "version": "3"}


DISCOVERED = {
    "method": PROBE,
    "body": {
        "jsonrpc": "2.0",
        "id": "$id",
        "result": {"resultType": "complete", "supportedVersions": ["2026-07-28"], "capabilities": {}},
    },
}
"""A server on an SDK that serves both eras lists only the modern versions."""


async def test_a_session_opens_in_its_clients_era(tmp_path: Path) -> None:
    async with rig(tmp_path, [DISCOVERED]) as one:
        seen = [await one.start(clients=era) for era in (None, Era.LEGACY, Era.MODERN, Era.LEGACY, None)]
        assert [first for first, *_ in seen] == [PROBE, "initialize", PROBE, "initialize", PROBE]
        record = one.records._known["b"].record
    assert record is not None
    assert (record.era, record.refuses_legacy) == (Era.MODERN, False)


async def test_a_refused_era_is_tried_once(tmp_path: Path) -> None:
    async with rig(tmp_path, handler=ModernServer()) as one:
        await one.start()
        assert (await one.start(clients=Era.LEGACY))[0] == "initialize"
        one.restart_gateway()
        assert (await one.start(clients=Era.LEGACY))[0] == PROBE


async def test_an_unreachable_server_has_refused_no_era(tmp_path: Path) -> None:
    async with rig(tmp_path, [DISCOVERED]) as one:
        await one.start()
        url = one.peer.url
    with pytest.raises(BackendError, match="reached"):
        async with open_session(url, opener=HttpOpener(one.records), clients=Era.LEGACY):
            pytest.fail("opened")
    record = one.records._known["b"].record
    assert record is not None
    assert not record.refuses_legacy


@pytest.mark.parametrize("era", ["legacy", "modern"])
async def test_a_pin_is_not_changed_by_a_record(era: str, tmp_path: Path) -> None:
    async with rig(tmp_path, handler=LegacyServer() if era == "legacy" else ModernServer()) as one:
        for _ in range(2):
            first, *_ = await one.start(era=era)
            assert first == ("initialize" if era == "legacy" else PROBE)


@pytest.mark.parametrize("content", [b"", b"{", b"[]", b'{"format":1}', b'{"format":99,"server":"b","record":null}'])
async def test_a_broken_record_counts_as_absent(content: bytes, tmp_path: Path) -> None:
    async with rig(tmp_path) as one:
        await one.start()
        (path,) = one.kept()
        path.write_bytes(content)
        one.restart_gateway()
        assert await one.is_probed()
        one.restart_gateway()
        assert not await one.is_probed()


async def test_an_unwritable_state_directory_costs_only_the_record(tmp_path: Path) -> None:
    (tmp_path / "state").write_text("a file", encoding="ascii")
    async with rig(tmp_path) as one:
        assert [await one.is_probed() for _ in range(2)] == [True, False]


async def test_records_of_unused_servers_are_removed(tmp_path: Path) -> None:
    async with rig(tmp_path) as one:
        await one.start()
        (path,) = one.kept()
        old = one.clock.now - ERA_MAX_AGE - 3600
        os.utime(path, (old, old))
        await one.start("?other=1")
        assert path not in one.kept()
        assert len(one.kept()) == 1


# -- the whole gateway -------------------------------------------------------------------------------------------------


@pytest.mark.leak_check
@pytest.mark.parametrize("restart", [False, {"max_quick_failures": 1}])
async def test_exiting_at_the_probe_is_not_a_failure(restart: Any, tmp_path: Path) -> None:
    log = tmp_path / "log"
    entry = server([{"method": PROBE, "then": "exit 1"}], log, restart=restart)
    env = {"MCP_GATEWAY_STATE_DIR": str(tmp_path / "state")}
    for starts in (2, 3):  # and the next gateway knows
        async with open_gateway_process({"mcpServers": {"b": entry}}, env=env) as gateway:
            client = HttpClient(gateway.url)
            await client.initialize()
            with trio.fail_after(SOON):
                assert "result" in await client.call_tool("b.t")
            status = (await client.get("/health")).json()["backends"]["b"]
        assert (status["state"], status["restarts"], status["last_error"]) == ("ready", 0, None)
        assert read_log(log).count("start") == starts
        assert "next start in" not in gateway.stderr_text
