"""What the management API shows of servers, calls and processes, and cancelling."""

from __future__ import annotations

import json
import os
from typing import TYPE_CHECKING, Any
from unittest.mock import Mock

import pytest
import trio

from gateway.calls import Era
from gateway.errors import BackendExited, CancelledByAdmin
from gateway.processes.guard import ChildReport
from tests.support.admin import CONFIG, SECRET, open_harness
from tests.support.fakes import make_call, settle

if TYPE_CHECKING:
    from pathlib import Path

    from trio.testing import MockClock


async def test_states_and_hints_show(tmp_path: Path, autojump_clock: MockClock) -> None:
    async with open_harness(tmp_path) as harness:
        harness.fakes["a"].session.crash(BackendExited("a", "exited with status 1"))
        await settle()
        line = (await harness.ask("GET", "/servers"))[1]["details"]["a"]
        assert (line["state"], line["last_error"]) == ("backoff", "exited with status 1")
        assert "`mcp-gateway doctor`" in line["hint"]
        await trio.sleep(5)
        assert (await harness.ask("POST", "/servers/a/restart"))[0] == 200
        _, found = await harness.ask("GET", "/servers/a")
        states = [(one["state"], one["reason"]) for one in found["states"]]
        assert states == [
            ("starting", None), ("ready", None), ("backoff", "exited with status 1"), ("starting", None),
            ("ready", None), ("starting", None), ("ready", None),
        ]  # fmt: skip
        assert found["hint"] is None  # the error was that of another process
        assert (await harness.ask("GET", "/servers/off"))[1]["states"] == []


async def test_the_events_end_with_the_state_of_the_replacement(tmp_path: Path, autojump_clock: MockClock) -> None:
    async with open_harness(tmp_path) as harness:
        with harness.management.feed.read() as reader:
            assert (await harness.ask("POST", "/servers/a/restart"))[0] == 200
            assert (await harness.ask("POST", "/servers/b/disable"))[0] == 200
            await trio.sleep(1)
            found: list[Any] = []
            while reader.receive.statistics().current_buffer_used:
                found.append(json.loads((await reader.receive.receive()).split(b"data: ")[1]))
        states = [(one["server"], one["state"]) for one in found if "state" in one]
        assert states == [("a", "starting"), ("a", "ready"), ("b", "draining"), ("b", "stopped")]


async def test_items_have_both_names_and_no_secret(tmp_path: Path, autojump_clock: MockClock) -> None:
    async with open_harness(tmp_path) as harness:
        _, found = await harness.ask("GET", "/servers/a/items")
        (tool,) = found["tools"]
        assert (tool["name"], tool["own"], tool["item"]["name"]) == ("a.x", "x", "a.x")
        assert (found["prompts"], found["resources"], found["templates"]) == ([], [], [])
        assert SECRET not in json.dumps(found)
        assert (await harness.ask("GET", "/servers/off/items"))[1]["tools"] == []
        assert (await harness.ask("GET", "/servers/missing/items"))[0] == 404


async def test_processes_show_their_usage(tmp_path: Path, autojump_clock: MockClock) -> None:
    async with open_harness(tmp_path) as harness:
        reports = (ChildReport("a", os.getpid(), 0.0, (os.getppid(),)), ChildReport("b", 1, 0.0, ()))
        guard: Any = Mock(snapshot=Mock(return_value=reports))
        harness.management.guard = guard
        _, found = await harness.ask("GET", "/servers/a/processes")
        assert [(one["pid"], one["child"]) for one in found["processes"]] == [
            (os.getpid(), os.getpid()), (os.getppid(), os.getpid()),
        ]  # fmt: skip
        assert found["processes"][0]["memory"] > 1_000_000
        assert found["processes"][0]["cpu"] > 0
        assert (await harness.ask("GET", "/tree"))[1]["backends"][0]["processes"] == [os.getpid(), os.getppid()]
        assert (await harness.ask("GET", "/servers/missing/processes"))[0] == 404


async def test_a_call_is_cancelled_at_client_and_backend(tmp_path: Path, autojump_clock: MockClock) -> None:
    noted: list[int] = []
    async with open_harness(tmp_path, note_cancelled=lambda pending: noted.append(pending.number)) as harness:
        pending = await harness.router.submit(make_call("a.x"))
        await settle()
        (call,) = (await harness.ask("GET", "/tree"))[1]["sessions"][0]["calls"]
        path = f"/calls/{call['call']}/cancel"
        assert await harness.ask("POST", path) == (200, {"cancelled": pending.number})
        assert isinstance(await pending.next(), CancelledByAdmin)
        assert [reason for _, reason in harness.fakes["a"].session.withdrawn] == ["cancelled by the gateway's operator"]
        assert noted == [pending.number]
        assert (await harness.ask("POST", path))[0] == 404
        harness.router.release(pending)


@pytest.mark.parametrize("number", ["0", "x", "-1", "1" * 100, "\u00b2"])
async def test_an_unknown_call_is_404(number: str, tmp_path: Path, autojump_clock: MockClock) -> None:
    async with open_harness(tmp_path) as harness:
        assert (await harness.ask("POST", f"/calls/{number}/cancel"))[0] == 404


async def test_the_tree_shows_the_process_of_the_callers_session(tmp_path: Path, autojump_clock: MockClock) -> None:
    """A backend with a session for each client has a process for each, too."""
    servers = {**CONFIG["mcpServers"], "a": {"command": "run-a", "session": "client"}}
    async with open_harness(tmp_path, config={"mcpServers": servers}) as harness:
        caller = type(make_call("a.x").caller)(era=Era.LEGACY, version="2025-11-25", session="one")
        pending = await harness.router.submit(make_call("a.x", caller=caller))
        await trio.sleep(1)
        harness.fakes["a"].sessions[-1].pid = 200
        (call,) = (await harness.ask("GET", "/tree"))[1]["sessions"][0]["calls"]
        assert (call["pid"], harness.fleet.statuses()["a"].pid) == (200, 4711)
        harness.router.release(pending)
