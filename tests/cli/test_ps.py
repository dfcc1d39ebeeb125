"""`mcp-gateway ps` against real gateways: output, permissions, and leftovers of killed gateways."""

from __future__ import annotations

import errno
import json
import os
import signal
import socket
import stat
import sys
from functools import partial
from pathlib import Path

import pytest
import trio

from gateway.admin.control import _accept
from gateway.cli.ps import collect_reports
from tests.children.support import marked, new_mark
from tests.support.gateway_process import (
    ANSWER_WITHIN,
    ROOT,
    HttpClient,
    echo_backend,
    faulty_backend,
    open_gateway_process,
    run_process,
)

pytestmark = pytest.mark.leak_check
ZOO_SERVER = str(ROOT / "tests" / "children" / "zoo_server.py")
FAST = {"shutdown_grace": [0.3, 0.3, 1]}


@pytest.fixture
def state(tmp_path) -> Path:
    return tmp_path / "state"


def opened(state, servers=None, **options):
    servers = servers or {"b": echo_backend() | FAST}
    return open_gateway_process({"mcpServers": servers}, env={"MCP_GATEWAY_STATE_DIR": str(state)}, **options)


async def ps(state, *arguments, env=None) -> str:
    """Return the command's output; it must succeed and write nothing to stderr."""
    command = [sys.executable, "-m", "gateway", "ps", *arguments]
    async with run_process(command, env=env or {"MCP_GATEWAY_STATE_DIR": str(state)}) as running:
        with trio.fail_after(ANSWER_WITHIN):
            printed = b""
            async for data in running.process.stdout:
                printed += data
            assert await running.process.wait() == 0, running.stderr_text
    assert not running.stderr
    return printed.decode()


async def ask(state, *arguments) -> list[dict]:
    return json.loads(await ps(state, "--json", *arguments))


async def ask_socket(path, question: bytes) -> bytes:
    with trio.fail_after(ANSWER_WITHIN):
        async with await trio.open_unix_socket(path) as stream:
            await stream.send_all(question)
            answer = b""
            async for data in stream:
                answer += data
            return answer


def is_running(pid) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    return True


def sockets(state) -> list[Path]:
    return sorted(state.glob("control-*"))


@pytest.mark.parametrize("transport", ["stdio", "streamable-http"])
async def test_it_shows_every_backend_of_a_running_gateway(state, transport):
    mark = new_mark()
    servers = {
        "busy": echo_backend() | FAST,
        "family": {"command": sys.executable, "args": ["-I", "-S", "-E", ZOO_SERVER, "daemon", mark]} | FAST,
        "away": {"command": "/nowhere/to/be/found", "restart": False},
    }
    async with opened(state, servers, transport=transport) as gateway:
        client = gateway.stdio or HttpClient(gateway.url)
        await client.initialize()
        for line in ("'busy' is ready", "'family' is ready", "'away' is failed"):
            await gateway.wait_stderr(line)
        async with trio.open_nursery() as nursery:
            nursery.start_soon(client.call_tool, "busy.sleep", {"seconds": 1.5})
            while not (report := (await ask(state))[0])["backends"][0]["in_flight"]:
                pass
            assert (report["pid"], report["transport"]) == (gateway.pid, transport)
            assert 0 < report["age"] < 60
            busy, family, away = report["backends"]
            assert (busy["name"], busy["state"], busy["in_flight"], busy["queued"]) == ("busy", "ready", 1, 0)
            assert (busy["restarts"], busy["descendants"], busy["last_error"]) == (0, [], None)
            assert is_running(busy["pid"])
            assert 0 <= busy["age"] <= report["age"] + 1
            (daemon,) = family["descendants"]
            assert daemon != family["pid"]
            assert daemon in marked(mark)
            assert (away["state"], away["pid"], away["descendants"], away["age"]) == ("failed", None, [], None)
            assert "/nowhere/to/be/found" in away["last_error"]
            head, columns, *rows = (await ps(state)).splitlines()
        assert head.startswith(f"gateway {gateway.pid} ({transport}), up ")
        assert columns.split("  ")[0] == "backend"
        assert [row.split()[:2] for row in rows] == [["busy", "ready"], ["family", "ready"], ["away", "failed"]]
        assert str(daemon) in rows[1].split()
        assert rows[2].split()[2:5] == ["-", "-", "-"]


async def test_warnings_show(state):
    servers = {"good": echo_backend() | FAST, "odd": faulty_backend("bad_tool") | FAST}
    async with opened(state, servers, transport="stdio") as gateway:
        await gateway.wait_stderr("'good' is ready")
        await gateway.wait_stderr("'odd' is ready")
        good, odd = (await ask(state))[0]["backends"]
        assert good["warnings"] == []
        assert "tools[0] left out: it has no 'name'" in odd["warnings"]
        lines = (await ps(state)).splitlines()
        assert lines[4:] == [f"warning: odd: {text}" for text in odd["warnings"]]
        assert any("tools[0] left out" in line for line in lines)


async def test_a_restart_shows(state):
    restart = {"restart": {"initial_delay": 0.05}}
    async with opened(state, {"b": echo_backend() | FAST | restart}, transport="stdio") as gateway:
        await gateway.wait_stderr("'b' is ready")
        (before,) = (await ask(state))[0]["backends"]
        os.kill(before["pid"], signal.SIGKILL)
        with trio.fail_after(ANSWER_WITHIN):
            while (after := (await ask(state))[0]["backends"][0])["state"] != "ready" or not after["restarts"]:
                pass
        assert after["restarts"] == 1
        assert after["pid"] != before["pid"]
        assert "SIGKILL" in after["last_error"]


async def test_no_gateway_is_running(state):
    assert await ps(state) == "no gateway is running\n"
    assert await ask(state) == []
    assert not state.exists()  # asking creates nothing


async def test_two_gateways_share_a_directory_independently(state):
    async with opened(state) as one:
        async with opened(state, transport="stdio") as two:
            await two.wait_stderr("'b' is ready")
            found = {report["pid"]: report["transport"] for report in await ask(state)}
            assert found == {one.pid: "streamable-http", two.pid: "stdio"}
        assert [report["pid"] for report in await ask(state)] == [one.pid]
        assert len(sockets(state)) == 1
    assert sockets(state) == []


async def test_the_directory_can_be_named(state, tmp_path):
    async with opened(tmp_path / "other", extra_args=["--state-dir", str(state)]) as gateway:
        assert [report["pid"] for report in await ask(tmp_path / "other", "--state-dir", str(state))] == [gateway.pid]
        assert await ask(tmp_path / "other") == []


async def test_the_socket_is_for_its_owner_alone(state):
    before = os.umask(0)
    try:
        async with opened(state):
            (path,) = sockets(state)
            assert stat.S_ISSOCK(path.stat().st_mode)
            assert stat.S_IMODE(path.stat().st_mode) == 0o600
            assert stat.S_IMODE(state.stat().st_mode) == 0o700
    finally:
        os.umask(before)


async def test_only_a_killed_gateways_leftovers_are_removed(state):
    state.mkdir(mode=0o700)
    stale = state / "control-999999.sock"
    with socket.socket(socket.AF_UNIX) as dead:
        dead.bind(str(stale))
    unrelated = state / "notes.sock"
    unrelated.write_text("mine")
    assert await ps(state) == "no gateway is running\n"
    assert not stale.exists()
    assert unrelated.exists()


async def test_a_gateway_ended_by_sigkill_disappears(state):
    async with opened(state, status=None) as gateway:
        (path,) = sockets(state)
        gateway.process.kill()
        await gateway.process.wait()
        assert path.exists()
        assert await ask(state) == []
        assert not path.exists()


async def test_an_unresponsive_gateway_is_reported_and_hides_none(state):
    async with opened(state) as gateway:
        mute = state / "control-1.sock"
        with socket.socket(socket.AF_UNIX) as listening:
            listening.bind(str(mute))
            listening.listen()
            reports = await trio.to_thread.run_sync(partial(collect_reports, state, timeout=0.5))
        assert "control-1.sock" in next(report["error"] for report in reports if "error" in report)
        assert gateway.pid in [report.get("pid") for report in reports]


@pytest.mark.parametrize("question", [b"stop\n", b"PS\n", b'{"ps":1}\n'])
async def test_another_question_gets_an_error(state, question):
    async with opened(state):
        (path,) = sockets(state)
        assert "unknown request" in json.loads(await ask_socket(path, question))["error"]


async def test_silent_or_verbose_clients_delay_no_other(state):
    async with opened(state) as gateway:
        (path,) = sockets(state)
        with trio.fail_after(ANSWER_WITHIN):
            silent = [await trio.open_unix_socket(path) for _ in range(8)]
            async with await trio.open_unix_socket(path) as endless:
                for _ in range(20):
                    await endless.send_all(b"x" * 1000)
            assert [report["pid"] for report in await ask(state)] == [gateway.pid]
            for stream in silent:
                await stream.aclose()


async def test_a_gateway_serves_without_a_status_socket(tmp_path):
    far = tmp_path / ("x" * 120)  # a socket's path has 107 bytes at most
    async with opened(far) as gateway:
        await gateway.wait_stderr("no control socket")
        client = HttpClient(gateway.url)
        await client.initialize()
        answer = await client.call_tool("b.echo", {"text": "here"})
        assert answer["result"]["content"][0]["text"] == "here"
        assert sockets(far) == []
        assert await ps(far) == "no gateway is running\n"


async def test_the_control_socket_outlives_a_lack_of_descriptors(autojump_clock):
    class Listener:
        def __init__(self):
            self.mine, theirs = trio.socket.socketpair()
            self.turns = [OSError(errno.EMFILE, "Too many open files"), OSError(errno.ENFILE, "the same"), (theirs, "")]

        async def accept(self):
            await trio.lowlevel.checkpoint()
            if not self.turns:
                await trio.sleep_forever()
            turn = self.turns.pop(0)
            if isinstance(turn, OSError):
                raise turn
            return turn

    async def report(_question):
        await trio.lowlevel.checkpoint()
        return b"{}"

    listener = Listener()
    async with trio.open_nursery() as nursery:
        nursery.start_soon(_accept, listener, report)
        with listener.mine as sock:
            await sock.send(b"ps\n")
            assert await sock.recv(10) == b"{}"
        nursery.cancel_scope.cancel()
