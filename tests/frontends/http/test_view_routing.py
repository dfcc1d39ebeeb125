"""Endpoint addresses: the names a client chooses in its query."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

import pytest

from gateway.calls import NameChoice
from gateway.cli import main
from gateway.config import AuditSettings, parse_config
from gateway.frontends.http.view_routing import chosen_names
from tests.support.access import ALICE, HELLO, keys, modern_headers, open_harness, tool_call
from tests.support.gateway_process import HttpClient, echo_backend, open_gateway_process, open_sse

if TYPE_CHECKING:
    from pathlib import Path

    from trio.testing import MockClock

    from tests.support.access import Harness


@pytest.mark.parametrize(
    ("query", "expected"),
    [
        ("", None),
        ("session_id=x", None),
        ("separator=__", NameChoice("__", None)),
        ("separator=_&max_name_length=48&x=y", NameChoice("_", 48)),
        ("max_name_length=64", NameChoice(None, 64)),
    ],
)
def test_a_query_chooses_names(query: str, expected: NameChoice | None) -> None:
    assert chosen_names(query.encode()) == expected
    assert expected is None or chosen_names(expected.query.encode()) == expected


@pytest.mark.parametrize(
    "query",
    ["separator=", "separator=.", "separator=%00", "max_name_length=65", "max_name_length=064", "max_name_length=",
     "separator=_&separator=__", "separator=_&max_name_length=x"],
)  # fmt: skip
async def test_a_choice_that_is_not_offered_is_refused(autojump_clock: MockClock, query: str) -> None:
    message = {"jsonrpc": "2.0", "id": 0, "method": "initialize", "params": HELLO}
    async with open_harness(None, "a") as harness:
        exchange = await harness.start("POST", f"/mcp?{query}", message)
        assert exchange.status == 400
        assert "must be one of" in json.loads(exchange.body)["error"]["message"]
        assert (await harness.start("GET", f"/sse?{query}")).status == 400
        assert harness.mcp.sessions == 0


async def listed(harness: Harness, session: str, path: str) -> list[str]:
    message = {"jsonrpc": "2.0", "id": 1, "method": "tools/list"}
    exchange = await harness.start("POST", path, message, key=ALICE, mcp_session_id=session)
    if exchange.status != 200:
        return [str(exchange.status)]
    return [tool["name"] for tool in json.loads(exchange.body)["result"]["tools"]]


async def test_a_session_keeps_names_when_rules_change(autojump_clock: MockClock) -> None:
    path, message = "/mcp?separator=__", {"jsonrpc": "2.0", "id": 0, "method": "initialize", "params": HELLO}
    async with open_harness(keys(), "a", "b") as harness:
        exchange = await harness.start("POST", path, message, key=ALICE)
        session = exchange.headers["mcp-session-id"]
        assert await listed(harness, session, path) == ["a__x", "a__y", "b__x", "b__y"]
        assert await listed(harness, session, "/mcp") == ["404"]  # another endpoint, where the session is unknown
        rules = keys(tools=["a.x"])["keys"]
        access = parse_config({"mcpServers": {}, "access": {"keys": rules}}, environ={}).access
        assert access is not None
        harness.access.apply(access)
        assert await listed(harness, session, path) == ["a__x"]


async def test_calls_are_audited_by_their_chosen_name(autojump_clock: MockClock) -> None:
    lines: list[dict[str, Any]] = []
    async with open_harness(keys(tools=["a.x"]), "a") as harness:
        harness.audit._put = lambda _text, line: lines.append(line)
        harness.audit.apply(AuditSettings())
        for name in ("a__x", "a__y"):
            body = tool_call(name, modern=True)
            exchange = await harness.start("POST", "/mcp?separator=__", body, key=ALICE, **modern_headers(name))
            if name == "a__x":
                await harness.answer()
                assert json.loads(exchange.body)["result"]["resultType"] == "complete"
        assert [(line["name"], line["outcome"]) for line in lines] == [("a.x", "answered"), ("a__y", "refused")]


async def test_every_transport_serves_chosen_names() -> None:
    query = "?separator=__&max_name_length=48"
    config = {"mcpServers": {"echo": echo_backend()}}
    async with open_gateway_process(config, transport="streamable-http,sse") as gateway:
        assert gateway.url is not None
        client = HttpClient(gateway.url + query)
        await client.initialize()
        answer = await client.call_tool("echo__echo", {"text": "hi"})
        assert answer["result"]["content"][0]["text"] == "hi"
        answer = await client.call_modern("tools/call", {"name": "echo__echo", "arguments": {"text": "hi"}})
        assert answer["result"]["content"][0]["text"] == "hi"
        for called in (client.call_tool("echo.echo"), client.call_modern("tools/call", {"name": "echo.echo"})):
            assert "Unknown tool" in (await called)["error"]["message"]
        wrong = HttpClient(gateway.url + "?separator=wrong")
        message, headers = wrong.modern_request("tools/call", {"name": "echo.echo"})
        assert (await wrong.post(message, headers=headers)).status == 400
        async with open_sse(gateway.url.replace("/mcp", "/sse") + query) as sse:
            await sse.initialize()
            tools = (await sse.request("tools/list"))["result"]["tools"]
            assert "echo__echo" in [tool["name"] for tool in tools]


async def test_flags_choose_the_names_on_stdio() -> None:
    flags = ["--separator", "__", "--max-name-length", "64"]
    config = {"mcpServers": {"echo": echo_backend()}}
    async with open_gateway_process(config, transport="stdio", extra_args=flags) as gateway:
        assert gateway.stdio is not None
        await gateway.stdio.initialize()
        answer = await gateway.stdio.call_tool("echo__echo", {"text": "hi"})
        assert answer["result"]["content"][0]["text"] == "hi"


def test_the_flags_are_for_stdio(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    path = tmp_path / "c.json"
    path.write_text('{"mcpServers": {}}', encoding="utf-8")
    words = ["serve", "--config", str(path), "--transport", "http", "--max-name-length", "64"]
    assert main([*words, "--state-dir", str(tmp_path)]) == 2
    assert "each client makes its own choice" in capsys.readouterr().err
