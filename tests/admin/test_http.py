"""The management API in process, over a fleet of fakes."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any
from unittest.mock import Mock

import msgspec
import pytest
import trio
from trio.testing import MockClock

from gateway.admin.access import AdminAccess, find_token
from gateway.admin.events import KEEP_ALIVE, MAX_EVENTS, MAX_READERS
from gateway.admin.http import make_admin_app
from gateway.admin.openapi import Operation, openapi_document
from gateway.admin.operations import OPERATIONS
from gateway.admin.report import encode_report
from gateway.admin.tree import make_tree
from gateway.calls import Failure
from gateway.clock import elapsed_time
from gateway.config import parse_config
from gateway.eras.methods import Kind
from gateway.errors import BackendExited, ConfigError
from gateway.processes.guard import ChildReport
from gateway.store import Store
from tests.support.admin import BEARER, CONFIG, JSON, SECRET, TOKEN, Harness, open_harness
from tests.support.fakes import LEGACY_CALLER, FakeExchange, make_call, make_listing, settle
from tests.support.log_events import logged_events

if TYPE_CHECKING:
    from pathlib import Path

    from gateway.admin.request import Request


GUARDED = {"keys": [{"name": "alice", "hash": "sha256:" + "0" * 64}]}


# -- G8 ----------------------------------------------------------------------------------------------------------------


async def test_guarantee_g8_health_servers_and_tools(tmp_path: Path, autojump_clock: MockClock) -> None:
    async with open_harness(tmp_path) as harness:
        status, health = await harness.ask("GET", "/health", headers={})
        assert (status, health["status"], health["servers"]) == (200, "ok", ["a", "b"])
        assert health["backends"]["a"]["state"] == "ready"
        status, servers = await harness.ask("GET", "/servers", headers={})
        assert (status, servers["servers"]) == (200, ["a", "b", "off"])
        assert {name: line["state"] for name, line in servers["details"].items()} == {
            "a": "ready", "b": "ready", "off": "disabled",
        }  # fmt: skip
        assert await harness.ask("GET", "/tools", headers={}) == (200, {"tools": {"a": ["a.x"], "b": ["b.x"]}})


async def test_guarantee_g8_post_adds_and_replaces(tmp_path: Path, autojump_clock: MockClock) -> None:
    async with open_harness(tmp_path) as harness:
        body = {"mcpServers": {"c": {"command": "run-c"}, "a": {"command": "other"}}}
        assert await harness.ask("POST", "/servers", body) == (200, {"added": ["c", "a"]})
        _, tools = await harness.ask("GET", "/tools")
        assert tools["tools"] == {"a": ["a.x"], "b": ["b.x"], "c": ["c.x"]}
        assert harness.fleet.supervisors["a"].config.command == "other"
        assert harness.starts == {"a": 2, "b": 1, "c": 1, "off": 0}


async def test_guarantee_g8_delete_removes_once(tmp_path: Path, autojump_clock: MockClock) -> None:
    async with open_harness(tmp_path) as harness:
        assert await harness.ask("DELETE", "/servers/a") == (200, {"removed": "a"})
        assert (await harness.ask("GET", "/tools"))[1] == {"tools": {"b": ["b.x"]}}
        status, answer = await harness.ask("DELETE", "/servers/a")
        assert (status, answer["code"]) == (404, "unknown_server")
        assert "'a'" in answer["error"]


async def test_a_server_that_fails_to_start_is_named(tmp_path: Path, autojump_clock: MockClock) -> None:
    async with open_harness(tmp_path) as harness:
        harness.fakes["c"].fail(1)
        answer = await harness.ask("POST", "/servers", {"mcpServers": {"c": {"command": "run-c"}}})
        assert answer == (200, {"added": ["c"], "not_ready": {"c": "exited with status 1"}})


@pytest.mark.parametrize("before", [b"\xef\xbb\xbf", b"\xef\xbb\xbf\r\n"])
async def test_a_bom_before_a_body_is_skipped(before: bytes, tmp_path: Path, autojump_clock: MockClock) -> None:
    async with open_harness(tmp_path) as harness:
        body = before + json.dumps({"mcpServers": {"c": {"command": "run-c"}}}).encode()
        assert (await harness.ask("POST", "/servers", body))[0] == 200


@pytest.mark.parametrize(
    "server",
    [
        {"command": "\ud83d"},
        {"command": "x", "args": ["\ud83d"]},
        {"command": "x", "\ud83d": 1},
        {"command": "x", "y": "\ud83d"},
    ],
    ids=repr,
)
async def test_a_lone_surrogate_in_a_config_is_reported(
    server: dict[str, object], tmp_path: Path, autojump_clock: MockClock
) -> None:
    async with open_harness(tmp_path) as harness:
        status, answer = await harness.ask("POST", "/servers", json.dumps({"mcpServers": {"c": server}}).encode())
        assert status == 422
        assert "contains a lone surrogate" in answer["details"][0]


# -- G9 ----------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("body", [b"", b"{", b"\xff", b'{"mcpServers": {]}', b"[" * 100_000])
async def test_guarantee_g9_bad_json_is_400_and_changes_nothing(
    body: bytes, tmp_path: Path, autojump_clock: MockClock
) -> None:
    async with open_harness(tmp_path) as harness:
        status, answer = await harness.ask("POST", "/servers", body)
        assert status == 400
        assert answer["error"].startswith("Invalid JSON payload: ")
        assert (harness.starts, harness.source.overlay.changes) == ({"a": 1, "b": 1, "c": 0, "off": 0}, {})


@pytest.mark.parametrize(
    ("body", "named"),
    [
        ({}, "mcpServers"),
        ([], "top level"),
        ("text", "top level"),
        (None, "top level"),
        ({"mcpServers": {}}, "names no server"),
        ({"mcpServers": []}, "object"),
        ({"mcpServers": {"c": {}}}, "'c'"),
        ({"mcpServers": {"c": {"command": "x", "url": "http://h/"}}}, "both"),
        ({"mcpServers": {"c": {"command": "x"}, "d e": {"command": "x"}}}, "'d e'"),
        ({"mcpServers": {"c": {"command": "x", "call_timeout": -1}}}, "call_timeout"),
        ({"mcpServers": {"c": {"command": "${NOT_SET}"}}}, "NOT_SET"),
        ({"mcpServers": {"c": {"command": "x"}}, "acess": {}}, "'access'"),
        ({"mcpServers": {"c": {"command": "x"}}, "Views": {}}, "'views'"),
        (b'{"mcpServers": {"c": {"command": "x"}, "c": {"command": "y"}}}', "more than once"),
        (b'{"mcpServers": {"c": {"command": "x", "call_timeout": NaN}}}', "NaN"),
    ],
)
async def test_guarantee_g9_a_bad_config_is_422_and_changes_nothing(
    body: Any, named: str, tmp_path: Path, autojump_clock: MockClock
) -> None:
    async with open_harness(tmp_path) as harness:
        status, answer = await harness.ask("POST", "/servers", body)
        assert (status, answer["error"], answer["code"]) == (422, "Invalid server configuration.", "invalid_config")
        assert any(named in detail for detail in answer["details"])
        assert list(harness.fleet.supervisors) == ["a", "b"]
        assert (harness.starts, harness.source.overlay.changes) == ({"a": 1, "b": 1, "c": 0, "off": 0}, {})


# -- who may -----------------------------------------------------------------------------------------------------------

CHANGES = [(one.method, one.path.replace("{name}", "a")) for one in OPERATIONS if one.access == "change"]
READS = [
    (one.method, one.path.replace("{name}", "a"))
    for one in OPERATIONS
    if one.access == "read" and one.content_type == "application/json"
]


@pytest.mark.parametrize(("method", "path"), CHANGES)
@pytest.mark.parametrize("given", [{}, {"authorization": "Bearer wrong"}, {"authorization": f"Basic {TOKEN}"}])
async def test_a_change_needs_the_token(
    method: str, path: str, given: Any, tmp_path: Path, autojump_clock: MockClock
) -> None:
    async with open_harness(tmp_path) as harness:
        exchange = await harness.exchange(method, path, CONFIG, headers={**JSON, **given})
        assert (exchange.status, exchange.headers["www-authenticate"]) == (401, "Bearer")
        answer = json.loads(exchange.body)
        assert "--admin-token" in answer["hint"]
        assert TOKEN not in str(answer)
        assert len(exchange._incoming) == 1  # the body was not even read
        assert (harness.starts["a"], list(harness.fleet.supervisors)) == (1, ["a", "b"])


@pytest.mark.parametrize(("method", "path"), READS)
async def test_reading_is_open_on_loopback_only(
    method: str, path: str, tmp_path: Path, autojump_clock: MockClock
) -> None:
    async with open_harness(tmp_path) as harness:
        assert (await harness.exchange(method, path, headers={})).status == 200
    async with open_harness(tmp_path, host="10.0.0.1") as harness:
        assert (await harness.exchange(method, path, headers={})).status == 401
        assert (await harness.exchange(method, path)).status == 200


async def test_probes_are_open_everywhere_and_bare(tmp_path: Path, autojump_clock: MockClock) -> None:
    async with open_harness(tmp_path, host="0.0.0.0") as harness:
        assert await harness.ask("GET", "/livez", headers={}) == (200, {"status": "ok"})
        assert await harness.ask("GET", "/readyz", headers={}) == (200, {"status": "ready"})
        assert await harness.ask("GET", "/health", headers={}) == (200, {"status": "ok"})
        assert "backends" in (await harness.ask("GET", "/health"))[1]


async def test_open_lets_json_through_without_a_token(tmp_path: Path, autojump_clock: MockClock) -> None:
    async with open_harness(tmp_path, mode="open") as harness:
        assert (await harness.ask("POST", "/servers/a/restart", headers=JSON))[0] == 200
        for headers in ({}, {"content-type": "text/plain"}):  # what a web page can send without being asked for
            assert (await harness.ask("POST", "/servers/a/restart", headers=headers))[0] == 415
        assert (await harness.ask("DELETE", "/servers/a", headers={}))[0] == 200
    with pytest.raises(ConfigError, match="loopback"):
        AdminAccess("open", host="0.0.0.0", token=TOKEN)


async def test_open_requests_the_token_where_access_is_configured(tmp_path: Path, autojump_clock: MockClock) -> None:
    async with open_harness(tmp_path, mode="open", config={**CONFIG, "access": GUARDED}) as harness:
        assert (await harness.ask("GET", "/servers", headers={}))[0] == 401
        assert (await harness.ask("POST", "/servers/a/restart", headers=JSON))[0] == 401
        assert (await harness.ask("POST", "/servers/a/restart"))[0] == 200


async def test_reloading_a_misspelled_section_keeps_the_config(tmp_path: Path) -> None:
    async with open_harness(tmp_path, config={**CONFIG, "access": GUARDED}) as harness:
        harness.path.write_text(json.dumps({**CONFIG, "acces": GUARDED}), encoding="utf-8")
        status, answer = await harness.ask("POST", "/reload")
        assert (status, "'acces'" in answer["details"][0]) == (422, True)
        assert (await harness.ask("GET", "/servers", headers={}))[0] == 401


async def test_reading_follows_the_current_config(tmp_path: Path, autojump_clock: MockClock) -> None:
    async with open_harness(tmp_path) as harness, trio.open_nursery() as nursery:
        exchange = FakeExchange(method="GET")
        exchange.scope["path"] = "/events"
        nursery.start_soon(harness.app, exchange.scope, exchange.receive, exchange.send)
        await settle()
        assert exchange.status == 200
        await harness.fleet.apply(parse_config({**CONFIG, "access": GUARDED}, environ={}))
        assert (await harness.ask("GET", "/servers", headers={}))[0] == 401
        await trio.sleep(2 * KEEP_ALIVE)
        assert exchange.ended
        await harness.fleet.apply(parse_config({**CONFIG}, environ={}))
        assert (await harness.ask("GET", "/servers", headers={}))[0] == 200


async def test_off_leaves_the_probes(tmp_path: Path, autojump_clock: MockClock) -> None:
    async with open_harness(tmp_path, mode="off") as harness:
        assert await harness.ask("GET", "/health") == (200, {"status": "ok"})
        assert (await harness.ask("GET", "/readyz"))[0] == 200
        for method, path in (*CHANGES, *READS):
            assert (await harness.ask(method, path))[0] == 404


@pytest.mark.parametrize("content_type", ["text/plain", "application/x-www-form-urlencoded", "application/jsonp"])
async def test_a_config_requires_the_json_content_type(
    content_type: str, tmp_path: Path, autojump_clock: MockClock
) -> None:
    async with open_harness(tmp_path) as harness:
        headers = {**BEARER, "content-type": content_type}
        assert (await harness.ask("POST", "/servers", CONFIG, headers=headers))[0] == 415
        headers["content-type"] = "Application/JSON; charset=utf-8"
        assert (await harness.ask("POST", "/servers", CONFIG, headers=headers))[0] == 200


async def test_bodies_are_bounded(tmp_path: Path, autojump_clock: MockClock) -> None:
    async with open_harness(tmp_path, config={**CONFIG, "gateway": {"max_body_bytes": 100}}) as harness:
        assert (await harness.ask("POST", "/servers", b" " * 101))[0] == 413


async def test_other_methods_and_paths_are_refused_in_json(tmp_path: Path, autojump_clock: MockClock) -> None:
    async with open_harness(tmp_path) as harness:
        exchange = await harness.exchange("PUT", "/servers/a")
        assert (exchange.status, exchange.headers["allow"]) == (405, "DELETE, GET, HEAD")
        for path in ("/nothing", "/", "/servers/a/b/c", "/servers/a/b/c/"):
            assert (await harness.ask("GET", path))[0] == 404


def test_the_token_comes_from_its_configured_source(tmp_path: Path) -> None:
    store = Store(tmp_path / "state")
    assert find_token("given-by-the-option", {"MCP_GATEWAY_ADMIN_TOKEN": "x"}, store) == "given-by-the-option"
    assert find_token(None, {"MCP_GATEWAY_ADMIN_TOKEN": "from-the-environment"}, store) == "from-the-environment"
    assert not (tmp_path / "state").exists()
    made = find_token(None, {}, store)
    assert made == find_token(None, {}, Store(tmp_path / "state"))
    assert (tmp_path / "state" / "admin-token").stat().st_mode & 0o777 == 0o600
    assert [path.name for path in (tmp_path / "state").iterdir()] == ["admin-token"]
    assert find_token(None, {}, None) is None
    for bad in ("short", "with a space in it, and long", "not-ascii-ä-0123456789"):
        with pytest.raises(ConfigError, match="16 visible"):
            find_token(bad, {}, store)
    (tmp_path / "state" / "admin-token").write_text("\n")
    with pytest.raises(OSError, match="contains no token"):
        find_token(None, {}, store)


async def test_changes_require_a_token(tmp_path: Path, autojump_clock: MockClock) -> None:
    access = AdminAccess("token", host="127.0.0.1")
    for value in (b"Bearer ", b"Bearer None", b""):
        assert not access.may_change({b"authorization": value}, guarded=False)
    await trio.lowlevel.checkpoint()


# -- one server --------------------------------------------------------------------------------------------------------


async def test_a_server_is_shown_without_its_secrets(tmp_path: Path, autojump_clock: MockClock) -> None:
    async with open_harness(tmp_path) as harness:
        pending = await harness.router.submit(make_call("a.x"))
        await trio.sleep(2)
        harness.fakes["a"].session.answer(outcome=Failure(-32000, "no", None, LEGACY_CALLER.era))
        harness.router.release(pending)
        exchange = await harness.exchange("GET", "/servers/a", headers={})
        assert SECRET.encode() not in exchange.body
        shown = json.loads(exchange.body)
        assert (shown["config"]["env"], shown["config"]["args"]) == (
            {"KEY": "***"}, ["--api-key", "***", "--token=***", "x"],
        )  # fmt: skip
        assert (shown["origin"], shown["status"]["state"], shown["tools"]) == (
            "file", "ready", [{"name": "a.x", "own": "x"}],
        )  # fmt: skip
        assert (shown["calls"], shown["failed"], shown["latency"]["p50"]) == (1, 1, 2000.0)
        assert [(one["call"], one["error"]) for one in shown["errors"]] == [("x", "error -32000: no")]
        assert (shown["capabilities"], shown["protocol_version"]) == ({"tools": {}}, "2025-11-25")
        status, off = await harness.ask("GET", "/servers/off")
        assert (status, off["status"], off["config"]["disabled"]) == (200, None, True)
        assert (await harness.ask("GET", "/servers/nobody"))[0] == 404


async def test_restart_disable_and_enable(tmp_path: Path, autojump_clock: MockClock) -> None:
    async with open_harness(tmp_path) as harness:
        assert await harness.ask("POST", "/servers/a/restart") == (200, {"server": "a", "done": "restarted"})
        assert harness.starts == {"a": 2, "b": 1, "c": 0, "off": 0}
        assert await harness.ask("POST", "/servers/a/disable") == (200, {"server": "a", "done": "disabled"})
        assert list(harness.fleet.supervisors) == ["b"]
        assert (await harness.ask("POST", "/servers/a/restart"))[0] == 409
        assert await harness.ask("POST", "/servers/a/enable") == (200, {"server": "a", "done": "enabled"})
        assert await harness.ask("POST", "/servers/off/enable") == (200, {"server": "off", "done": "enabled"})
        assert list(harness.fleet.supervisors) == ["a", "b", "off"]
        _, servers = await harness.ask("GET", "/servers")
        assert servers["details"]["off"]["origin"] == "file, changed by api"
        for action in ("restart", "enable", "disable"):
            assert (await harness.ask("POST", f"/servers/missing/{action}"))[0] == 404


async def test_readiness_follows_the_required(tmp_path: Path, autojump_clock: MockClock) -> None:
    async with open_harness(tmp_path) as harness:
        harness.fakes["a"].session.crash(BackendExited("a", "exited"))  # not a required backend
        await settle()
        assert (await harness.ask("GET", "/readyz"))[0] == 200
        harness.fakes["b"].session.crash(BackendExited("b", "exited"))
        await settle()
        assert await harness.ask("GET", "/readyz") == (503, {"status": "not ready"})
        await trio.sleep(5)
        assert (await harness.ask("GET", "/readyz"))[0] == 200
        harness.draining = True
        assert (await harness.ask("GET", "/readyz"))[0] == 503
        assert (await harness.ask("GET", "/livez"))[0] == 200


# -- reloading ---------------------------------------------------------------------------------------------------------


async def test_reload_reports_what_has_changed(tmp_path: Path) -> None:
    async with open_harness(tmp_path) as harness:
        servers = {"a": CONFIG["mcpServers"]["a"], "c": {"command": "run-c"}, "off": CONFIG["mcpServers"]["off"]}
        harness.path.write_text(json.dumps({"mcpServers": servers}))
        assert await harness.ask("POST", "/reload") == (
            200,
            {"added": ["c"], "removed": ["b"], "changed": [], "unchanged": ["a", "off"], "not_ready": {}},
        )
        assert harness.starts == {"a": 1, "b": 1, "c": 1, "off": 0}


async def test_an_invalid_file_is_reported_and_changes_nothing(tmp_path: Path, caplog: Any) -> None:
    async with open_harness(tmp_path) as harness:
        harness.path.write_text('{"mcpServers": {"a": {"command": "x", "url": "http://h/"}, "c": {"command": "y"}}}')
        status, answer = await harness.ask("POST", "/reload")
        assert (status, answer["error"]) == (422, "Invalid server configuration.")
        assert "both" in answer["details"][0]
        assert list(harness.fleet.supervisors) == ["a", "b"]
        _, health = await harness.ask("GET", "/health")
        assert (health["reload"]["ok"], health["reload"]["problems"]) == (False, answer["details"])
        assert [one["code"] for one in logged_events(caplog, "config_rejected")] == ["invalid_config"]
        assert (await harness.ask("POST", "/servers/a/restart"))[0] == 200  # what holds is still the one before


async def test_a_client_disconnect_leaves_nothing_half_done(tmp_path: Path, autojump_clock: MockClock) -> None:
    async with open_harness(tmp_path) as harness:

        async def slow(_number: int) -> None:
            await trio.sleep(3)

        harness.fakes["c"].on_start = slow
        with trio.move_on_after(1):
            await harness.ask("POST", "/servers", {"mcpServers": {"c": {"command": "run-c"}}})
        assert "c" not in harness.fleet.supervisors
        await trio.sleep(3)
        assert "c" in harness.fleet.supervisors
        assert harness.reloader.origin("c") == "api"


# -- what happens ------------------------------------------------------------------------------------------------------


async def read_events(harness: Harness, nursery: trio.Nursery) -> FakeExchange:
    exchange = FakeExchange(method="GET")
    exchange.scope["path"] = "/events"
    nursery.start_soon(harness.app, exchange.scope, exchange.receive, exchange.send)
    await settle()
    return exchange


async def test_events_report_states_and_calls(tmp_path: Path, autojump_clock: MockClock) -> None:
    async with open_harness(tmp_path) as harness, trio.open_nursery() as nursery:
        exchange = await read_events(harness, nursery)
        pending = await harness.router.submit(make_call("a.x"))
        await trio.sleep(0.25)
        harness.fakes["a"].session.answer()
        harness.router.release(pending)
        harness.fakes["b"].session.crash(BackendExited("b", "exited"))
        await trio.sleep(0.1)
        call, state = exchange.events
        assert (call["server"], call["name"], call["ms"], call["outcome"]) == ("a", "a.x", 250.0, "answered")
        assert (state["server"], state["state"], state["reason"]) == ("b", "backoff", "exited")
        assert exchange.headers["content-type"] == "text/event-stream"
        await trio.sleep(20)
        assert b"keep-alive" in exchange.body
        harness.closing.set()
        await settle()
        assert exchange.ended


async def test_events_report_reloads_and_rejections(tmp_path: Path, autojump_clock: MockClock) -> None:
    async with open_harness(tmp_path) as harness, trio.open_nursery() as nursery:
        exchange = await read_events(harness, nursery)
        assert (await harness.ask("POST", "/servers", {"mcpServers": {"c": {"command": "run-c"}}}))[0] == 200
        harness.path.write_text("{")
        assert (await harness.ask("POST", "/reload", {}))[0] == 422
        await settle()
        notified = [event for event in exchange.events if "reload" in event]
        assert [(one["by"], one["reload"]) for one in notified] == [
            ("api", "begun"),
            ("api", "applied"),
            ("api", "begun"),
            ("api", "refused"),
        ]
        assert (notified[1]["added"], notified[1]["unchanged"]) == (["c"], ["a", "b", "off"])
        assert "config.json" in notified[3]["reason"]
        harness.closing.set()


async def test_disconnected_readers_are_removed_and_readers_bounded(tmp_path: Path, autojump_clock: MockClock) -> None:
    async with open_harness(tmp_path) as harness, trio.open_nursery() as nursery:
        readers = [await read_events(harness, nursery) for _ in range(MAX_READERS)]
        assert (await harness.ask("GET", "/events"))[0] == 503
        readers[0].gone.set()
        await settle()
        readers.append(await read_events(harness, nursery))
        assert readers[-1].status == 200
        for reader in readers:
            reader.gone.set()
        await settle()
        assert not harness.fleet._observers


async def test_a_slow_reader_is_notified_of_lost_events(tmp_path: Path, autojump_clock: MockClock) -> None:
    async with open_harness(tmp_path) as harness:
        with harness.management.feed.read() as reader:
            for number in range(MAX_EVENTS + 7):
                reader.put("call", {"number": number})
            await reader.receive.receive()
            reader.put("call", {"number": "next"})
            found = [await reader.receive.receive() for _ in range(MAX_EVENTS)]
        assert b'"dropped":7' in found[-1]


async def test_the_tree_shows_what_each_call_waits_for(tmp_path: Path, autojump_clock: MockClock) -> None:
    async with open_harness(tmp_path) as harness:
        caller = type(LEGACY_CALLER)(
            era=LEGACY_CALLER.era, version="2025-11-25", session="secret-session-id", client_info=b'{"name":"desk"}'
        )
        first = await harness.router.submit(make_call("a.x", caller=caller))
        harness.fakes["b"].stall()
        harness.fakes["b"].session.crash(BackendExited("b", "exited"))
        await settle()
        second = await harness.router.submit(make_call("b.x", caller=caller))
        await trio.sleep(3)
        exchange = await harness.exchange("GET", "/tree")
        assert b"secret-session-id" not in exchange.body
        tree = json.loads(exchange.body)
        (session,) = tree["sessions"]
        assert (session["client"], session["era"]) == ("desk", "legacy")
        calls = {call["backend"]: call for call in session["calls"]}
        assert (calls["a"]["waits_for"], calls["b"]["waits_for"]) == ("backend", "start")
        assert (calls["a"]["age"], calls["a"]["deadline_in"], calls["a"]["pid"]) == (3.0, 297.0, 4711)
        assert {node["name"]: node["state"] for node in tree["backends"]} == {"a": "ready", "b": "starting"}
        for pending in (first, second):
            harness.router.release(pending)


async def test_ps_shows_one_child_of_a_dual_backend(tmp_path: Path, autojump_clock: MockClock) -> None:
    """`"era": "each"`: whichever of its children was started last."""
    reports = [ChildReport("a", 4711, elapsed_time() - 60, (1, 2)), ChildReport("a", 4712, elapsed_time(), (3,))]
    async with open_harness(tmp_path) as harness:
        for children in (reports, reports[::-1]):
            guard: Any = Mock(snapshot=Mock(return_value=children))
            shown = json.loads(encode_report(harness.fleet, guard, transport="stdio"))["backends"][0]
            assert (shown["pid"], shown["descendants"], round(shown["age"])) == (4711, [1, 2], 60)
            node = make_tree(harness.router, guard).backends[0]
            assert (node.pid, node.descendants, round(node.age or 0)) == (4711, [1, 2], 60)


# -- the document ------------------------------------------------------------------------------------------------------


def test_the_document_names_every_operation_once() -> None:
    document = openapi_document(OPERATIONS, "1.2.3")
    found = {
        (method.upper(), path): operation
        for path, operations in document["paths"].items()
        for method, operation in operations.items()
    }
    assert set(found) == {(one.method, one.path) for one in OPERATIONS}
    for one in OPERATIONS:
        assert ("401" in found[one.method, one.path]["responses"]) == (one.access != "open")
    text = json.dumps(document)
    names = set(document["components"]["schemas"])
    assert {part.split('"')[0] for part in text.split("#/components/schemas/")[1:]} <= names


class Restarts(msgspec.Struct):
    """How often a server was started again."""

    restarts: int


async def test_an_endpoint_has_a_row_handler_and_document(tmp_path: Path, autojump_clock: MockClock) -> None:
    async def show_restarts(request: Request) -> None:
        await request.answer(Restarts(request.management.list_servers().details[request.server].restarts))

    row = Operation(
        "GET", "/servers/{name}/restarts", "show_restarts", show_restarts, "The restarts of a server.", (Restarts,)
    )
    async with open_harness(tmp_path) as harness:
        harness.app = make_admin_app(harness.management, AdminAccess("token", host="0.0.0.0", token=TOKEN), [row])
        assert await harness.ask("GET", "/servers/a/restarts") == (200, {"restarts": 0})
        assert (await harness.ask("GET", "/servers/a/restarts", headers={}))[0] == 401
        assert (await harness.ask("POST", "/servers/a/restarts"))[0] == 405
    document = openapi_document([row], "1")
    assert document["paths"].keys() == {"/servers/{name}/restarts"}
    assert "Restarts" in document["components"]["schemas"]


async def test_head_of_the_events_ends_immediately(tmp_path: Path, autojump_clock: MockClock) -> None:
    async with open_harness(tmp_path) as harness:
        exchange = await harness.exchange("HEAD", "/events", headers={})
        assert (exchange.status, exchange.headers["content-type"]) == (200, "text/event-stream")
        assert len(harness.management.feed) == 0


async def test_list_warnings_show_until_resolved(tmp_path: Path, autojump_clock: MockClock) -> None:
    async with open_harness(tmp_path) as harness:
        listing = make_listing("x")
        bad = msgspec.structs.replace(listing, problems={Kind.TOOLS: ("tools[1] left out: no name",)})
        for found, expected in ((bad, ["tools[1] left out: no name"]), (listing, [])):
            harness.fakes["a"].session.on_relist = lambda _feature, found=found: found
            harness.fakes["a"].session.change()
            await trio.sleep(1)
            for path, entry in (("/health", ["backends", "a"]), ("/servers/a", ["status"])):
                _, body = await harness.ask("GET", path)
                for key in entry:
                    body = body[key]
                assert body["warnings"] == expected


async def test_the_last_lines_of_stderr_show(tmp_path: Path, autojump_clock: MockClock) -> None:
    async with open_harness(tmp_path) as harness:
        for number in range(30):
            harness.fakes["a"].session.write_stderr(f"line {number}".encode())
        harness.fakes["a"].session.crash(BackendExited("a", "exited with status 1"))
        await trio.sleep(5)  # they outlive the process that wrote them
        assert (await harness.ask("GET", "/servers/a"))[1]["stderr"] == [f"line {number}" for number in range(10, 30)]
        assert (await harness.ask("GET", "/servers/b"))[1]["stderr"] == []
        assert (await harness.ask("GET", "/servers/off"))[1]["stderr"] == []
