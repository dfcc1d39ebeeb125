"""Access control: authentication, and the sessions, calls and limits of a principal."""

from __future__ import annotations

import json
from typing import Any

import pytest
import trio
from trio.testing import MockClock

from gateway.access.keys import digest_in, digest_of, hash_key, make_key
from gateway.app import Gateway, Options
from gateway.backends.opener import SessionOpener
from gateway.calls import Caller, Era
from gateway.catalog.snapshot import Route
from gateway.config import parse_config
from gateway.embed.native import open_gateway
from gateway.errors import ConfigError, Revoked
from gateway.frontends.http.exchange import MAX_ADDRESS
from tests.peers.http_peer import LegacyServer, ModernServer, open_peer
from tests.support.access import (
    ALICE,
    BOB,
    HELLO,
    Harness,
    keys,
    make_config,
    modern_headers,
    open_harness,
    running,
    tool_call,
)
from tests.support.fakes import SOON, FakeExchange, make_call, settle


def test_keys_are_random_and_found_by_their_hash() -> None:
    one, other = make_key(), make_key()
    assert one != other
    assert one.startswith("mcpgw_")
    assert len(one) >= 6 + 43
    assert digest_in(hash_key(one)) == digest_of(one.encode())
    assert one not in hash_key(one)


async def test_the_principal_is_on_every_call(autojump_clock: MockClock) -> None:
    async with open_harness(keys()) as harness:
        session = await harness.initialize()
        await harness.call(session)
        await harness.call(None, key=BOB)
        working = harness.fakes["a"].session.working
        assert [pending.call.caller.principal for pending in working] == ["alice", "bob"]
        await harness.answer()
        await harness.answer()


async def test_callers_are_anonymous_without_keys(autojump_clock: MockClock) -> None:
    async with open_harness(None) as harness:
        exchange = await harness.call(await harness.initialize(None), key="whatever")
        assert harness.fakes["a"].session.working[0].call.caller.principal is None
        await harness.answer()
        assert json.loads(exchange.body)["result"]["content"][0]["text"] == "done"


@pytest.mark.parametrize(
    ("headers", "origin"),
    [
        ({"address": "192.0.2.1"}, "address 192.0.2.1"),
        ({"address": "192.0.2.1", "x_forwarded_for": "192.0.2.9"}, "address 192.0.2.1"),
        ({"address": "127.0.0.1", "x_forwarded_for": "192.0.2.1"}, "address 192.0.2.1"),
        ({"address": "127.0.0.1", "x_forwarded_for": "9.9.9.9, 192.0.2.1"}, "address 192.0.2.1"),
        ({"address": "::1", "x_forwarded_for": " "}, "address ::1"),
        ({"address": "127.0.0.1", "x_forwarded_for": "9" * 1000}, f"address {'9' * MAX_ADDRESS}"),
        ({"address": "127.0.0.1"}, "address 127.0.0.1"),
    ],
)
async def test_calls_of_anonymous_clients_count_to_their_address(
    headers: dict[str, str], origin: str, autojump_clock: MockClock
) -> None:
    async with open_harness(None) as harness:
        await harness.call(None, key=None, **headers)
        assert harness.fakes["a"].session.working[0].call.caller.origin == origin
        await harness.answer()


async def test_a_session_is_its_principals_alone(autojump_clock: MockClock) -> None:
    async with open_harness(keys()) as harness:
        session = await harness.initialize()
        for method, body in (("POST", {"jsonrpc": "2.0", "id": 1, "method": "ping"}), ("GET", None), ("DELETE", None)):
            mine = await harness.start(method, "/mcp", body, key=BOB, mcp_session_id=session)
            unknown = await harness.start(method, "/mcp", body, key=BOB, mcp_session_id="x" * 32)
            assert mine.status == unknown.status == 404
            assert mine.body == unknown.body
        assert (await harness.call(session, key=ALICE)).sent == []  # it is in flight: the session is kept
        await harness.answer()


# -- Rules and rates ---------------------------------------------------------------------------------------------------


def error_of(exchange: FakeExchange) -> dict[str, Any]:
    return json.loads(exchange.body)["error"]


def text_of(exchange: FakeExchange) -> str:
    return json.loads(exchange.body)["result"]["content"][0]["text"]


@pytest.mark.parametrize("modern", [False, True])
async def test_denied_items_look_unknown(modern: bool, autojump_clock: MockClock) -> None:
    async with open_harness(keys(servers=["a"], tools=["a.x"]), "a", "b") as harness:
        session = None if modern else await harness.initialize()
        for denied in ("a.y", "b.x"):
            exchange = await harness.call(session, name=denied)
            unknown = await harness.call(session, name="a.nothing")
            assert exchange.status == unknown.status
            assert error_of(exchange)["message"] == f"Unknown tool: {denied}"
            assert {**error_of(exchange), "message": ""} == {**error_of(unknown), "message": ""}
        assert harness.sent == 0
        await harness.call(session, name="a.x")
        await harness.call(None, key=BOB, name="b.x")
        assert harness.sent == 2
        await harness.answer("a")
        await harness.answer("b")


@pytest.mark.parametrize("modern", [False, True])
async def test_each_key_has_its_own_rate_limit(modern: bool, autojump_clock: MockClock) -> None:
    async with open_harness(keys(rate_limit={"per_second": 0.5, "burst": 2})) as harness:
        session = None if modern else await harness.initialize()
        for _ in range(2):
            await harness.call(session)
            await harness.answer()
        refused = await harness.call(session)
        assert refused.status == 200
        assert error_of(refused)["code"] == -32603
        data = error_of(refused)["data"]
        assert (data["reason"], data["retry"]) == ("busy", True)
        assert 0 < data["retryAfterMs"] <= 2_000
        assert harness.sent == 2
        await harness.call(None, key=BOB)
        await harness.answer()
        await trio.sleep(data["retryAfterMs"] / 1_000)
        await harness.call(session)
        await harness.answer()
        assert harness.sent == 4


async def test_concurrent_calls_are_counted_however_they_end(autojump_clock: MockClock) -> None:
    async with open_harness(keys(max_concurrency=2)) as harness:
        first, second = await harness.call(), await harness.call()
        for _ in range(3):
            assert "max_concurrency" in error_of(await harness.call())["message"]
        await harness.answer()
        assert text_of(first) == "done"
        second.gone.set()  # a modern client that hangs up cancels its call
        await trio.sleep(1)  # hang-ups are watched for after a while only
        for _ in range(3):  # nor does one that fails keep its place
            assert "Unknown" in error_of(await harness.call(name="a.nothing"))["message"]
        third = await harness.call()
        fourth = await harness.call()
        assert "error" in json.loads((await harness.call()).body)
        await harness.answer()
        await harness.answer()
        assert text_of(third) == text_of(fourth) == "done"


async def test_a_key_for_views_opens_nothing_else(autojump_clock: MockClock) -> None:
    async with open_harness(keys(views=["small"])) as harness:
        for path in ("/mcp", "/mcp/none", "/sse"):
            message = tool_call(modern=True)
            exchange = await harness.start("POST", path, message, key=ALICE, **modern_headers())
            assert exchange.status == 403
        assert harness.sent == 0
        exchange = await harness.start("POST", "/mcp/small", message, key=ALICE, **modern_headers())
        await harness.answer()
        assert text_of(exchange) == "done"
        anonymous = await harness.start("POST", "/mcp/none", message, key=BOB, **modern_headers())
        assert anonymous.status == 404


# -- Changes -----------------------------------------------------------------------------------------------------------


async def test_revoking_a_key_ends_its_sessions_and_streams(autojump_clock: MockClock) -> None:
    async with open_harness(keys()) as harness:
        session, other = await harness.initialize(), await harness.initialize(BOB)
        legacy, modern = await harness.call(session), await harness.call()
        gone = await harness.call(session, key=ALICE)
        gone.gone.set()  # its call continues for the session
        await settle()
        stream = await harness.start("GET", "/mcp", key=ALICE, mcp_session_id=session)
        sse = await harness.start("GET", "/sse", key=ALICE)
        listen = await harness.listen()
        theirs = await harness.start("GET", "/mcp", key=BOB, mcp_session_id=other)
        kept = await harness.call(other, key=BOB)
        backend = harness.fakes["a"].session
        assert len(backend.working) == 4

        harness.access.apply(make_config({"keys": keys()["keys"][1:]}).access)
        await settle()
        assert all(one.ended for one in (legacy, modern, stream, sse, listen))
        assert [pending.call.caller.principal for pending in backend.working] == ["bob"]
        assert len(backend.withdrawn) == 3  # each was cancelled at the backend
        assert "revoked" in error_of(modern)["message"]
        assert (await harness.call(session)).status == 401
        assert (await harness.call()).status == 401
        assert not theirs.ended
        await harness.answer()
        assert text_of(kept) == "done"


async def test_sessions_do_not_pass_to_a_replacement_key(autojump_clock: MockClock) -> None:
    async with open_harness(keys()) as harness:
        session = await harness.initialize()
        waiting = await harness.call(session)
        changed = keys()
        changed["keys"][0]["hash"] = hash_key("mcpgw_another")
        harness.access.apply(make_config(changed).access)
        await settle()
        assert waiting.ended
        assert (await harness.call(session)).status == 401
        assert (await harness.call(session, key="mcpgw_another")).status == 404
        assert harness.access._by_name["alice"].calls == 0


async def test_changed_rules_apply_to_existing_sessions(autojump_clock: MockClock) -> None:
    async with open_harness(keys(), "a", "b") as harness:
        session = await harness.initialize()
        under_way = await harness.call(session, name="b.x")
        harness.access.apply(make_config(keys(servers=["a"], max_concurrency=1)).access)
        assert "max_concurrency" in error_of(await harness.call(session))["message"]
        await harness.answer("b")
        assert text_of(under_way) == "done"
        assert error_of(await harness.call(session, name="b.x"))["message"] == "Unknown tool: b.x"


async def test_anonymous_sessions_end_when_keys_are_configured(autojump_clock: MockClock) -> None:
    async with open_harness(None) as harness:
        session = await harness.initialize(None)
        harness.access.apply(make_config(keys()).access)
        assert (await harness.call(session, key=None)).status == 401
        assert (await harness.call(session, key=ALICE)).status == 404


async def test_a_request_in_transit_loses_its_revoked_key(autojump_clock: MockClock) -> None:
    async with open_harness(keys()) as harness:
        exchange = SlowBody(headers={})
        exchange.scope["headers"] = [
            (b"host", b"localhost"),
            (b"content-type", b"application/json"),
            (b"authorization", b"Bearer " + ALICE.encode()),
        ]
        harness.nursery.start_soon(harness.frontend, exchange.scope, exchange.receive, exchange.send)
        await settle()
        harness.access.apply(NO_KEYS_OF_ALICE)
        exchange._incoming.append({"type": "http.request", "body": json.dumps(tool_call(modern=True)).encode()})
        exchange.resume.set()
        await settle()
        assert exchange.status == 401
        assert exchange.ended
        assert harness.sent == 0


class SlowBody(FakeExchange):
    """Its body comes once `resume` is set."""

    def __init__(self, **options: Any) -> None:
        super().__init__(**options)
        self._incoming.clear()
        self.resume = trio.Event()

    async def receive(self) -> dict[str, Any]:
        await self.resume.wait()
        return await super().receive()


async def test_a_revoked_key_fails_calls_waiting_for_start(autojump_clock: MockClock) -> None:
    async with open_harness(keys()) as harness:
        calls: list[str] = []

        async def await_owner(call: Any) -> Any:
            harness.access.apply(NO_KEYS_OF_ALICE)  # it could be long in coming
            calls.append(call.name)
            await trio.lowlevel.checkpoint()
            return Route("a", "x")

        harness.router._await_owner = await_owner  # type: ignore[method-assign] - one that takes long
        exchange = await harness.call(name="a.new")
        assert calls == ["a.new"]
        assert "revoked" in error_of(exchange)["message"]
        assert (harness.sent, harness.router.under_way) == (0, 0)


NO_KEYS_OF_ALICE = make_config({"keys": keys()["keys"][1:]}).access


# -- Pages -------------------------------------------------------------------------------------------------------------


PAGE = "https://app.example"


async def test_a_page_that_is_allowed(autojump_clock: MockClock) -> None:
    async with open_harness({**keys(), "allow_origins": [PAGE]}) as harness:
        preflight = await harness.start(
            "OPTIONS",
            "/mcp",
            origin=PAGE,
            access_control_request_method="POST",
            access_control_request_headers="authorization, mcp-protocol-version, mcp-param-x",
        )
        assert preflight.status == 204
        assert preflight.headers["access-control-allow-origin"] == PAGE
        assert "DELETE" in preflight.headers["access-control-allow-methods"]
        assert "mcp-param-x" in preflight.headers["access-control-allow-headers"]
        refused = await harness.call(key=None, origin=PAGE)
        assert refused.status == 401
        for exchange in (refused, await harness.start("GET", "/sse", key=ALICE, origin=PAGE)):
            assert exchange.headers["access-control-allow-origin"] == PAGE
            assert "Mcp-Session-Id" in exchange.headers["access-control-expose-headers"]
            assert "WWW-Authenticate" in exchange.headers["access-control-expose-headers"]
            assert exchange.headers["vary"] == "Origin"


@pytest.mark.parametrize("origin", ["https://evil.example", "null", "https://app.example.evil.example"])
async def test_a_page_that_is_not(origin: str, autojump_clock: MockClock) -> None:
    async with open_harness({**keys(), "allow_origins": [PAGE]}) as harness:
        for exchange in (
            await harness.call(origin=origin),
            await harness.start("OPTIONS", "/mcp", origin=origin, access_control_request_method="POST"),
        ):
            assert exchange.status == 403
            assert "access-control-allow-origin" not in exchange.headers
        assert harness.sent == 0


async def test_pages_and_hosts_change_with_the_config(autojump_clock: MockClock) -> None:
    async with open_harness(keys()) as harness:
        assert (await harness.call(origin=PAGE)).status == 403
        assert (await harness.call(host="gw.example")).status == 403
        harness.access.apply(make_config({**keys(), "allow_origins": ["*"], "allow_hosts": ["gw.example"]}).access)
        exchange = await harness.call(origin=PAGE, host="gw.example:443")
        await harness.answer()
        assert exchange.headers["access-control-allow-origin"] == "*"
        harness.access.apply(make_config(keys()).access)
        assert (await harness.call(origin=PAGE)).status == 403
        assert (await harness.call(host="gw.example")).status == 403


# -- What reaches backends ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize("server", [LegacyServer, ModernServer])
async def test_client_credentials_never_reach_a_backend(server: Any) -> None:
    """Nor does any other header: backends get the gateway's own and the config's."""
    secret = {
        "cookie": "session=c00kie",
        "x_api_key": "ap1key",
        "proxy_authorization": "Basic pr0xy",
        "x_forwarded_for": "192.0.2.99",
        "mcp_param_secret": "par4m",
    }
    with trio.fail_after(SOON):
        async with open_peer(server()) as peer:
            raw = {"mcpServers": {"a": {"url": peer.url, "headers": {"X-Own": "1"}, "oauth": False}}, "access": keys()}
            config = parse_config(raw, environ={})
            harness = Harness(config, opener=SessionOpener(None, name="g"))  # type: ignore[arg-type] - for children only
            async with running(harness):
                await harness.fleet.supervisors["a"].known.wait()
                session = await harness.initialize()
                for one in (session, None):
                    exchange = await harness.call(one, name="a.echo", **secret)
                    while not exchange.ended:
                        await trio.testing.wait_all_tasks_blocked(0.01)
                    assert "result" in json.loads(exchange.body)
            assert [request.rpc for request in peer.requests].count("tools/call") == 2
            for request in peer.requests:
                shown = repr(sorted(request.headers.items())) + json.dumps(request.message)
                for value in (ALICE, "c00kie", "ap1key", "pr0xy", "192.0.2.99", "par4m", "alice"):
                    assert value not in shown
                assert "authorization" not in request.headers
                assert request.headers["x-own"] == "1"


# -- In the gateway as a whole -----------------------------------------------------------------------------------------


async def test_reload_neither_exposes_the_gateway_nor_misses_keys() -> None:
    await trio.lowlevel.checkpoint()  # a gateway is made where a loop runs
    guarded, open_to_all = make_config(keys()), make_config(None)
    options = Options(transports=("streamable-http",), host="0.0.0.0")
    running_one = Gateway(guarded, options, None)  # type: ignore[arg-type] - what guards children is for later
    runtime = running_one.runtime
    running_one._check(guarded)
    with pytest.raises(ConfigError, match="opens the gateway to everyone"):
        running_one._check(open_to_all)
    insecure = Options(transports=("sse",), host="0.0.0.0", insecure=True)
    Gateway(guarded, insecure, None)._check(open_to_all)  # type: ignore[arg-type] - as above
    headers = {b"authorization": b"Bearer " + ALICE.encode()}
    assert runtime.access.find(headers) is not None
    await running_one._apply(make_config({"keys": keys()["keys"][1:]}))
    assert runtime.access.find(headers) is None
    with pytest.raises(Revoked):
        await runtime.router.submit(make_call("a.x", caller=Caller(era=Era.LEGACY, version="", principal="alice")))


async def test_an_embedded_gateway_asks_for_keys_too() -> None:
    async def ask(frontends: Any, key: str | None) -> FakeExchange:
        headers = {"host": "any.example", "content-type": "application/json"}
        if key is not None:
            headers["authorization"] = f"Bearer {key}"
        exchange = FakeExchange(json.dumps(INITIALIZE).encode(), headers=headers)
        await frontends(exchange.scope, exchange.receive, exchange.send)
        return exchange

    with trio.fail_after(SOON):
        async with open_gateway({"mcpServers": {}, "access": keys()}) as gw:
            assert (await ask(gw.asgi_app, None)).status == 401
            assert (await ask(gw.asgi_app, BOB)).status == 200
            assert (await ask(gw.asgi_app, ALICE)).status == 200
            await gw.reload({"mcpServers": {}, "access": {"keys": keys()["keys"][1:]}})
            assert (await ask(gw.asgi_app, ALICE)).status == 401
            assert (await ask(gw.asgi_app, BOB)).status == 200


INITIALIZE = {"jsonrpc": "2.0", "id": 0, "method": "initialize", "params": HELLO}
