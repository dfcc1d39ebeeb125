"""Requests the gateway answers itself, in both eras: handshakes, lists and errors."""

from __future__ import annotations

import json
from contextlib import asynccontextmanager, nullcontext
from typing import TYPE_CHECKING, Any

import msgspec
import pytest
import trio
from trio.testing import MockClock

from gateway import jsonrpc
from gateway.calls import Call, Caller, Complete, Era, Failure, InputRequired, Notification, Scope
from gateway.catalog.listing import Item, Listing
from gateway.config.model import Config, GatewaySettings, ServerConfig
from gateway.eras import meta
from gateway.eras.methods import APPS, Kind
from gateway.eras.requests import UnsupportedVersion, modern_call
from gateway.errors import BackendUnavailable, GatewayLoop, InvalidParams, UnknownMethod
from gateway.frontends.legacy.sessions import ClientIntroduction, LegacySession
from gateway.frontends.request_handler import RequestHandler, cancelled_id, encode_notice
from gateway.router import Router
from gateway.supervisor.fleet import Fleet
from tests.support.fakes import LEGACY_CALLER, MODERN_CALLER, FakeBackend, backends, make_call, make_listing, settle
from tests.support.supervision import offers

if TYPE_CHECKING:
    from collections.abc import AsyncGenerator

SERVER_INFO = {"name": "trio-mcp-gateway", "version": "9"}
STAMP = {"io.modelcontextprotocol/serverInfo": SERVER_INFO}
LISTS = ["tools/list", "prompts/list", "resources/list", "resources/templates/list"]


@asynccontextmanager
async def running(fakes: dict[str, FakeBackend] | None = None, **settings: Any) -> AsyncGenerator[RequestHandler]:
    fakes = fakes or {"a": FakeBackend(make_listing("x", "y", "z", instructions="do"))}
    config = Config(servers={name: ServerConfig(name=name) for name in fakes}, gateway=GatewaySettings(**settings))
    fleet = Fleet(config, backends(fakes))
    parking: Any = None  # nothing here is parked
    with trio.fail_after(1000):  # of the clock that jumps
        async with trio.open_nursery() as nursery:
            await nursery.start(fleet.run)
            await settle()
            yield RequestHandler(Router(fleet), "9", parking)  # ruff: ignore[fallible-context-manager]
            fleet.stop()


def message(method: str, params: object = None) -> jsonrpc.Message:
    return jsonrpc.decode(json.dumps({"jsonrpc": "2.0", "id": 1, "method": method, "params": params or {}}).encode())


def session() -> LegacySession:
    return LegacySession("s", ClientIntroduction("2025-11-25", msgspec.Raw(b"{}"), msgspec.Raw(b"")), max_requests=9)


def modern(method: str, **params: Any) -> Call:
    spans = {name: jsonrpc.raw(value) for name, value in params.items()}
    return Call(method=method, name="", params=spans, meta={}, caller=MODERN_CALLER)


async def test_a_legacy_client_is_introduced(autojump_clock: MockClock) -> None:
    async with running() as answers:
        hello = {"protocolVersion": "2025-06-18", "capabilities": {"roots": {}}, "clientInfo": {"name": "c"}}
        introduction = answers.introduce(message("initialize", hello))
        result = answers.greeting(introduction)
        found = json.loads(result)
        assert introduction.version == found["protocolVersion"] == "2025-06-18"
        assert json.loads(bytes(introduction.capabilities)) == {"roots": {}}
        assert found["serverInfo"] == SERVER_INFO
        assert found["instructions"] == "# a\n\ndo"
        for feature in ("tools", "prompts", "resources"):
            assert found["capabilities"][feature]["listChanged"] is True
        assert answers.introduce(message("initialize", {"protocolVersion": "2099-01-01"})).version == "2025-11-25"


async def test_backend_extensions_are_declared_where_relayed(autojump_clock: MockClock) -> None:
    declared = {"a": None, "b": {APPS: None}, "c": {APPS: {"x": 1}, "x.example/y": {}}, "d": {APPS: {"x": 2}}}
    fakes = {name: offers(Kind.TOOLS, "x", extensions=value) for name, value in declared.items()}
    async with running(fakes) as answers:
        for scope, expected in [(None, {APPS: {"x": 1}}), (Scope(servers=("d",)), {APPS: {"x": 2}})]:
            for era in Era:
                found = json.loads(jsonrpc.encode(answers._capabilities(era, scope)))
                assert found["extensions"] == expected
        assert "extensions" not in answers._capabilities(Era.LEGACY, Scope(servers=("a", "b")))


PAGED: list[tuple[Kind, dict[str, Any], bool]] = [
    (Kind.TOOLS, {"name": "x", "_meta": {"ui": {"resourceUri": "ui://a/page"}}}, True),
    (Kind.TOOLS, {"name": "x", "_meta": {"ui/resourceUri": "ui://a/page"}}, True),
    (Kind.TOOLS, {"name": "x", "_meta": {"ui": {"visibility": ["app"]}}}, False),
    (Kind.RESOURCES, {"uri": "ui://a/page"}, True),
    (Kind.RESOURCES, {"uri": "memo://ui://"}, False),
]


@pytest.mark.parametrize(("kind", "item", "is_declared"), PAGED)
async def test_pages_are_as_good_as_a_declared_extension(
    kind: Kind, item: dict[str, Any], is_declared: bool, autojump_clock: MockClock
) -> None:
    """The example servers of MCP Apps declare nothing."""
    items = {kind: (Item(item[kind.key], jsonrpc.encode(item)),)}
    async with running({"a": FakeBackend(Listing(items=items)), "b": FakeBackend()}) as answers:
        for era in Era:
            assert ("extensions" in answers._capabilities(era, None)) == is_declared
            assert "extensions" not in answers._capabilities(era, Scope(servers=("b",)))


@pytest.mark.parametrize("params", [{}, {"protocolVersion": 3}, [1]])
async def test_a_malformed_introduction_is_refused(params: object, autojump_clock: MockClock) -> None:
    async with running() as answers:
        with pytest.raises(InvalidParams, match="initialize"):
            answers.introduce(message("initialize", params))


@pytest.mark.parametrize("method", LISTS)
async def test_lists_of_both_eras(method: str, autojump_clock: MockClock) -> None:
    async with running() as answers:
        old = await answers.legacy(message(method), session())
        new = await answers.modern(modern(method))
        assert isinstance(old, bytes)
        assert isinstance(new, bytes)
        found = json.loads(old)
        assert len(found) == 1
        assert json.loads(new) == {
            "resultType": "complete", **found, "ttlMs": 0, "cacheScope": "private", "_meta": STAMP
        }  # fmt: skip
        if method == "tools/list":
            assert [tool["name"] for tool in found["tools"]] == ["a.x", "a.y", "a.z"]


async def test_lists_are_paged(autojump_clock: MockClock) -> None:
    async with running(page_size=2) as answers:
        first = await answers.modern(modern("tools/list"))
        assert isinstance(first, bytes)
        cursor = json.loads(first)["nextCursor"]
        second = await answers.legacy(message("tools/list", {"cursor": cursor}), session())
        assert isinstance(second, bytes)
        assert [tool["name"] for tool in json.loads(second)["tools"]] == ["a.z"]
        for bad in (3, "x"):
            with pytest.raises(InvalidParams, match="cursor"):
                await answers.modern(modern("tools/list", cursor=bad))


async def test_a_modern_client_discovers(autojump_clock: MockClock) -> None:
    async with running() as answers:
        found = await answers.modern(modern("server/discover"))
        assert isinstance(found, bytes)
        body = json.loads(found)
        assert body["resultType"] == "complete"
        assert body["supportedVersions"][0] == "2026-07-28"
        assert body["instructions"] == "# a\n\ndo"
        assert body["_meta"] == STAMP


@pytest.mark.parametrize("method", ["server/discover", "initialize", "subscriptions/listen", "tasks/get", "tools"])
async def test_legacy_clients_cannot_use_modern_methods(method: str, autojump_clock: MockClock) -> None:
    async with running() as answers:
        with pytest.raises(UnknownMethod):
            await answers.legacy(message(method), session())


@pytest.mark.parametrize("method", ["initialize", "ping", "logging/setLevel", "resources/subscribe", "tasks/list"])
async def test_removed_methods_are_named_as_such(method: str, autojump_clock: MockClock) -> None:
    async with running() as answers:
        with pytest.raises(UnknownMethod, match="no longer has it"):
            await answers.modern(modern(method))


async def test_a_ping_is_answered(autojump_clock: MockClock) -> None:
    async with running() as answers:
        assert await answers.legacy(message("ping"), session()) == b"{}"


@pytest.mark.parametrize(
    ("era", "outcome", "body", "code"),
    [
        (Era.LEGACY, Complete(b'{"x":null}', Era.LEGACY), {"result": {"x": None}}, None),
        (
            Era.MODERN,
            Complete(b'{"x":null}', Era.LEGACY),
            {"result": {"resultType": "complete", "x": None, "_meta": STAMP}},
            None,
        ),
        (
            Era.LEGACY,
            Failure(-5, "no", b'{"y":1}', Era.MODERN),
            {"error": {"code": -5, "message": "no", "data": {"y": 1}}},
            -5,
        ),
        (
            Era.LEGACY,
            BackendUnavailable("a", "is away"),
            {
                "error": {
                    "code": -32603,
                    "message": "backend 'a' is away",
                    "data": {"backend": "a", "reason": "backend_unavailable"},
                }
            },
            -32603,
        ),
    ],
)
async def test_outcomes(era: Era, outcome: Any, body: Any, code: int | None, autojump_clock: MockClock) -> None:
    async with running() as answers:
        call = make_call("a.x", caller=MODERN_CALLER if era is Era.MODERN else LEGACY_CALLER)
        encoded, found = answers.encode_outcome(call, "id", outcome)
        assert json.loads(encoded) == {"jsonrpc": "2.0", "id": "id", **body}
        assert found == code


async def test_legacy_clients_get_no_unknown_results(autojump_clock: MockClock) -> None:
    async with running() as answers:
        encoded, code = answers.encode_outcome(make_call("a.x"), 1, InputRequired(b'{"resultType":"input_required"}'))
        assert (code, json.loads(encoded)["error"]["code"]) == (-32603, -32603)


@pytest.mark.parametrize("url", ["https://user:secret@example.com/", "javascript:secret()", "https://example.com/"])
async def test_modern_clients_are_not_sent_to_unsafe_pages(url: str, autojump_clock: MockClock) -> None:
    caller = msgspec.structs.replace(MODERN_CALLER, capabilities=msgspec.Raw(b'{"elicitation":{"url":{}}}'))
    wanted = {"one": {"method": "elicitation/create", "params": {"mode": "url", "message": "m", "url": url}}}
    required = InputRequired(jsonrpc.encode({"resultType": "input_required", "inputRequests": wanted}))
    async with running() as answers:
        encoded, code = answers.encode_outcome(make_call("a.x", caller=caller), 1, required)
        if url == "https://example.com/":
            assert (code, json.loads(encoded)["result"]["inputRequests"]) == (None, wanted)
        else:
            assert code == -32603
            assert b"must not be sent to a client" in encoded
            assert b"secret" not in encoded


async def test_an_unsupported_version_names_ours(autojump_clock: MockClock) -> None:
    async with running() as answers:
        encoded, code = answers.encode_error(1, UnsupportedVersion("1999-01-01"), Era.MODERN)
        error = json.loads(encoded)["error"]
        assert code == error["code"] == -32022
        assert error["data"]["requested"] == "1999-01-01"
        assert "2026-07-28" in error["data"]["supported"]


def test_progress_comes_under_the_clients_token() -> None:
    params = {"progressToken": jsonrpc.raw("t"), "progress": msgspec.Raw(b"0.50"), "new": msgspec.Raw(b"null")}
    line = encode_notice(Notification("notifications/progress", params), "t")
    assert b"0.50" in line
    assert json.loads(line)["params"] == {"progressToken": "t", "progress": 0.5, "new": None}


@pytest.mark.parametrize(
    ("params", "expected"),
    [
        ({"requestId": 5, "reason": "x"}, 5),
        ({"requestId": "5"}, "5"),
        ({"requestId": None}, None),
        ({"requestId": 1.5}, None),
        ({}, None),
        ([1], None),
    ],
)
def test_a_cancel_names_its_request(params: object, expected: object) -> None:
    raw = json.dumps({"jsonrpc": "2.0", "method": "notifications/cancelled", "params": params}).encode()
    assert cancelled_id(jsonrpc.decode(raw)) == expected


@pytest.mark.parametrize(
    ("gateways", "refused"),
    [
        (["a"], False),
        (["a", "b", "c"], False),
        (["a", "b", "c", "d"], True),
        (["x", "gateway"], True),
        ("gateway", False),
    ],
    ids=["one", "three", "four", "itself", "no list"],
)
async def test_a_client_behind_this_gateway_is_refused(
    autojump_clock: MockClock, gateways: object, refused: bool
) -> None:
    own = {meta.GATEWAYS: gateways}
    hello = {"protocolVersion": "2025-06-18", "_meta": own}
    params = {"_meta": {**own, meta.PROTOCOL_VERSION: "2026-07-28", meta.CLIENT_CAPABILITIES: {}}}
    async with running() as answers:
        for method in ("initialize", "server/discover", "tools/list"):
            with pytest.raises(GatewayLoop, match=" -> ") if refused else nullcontext():
                if method == "initialize":
                    answers.introduce(message(method, hello))
                else:
                    await answers.modern(modern_call(message(method, params)))


@pytest.mark.parametrize("era", Era)
async def test_only_gateways_see_the_gateway_list(autojump_clock: MockClock, era: Era) -> None:
    async with running() as answers:
        caller = Caller(era=era, version="2025-11-25" if era is Era.LEGACY else "2026-07-28")
        for gateways, expected in (((), None), (("a",), ["gateway"])):
            one = msgspec.structs.replace(caller, gateways=gateways)
            found = json.loads(await answers._list(Kind.TOOLS, {}, one))
            assert found.get("_meta", {}).get(meta.GATEWAYS) == expected
