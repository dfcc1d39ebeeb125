"""`serve` from start to end: stdout, and an orderly shutdown at EOF, SIGTERM and SIGINT."""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import sys
import tempfile
from pathlib import Path

import pytest
import trio

from gateway.config import parse_server
from gateway.eras.methods import Kind
from gateway.store import Store
from tests.support.gateway_process import (
    ROOT,
    STOP_WITHIN,
    HttpClient,
    echo_backend,
    faulty_backend,
    modern_params,
    open_gateway_process,
    run_process,
)

pytestmark = pytest.mark.leak_check

QUICK = {"shutdown_grace": [0.2, 0.2, 1]}
CONFIG = {
    "mcpServers": {
        "echo": echo_backend() | QUICK,
        "noisy": faulty_backend("garbage") | QUICK,
        "missing": {"command": "no-such-command-anywhere", "restart": False},
    }
}
STUBBORN = {"mcpServers": {"hung": faulty_backend("hang", "--when", "eof") | {"shutdown_grace": [30, 30, 30]}}}


async def end(gateway, how):
    if how == "EOF":
        await gateway.process.stdin.aclose()
    else:
        gateway.process.send_signal(getattr(signal, how))
    with trio.fail_after(15):
        return await gateway.process.wait()


@pytest.mark.parametrize(
    ("transport", "how"),
    [
        ("stdio", "EOF"),
        ("stdio", "SIGTERM"),
        ("stdio", "SIGINT"),
        ("streamable-http", "SIGTERM"),
        ("streamable-http", "SIGINT"),
    ],
)
async def test_every_kind_of_stop_is_orderly(transport, how):
    async with open_gateway_process(CONFIG, transport=transport) as gateway:
        if gateway.stdio is not None:
            await gateway.stdio.initialize()
            answer = await gateway.stdio.call_tool("echo.echo", {"text": "hi"})
        else:
            client = HttpClient(gateway.url)
            await client.initialize()
            answer = await client.call_tool("echo.echo", {"text": "hi"})
        assert answer["result"]["content"][0]["text"] == "hi"
        assert await end(gateway, how) == 0
        await gateway.wait_stderr_end()
        assert "Traceback" not in gateway.stderr_text


@pytest.mark.parametrize("transport", ["stdio", "streamable-http"])
async def test_a_signal_before_the_first_message_stops(transport):
    async with open_gateway_process({"mcpServers": {}}, transport=transport) as gateway:
        if transport == "stdio":
            await gateway.stdio.request_modern("server/discover")
        assert await end(gateway, "SIGTERM") == 0


async def test_stdout_holds_nothing_but_messages():
    async with open_gateway_process(CONFIG, transport="stdio", extra_args=["--log-level", "debug"]) as gateway:
        stdio = gateway.stdio
        await stdio.initialize()
        for name in ("echo.echo", "noisy.go", "missing.tool", "nobody.tool"):
            await stdio.call_tool(name, {"text": "hi"})
        await stdio.send_raw(b"not json\n\n")
        await stdio.send(modern_params())
        await gateway.process.stdin.aclose()
        with trio.fail_after(15):
            while line := await stdio.read_line():
                assert json.loads(line)["jsonrpc"] == "2.0"
            assert await gateway.process.wait() == 0


async def test_http_mode_leaves_stdout_alone():
    async with open_gateway_process(CONFIG, extra_args=["--log-level", "debug"]) as gateway:
        client = HttpClient(gateway.url)
        await client.initialize()
        await client.call_tool("noisy.go")
        assert await end(gateway, "SIGTERM") == 0
        assert await gateway.process.stdout.receive_some(1) == b""


async def test_pipelined_requests_are_answered_after_eof():
    async with open_gateway_process(CONFIG, transport="stdio") as gateway:
        stdio = gateway.stdio
        await stdio.initialize()
        request_id = await stdio.start("tools/call", {"name": "echo.sleep", "arguments": {"seconds": 0.3}})
        await gateway.process.stdin.aclose()
        assert (await stdio.response(request_id))["result"]["content"][0]["text"] == "slept"
        assert await gateway.process.wait() == 0


@pytest.mark.parametrize("how", ["start", "SIGTERM"])
async def test_eof_waits_for_a_first_listing(how, tmp_path):
    """Else clients with sessions shorter than a server's start would never see it."""
    gate, late = tmp_path / "gate", echo_backend()
    wait = 'while [ ! -e "$0" ]; do sleep 0.02; done; exec "$@"'
    entry = {"command": "sh", "args": ["-c", wait, str(gate), late["command"], *late["args"]]} | QUICK
    config = {"mcpServers": {"late": entry}, "gateway": {"start_grace": 0.1, "drain_grace": 600}}
    environment = {"MCP_GATEWAY_STATE_DIR": str(tmp_path / "state")}
    async with open_gateway_process(config, transport="stdio", env=environment) as gateway:
        await gateway.stdio.initialize()
        await gateway.process.stdin.aclose()
        await gateway.wait_stderr("waiting for the first lists of late")
        if how == "start":
            gate.touch()
        else:
            gateway.process.send_signal(signal.SIGTERM)
        with trio.fail_after(STOP_WITHIN):
            assert await gateway.process.wait() == 0
    kept = Store(tmp_path / "state").load_catalog(parse_server("late", entry, environ={}))
    assert (kept is not None and kept.count(Kind.TOOLS) > 0) == (how == "start")


async def test_drain_answers_running_calls_and_refuses_new():
    async with open_gateway_process(CONFIG) as gateway:
        client = HttpClient(gateway.url)
        await client.initialize()
        answers = {}

        async def call():
            answers["slow"] = await client.call_tool("echo.sleep", {"seconds": 1})

        async with trio.open_nursery() as nursery:
            nursery.start_soon(call)
            with trio.fail_after(10):
                while not (await client.get("/health")).json()["backends"]["echo"]["in_flight"]:
                    pass
            gateway.process.send_signal(signal.SIGTERM)
            await gateway.wait_stderr("draining")
            refused = await client.call_tool("echo.echo")
            assert refused["error"]["data"] == {"reason": "shutting_down", "retry": True}
        assert answers["slow"]["result"]["content"][0]["text"] == "slept"
        assert await gateway.process.wait() == 0


@pytest.mark.parametrize("transport", ["stdio", "streamable-http"])
async def test_a_second_signal_skips_the_shutdown_sequence(transport):
    async with open_gateway_process(STUBBORN, transport=transport) as gateway:
        await gateway.wait_stderr("backend 'hung' is ready")
        gateway.process.send_signal(signal.SIGTERM)
        await gateway.wait_stderr("draining")
        gateway.process.send_signal(signal.SIGTERM)
        with trio.fail_after(STOP_WITHIN):
            await gateway.process.wait()
        assert gateway.process.returncode >= 0, "killed by a signal"


async def test_a_second_signal_does_not_wait_for_calls():
    config = {"mcpServers": {"echo": echo_backend() | QUICK}, "gateway": {"drain_grace": 60}}
    async with open_gateway_process(config, transport="stdio", status=None) as gateway:
        stdio = gateway.stdio
        await stdio.initialize()
        request_id = await stdio.start("tools/call", {"name": "echo.sleep", "arguments": {"seconds": 60}})
        await stdio.call_tool("echo.echo")
        gateway.process.send_signal(signal.SIGINT)
        await gateway.wait_stderr("draining")
        gateway.process.send_signal(signal.SIGINT)
        answer = await stdio.response(request_id)
        assert answer["error"]["data"]["backend"] == "echo"
        with trio.fail_after(STOP_WITHIN):
            assert await gateway.process.wait() in {0, 1}


AT_THE_START = """
import os, signal, sys
from pathlib import Path
from gateway import app
from gateway.config import Config

path, open_guard = Path(sys.argv[1]), app.open_guard

def signalled(**options):
    assert path.is_socket()
    os.kill(os.getpid(), getattr(signal, sys.argv[2]))
    return open_guard(**options)

app.open_guard = signalled
sys.exit(0 if app.run(Config({}), app.Options(transports=("streamable-http",), uds=path), print) else 1)
"""


@pytest.mark.parametrize("name", ["SIGTERM", "SIGINT"])
async def test_an_early_signal_leaves_no_socket(name):
    with tempfile.TemporaryDirectory(prefix="gw") as folder:  # pytest's are too long for a socket
        async with run_process([sys.executable, "-c", AT_THE_START, str(Path(folder) / "s"), name]) as gateway:
            with trio.fail_after(STOP_WITHIN):
                assert await gateway.process.wait() == 0
            assert os.listdir(folder) == []


async def test_a_connection_reset_counts_as_eof():
    ours, theirs = socket.socketpair()  # closed with bytes unread, it is reset
    with ours, tempfile.TemporaryDirectory() as folder:
        config = Path(folder) / "config.json"
        config.write_text('{"mcpServers": {}}')
        with theirs:
            process = await trio.lowlevel.open_process(
                [sys.executable, "-m", "gateway", "serve", "--config", str(config)],
                stdin=theirs.fileno(),
                stdout=theirs.fileno(),
                stderr=subprocess.PIPE,
                env={**os.environ, "MCP_GATEWAY_STATE_DIR": folder},
                cwd=ROOT,
            )
        try:
            with trio.fail_after(STOP_WITHIN):
                ours.sendall(b'{"jsonrpc":"2.0","id":1,"method":"ping"}\n')
                await trio.lowlevel.wait_readable(ours)
                ours.close()
                said = b"".join([data async for data in process.stderr])
                assert await process.wait() == 0, said
            assert b"Traceback" not in said
        finally:
            process.kill()
            with trio.CancelScope(shield=True):
                await process.wait()
                await process.stderr.aclose()
