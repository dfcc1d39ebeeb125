"""A service manager's socket outlives each gateway, and no connection is refused."""

from __future__ import annotations

import json
import os
import signal
import socket
import sys
import tempfile
from contextlib import asynccontextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
import trio

from tests.support.gateway_process import (
    START_WITHIN,
    STOP_WITHIN,
    GatewayProcess,
    HttpClient,
    echo_backend,
    run_process,
)

if TYPE_CHECKING:
    from collections.abc import AsyncGenerator

CLIENTS, RESTARTS, CALLS_BETWEEN = 8, 3, 100
LAUNCHER = """
import os, sys
os.dup2(int(sys.argv[1]), 3)
os.environ["LISTEN_PID"] = str(os.getpid())
os.execv(sys.argv[2], sys.argv[2:])
"""
"""What a service manager does between fork and exec (sd_listen_fds(3))."""


@pytest.fixture
def listening() -> Any:
    with socket.create_server(("127.0.0.1", 0), backlog=1_024) as sock:
        yield sock


@asynccontextmanager
async def activated(sock: socket.socket, folder: Path, *flags: str, count: str = "1") -> AsyncGenerator[GatewayProcess]:
    """Run a gateway with this socket as its descriptor 3."""
    config = folder / "config.json"
    config.write_text(json.dumps({"mcpServers": {"echo": echo_backend()}}), encoding="utf-8")
    serve = [sys.executable, "-m", "gateway", "serve", str(config), "--transport", "http", *flags]
    environment = {"MCP_GATEWAY_STATE_DIR": str(folder / "state"), "LISTEN_FDS": count, "LISTEN_FDNAMES": "mcp"}
    command = [sys.executable, "-c", LAUNCHER, str(sock.fileno()), *serve]
    async with run_process(command, env=environment, pass_fds=[sock.fileno()]) as gateway:
        yield gateway


def look_into(pid: int) -> tuple[bytes, list[str]]:
    """Return the environment of a process, and what its descriptors are."""
    process = Path(f"/proc/{pid}")
    return (process / "environ").read_bytes(), [str(link.readlink()) for link in (process / "fd").iterdir()]


async def test_restarts_under_load_refuse_no_connection(listening: socket.socket, tmp_path: Path) -> None:
    client = HttpClient(f"http://127.0.0.1:{listening.getsockname()[1]}/mcp")
    refusals: list[str] = []
    answered, calling, changed = 0, CLIENTS, trio.Condition()

    async def call_until(ended: trio.Event) -> None:
        """Call over one connection after the other; whatever happens to a connection fails the test."""
        nonlocal answered, calling
        while not ended.is_set():
            answer = await client.call_modern("tools/call", {"name": "echo.echo", "arguments": {"text": "x"}})
            if "error" in answer:
                refusals.append(answer["error"]["data"]["reason"])
            else:
                assert answer["result"]["content"] == [{"type": "text", "text": "x"}]
            async with changed:
                answered += 1
                changed.notify_all()
        async with changed:
            calling -= 1
            changed.notify_all()

    ended = trio.Event()
    with trio.fail_after((RESTARTS + 1) * (START_WITHIN + STOP_WITHIN)):
        async with trio.open_nursery() as clients:
            for _ in range(CLIENTS):  # which come before the first gateway
                clients.start_soon(call_until, ended)
            for left in reversed(range(RESTARTS + 1)):
                async with activated(listening, tmp_path) as gateway:
                    enough = answered + CALLS_BETWEEN
                    async with changed:
                        while answered < enough:
                            await changed.wait()
                        if not left:
                            ended.set()
                        while calling and not left:
                            await changed.wait()
                    gateway.process.send_signal(signal.SIGTERM)
                    assert await gateway.process.wait() == 0, gateway.stderr_text
    # Connections that were accepted just before the end; such a call has not been sent and may be repeated.
    assert set(refusals) <= {"shutting_down"}
    assert len(refusals) <= CLIENTS * RESTARTS


async def test_children_inherit_neither_socket_nor_variables(listening: socket.socket, tmp_path: Path) -> None:
    client = HttpClient(f"http://127.0.0.1:{listening.getsockname()[1]}/mcp")
    async with activated(listening, tmp_path) as gateway:
        line = await gateway.wait_stderr("listening on", within=START_WITHIN)
        assert line.endswith(f":{client.port}/mcp")
        environment = await client.call_modern("tools/call", {"name": "echo.env", "arguments": {}})
        pid = environment["result"]["structuredContent"]["pid"]
        variables, held = look_into(pid)
        assert variables
        assert b"LISTEN_" not in variables
        assert held
        assert f"socket:[{os.fstat(listening.fileno()).st_ino}]" not in held
        assert await gateway.stop() == 0


async def test_a_unix_socket_stays(tmp_path: Path) -> None:
    with tempfile.TemporaryDirectory(prefix="gw") as folder, socket.socket(socket.AF_UNIX) as sock:
        path = Path(folder) / "s"
        sock.bind(str(path))
        sock.listen()
        async with activated(sock, tmp_path) as gateway:
            await gateway.wait_stderr(f"listening on http://unix:{path}:/mcp", within=START_WITHIN)
            assert await gateway.stop() == 0
        assert path.is_socket()


@pytest.mark.parametrize("case", ["two sockets", "does not listen", "a file", "abstract", "to a network"])
async def test_what_cannot_be_served_is_named(case: str, listening: socket.socket, tmp_path: Path) -> None:
    count, says = "1", "does not listen at a port or a path"
    with (
        socket.socket() as idle,
        socket.socket(socket.AF_UNIX) as unix,
        socket.socket() as wide,
        (tmp_path / "file").open("w") as file,
    ):
        match case:
            case "two sockets":
                sock, count, says = listening, "2", "keep one ListenStream="
            case "does not listen":
                sock = idle
            case "a file":
                sock, says = file, "is not a socket"
            case "abstract":
                unix.bind(f"\0gateway-test-{os.getpid()}")
                unix.listen()
                sock = unix
            case _:
                wide.bind(("0.0.0.0", 0))
                wide.listen()
                sock, says = wide, "--host 0.0.0.0 without keys"
        async with activated(sock, tmp_path, count=count) as gateway:  # type: ignore[arg-type] - all have fileno
            with trio.fail_after(START_WITHIN):
                assert await gateway.process.wait() in {1, 2}
            await gateway.wait_stderr_end()
            assert says in gateway.stderr_text
