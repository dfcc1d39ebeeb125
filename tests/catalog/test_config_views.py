"""Views: parts of the gateway with their own endpoint and names, over HTTP and stdio."""

from __future__ import annotations

import json
from contextlib import asynccontextmanager
from typing import TYPE_CHECKING, Any

import pytest
import trio
from trio.testing import MockClock

from gateway.access.keys import hash_key
from gateway.catalog.parts import Naming
from gateway.catalog.scopes import make_views
from gateway.cli.main import main
from gateway.config import parse_config
from gateway.config.views import ViewConfig, ViewTools
from gateway.embed.frontends import AsgiFrontends
from gateway.errors import ConfigError
from gateway.frontends.http.mcp_app import Paths
from gateway.frontends.http.view_routing import NO_VIEW, view_in
from tests.support.access import ALICE, MODERN_META, Harness, modern_headers, open_harness
from tests.support.fakes import FakeExchange, settle
from tests.support.gateway_process import HttpClient, echo_backend, open_gateway_process

if TYPE_CHECKING:
    from collections.abc import AsyncGenerator
    from pathlib import Path

SERVERS = {"a": {"command": "x"}, "b": {"command": "x"}}
VIEWS = {
    "one": {"servers": ["a"], "tools": {"exclude": ["a.y"]}, "separator": "__", "maxNameLength": 64},
    "both": {"separator": "_"},
}


def config(views: object = None, **kwargs: Any) -> Any:
    return parse_config({"mcpServers": SERVERS, "views": VIEWS if views is None else views, **kwargs}, environ={})


# -- the config --------------------------------------------------------------------------------------------------------


def test_views_are_read() -> None:
    found = config()
    assert found.warnings == ()
    assert found.views == {
        "one": ViewConfig(servers=("a",), tools=ViewTools(exclude=("a.y",)), separator="__", max_name_length=64),
        "both": ViewConfig(separator="_"),
    }
    assert config({"v": {"tools": ["a.*"], "prompts": "a.*"}}).views == {
        "v": ViewConfig(tools=ViewTools(include=("a.*",)), prompts=("a.*",))
    }
    assert parse_config({"mcpServers": SERVERS}, environ={}).views == {}
    made = make_views(config({"v": {}}, gateway={"separator": "-", "max_name_length": 50}))
    assert made["v"].naming == Naming("-", 50)


@pytest.mark.parametrize(
    ("views", "problem"),
    [
        ([], "views: must be an object of views by name, not a list"),
        ({"a/b": {}}, "view 'a/b': a name is 1 to 64 letters"),
        ({"v": 3}, "view 'v': must be an object like"),
        ({"v": {"servers": 3}}, "view 'v': field 'servers' must be a list of globs"),
        ({"v": {"tools": 3}}, "view 'v': field 'tools' must be an object with 'include' and 'exclude'"),
        ({"v": {"tools": {"include": [3]}}}, "view 'v': field 'tools.include' must be a list of globs"),
        ({"v": {"separator": "/"}}, "view 'v': field 'separator' must be 1 to 8"),
        ({"v": {"max_name_length": 3}}, "view 'v': field 'max_name_length' must be a whole number of at least 16"),
        ({"v": {"resources": "no"}}, "view 'v': field 'resources' must be true or false"),
    ],
)
def test_view_errors_are_described(views: object, problem: str) -> None:
    with pytest.raises(ConfigError) as caught:
        config(views)
    assert problem in str(caught.value)


def test_suspicious_views_cause_warnings() -> None:
    found = config({"v": {"servers": ["c*"], "seperator": "_", "tools": {"includes": []}}})
    assert found.warnings == (
        "view 'v': field 'seperator' is unknown and ignored; did you mean 'separator'?",
        "view 'v': field 'tools.includes' is unknown and ignored; did you mean 'include'?",
        "view 'v': field 'servers' has 'c*', which matches no server",
    )


@pytest.mark.parametrize(
    ("path", "endpoint", "view"),
    [
        ("/mcp/one", "/mcp", "one"),
        ("/mcp/one/", "/mcp", "one"),
        ("/mcp/gone", "/mcp", "gone"),
        ("/mcp/", "/mcp", None),
        ("/mcp", "/mcp", None),
        ("/mcpone", "/mcp", None),
        ("/mcp/one/two", "/mcp", None),
        ("/other/one", "/mcp", None),
        ("/one", "/", "one"),
        ("/health", "/", None),
        ("/one", None, None),
        ("/messages/one", "/messages", "one"),
    ],
)
def test_a_view_is_found_below_the_endpoint(path: str, endpoint: str | None, view: str | None) -> None:
    assert view_in(path, endpoint, {"one"}) == view


# -- over HTTP ---------------------------------------------------------------------------------------------------------


@asynccontextmanager
async def viewed(access: object = None) -> AsyncGenerator[Harness]:
    async with open_harness(access, "a", "b") as harness:
        await harness.fleet.apply(config(**({} if access is None else {"access": access})))
        await settle()
        yield harness


async def ask(harness: Harness, path: str, method: str, session: str | None = None, **params: Any) -> Any:
    """One request: in a legacy session, or a modern one; returns the exchange."""
    message: dict[str, Any] = {"jsonrpc": "2.0", "id": 1, "method": method, "params": params}
    headers = {"mcp_session_id": session}
    if session is None:
        params["_meta"] = MODERN_META
        headers = {"mcp_protocol_version": "2026-07-28", "mcp_method": method}
        if "name" in params:
            headers["mcp_name"] = params["name"]
    return await harness.start("POST", path, message, **headers)


async def listed(harness: Harness, path: str, session: str | None = None) -> list[str]:
    exchange = await ask(harness, path, "tools/list", session)
    assert exchange.status == 200, exchange.body
    return [tool["name"] for tool in json.loads(exchange.body)["result"]["tools"]]


async def introduced(harness: Harness, path: str, key: str | None = None) -> str:
    hello = {"protocolVersion": "2025-11-25", "capabilities": {}, "clientInfo": {"name": "c", "version": "1"}}
    message = {"jsonrpc": "2.0", "id": 0, "method": "initialize", "params": hello}
    exchange = await harness.start("POST", path, message, key=key)
    assert exchange.status == 200, exchange.body
    return exchange.headers["mcp-session-id"]


async def test_each_endpoint_lists_its_view_in_both_eras(autojump_clock: MockClock) -> None:
    async with viewed() as harness:
        expected = {
            "/mcp": ["a.x", "a.y", "b.x", "b.y"],
            "/mcp/one": ["a__x"],
            "/mcp/one/": ["a__x"],
            "/mcp/both": ["a_x", "a_y", "b_x", "b_y"],
        }
        assert {path: await listed(harness, path) for path in expected} == expected
        assert {path: await listed(harness, path, await introduced(harness, path)) for path in expected} == expected


async def test_calls_use_the_names_of_the_view(autojump_clock: MockClock) -> None:
    async with viewed() as harness:
        session = await introduced(harness, "/mcp/one")
        for owner in (None, session):
            exchange = await ask(harness, "/mcp/one", "tools/call", owner, name="a__x", arguments={})
            await harness.answer()
            assert json.loads(exchange.body)["result"]["content"][0]["text"] == "done"
            for hidden in ("a.x", "a__y", "a.y", "b__x"):
                refused = await ask(harness, "/mcp/one", "tools/call", owner, name=hidden, arguments={})
                assert json.loads(refused.body)["error"]["message"] == f"Unknown tool: {hidden}"
        assert [len(harness.fakes[name].session.batches) for name in "ab"] == [2, 0]


async def test_headers_follow_the_names_of_the_view(autojump_clock: MockClock) -> None:
    async with viewed() as harness:
        params = {"name": "a__x", "arguments": {}, "_meta": MODERN_META}
        message = {"jsonrpc": "2.0", "id": 1, "method": "tools/call", "params": params}
        exchange = await harness.start("POST", "/mcp/one", message, key=None, **modern_headers("a.x"))
        assert (exchange.status, json.loads(exchange.body)["error"]["code"]) == (400, -32020)


async def test_an_unknown_view_is_404_and_lists_views(autojump_clock: MockClock) -> None:
    async with viewed() as harness:
        for path in ("/mcp/gone", "/sse/gone", "/messages/gone"):
            exchange = await ask(harness, path, "tools/list")
            assert exchange.status == 404
            assert json.loads(exchange.body)["error"]["message"] == NO_VIEW
        assert (await harness.start("POST", "/mcp/gone", {}, origin="https://evil.example")).status == 403


async def test_a_session_belongs_to_its_endpoint(autojump_clock: MockClock) -> None:
    async with viewed() as harness:
        session = await introduced(harness, "/mcp/one")
        for path in ("/mcp", "/mcp/both"):
            assert (await ask(harness, path, "tools/list", session)).status == 404
            assert (await harness.start("DELETE", path, mcp_session_id=session)).status == 404
        assert await listed(harness, "/mcp/one", session) == ["a__x"]


async def test_views_change_live(autojump_clock: MockClock) -> None:
    async with viewed() as harness:
        session = await introduced(harness, "/mcp/one")
        main_session = await introduced(harness, "/mcp")
        notified: list[tuple[frozenset[str], frozenset[str]]] = []
        scope = harness.mcp.endpoint.sessions._sessions[session].caller.scope
        harness.fleet.subscribe(lambda news: notified.append((news.features(None), news.features(scope))))
        await trio.sleep(1)  # what was announced of the start
        notified.clear()
        await harness.fleet.apply(config({"one": {"servers": ["b"]}}))
        assert await listed(harness, "/mcp/one", session) == ["b.x", "b.y"]
        assert await listed(harness, "/mcp/one") == ["b.x", "b.y"]
        assert (await ask(harness, "/mcp/both", "tools/list")).status == 404
        assert await listed(harness, "/mcp", main_session) == ["a.x", "a.y", "b.x", "b.y"]
        await trio.sleep(1)
        assert notified == [(frozenset(), frozenset({"tools"}))]
        await harness.fleet.apply(config({}))
        assert (await ask(harness, "/mcp/one", "tools/list", session)).status == 404
        assert [len(fake.starts) for fake in harness.fakes.values()] == [1, 1]


async def test_keys_see_only_their_part_of_a_view(autojump_clock: MockClock) -> None:
    access = {
        "keys": [
            {"name": "alice", "hash": hash_key(ALICE), "tools": ["b.*"]},
            {"name": "eve", "hash": hash_key("eve"), "views": ["one"]},
        ]
    }
    async with viewed(access) as harness:
        harness.access.apply(config(access=access).access)
        session = await introduced(harness, "/mcp/both", ALICE)
        message = {"jsonrpc": "2.0", "id": 1, "method": "tools/list", "params": {}}
        exchange = await harness.start("POST", "/mcp/both", message, key=ALICE, mcp_session_id=session)
        assert [tool["name"] for tool in json.loads(exchange.body)["result"]["tools"]] == ["b_x", "b_y"]
        session = await introduced(harness, "/mcp/one", "eve")
        for path, status in (("/mcp/one", 200), ("/mcp/both", 403), ("/mcp", 403)):
            exchange = await harness.start("POST", path, message, key="eve", mcp_session_id=session)
            assert exchange.status == status


async def test_views_over_the_older_transport(autojump_clock: MockClock) -> None:
    async with viewed() as harness:
        stream = await harness.start("GET", "/sse/one", accept="text/event-stream")
        address = stream.body.partition(b"data: ")[2].partition(b"\r\n")[0].decode()
        assert address.startswith("/messages/one?session_id=")
        hello = {"protocolVersion": "2024-11-05", "capabilities": {}, "clientInfo": {"name": "c", "version": "1"}}
        for number, (method, params) in enumerate([("initialize", hello), ("tools/list", {})]):
            message = {"jsonrpc": "2.0", "id": number, "method": method, "params": params}
            assert (await harness.start("POST", address, message)).status == 202
        answers = [json.loads(line[6:]) for line in stream.body.split(b"\r\n") if line.startswith(b"data: {")]
        assert [tool["name"] for tool in answers[1]["result"]["tools"]] == ["a__x"]
        other = address.replace("/messages/one", "/messages/")
        assert (await harness.start("POST", other, message)).status == 404


async def test_views_of_a_gateway_inside_a_program(autojump_clock: MockClock) -> None:
    async with viewed() as harness:
        frontends = AsgiFrontends(harness.answers, harness.access, Paths(), ())
        await harness.nursery.start(frontends.run, harness.closing)
        message = {"jsonrpc": "2.0", "id": 1, "method": "tools/list", "params": {"_meta": MODERN_META}}
        headers = {"mcp-protocol-version": "2026-07-28", "mcp-method": "tools/list", "content-type": "application/json"}
        found: dict[str, Any] = {}
        for path in ("/mcp", "/mcp/one", "/mcp/gone", "/messages/gone", "/elsewhere/one"):
            exchange = FakeExchange(json.dumps(message).encode(), headers=headers)
            exchange.scope |= {"path": "/root" + path, "root_path": "/root", "query_string": b""}
            await frontends(exchange.scope, exchange.receive, exchange.send)
            found[path] = exchange.status
            if path == "/mcp/one":
                assert [tool["name"] for tool in json.loads(exchange.body)["result"]["tools"]] == ["a__x"]
        assert list(found.values()) == [200, 200, 404, 404, 404]
        stream = FakeExchange(method="GET", headers={"accept": "text/event-stream"})
        stream.scope |= {"path": "/sse/one", "query_string": b""}
        harness.nursery.start_soon(frontends, stream.scope, stream.receive, stream.send)
        await settle()
        assert b"/messages/one?session_id=" in stream.body
        frontends.close()


# -- for real ----------------------------------------------------------------------------------------------------------


def write(tmp_path: Path) -> Path:
    path = tmp_path / "config.json"
    path.write_text(json.dumps({"mcpServers": {}, "views": {"v": {}}}))
    return path


@pytest.mark.parametrize(
    ("words", "problem"),
    [
        (["--view", "w"], "unknown view; the config's section 'views' has v"),
        (["--view", "v", "--transport", "http"], "over HTTP each view has its own endpoint, /mcp/v"),
    ],
)
def test_the_option_is_checked(
    words: list[str], problem: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    command = ["serve", "--config", str(write(tmp_path)), "--state-dir", str(tmp_path), *words]
    assert main(command) == 2
    assert problem in capsys.readouterr().err


REAL = {"mcpServers": {"echo": echo_backend()}, "views": {"v": {"tools": ["echo.echo"], "separator": "_"}}}


async def test_a_view_of_a_running_gateway() -> None:
    async with open_gateway_process(REAL) as gateway:
        client = HttpClient(gateway.url + "/v")
        await client.initialize()
        answer = await client.call_tool("echo_echo", {"text": "hi"})
        assert answer["result"]["content"][0]["text"] == "hi"
        answer = await client.call_tool("echo.echo", {"text": "hi"})
        assert answer["error"]["message"] == "Unknown tool: echo.echo"


async def test_a_view_on_stdio() -> None:
    async with open_gateway_process(REAL, transport="stdio", extra_args=["--view", "v"]) as gateway:
        assert gateway.stdio is not None
        await gateway.stdio.initialize()
        answer = await gateway.stdio.request("tools/list")
        assert [tool["name"] for tool in answer["result"]["tools"]] == ["echo_echo"]
        answer = await gateway.stdio.request_modern("tools/list")
        assert [tool["name"] for tool in answer["result"]["tools"]] == ["echo_echo"]
        answer = await gateway.stdio.call_tool("echo_echo", {"text": "hi"})
        assert answer["result"]["content"][0]["text"] == "hi"
