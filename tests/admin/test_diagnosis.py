"""`GET /diagnosis`: the findings about a fleet of fakes."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

import trio

from gateway.admin.control import run_command
from gateway.admin.diagnosis import ENOUGH_CALLS, MAX_ROWS
from gateway.calls import Failure
from gateway.catalog.listing import Item, Listing
from gateway.eras.methods import Kind
from gateway.errors import BackendExited, BackendTooSlow
from tests.support.admin import Harness, open_harness
from tests.support.fakes import LEGACY_CALLER, make_call, make_listing, settle

if TYPE_CHECKING:
    from pathlib import Path

    from trio.testing import MockClock

SERVERS = {"a": {"command": "run-a"}, "b": {"command": "run-b", "restart": {"initial_delay": 3600, "max_delay": 3600}}}
PLAIN = {"gateway": {"separator": "__"}}


def with_tools(**sizes: int) -> Listing:
    tools = [Item(name, json.dumps({"name": name, "description": "x" * size}).encode()) for name, size in sizes.items()]
    return Listing(items={Kind.TOOLS: tuple(tools)})


async def diagnosis(harness: Harness) -> dict[str, Any]:
    status, found = await harness.ask("GET", "/diagnosis", headers={})
    assert status == 200
    assert json.loads(await run_command(b'{"do": "diagnose"}', harness.management)) == found
    return found


async def findings(harness: Harness) -> dict[tuple[str | None, str], dict[str, Any]]:
    return {(one["server"], one["code"]): one for one in (await diagnosis(harness))["findings"]}


async def call(harness: Harness, name: str, seconds: float = 0.0, outcome: Any = None) -> None:
    pending = await harness.router.submit(make_call(name))
    await trio.sleep(seconds)
    harness.fakes["a"].session.answer(**({} if outcome is None else {"outcome": outcome}))
    harness.router.release(pending)


async def test_a_healthy_gateway_has_no_findings(tmp_path: Path, autojump_clock: MockClock) -> None:
    async with open_harness(tmp_path, config={"mcpServers": SERVERS, **PLAIN}) as harness:
        await call(harness, "a__x", 0.25)
        found = await diagnosis(harness)
    assert found["findings"] == []
    assert found["states"] == {"a": "ready", "b": "ready"}
    (slowest,) = found["slowest"]
    assert (slowest["server"], slowest["tool"], slowest["latency"]["p99"]) == ("a", "x", 250.0)
    size = len('{"name":"a__x"}')
    assert found["largest"][0] == {"server": "a", "tool": "a__x", "bytes": size, "tokens_estimate": size // 4}
    assert found["views"] == [{"view": None, "tools": 2, "bytes": 2 * size, "tokens_estimate": size // 2}]


async def test_unavailable_servers_are_problems_and_restarts_are_not(tmp_path: Path, autojump_clock: MockClock) -> None:
    async with open_harness(tmp_path, config={"mcpServers": SERVERS, **PLAIN}) as harness:
        harness.fakes["b"].fail(2)
        for name in ("a", "b"):
            harness.fakes[name].session.crash(BackendExited(name, "exited with status 7"))
        await trio.sleep(60)
        found = await findings(harness)
        assert (found["a", "restarts"]["level"], found["b", "unavailable"]["level"]) == ("warning", "problem")
        assert found["a", "restarts"]["text"] == "1 restart; the last error: exited with status 7"
        assert found["b", "unavailable"]["text"] == "between restarts: exited with status 7"
        assert found.keys() == {("a", "restarts"), ("b", "unavailable")}
        assert (await diagnosis(harness))["findings"][0]["level"] == "problem"


async def test_slow_and_failing_calls_are_found(tmp_path: Path, autojump_clock: MockClock) -> None:
    timeouts = {"a": {"command": "run-a", "tool_timeouts": {"slow": 40}}}
    async with open_harness(tmp_path, config={"mcpServers": timeouts, **PLAIN}) as harness:
        harness.fakes["a"].session.listing = make_listing("quick", "slow")
        harness.fakes["a"].listing = make_listing("quick", "slow")
        assert (await harness.ask("POST", "/servers/a/restart"))[0] == 200
        for number in range(ENOUGH_CALLS):
            failure = Failure(-32000, "no luck", None, LEGACY_CALLER.era)
            await call(harness, "a__quick", 0.001, failure if number % 5 == 0 else None)
        await call(harness, "a__slow", 30)
        found = await findings(harness)
        assert found.keys() == {("a", "slow"), ("a", "failing")}
        assert found["a", "slow"]["text"] == "1 slow tool, such as 'slow' with a p99 of 30.0 s"
        assert "40 s" in found["a", "slow"]["hint"]
        assert found["a", "failing"]["text"].startswith(f"19% of {ENOUGH_CALLS + 1} calls failed; the last, of 'quick'")
        assert [one["tool"] for one in (await diagnosis(harness))["slowest"]] == ["slow", "quick"]


async def test_large_tools_and_views_are_found(tmp_path: Path, autojump_clock: MockClock) -> None:
    views = {"small": {"servers": ["b"]}, "big": {"servers": ["a"]}}
    async with open_harness(tmp_path, config={"mcpServers": SERVERS, "views": views, **PLAIN}) as harness:
        harness.fakes["a"].listing = with_tools(**{f"t{number}": 8_000 for number in range(MAX_ROWS + 1)}, wide=9_000)
        assert (await harness.ask("POST", "/servers/a/restart"))[0] == 200
        found = await diagnosis(harness)
        tool, *others = found["findings"]
        assert (tool["code"], tool["server"]) == ("large_tool", "a")
        assert tool["text"].startswith("12 large tools, such as 'a__wide': 9,0")
        assert "tokens (an estimate)" in tool["text"]
        assert [one["text"].partition(" is large")[0] for one in others] == [
            "the list of tools outside views",
            "the list of tools of the view 'big'",
        ]
        assert [one["view"] for one in found["views"]] == [None, "small", "big"]
        assert [one["tools"] for one in found["views"]] == [13, 1, 12]
        assert len(found["largest"]) == MAX_ROWS
        assert found["largest"][0]["tool"] == "a__wide"


async def test_names_that_clients_refuse_are_found(tmp_path: Path, autojump_clock: MockClock) -> None:
    views = {"v": {"servers": ["b"], "separator": "."}}
    config = {"mcpServers": SERVERS, "views": views, **PLAIN}
    async with open_harness(tmp_path, config=config) as harness:
        (finding,) = (await findings(harness)).values()
        assert finding["text"].startswith("1 of 3 names of tools are refused by Claude Desktop, ")
        assert finding["text"].endswith("such as 'b.x'")


async def test_plain_secrets_are_named_but_not_shown(tmp_path: Path, autojump_clock: MockClock) -> None:
    entry = {"command": "x", "env": {"API_KEY": "correct-horse"}}
    servers = {"a": entry, "off": entry | {"disabled": True}}
    async with open_harness(tmp_path, config={"mcpServers": servers, **PLAIN}) as harness:
        found = await findings(harness)
        assert found.keys() == {("a", "plain_secret"), ("off", "plain_secret")}
        assert found["a", "plain_secret"]["text"].endswith(": env.API_KEY")
        assert "correct-horse" not in json.dumps(await diagnosis(harness))


async def test_shared_servers_that_ask_clients_are_found(tmp_path: Path, autojump_clock: MockClock) -> None:
    servers = {"a": {"command": "x"}, "b": {"command": "x", "session": "client"}}
    async with open_harness(tmp_path, config={"mcpServers": servers, **PLAIN}) as harness:
        for name in servers:
            harness.fakes[name].session.asked = ("roots/list", "elicitation/create")
        found = await findings(harness)
        assert found.keys() == {("a", "shared")}
        assert found["a", "shared"]["text"].startswith("sends elicitation/create and roots/list, ")


async def test_list_problems_and_open_breakers_are_found(tmp_path: Path, autojump_clock: MockClock) -> None:
    breaker = {"a": {"command": "run-a", "circuit_breaker": {"failures": 1}}}
    async with open_harness(tmp_path, config={"mcpServers": breaker, **PLAIN}) as harness:
        problems = {Kind.TOOLS: ("tools[0] left out: it has no 'name'",)}
        harness.fakes["a"].listing = make_listing("x", problems=problems)
        assert (await harness.ask("POST", "/servers/a/restart"))[0] == 200
        await call(harness, "a__x", 0, BackendTooSlow("a", "did not answer"))
        await settle()
        found = await findings(harness)
        assert found["a", "breaker"]["text"] == "the circuit breaker is open"
        assert found["a", "lists"]["text"] == problems[Kind.TOOLS][0]


async def test_other_tasks_run_meanwhile(tmp_path: Path, autojump_clock: MockClock) -> None:
    servers = {name: {"command": "x"} for name in ("a", "b", "c")}
    async with open_harness(tmp_path, config={"mcpServers": servers}) as harness, trio.open_nursery() as nursery:
        turns = 0

        async def count() -> None:
            nonlocal turns
            while True:
                await trio.lowlevel.checkpoint()
                turns += 1

        nursery.start_soon(count)
        await harness.management.diagnose()
        assert turns >= len(servers) - 1
        nursery.cancel_scope.cancel()
