"""The gateway as a real process, with raw clients that show the exact bytes.

`open_gateway_process` runs `python -m gateway serve` for the length of a block and asserts how it ends. `StdioClient`
and `HttpClient` speak JSON-RPC without an SDK: what they return is what was sent. Neither has a background task: a
message is read when a task waits for one, so a test owns every task.
"""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import tempfile
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import trio

from tests.support.wire import (
    ANSWER_WITHIN,
    CLIENT_INFO,
    LATEST_LEGACY,
    META,
    MODERN,
    Message,
    StdioClient,
    initialize_params,
    make_notification,
    make_request,
    modern_params,
)
from tests.support.wire_http import Event, Exchange, HttpClient, Response, SseClient, open_sse, parse_events

if TYPE_CHECKING:
    from collections.abc import AsyncGenerator, Mapping, Sequence

__all__ = [
    "ANSWER_WITHIN",
    "CLIENT_INFO",
    "LATEST_LEGACY",
    "META",
    "MODERN",
    "PEERS",
    "ROOT",
    "Event",
    "Exchange",
    "GatewayProcess",
    "HttpClient",
    "Message",
    "Response",
    "SseClient",
    "StdioClient",
    "bare_nursery",
    "echo_backend",
    "faulty_backend",
    "initialize_params",
    "make_notification",
    "make_request",
    "modern_params",
    "open_gateway_process",
    "open_sse",
    "parse_events",
    "peer",
    "run_process",
]

ROOT = Path(__file__).resolve().parent.parent.parent
PEERS = ROOT / "tests" / "peers"

START_WITHIN = 60.0  # seconds until the gateway listens: only a hang takes longer, even on the busiest machine
STOP_WITHIN = 20.0  # seconds from SIGTERM to the exit
KEPT_STDERR = 4 << 20  # bytes of the gateway's stderr that are kept, the last ones


# -- configs -------------------------------------------------------------------------------------------------------


def peer(script: str, *args: object) -> dict[str, Any]:
    """The config entry of a stdio backend that is one of the scripts in tests/peers."""
    return {"command": sys.executable, "args": [str(PEERS / script), *map(str, args)]}


def echo_backend(*args: object) -> dict[str, Any]:
    return peer("echo_server.py", *args)


def faulty_backend(fault: str, *args: object) -> dict[str, Any]:
    return peer("faulty_server.py", "--fault", fault, *args)


# -- the gateway as a process ----------------------------------------------------------------------------------------


@dataclass(eq=False)
class GatewayProcess:
    """A running gateway; in stdio mode `url` is None, and `stdio` its client."""

    process: trio.Process
    url: str | None = None
    stdio: StdioClient | None = None
    stderr: bytearray = field(default_factory=bytearray)
    received: trio.Condition = field(default_factory=trio.Condition)
    stderr_ended: bool = False

    @property
    def pid(self) -> int:
        return self.process.pid

    @property
    def stderr_text(self) -> str:
        return self.stderr.decode(errors="replace")

    async def wait_stderr(self, text: str, *, within: float = ANSWER_WITHIN) -> str:
        """Return the first whole stderr line with the text; fail after a timeout."""
        with trio.fail_after(within):
            async with self.received:
                while True:
                    lines = self.stderr_text.splitlines(keepends=True)
                    found = next((line for line in lines if text in line and line.endswith("\n")), None)
                    if found is not None:
                        return found.rstrip("\n")
                    assert not self.stderr_ended, f"stderr ended without {text!r}:\n{self.stderr_text}"
                    await self.received.wait()

    async def wait_stderr_end(self) -> None:
        async with self.received:
            while not self.stderr_ended:
                await self.received.wait()

    async def collect_stderr(self) -> None:
        assert self.process.stderr is not None
        async for data in self.process.stderr:
            async with self.received:
                self.stderr += data
                del self.stderr[:-KEPT_STDERR]
                self.received.notify_all()
        async with self.received:
            self.stderr_ended = True
            self.received.notify_all()

    async def stop(self, *, within: float = STOP_WITHIN) -> int:
        """Send SIGTERM and return the exit status; kill and fail after a timeout."""
        if self.process.returncode is None:
            self.process.send_signal(signal.SIGTERM)
        with trio.move_on_after(within):
            return await self.process.wait()
        self.process.kill()
        raise AssertionError(f"the gateway did not stop within {within} s of SIGTERM:\n{self.stderr_text}")


@asynccontextmanager
async def open_gateway_process(
    config: Mapping[str, Any],
    *,
    transport: str = "streamable-http",
    extra_args: Sequence[str] = (),
    env: Mapping[str, str] | None = None,
    status: int | None = 0,
    stop_within: float = STOP_WITHIN,
) -> AsyncGenerator[GatewayProcess]:
    """Run `python -m gateway serve` with this config for the block.

    Then SIGTERM it and check its exit status.

    `env` is added to the test's own environment; the state directory is new unless `env` names one. `status` is the
    required exit status (None: any). With an HTTP transport the block starts when the socket is open, in stdio mode
    immediately. A block that raises skips the check of the status.
    """
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "config.json"
        path.write_text(json.dumps(config), encoding="utf-8")
        command = [sys.executable, "-m", "gateway", "serve", "--config", str(path), "--transport", transport]
        if transport != "stdio":
            command += ["--port", "0"]
        state = {"MCP_GATEWAY_STATE_DIR": str(Path(folder) / "state"), **(env or {})}  # nothing of other tests
        async with run_process([*command, *extra_args], env=state) as gateway:
            if transport == "stdio":
                assert gateway.process.stdin is not None
                assert gateway.process.stdout is not None
                gateway.stdio = StdioClient(gateway.process.stdin, gateway.process.stdout)
            else:
                line = await gateway.wait_stderr("listening on http://", within=START_WITHIN)
                gateway.url = line[line.index("http://") :].split()[0]
            yield gateway  # ruff: ignore[fallible-context-manager]
            # Only after a block without an exception, which would matter more.
            found = await gateway.stop(within=stop_within)
            assert status is None or found == status, f"exit status {found}:\n{gateway.stderr_text}"


@asynccontextmanager
async def run_process(
    command: Sequence[str], *, env: Mapping[str, str] | None = None, pass_fds: Sequence[int] = ()
) -> AsyncGenerator[GatewayProcess]:
    """Run a program with its pipes and collected stderr; kill it at the end."""
    process = await trio.lowlevel.open_process(
        list(command),
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        cwd=ROOT,
        env={**os.environ, **(env or {})},
        pass_fds=pass_fds,
    )
    running = GatewayProcess(process)
    try:
        async with bare_nursery() as nursery:
            nursery.start_soon(running.collect_stderr)
            yield running
            if process.returncode is not None:  # then stderr ends soon, unless a child holds it open
                with trio.move_on_after(1):
                    await running.wait_stderr_end()
            nursery.cancel_scope.cancel()
    finally:
        if process.returncode is None:
            process.kill()
        with trio.CancelScope(shield=True, deadline=trio.current_time() + STOP_WITHIN):
            await process.wait()
            for pipe in (process.stdin, process.stdout, process.stderr):
                assert pipe is not None
                await pipe.aclose()


@asynccontextmanager
async def bare_nursery() -> AsyncGenerator[trio.Nursery]:
    """A nursery that raises a lone exception unwrapped, for readable failing asserts."""
    try:
        async with trio.open_nursery() as nursery:
            yield nursery
    except BaseExceptionGroup as group:
        if len(group.exceptions) == 1:
            raise group.exceptions[0] from None
        raise
