"""Servers refusing the era probe or newest version: each opens and serves a call."""

from __future__ import annotations

import json
from contextlib import asynccontextmanager
from typing import TYPE_CHECKING, Any

import pytest
import trio

from gateway.backends.http.detect import HttpOpener
from gateway.backends.opener import SessionOpener
from gateway.backends.opening import EraRecords
from gateway.calls import Era
from gateway.config import parse_server
from gateway.errors import BackendError, BackendExited, BackendProtocol
from gateway.processes.guard import open_guard
from tests.faults.corpus import probe
from tests.faults.corpus.http_player import HttpPlayer, SsePlayer
from tests.faults.corpus.player import read_log, server
from tests.peers.http_peer import open_peer
from tests.support.http_sessions import Received, call, first, open_session, text_of

if TYPE_CHECKING:
    from collections.abc import AsyncGenerator, Iterable
    from pathlib import Path

    from gateway.backends.session.interface import Session
    from gateway.config import ServerConfig

SHUTDOWN_GRACE = [0.2, 0.2, 0.5]
WITHIN = 20.0
PROBE_TIMEOUT = 0.3  # seconds; long for servers that answer, short for those that do not
NEWEST = "initialize 2025-11-25"


def rows(*tables: Iterable[probe.Row]) -> pytest.MarkDecorator:
    found = [row for table in tables for row in table]
    return pytest.mark.parametrize("rules", [rules for _, rules in found], ids=[name for name, _ in found])


def versioned(make: Any) -> pytest.MarkDecorator:
    """Every refusal with every list of known versions."""
    params = [
        pytest.param(rules, known, id=f"{name} - {label}")
        for label, known in probe.KNOWN.items()
        for name, rules in make(known)
    ]
    return pytest.mark.parametrize(("rules", "known"), params)


def best(known: list[str]) -> str:
    return max(version for version in known if version in {"2025-06-18", "2025-03-26", "2024-11-05"})


@asynccontextmanager
async def open_stdio_session(
    rules: list[dict[str, Any]], log: Path, *, records: EraRecords | None = None, **fields: Any
) -> AsyncGenerator[Session]:
    """A session with a stdio server that plays these rules."""
    entry = {"shutdown_grace": SHUTDOWN_GRACE, "probe_timeout": PROBE_TIMEOUT, **fields}
    async with open_with(parse_server("b", server(rules, log, **entry), environ={}), records) as session:
        yield session


@asynccontextmanager
async def open_with(config: ServerConfig, records: EraRecords | None = None) -> AsyncGenerator[Session]:
    """Open a session with any stdio server; raise its end as one error."""
    try:
        with trio.fail_after(WITHIN):
            async with (
                open_guard(subreaper=False) as guard,
                SessionOpener(guard, name="g", records=records)(config, Received()) as session,
            ):
                yield session
    except BaseExceptionGroup as group:
        raise first(group) from group


async def serves(session: Session, version: str = "2025-11-25") -> None:
    assert (session.greeting.era, session.greeting.version) == (Era.LEGACY, version)
    assert json.loads(text_of(await call(session, "t", {"a": 1}))) == {"a": 1}


# -- the probe ---------------------------------------------------------------------------------------------------------


@rows(probe.ENDS)
async def test_a_process_exiting_at_the_probe_is_restarted(rules: Any, tmp_path: Path) -> None:
    records = EraRecords()
    log = tmp_path / "log"
    async with open_stdio_session(rules, log, records=records) as session:
        await serves(session)
    assert [line for line in read_log(log) if line in {"start", "server/discover"}] == [
        "start", "server/discover", "start"
    ]  # fmt: skip
    log.unlink()
    async with open_stdio_session(rules, log, records=records) as session:  # and the next time it is not probed
        await serves(session)
    assert read_log(log)[:2] == ["start", NEWEST]


@rows(probe.ANSWERS)
async def test_a_process_refusing_the_probe_gets_initialize(rules: Any, tmp_path: Path) -> None:
    began = trio.current_time()
    async with open_stdio_session(rules, tmp_path / "log", probe_timeout=15) as session:
        assert trio.current_time() - began < 10
        await serves(session, "2025-06-18" if "2025-06-18" in str(rules) else "2025-11-25")
    assert read_log(tmp_path / "log")[:2] == ["start", "server/discover"]
    assert read_log(tmp_path / "log").count("start") == 1


@rows(probe.SILENCES)
async def test_a_silent_process_gets_initialize_after_the_timeout(rules: Any, tmp_path: Path) -> None:
    async with open_stdio_session(rules, tmp_path / "log") as session:
        await serves(session)
    assert read_log(tmp_path / "log")[:3] == ["start", "server/discover", NEWEST]


@rows(probe.HTTP, [row for row in probe.ANSWERS if "legacy versions" not in row[0]])
async def test_an_http_server_refusing_the_probe_gets_initialize(rules: Any) -> None:
    opener = HttpOpener()
    async with open_peer(HttpPlayer(rules)) as peer:
        for _ in range(2):
            async with open_session(
                peer.url, opener=opener, transport="streamable-http", probe_timeout=PROBE_TIMEOUT
            ) as session:
                await serves(session)
        assert len(peer.all("server/discover")) == 1


@pytest.mark.parametrize("then", ["cut", None])
async def test_an_sse_server_dropping_posts_is_still_detected(then: str | None) -> None:
    class Dropping(SsePlayer):
        async def __call__(self, request: Any, reply: Any) -> None:
            if request.method == "POST" and request.target != self.endpoint:
                await (reply.cut() if then else reply.send(405))
                return
            await super().__call__(request, reply)

    async with open_peer(Dropping([])) as peer, open_session(peer.url) as session:
        await serves(session)


@pytest.mark.parametrize("code", [-32020, -32021, -32022])
async def test_a_modern_refusal_is_not_answered_by_initialize(code: int, tmp_path: Path) -> None:
    error = {
        "jsonrpc": "2.0",
        "id": "$id",
        "error": {"code": code, "message": "no", "data": {"supported": ["2099-01-01"]}},
    }
    rules = [{"method": probe.PROBE, "say": [error]}]
    with pytest.raises(BackendProtocol, match="none of our protocol versions"):
        async with open_stdio_session(rules, tmp_path / "log"):
            pytest.fail("opened")
    assert read_log(tmp_path / "log") == ["start", "server/discover"]


@pytest.mark.parametrize("action", [{"then": "exit 1"}, {"say": [probe.NO_ID]}, {"say": [probe.ERROR]}, {"say": []}])
async def test_a_slow_start_may_answer_the_probe_late(action: Any, tmp_path: Path) -> None:
    entry = server([{"method": probe.PROBE, **action}], tmp_path / "log")
    slow = ["-c", 'sleep 0.5; exec "$@"', "sh", entry["command"], *entry["args"]]
    fields = {"probe_timeout": 0.1, "shutdown_grace": SHUTDOWN_GRACE}
    async with open_with(parse_server("b", {"command": "sh", "args": slow, **fields}, environ={})) as session:
        await serves(session)
    again = ["start"] if "then" in action else []
    assert (
        read_log(tmp_path / "log")[:4] == ["start", "server/discover", *again, NEWEST, "notifications/initialized"][:4]
    )


@pytest.mark.parametrize("era", ["auto", "legacy", "modern"])
@pytest.mark.parametrize("script", ["exit 3", "echo hello; exit 3"])
async def test_a_process_exiting_before_reading_starts_once(era: str, script: str, tmp_path: Path) -> None:
    log = tmp_path / "log"
    config = parse_server("b", {"command": "sh", "args": ["-c", f"echo x >> {log}; {script}"], "era": era}, environ={})
    with pytest.raises(BackendExited):
        async with open_with(config):
            pytest.fail("opened")
    assert log.read_text() == "x\n"


async def test_versions_are_tried_on_further_processes_once_only(tmp_path: Path) -> None:
    rules = [{"then": "exit 1"}]
    records = EraRecords()
    log = tmp_path / "log"
    found = []
    for _ in range(2):
        with pytest.raises(BackendExited):
            async with open_stdio_session(rules, log, records=records):
                pytest.fail("opened")
        found.append([line for line in read_log(log) if line != "start"])
        log.unlink()
    walk = [f"initialize {version}" for version in ("2025-11-25", "2025-06-18", "2025-03-26", "2024-11-05")]
    assert found == [["server/discover", NEWEST, *walk], ["server/discover", NEWEST]]


async def test_a_process_hanging_after_the_probe_skips_it(tmp_path: Path) -> None:
    rules = [{"method": probe.PROBE, "then": "deaf"}]
    records = EraRecords()
    log = tmp_path / "log"
    with pytest.raises((BackendError, trio.TooSlowError)):
        async with open_stdio_session(rules, log, records=records, connect_timeout=1.5):
            pytest.fail("opened")
    async with open_stdio_session(rules, log, records=records, connect_timeout=1.5) as session:
        await serves(session)
    assert read_log(log)[:4] == ["start", "server/discover", "start", NEWEST]


@pytest.mark.parametrize(("era", "sent"), [("legacy", NEWEST), ("modern", "server/discover")])
async def test_a_pinned_era_stays_pinned(era: str, sent: str, tmp_path: Path) -> None:
    rules = [{"then": "exit 1"}]
    with pytest.raises(BackendExited):
        async with open_stdio_session(rules, tmp_path / "log", era=era):
            pytest.fail("opened")
    methods = {line.split(maxsplit=1)[0] for line in read_log(tmp_path / "log")}
    assert methods == {"start", sent.split(maxsplit=1)[0]}


@pytest.mark.parametrize("then", ["exit 1", "close"])
async def test_a_process_exiting_once_keeps_the_newest_version(then: str, tmp_path: Path) -> None:
    rules = [{"method": "initialize", "times": 1, "then": then}]
    async with open_stdio_session(rules, tmp_path / "log", era="legacy") as session:
        await serves(session)


@pytest.mark.parametrize("player", [HttpPlayer, SsePlayer])
async def test_a_connection_ending_once_keeps_the_newest_version(player: Any) -> None:
    rules = [{"method": "initialize", "times": 1, "then": "cut"}]
    transport = "sse" if player is SsePlayer else "streamable-http"
    async with open_peer(player(rules)) as peer, open_session(peer.url, transport=transport) as session:
        await serves(session)


# -- versions ----------------------------------------------------------------------------------------------------------


@versioned(probe.refusals)
async def test_a_process_refusing_a_version_gets_another(rules: Any, known: list[str], tmp_path: Path) -> None:
    async with open_stdio_session(rules, tmp_path / "log", era="legacy") as session:
        await serves(session, best(known))
    assert read_log(tmp_path / "log").count("start") == 1


@versioned(probe.ends)
async def test_a_process_exiting_at_a_version_gets_another(rules: Any, known: list[str], tmp_path: Path) -> None:
    records = EraRecords()
    log = tmp_path / "log"
    async with open_stdio_session(rules, log, records=records) as session:
        await serves(session, best(known))
    log.unlink()
    async with open_stdio_session(rules, log, records=records) as session:
        await serves(session, best(known))
    assert read_log(log)[:2] == ["start", f"initialize {best(known)}"]


@versioned(probe.http_refusals)
async def test_an_http_server_refusing_a_version_gets_another(rules: Any, known: list[str]) -> None:
    async with open_peer(HttpPlayer(rules)) as peer:
        async with open_session(peer.url, transport="streamable-http") as session:
            await serves(session, best(known))
        asked = [request for request in peer.requests if request.rpc == "initialize"]
        assert asked[-1].params["protocolVersion"] == best(known)
        for request in asked:
            assert request.headers.get("mcp-protocol-version") in {None, request.params["protocolVersion"]}
            assert "mcp-session-id" not in request.headers
        assert peer.all("tools/list")[0].headers["mcp-protocol-version"] == best(known)


@versioned(probe.sse_refusals)
async def test_an_sse_server_refusing_a_version_gets_another(rules: Any, known: list[str]) -> None:
    async with open_peer(SsePlayer(rules)) as peer, open_session(peer.url, transport="sse") as session:
        await serves(session, best(known))


@pytest.mark.parametrize("supported", [["2024-10-07"], ["2099-01-01", "draft"]])
async def test_without_a_common_version_initialize_is_sent_once(supported: list[str], tmp_path: Path) -> None:
    error = {"code": -32602, "message": "no", "data": {"supported": supported}}
    rules = [{"method": "initialize", "say": [{"jsonrpc": "2.0", "id": "$id", "error": error}]}]
    with pytest.raises(BackendProtocol, match=f"none of our protocol versions.*{supported[0]}"):
        async with open_stdio_session(rules, tmp_path / "log", era="legacy"):
            pytest.fail("opened")
    assert read_log(tmp_path / "log") == ["start", NEWEST]
