"""The connection manager, rows P1 to P10: real stdio servers, from asyncio and trio."""

from __future__ import annotations

import gc
import logging
import os
import subprocess
import sys
import threading
from typing import Any

import anyio
import pytest
import trio
from mcp_types import CallToolResult, TextContent, Tool

import gateway
from gateway.config import ShutdownGrace
from gateway.embed import engine
from gateway.errors import GatewayError
from tests.peers.http_peer import LegacyServer, open_peer
from tests.peers.oauth_peer import open_oauth_peer
from tests.support.embedding import (
    WITHIN,
    both_loops,
    children,
    config_of,
    run_on,
    running,
    stubborn_backend,
    text_of,
    until,
)
from tests.support.gateway_process import ROOT, echo_backend, faulty_backend

pytestmark = pytest.mark.leak_check


# -- P1 --------------------------------------------------------------------------------------------------------------


@both_loops
def test_guarantee_p1_servers_start_with_their_first_use(loop: str) -> None:
    async def body() -> None:
        manager = gateway.ProxyManager()
        threads = threading.active_count()
        handles = manager.initialize_connections(config_of(a=echo_backend(), b=echo_backend()))
        assert sorted(handles) == ["a", "b"]
        assert children() == []
        assert threading.active_count() == threads
        assert not manager.get_server_status("a")["connected"]
        async with handles["a"] as client:
            assert text_of(await client.call_tool("echo", {"text": "hello"})) == "hello"
            assert len(children()) == 1
        await manager.close_all_connections()

    run_on(loop, body)


@both_loops
def test_guarantee_p1_a_bad_server_leaves_others_working(loop: str) -> None:
    async def body() -> None:
        manager = gateway.ProxyManager()
        handles = await manager.initialize_connections(config_of(a=echo_backend(), bad={"command": 3}))
        assert list(handles) == ["a"]
        status = manager.get_server_status("bad")
        assert status["initialized"] is False
        assert "'bad'" in status["error"]
        assert "'command'" in status["error"]
        assert manager.get_all_servers() == ["a", "bad"]
        assert text_of(await manager.call_tool("a", "echo", {"text": "x"})) == "x"
        await manager.close_all_connections()

    run_on(loop, body)


@pytest.mark.parametrize("config", [None, [], "{}", {"mcpServers": []}, {"mcpServers": None}, {}])
def test_guarantee_p1_an_invalid_config_raises_value_error(config: Any) -> None:
    manager = gateway.MCPProxyManager()
    manager.initialize_connections(config_of())
    with pytest.raises(ValueError, match="must be a dict") as caught:
        manager.initialize_connections(config)
    assert isinstance(caught.value, GatewayError)
    assert manager.get_all_servers() == ["a"]


# -- P2, P3, P4 ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("entry", "words"),
    [
        ({}, ["'command'", "'url'"]),
        ({"command": "x", "url": "http://127.0.0.1/"}, ["'command'", "'url'"]),
        ({"command": 1}, ["'command'"]),
        ({"url": ["http://127.0.0.1/"]}, ["'url'"]),
        ({"command": "x", "args": "y"}, ["'args'"]),
        ({"command": "x", "env": ["A=1"]}, ["'env'"]),
        ({"url": "http://127.0.0.1/", "headers": "A: 1"}, ["'headers'"]),
    ],
)
def test_guarantee_p2_each_violation_names_problem_and_server(entry: dict[str, Any], words: list[str]) -> None:
    manager = gateway.ProxyManager()
    manager.initialize_connections(config_of(culprit=entry, a=echo_backend()))
    error = manager.get_server_status("culprit")["error"]
    assert all(word in error for word in ["'culprit'", *words]), error
    assert manager.get_server_status("a")["error"] == ""  # noqa: PLC1901 - no other empty value


@pytest.mark.parametrize("header", ["Authorization", "authorization", "AUTHORIZATION"])
async def test_guarantee_p3_a_given_authorization_header_is_unchanged(header: str) -> None:
    with trio.fail_after(WITHIN):
        async with open_peer(LegacyServer()) as peer:
            manager = gateway.ProxyManager()
            manager.initialize_connections(config_of(s={"url": peer.url, "headers": {header: "Basic bWU6bWU="}}))
            await manager.list_tools("s")
            assert peer.requests
            assert {request.headers["authorization"] for request in peer.requests} == {"Basic bWU6bWU="}
            await manager.close_all_connections()


async def test_guarantee_p3_without_one_oauth_is_found_out() -> None:
    with trio.fail_after(WITHIN):
        async with open_oauth_peer() as peer:
            robot = {"grant": "client_credentials", "client_id": "robot", "client_secret": "s3cr3t"}
            manager = gateway.ProxyManager()
            manager.initialize_connections(
                config_of(
                    robot={"url": peer.url, "era": "legacy", "oauth": robot},
                    person={"url": peer.url, "era": "legacy", "oauth": {"browser": "print"}},
                    given={"url": peer.url, "era": "legacy", "headers": {"authorization": "Bearer wrong"}},
                )
            )
            assert text_of(await manager.call_tool("robot", "echo")) == "well done"
            assert peer.asked("/token") == 1
            with pytest.raises(RuntimeError, match="mcp-gateway login person"):
                await manager.call_tool("person", "echo")
            asked = len(peer.log)
            with pytest.raises(RuntimeError, match="'given'"):
                await manager.call_tool("given", "echo")
            assert len(peer.log) == asked  # a given header starts no OAuth
            await manager.close_all_connections()


def test_guarantee_p4_unknown_or_failed_servers_are_refused() -> None:
    manager = gateway.ProxyManager()
    handles = manager.initialize_connections(
        config_of(a=echo_backend(), bad={"command": 3}, off={**echo_backend(), "disabled": True})
    )
    assert manager.get_client("a").name == handles["a"].name == "a"
    with pytest.raises(KeyError, match="no server 'zzz'"):
        manager.get_client("zzz")
    with pytest.raises(RuntimeError, match="'command' must be a string"):
        manager.get_client("bad")
    with pytest.raises(RuntimeError, match="disabled"):
        manager.get_client("off")


@both_loops
def test_guarantee_p4_a_client_shares_one_session_among_those_inside(loop: str) -> None:
    async def body() -> None:
        manager = gateway.ProxyManager(config=config_of())
        client = manager.get_client("a")
        with pytest.raises(RuntimeError, match="async with client"):
            await client.call_tool("echo", {"text": "x"})
        async with client, client:
            first = (await client.call_tool("env")).structured_content["pid"]
            async with client:
                assert (await client.call_tool("env")).structured_content["pid"] == first
            assert {tool.name for tool in await client.list_tools()} >= {"echo", "sleep"}
            assert (await client.call_tool("env")).structured_content["pid"] == first
        assert not running(first)
        await manager.close_all_connections()

    run_on(loop, body)


@both_loops
def test_guarantee_p4_cancelling_a_connect_leaves_nothing(loop: str) -> None:
    async def body() -> None:
        manager = gateway.ProxyManager(config=config_of(mute=echo_backend("--hang", "initialize")))

        async def enter() -> None:
            async with manager.get_client("mute"):
                raise AssertionError("it cannot be connected")

        async with anyio.create_task_group() as group:
            group.start_soon(enter)
            await until(children)
            group.cancel_scope.cancel()
        await until(lambda: not children())
        await manager.close_all_connections()

    run_on(loop, body)


# -- P5 --------------------------------------------------------------------------------------------------------------


@both_loops
def test_guarantee_p5_a_connection_test_sets_the_status(loop: str) -> None:
    async def body() -> None:
        manager = gateway.ProxyManager()
        manager.initialize_connections(
            config_of(good=echo_backend(), gone=faulty_backend("exit_at_once", "--when", "start"), bad={"command": 3})
        )
        assert await manager.test_connection("good") is True
        assert manager.get_server_status("good") == {"connected": True, "error": "", "initialized": True}
        assert await manager.test_connection("gone", max_retries=1) is False
        status = manager.get_server_status("gone")
        assert status["connected"] is False
        assert status["error"]
        assert await manager.test_connection("bad") is False
        with pytest.raises(KeyError, match="there is no server 'unknown'"):
            await manager.test_connection("unknown")
        await manager.close_all_connections()

    run_on(loop, body)


@both_loops
def test_guarantee_p5_an_attempt_ends_after_its_timeout(loop: str) -> None:
    async def body() -> None:
        manager = gateway.ProxyManager(config=config_of(mute=echo_backend("--hang", "initialize")))
        assert await manager.test_connection("mute", timeout_ms=200, max_retries=1) is False
        assert "0.2 s" in manager.get_server_status("mute")["error"]
        await manager.close_all_connections()

    run_on(loop, body)


async def test_guarantee_p5_attempts_are_spaced_by_increasing_delays(
    autojump_clock: trio.testing.MockClock,
) -> None:
    starts: list[float] = []
    unit = engine.Engine(gateway.ProxyManager(config=config_of())._registry)

    def fail(record: Any) -> Any:
        starts.append(trio.current_time())
        raise GatewayError("not today")

    unit.open = fail  # type: ignore[method-assign]
    record = unit._registry["a"]
    assert await unit.test(record, 5.0, 4) is False
    assert starts == pytest.approx([0.0, 0.5, 1.5, 3.5])
    assert record.status() == {"connected": False, "error": "not today", "initialized": True}


# -- P6, P7, P8 ------------------------------------------------------------------------------------------------------


@both_loops
def test_guarantee_p6_each_call_has_a_session_of_its_own(loop: str) -> None:
    async def body() -> None:
        manager = gateway.ProxyManager(config=config_of())
        pids: list[int] = []

        async def call() -> None:
            result = await manager.call_tool("a", "env")
            assert isinstance(result, CallToolResult)
            pids.append(result.structured_content["pid"])

        async with anyio.create_task_group() as group:
            for _ in range(3):
                group.start_soon(call)
        await call()
        assert len(set(pids)) == 4
        await manager.close_all_connections()
        assert not any(running(pid) for pid in pids)

    run_on(loop, body)


@both_loops
def test_guarantee_p6_a_timeout_raises_and_notifies_the_server(loop: str) -> None:
    async def body() -> None:
        manager = gateway.ProxyManager(config=config_of())
        async with manager.get_client("a") as client:
            with pytest.raises(TimeoutError, match=r"tool 'sleep' of server 'a'.*0.3 s"):
                await client.call_tool("sleep", {"seconds": 20}, timeout_ms=300)
            log = await client.call_tool("cancelled_log")
            assert len(log.structured_content["cancelled"]) == 1
        with pytest.raises(TimeoutError, match=r"tool 'sleep' of server 'a'"):
            await manager.call_tool("a", "sleep", {"seconds": 20}, timeout_ms=300)
        await manager.close_all_connections()

    run_on(loop, body)


@both_loops
def test_guarantee_p6_other_failures_name_tool_and_server(loop: str) -> None:
    async def body() -> None:
        manager = gateway.ProxyManager(
            config=config_of(a=echo_backend(), dies=faulty_backend("dies_mid_call"), absent={"command": "/no/such"})
        )
        for server, tool in [("a", "nothing"), ("dies", "go"), ("absent", "echo")]:
            with pytest.raises(RuntimeError, match=rf"tool '{tool}' of server '{server}'") as caught:
                await manager.call_tool(server, tool)
            assert isinstance(caught.value, GatewayError)
        with pytest.raises(RuntimeError, match="JSON"):
            await manager.call_tool("a", "echo", {"text": object()})
        with pytest.raises(KeyError):
            await manager.call_tool("zzz", "echo")
        await manager.close_all_connections()

    run_on(loop, body)


@both_loops
def test_guarantee_p6_an_error_result_is_a_result(loop: str) -> None:
    async def body() -> None:
        manager = gateway.ProxyManager(config=config_of())
        result = await manager.call_tool("a", "structured", {"value": {"v": 1}, "extra": {"isError": True}})
        assert result.is_error is True
        assert result.structured_content == {"v": 1}
        await manager.close_all_connections()

    run_on(loop, body)


@both_loops
def test_guarantee_p6_a_cancelled_caller_cancels_the_call(loop: str) -> None:
    async def body() -> None:
        manager = gateway.ProxyManager(config=config_of())
        async with manager.get_client("a") as client:
            with anyio.move_on_after(0.3) as scope:
                await client.call_tool("sleep", {"seconds": 20})
            assert scope.cancelled_caught
            log = await client.call_tool("cancelled_log")
            assert len(log.structured_content["cancelled"]) == 1
        await manager.close_all_connections()

    run_on(loop, body)


@both_loops
def test_guarantee_p7_tools_are_listed_under_the_servers_own_names(loop: str) -> None:
    async def body() -> None:
        manager = gateway.ProxyManager(config=config_of(a=echo_backend("--plain", "--tools", 2)))
        tools = await manager.list_tools("a")
        assert all(isinstance(tool, Tool) for tool in tools)
        assert [tool.name for tool in tools] == ["tool_0", "tool_1"]
        await until(lambda: not children())  # that session is over
        with pytest.raises(KeyError):
            await manager.list_tools("zzz")
        await manager.close_all_connections()

    run_on(loop, body)


def test_guarantee_p8_status_and_names_and_configs() -> None:
    manager = gateway.ProxyManager()
    nothing = {"connected": False, "error": "", "initialized": False}
    assert manager.get_server_status("a") == nothing
    given = config_of(a=echo_backend(), bad={"command": 3})
    manager.initialize_connections(given)
    assert manager.get_server_status("a") == {"connected": False, "error": "", "initialized": True}
    assert manager.get_server_status("zzz") == nothing
    assert manager.get_all_servers() == ["a", "bad"]
    configs = manager.get_servers_config()
    assert configs == given["mcpServers"]
    configs["a"]["command"] = "changed"
    assert manager.get_servers_config() == given["mcpServers"]


# -- P9 --------------------------------------------------------------------------------------------------------------


@both_loops
def test_guarantee_p9_a_reload_changes_only_the_differences(loop: str) -> None:
    async def body() -> None:
        same, changed, gone = echo_backend(), echo_backend("--name", "one"), echo_backend()
        manager = gateway.ProxyManager()
        manager.initialize_connections(config_of(same=same, changed=changed, gone=gone))
        results: list[str] = []

        async def call_slowly() -> None:
            results.append(text_of(await manager.call_tool("same", "sleep", {"seconds": 1.5, "text": "kept"})))

        async with manager.get_client("same") as client, anyio.create_task_group() as group:
            pid = (await client.call_tool("env")).structured_content["pid"]
            group.start_soon(call_slowly)
            await until(lambda: len(children()) == 2)
            new = config_of(same=same, changed=echo_backend("--name", "two", "--tools", 1), new=echo_backend())
            assert await manager.reload(new) == (True, None)
            assert manager.get_all_servers() == ["same", "changed", "new"]
            assert len(children()) == 2  # the new one stays lazy
            assert (await client.call_tool("env")).structured_content["pid"] == pid
            assert text_of(await manager.call_tool("changed", "tool_0", {"text": "x"})) == "two.tool_0 x"
            assert text_of(await manager.call_tool("new", "echo", {"text": "x"})) == "x"
            with pytest.raises(KeyError):
                manager.get_client("gone")
        assert results == ["kept"]
        await manager.close_all_connections()

    run_on(loop, body)


@both_loops
def test_guarantee_p9_calls_of_a_server_that_goes_finish_first(loop: str) -> None:
    async def body() -> None:
        manager = gateway.ProxyManager()
        manager.initialize_connections(config_of())
        results: list[str] = []

        async def call_slowly() -> None:
            results.append(text_of(await manager.call_tool("a", "sleep", {"seconds": 1, "text": "done"})))

        async with anyio.create_task_group() as group:
            group.start_soon(call_slowly)
            await until(children)
            assert await manager.reload(config_of(b=echo_backend())) == (True, None)
        assert results == ["done"]
        await manager.close_all_connections()

    run_on(loop, body)


@both_loops
@pytest.mark.parametrize("wrong", [[], {}, {"mcpServers": {"a": {"command": 3}, "b": {"command": "x"}}}])
def test_guarantee_p9_a_wrong_config_changes_nothing(loop: str, wrong: Any) -> None:
    async def body() -> None:
        manager = gateway.ProxyManager()
        manager.initialize_connections(config_of())
        async with manager.get_client("a") as client:
            ok, error = await manager.reload(wrong)
            assert ok is False
            assert error
            assert manager.get_all_servers() == ["a"]
            assert manager.get_servers_config() == config_of()["mcpServers"]
            assert text_of(await client.call_tool("echo", {"text": "x"})) == "x"
        await manager.close_all_connections()

    run_on(loop, body)


# -- P10, and the end of the loop --------------------------------------------------------------------------------------


def test_guarantee_p10_shutdown_waits_two_seconds_for_stdin() -> None:
    assert (ShutdownGrace().close_stdin, ShutdownGrace().terminate) == (2.0, 2.0)


@both_loops
def test_guarantee_p10_a_hanging_server_keeps_no_other_open(loop: str) -> None:
    async def body() -> None:
        manager = gateway.ProxyManager()
        manager.initialize_connections(config_of(good=echo_backend(), deaf=stubborn_backend()))
        pids: dict[str, int] = {}
        failures: list[str] = []

        async def use(name: str) -> None:
            client = manager.get_client(name)
            async with client:
                pids[name] = (await client.call_tool("env")).structured_content["pid"]
                with pytest.raises(RuntimeError) as caught:
                    await client.call_tool("sleep", {"seconds": 20})
                failures.append(str(caught.value))

        async with anyio.create_task_group() as group:
            group.start_soon(use, "good")
            group.start_soon(use, "deaf")
            await until(lambda: len(pids) == 2)
            assert all(running(pid) for pid in pids.values())
            await manager.close_all_connections()
            assert not any(running(pid) for pid in pids.values())
        assert len(failures) == 2
        assert not any(thread.name.startswith("gateway") for thread in threading.enumerate())
        assert manager.get_server_status("good")["connected"] is False

        assert text_of(await manager.call_tool("good", "echo", {"text": "again"})) == "again"  # it starts again
        await manager.close_all_connections()
        await manager.close_all_connections()  # and once more does no harm

    run_on(loop, body)


@both_loops
def test_closing_fails_running_calls_with_a_reason(loop: str) -> None:
    async def body() -> None:
        manager = gateway.ProxyManager(config=config_of())

        async def call() -> None:
            with pytest.raises(RuntimeError, match="tool 'sleep' of server 'a'"):
                await manager.call_tool("a", "sleep", {"seconds": 20})

        async with anyio.create_task_group() as group:
            group.start_soon(call)
            await until(children)
            await manager.close_all_connections()

    run_on(loop, body)


def test_a_dropped_manager_ends_its_loop_and_servers() -> None:
    async def body() -> None:
        manager = gateway.ProxyManager(config=config_of())
        assert await manager.test_connection("a")
        assert any(thread.name.startswith("gateway") for thread in threading.enumerate())

    run_on("asyncio", body)
    gc.collect()  # the leak check sees the rest


@pytest.mark.parametrize("end", ["pass", "raise SystemExit(0)", "gc.disable()"])
def test_a_program_that_exits_leaves_no_server(end: str, tmp_path: Any) -> None:
    program = f"""
import asyncio, gc, sys
import gateway
manager = gateway.ProxyManager(config={config_of(a=stubborn_backend())!r})
async def main():
    client = manager.get_client("a")
    await client.__aenter__()
    print((await client.call_tool("env")).structured_content["pid"])
asyncio.run(main())
{end}
"""
    done = subprocess.run(
        [sys.executable, "-c", program], cwd=ROOT, capture_output=True, text=True, timeout=WITHIN, check=False
    )
    assert done.returncode == 0, done.stderr
    assert not done.stderr
    with pytest.raises(ProcessLookupError):
        os.kill(int(done.stdout), 0)


def test_two_concurrent_loops_may_share_a_manager() -> None:
    manager = gateway.ProxyManager(config=config_of())
    answers: list[str] = []

    def use(loop: str) -> None:
        async def body() -> None:
            answers.append(text_of(await manager.call_tool("a", "echo", {"text": loop})))

        run_on(loop, body)

    threads = [threading.Thread(target=use, args=(loop,)) for loop in ("asyncio", "trio")]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(WITHIN)
    run_on("trio", manager.close_all_connections)
    assert sorted(answers) == ["asyncio", "trio"]


def test_importing_the_package_imports_nothing_of_it() -> None:
    program = (
        "import sys, gateway; assert 'trio' not in sys.modules and 'gateway.embed' not in sys.modules;"
        "from gateway import open_gateway; assert 'asyncio' not in sys.modules, 'asyncio';"
        "assert 'mcp_types' not in sys.modules; assert not hasattr(gateway, 'nothing');"
        "from gateway import MCPProxyManager, ProxyManager; assert MCPProxyManager is ProxyManager"
    )
    done = subprocess.run([sys.executable, "-c", program], cwd=ROOT, capture_output=True, timeout=WITHIN, check=False)
    assert done.returncode == 0, done.stderr.decode()


def test_an_invalid_result_fails_its_call(caplog: pytest.LogCaptureFixture) -> None:
    async def body() -> None:
        caplog.set_level(logging.ERROR)
        manager = gateway.ProxyManager(config=config_of(odd=faulty_backend("odd_result")))
        with pytest.raises(RuntimeError, match=r"tool 'go' of server 'odd'.*content"):
            await manager.call_tool("odd", "go")
        assert isinstance((await manager.call_tool("odd", "echo", {"text": "x"})).content[0], TextContent)
        await manager.close_all_connections()

    run_on("trio", body)
