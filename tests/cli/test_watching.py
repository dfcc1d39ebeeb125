"""`mcp-gateway ps --watch` on terminals and pipes, and what ends it."""

from __future__ import annotations

import json
import os
import pty
import signal
import subprocess
import sys

import pytest
import trio

from gateway.cli import main
from gateway.cli.watching import RESTART_GRACE, Lives, Screen, watch
from tests.support.gateway_process import ANSWER_WITHIN, ROOT, echo_backend, open_gateway_process, run_process

pytestmark = pytest.mark.leak_check

SERVERS = {"mcpServers": {"b": echo_backend() | {"shutdown_grace": [0.3, 0.3, 1]}}}


def report(pid, age):
    return {"pid": pid, "age": age, "socket": f"control-{pid}"}


def broken(pid):
    return {"error": f"control-{pid}: timed out", "socket": f"control-{pid}"}


@pytest.mark.parametrize(
    ("before", "after", "news"),
    [
        ([], [report(1, 0.1)], ["gateway 1 has started"]),
        ([report(1, 5)], [report(1, 6)], []),
        ([report(1, 5)], [], ["gateway 1 has ended"]),
        ([report(1, 5)], [report(2, 0.1)], ["gateway 1 has ended", "gateway 2 has started"]),
        ([report(1, 5)], [report(1, 0.1)], ["gateway 1 has been restarted"]),
        ([report(1, 5)], [broken(1)], []),
        ([broken(1)], [report(1, 5)], ["gateway 1 has started"]),
        ([broken(1)], [], []),
    ],
)
def test_starts_and_ends_are_noticed(before, after, news):
    lives = Lives()
    assert lives.compare(before) == []
    assert lives.compare(after) == news


def test_a_hung_gateway_stays_known():
    lives = Lives()
    found = [lives.compare(reports) for reports in ([report(1, 5)], [broken(1)], [report(1, 9)], [])]
    assert found == [[], [], [], ["gateway 1 has ended"]]


def test_it_ends_a_minute_after_the_last_gateway():
    shown, now = [], 0.0

    def collect():
        return [] if now < 50 or 70 <= now < 120 or now >= 150 else [report(1, now)]

    def pause():
        nonlocal now
        now += 10
        return True

    watch(collect, lambda reports, news: shown.append((now, len(reports), news)), pause, now=lambda: now)
    assert [(at, news) for at, _, news in shown if news] == [
        (50, ["gateway 1 has started"]),
        (70, ["gateway 1 has ended"]),
        (120, ["gateway 1 has started"]),
        (150, ["gateway 1 has ended"]),
    ]
    assert now == 140 + RESTART_GRACE  # the last report of one plus the grace


def test_it_ends_with_its_reader():
    shown = []
    watch(lambda: [report(1, 1)], lambda *found: shown.append(found), lambda: False)
    assert len(shown) == 1


def test_a_frame_fits_on_the_screen(capsys, monkeypatch):
    monkeypatch.setenv("COLUMNS", "40")
    monkeypatch.setenv("LINES", "10")
    screen = Screen()
    screen.draw("\n".join(f"{number} {'x' * 50}" for number in range(20)), ["gateway 1 has ended"])
    out = capsys.readouterr().out
    assert (out.startswith("\x1b[H"), out.endswith("\x1b[J")) == (True, True)
    lines = out.removeprefix("\x1b[H").removesuffix("\x1b[J").splitlines()
    assert len(lines) == 9  # and the line of the cursor
    assert all(len(line.removesuffix("\x1b[K")) <= 40 for line in lines)
    assert lines[-1] == "... 15 more lines\x1b[K"
    screen.draw("short", [])
    assert "gateway 1 has ended" in capsys.readouterr().out  # news stay


@pytest.mark.parametrize(
    "words", [["5"], ["--watch", "0"], ["--watch", "nan"], ["--watch", "1e9"], ["--watch", "soon"]]
)
def test_a_wrong_interval_is_refused(words, capsys, tmp_path):
    assert main(["ps", *words, "--state-dir", str(tmp_path)]) == 2
    assert not capsys.readouterr().out


def command(*words):
    return [sys.executable, "-m", "gateway", "ps", "--watch", *words]


async def read_until(process, text):
    """Read stdout up to this text."""
    data = b""
    with trio.fail_after(ANSWER_WITHIN):
        while text not in data:
            part = await process.stdout.receive_some()
            assert part, data
            data += part
    return data.decode()


async def wait_end(process):
    with trio.fail_after(ANSWER_WITHIN):
        return await process.wait()


async def test_blocks_show_starts_and_ends_until_ctrl_c(tmp_path):
    env = {"MCP_GATEWAY_STATE_DIR": str(tmp_path)}
    async with run_process(command("0.1"), env=env) as running:
        process = running.process
        await read_until(process, b"no gateway is running")
        async with open_gateway_process(SERVERS, env=env, transport="stdio") as gateway:
            found = await read_until(process, f"gateway {gateway.pid} (stdio)".encode())
            assert f"gateway {gateway.pid} has started\n" in found
        found = await read_until(process, b"no gateway is running")
        assert f"gateway {gateway.pid} has ended\n" in found
        process.send_signal(signal.SIGINT)
        assert await wait_end(process) == 0
        assert not running.stderr


async def test_json_is_a_line_each_time(tmp_path):
    async with run_process(command("0.1", "--json"), env={"MCP_GATEWAY_STATE_DIR": str(tmp_path)}) as running:
        found = await read_until(running.process, b"[]\n[]\n")
        assert [json.loads(line) for line in found.splitlines()[:2]] == [[], []]


async def test_it_ends_at_once_without_a_reader(tmp_path):
    async with run_process(command("3600"), env={"MCP_GATEWAY_STATE_DIR": str(tmp_path)}) as running:
        await read_until(running.process, b"no gateway is running")
        await running.process.stdout.aclose()
        assert await wait_end(running.process) == 0
        assert not running.stderr


def test_it_draws_in_place_on_a_terminal(tmp_path):
    ours, theirs = pty.openpty()
    env = {**os.environ, "MCP_GATEWAY_STATE_DIR": str(tmp_path), "TERM": "xterm"}
    process = subprocess.Popen(command("0.1"), stdin=theirs, stdout=theirs, stderr=theirs, env=env, cwd=ROOT)
    try:
        os.close(theirs)
        data = b""
        while data.count(b"\x1b[H") < 3:
            data += os.read(ours, 4096)
        assert b"\n\n" not in data  # each line ends with the code that clears its rest
        process.send_signal(signal.SIGINT)
        assert process.wait(ANSWER_WITHIN) == 0
    finally:
        process.kill()
        process.wait()
        os.close(ours)
