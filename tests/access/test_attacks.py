"""Attacks on the gateway and its other clients, with and without a key."""

from __future__ import annotations

import json
import logging
from typing import Any

import msgspec
import pytest
import trio
from trio.testing import MockClock

from gateway.audit import DENIED
from gateway.config import AuditSettings
from gateway.embed.mount import KeyCheck
from gateway.embed.native import open_gateway
from gateway.telemetry import SECRETS
from gateway.telemetry.formats import JsonLines
from tests.support.access import ADMIN_TOKEN, ALICE, BOB, HELLO, Harness, keys, make_config, open_harness, tool_call
from tests.support.fakes import FakeExchange, settle

HELLO_MESSAGE = {"jsonrpc": "2.0", "id": 0, "method": "initialize", "params": HELLO}


async def try_session(harness: Harness, key: str) -> int:
    return (await harness.start("POST", "/mcp", HELLO_MESSAGE, key=key)).status


async def test_one_key_cannot_take_all_sessions(autojump_clock: MockClock) -> None:
    async with open_harness(keys(max_sessions=2)) as harness:
        harness.mcp.endpoint.sessions._most = 6
        assert [await try_session(harness, ALICE) for _ in range(3)] == [200, 200, 429]
        assert [await try_session(harness, BOB) for _ in range(4)] == [
            200,
            200,
            200,
            429,
        ]  # half of them by default
        streams = [await harness.start("GET", "/sse", key=ALICE) for _ in range(3)]
        assert [stream.status for stream in streams] == [200, 200, 429]
        assert "max_sessions" in json.loads(streams[2].body)["error"]["message"]


async def test_abandoned_sessions_make_room_for_their_own_client(autojump_clock: MockClock) -> None:
    async with open_harness(keys(max_sessions=1)) as harness:
        first = await harness.initialize()
        bobs = await harness.initialize(BOB)
        await trio.sleep(100)
        second = await harness.initialize()
        ping = {"jsonrpc": "2.0", "id": 1, "method": "ping"}
        found = [(first, ALICE), (second, ALICE), (bobs, BOB)]
        assert [
            (await harness.start("POST", "/mcp", ping, key=key, mcp_session_id=one)).status for one, key in found
        ] == [
            404,
            200,
            200,
        ]


@pytest.mark.parametrize("name", ["authorization", "x-api-key", "host", "origin", "mcp-session-id"])
async def test_duplicate_security_headers_are_refused(name: str, autojump_clock: MockClock) -> None:
    async with open_harness(keys()) as harness:
        fake = FakeExchange(
            json.dumps(tool_call(modern=False)).encode(),
            headers={"host": "localhost", "authorization": f"Bearer {ALICE}", "content-type": "application/json"},
        )
        fake.scope["headers"] += [(name.encode(), b"x"), (name.encode(), b"y")]
        harness.nursery.start_soon(harness.frontend, fake.scope, fake.receive, fake.send)
        await settle()
        assert (fake.status, harness.sent) == (400, 0)
        assert name in fake.body.decode()


async def test_streams_follow_the_current_rules(autojump_clock: MockClock) -> None:
    async with open_harness(keys(), "a", "b") as harness:
        listening = await harness.listen()
        session = await harness.initialize()
        stream = await harness.start("GET", "/mcp", key=ALICE, mcp_session_id=session)
        old = await harness.start("GET", "/sse", key=ALICE)
        narrow = make_config(keys(servers=["a"]), "a", "b").access
        assert narrow is not None
        harness.access.apply(narrow)
        await settle()
        for exchange in (listening, stream):  # their lists are outdated
            assert b"notifications/tools/list_changed" in exchange.body
        (subscription,) = harness.answers.listeners
        (kept,) = harness.mcp.sse._streams.values()
        (legacy,) = harness.mcp.endpoint.sessions._sessions.values()
        for scope in (subscription._caller.scope, kept.identity.scope, legacy.caller.scope):
            assert scope is not None
            assert scope.servers == ("a",)
        assert not old.ended


async def test_streams_end_when_their_key_loses_the_endpoint(autojump_clock: MockClock) -> None:
    async with open_harness(keys()) as harness:
        listening = await harness.listen()
        session = await harness.initialize()
        stream = await harness.start("GET", "/mcp", key=ALICE, mcp_session_id=session)
        old = await harness.start("GET", "/sse", key=ALICE)
        other = await harness.listen(key=BOB)
        narrow = make_config(keys(views=["small"])).access
        assert narrow is not None
        harness.access.apply(narrow)
        await settle()
        assert [exchange.ended for exchange in (listening, stream, old, other)] == [True, True, True, False]


async def test_rejected_requests_are_audited_at_a_bounded_rate(
    caplog: pytest.LogCaptureFixture, autojump_clock: MockClock
) -> None:
    async with open_harness(keys(views=["small"])) as harness:
        audit = harness.audit
        audit.apply(AuditSettings())
        await harness.call(key=ALICE)
        await harness.call(key="wrong-key-of-somebody")
        await harness.call(key=BOB, origin="https://evil.example")
        for _ in range(100):
            await harness.call(key=None)
        await trio.sleep(1_000)
        await harness.call(key=None)
        audit.apply(None)
        lines = [record.__dict__["fields"] for record in caplog.records if record.name == "gateway.audit"]
        assert [line["code"] for line in lines[:4]] == [403, 401, 403, 401]
        assert lines[0]["principal"] == "alice"
        assert {line["outcome"] for line in lines} == {"denied"}
        assert len(lines) == DENIED.burst + 1
        assert lines[-1]["suppressed"] == lines[-1]["untold"] == 103 - DENIED.burst
        assert "wrong-key" not in str(lines)


async def test_calls_that_a_frontend_refuses_are_audited(
    caplog: pytest.LogCaptureFixture, autojump_clock: MockClock
) -> None:
    async with open_harness(keys()) as harness:
        audit = harness.audit
        audit.apply(AuditSettings())
        session = await harness.initialize()
        await harness.call(session)
        again = tool_call(modern=False, request_id=harness._last_id)
        assert (await harness.start("POST", "/mcp", again, key=ALICE, mcp_session_id=session)).status == 400
        (found,) = harness.mcp.endpoint.sessions._sessions.values()
        found.in_flight._most = 1
        await harness.call(session)
        await harness.answer()
        audit.apply(None)
        lines = [record.__dict__["fields"] for record in caplog.records if record.name == "gateway.audit"]
        assert [(line["outcome"], line.get("reason")) for line in lines] == [
            ("refused", "duplicate_id"),
            ("refused", "busy"),
            ("answered", None),
        ]


def test_fields_of_json_lines_show_no_secret() -> None:
    SECRETS.replace(["hunter2-hunter2"])
    try:
        record = logging.makeLogRecord({"msg": "x", "levelname": "INFO", "name": "n"})
        record.__dict__["fields"] = {"client": "hunter2-hunter2", "arguments": msgspec.Raw(b'{"p":"hunter2-hunter2"}')}
        line = JsonLines().format(record)
    finally:
        SECRETS.replace([])
    assert "hunter2" not in line
    assert json.loads(line)["client"] == "***"


async def test_a_standalone_application_follows_the_config() -> None:
    page = "https://app.example"
    oauth = {"resource": "https://gw.example/mcp", "issuer": "https://login.example"}
    config = {"mcpServers": {}, "access": {"oauth": oauth}}
    with trio.fail_after(20):
        async with open_gateway(config) as running:

            async def ask(method: str, path: str, **headers: str) -> FakeExchange:
                fake = FakeExchange(method=method, headers={"host": "x", **headers})
                fake.scope["path"] = path
                await running.asgi_app(fake.scope, fake.receive, fake.send)
                return fake

            found = await ask("GET", "/.well-known/oauth-protected-resource/mcp")
            assert json.loads(found.body)["resource"] == oauth["resource"]
            assert (await ask("POST", "/mcp", origin=page)).status == 403
            await running.reload({**config, "access": {"oauth": oauth, "allow_origins": [page]}})
            allowed = await ask("POST", "/mcp", origin=page)
            assert (allowed.status, allowed.headers["access-control-allow-origin"]) == (401, page)


@pytest.mark.parametrize("path", ["/servers", "/tools"])
async def test_the_management_api_is_closed_through_a_proxy(path: str, autojump_clock: MockClock) -> None:
    """Behind a proxy on the same machine, every client comes from loopback."""
    async with open_harness({**keys(), "allow_hosts": ["gw.example"]}) as harness:
        for headers in ({"host": "gw.example"}, {"x_forwarded_for": "192.0.2.1"}, {"forwarded": "for=192.0.2.1"}):
            assert (await harness.start("GET", path, **headers)).status == 401
            assert (await harness.start("GET", path, key=ADMIN_TOKEN, **headers)).status == 200


RIGHT, WRONG = ALICE.encode(), b"wrong"
CREDENTIALS = {
    "right": (200, [(b"authorization", b"Bearer " + RIGHT)]),
    "scheme in another case": (200, [(b"authorization", b"bEaReR  " + RIGHT + b" ")]),
    "right in the other header": (200, [(b"x-api-key", b" " + RIGHT)]),
    "none": (401, []),
    "wrong": (401, [(b"authorization", b"Bearer " + WRONG)]),
    "another scheme": (401, [(b"authorization", b"Basic " + RIGHT)]),
    "no scheme": (401, [(b"authorization", RIGHT)]),
    "empty": (401, [(b"authorization", b"Bearer "), (b"x-api-key", b"")]),
    "the same key twice": (400, [(b"authorization", b"Bearer " + RIGHT)] * 2),
    "right, then wrong": (400, [(b"authorization", b"Bearer " + RIGHT), (b"authorization", b"Bearer " + WRONG)]),
    "wrong, then right": (400, [(b"authorization", b"Bearer " + WRONG), (b"authorization", b"Bearer " + RIGHT)]),
    "another scheme, then right": (400, [(b"authorization", b"Basic x"), (b"authorization", b"Bearer " + RIGHT)]),
    "x-api-key twice": (400, [(b"x-api-key", RIGHT)] * 2),
    "x-api-key right, then wrong": (400, [(b"x-api-key", RIGHT), (b"x-api-key", WRONG)]),
    "both right": (200, [(b"authorization", b"Bearer " + RIGHT), (b"x-api-key", RIGHT)]),
    "right and a wrong x-api-key": (200, [(b"authorization", b"Bearer " + RIGHT), (b"x-api-key", WRONG)]),
    "wrong and a right x-api-key": (401, [(b"x-api-key", RIGHT), (b"authorization", b"Bearer " + WRONG)]),
    "another scheme and a right x-api-key": (401, [(b"authorization", b"Basic x"), (b"x-api-key", RIGHT)]),
    "joined by a comma": (401, [(b"authorization", b"Bearer " + RIGHT + b", Bearer " + RIGHT)]),
    "joined without a space": (401, [(b"authorization", b"Bearer " + RIGHT + b",Bearer " + WRONG)]),
    "wrong, joined with right": (401, [(b"authorization", b"Bearer " + WRONG + b", Bearer " + RIGHT)]),
    "x-api-key joined by a comma": (401, [(b"x-api-key", RIGHT + b", " + RIGHT)]),
    "origin twice": (400, [(b"authorization", b"Bearer " + RIGHT), *[(b"origin", b"http://localhost")] * 2]),
    "another header twice": (200, [(b"authorization", b"Bearer " + RIGHT), *[(b"accept-language", b"en")] * 2]),
}


@pytest.mark.parametrize("what", CREDENTIALS)
async def test_credentials_mean_the_same_in_every_frontend(what: str, autojump_clock: MockClock) -> None:
    """Streamable HTTP, SSE and the embedded mount, which checks keys before the frontends."""
    wanted, headers = CREDENTIALS[what]

    def exchange() -> FakeExchange:
        one = FakeExchange(json.dumps(HELLO_MESSAGE).encode(), headers={"host": "localhost"})
        one.scope["headers"] += [(b"content-type", b"application/json"), (b"accept", b"*/*"), *headers]
        return one

    async def passed(_scope: object, _receive: object, send: Any) -> None:
        await send({"type": "http.response.start", "status": 200, "headers": []})
        await send({"type": "http.response.body", "body": b""})

    async with open_harness(keys()) as harness:
        outcomes: dict[str, tuple[int, bytes]] = {}
        for place, app in {
            "mount": KeyCheck(passed, ALICE),
            "/mcp": harness.frontend,
            "/sse": harness.frontend,
        }.items():
            one = exchange()
            if place == "/sse":
                one.scope |= {"path": "/sse", "method": "GET"}
            harness.nursery.start_soon(app, one.scope, one.receive, one.send)
            await settle()
            outcomes[place] = (one.status, one.body if one.status == 400 else b"")
        assert {status for status, _ in outcomes.values()} == {wanted}, outcomes
        assert len(set(outcomes.values())) == 1, outcomes


@pytest.mark.parametrize("path", ["/mcp", "/servers", "/health"])
@pytest.mark.parametrize("name", ["host", "origin", "authorization", "x-api-key", "mcp-session-id"])
async def test_a_repeated_header_that_decides_is_refused(path: str, name: str, autojump_clock: MockClock) -> None:
    async with open_harness(keys()) as harness:
        exchange = FakeExchange(method="GET", headers={"host": "localhost", "authorization": f"Bearer {ADMIN_TOKEN}"})
        given = dict(exchange.scope["headers"]).get(name.encode(), b"http://localhost")
        repeated = [(name.encode(), given)] * 2
        exchange.scope |= {"path": path, "headers": [*exchange.scope["headers"], *repeated]}
        await harness.frontend(exchange.scope, exchange.receive, exchange.send)
        assert exchange.status == 400
        assert name in exchange.body.decode()
