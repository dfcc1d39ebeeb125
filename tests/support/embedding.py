"""Programs that embed the gateway on asyncio or trio, with web server and client.

A body written with anyio runs on either loop (`run_on`, `both_loops`); `open_server` serves an application as programs
on that loop do, by uvicorn or by Hypercorn. Nothing here uses the gateway's internals.
"""

from __future__ import annotations

import json
import os
import sys
from contextlib import asynccontextmanager
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import anyio
import httpx2
import pytest
import trio

from tests.support import leaks
from tests.support.gateway_process import CLIENT_INFO, LATEST_LEGACY, PEERS, echo_backend

if TYPE_CHECKING:
    from collections.abc import AsyncGenerator, Awaitable, Callable

WITHIN = 30.0  # seconds until a test that waits for something fails
both_loops = pytest.mark.parametrize("loop", ["asyncio", "trio"])
DEAF = (  # runs a script that SIGTERM does not end
    "import os, runpy, signal, sys; signal.signal(signal.SIGTERM, signal.SIG_IGN); sys.argv = sys.argv[1:];"
    " sys.path.insert(0, os.path.dirname(sys.argv[0])); runpy.run_path(sys.argv[0], run_name='__main__')"
)


def run_on(loop: str, body: Callable[[], Awaitable[None]]) -> None:
    """Run a test's body on a loop; fails if it takes too long."""

    async def bounded() -> None:
        with anyio.fail_after(WITHIN):
            await body()

    anyio.run(bounded, backend=loop)


def config_of(**servers: Any) -> dict[str, Any]:
    return {"mcpServers": servers or {"a": echo_backend()}}


def stubborn_backend() -> dict[str, Any]:
    """A server that ignores the end of its stdin and SIGTERM."""
    script = str(PEERS / "faulty_server.py")
    args = ["-c", DEAF, script, "--fault", "hang", "--when", "eof"]
    return {"command": sys.executable, "args": args, "shutdown_grace": [0.2, 0.2, 2]}


def children() -> list[str]:
    """The command lines of this process's own children that are MCP servers.

    Children of other tests' gateways do not count.
    """
    found = {pid: line for pid, line in leaks.take().children.items() if "_server.py" in line}
    return [line for pid, line in found.items() if _parent(pid) == os.getpid()]


def _parent(pid: Any) -> int:
    number = pid[0] if isinstance(pid, tuple) else pid
    try:
        return int(Path(f"/proc/{number}/stat").read_text(encoding="utf-8").rpartition(")")[2].split()[1])
    except OSError:
        return 0


async def until(is_so: Callable[[], Any]) -> None:
    """Poll for an effect of another thread or process that nothing announces."""
    while not is_so():  # noqa: ASYNC110 - within the bound of `run_on`
        await anyio.sleep(0.005)


def text_of(result: Any) -> str:
    return result.content[0].text


@asynccontextmanager
async def open_server(app: Any) -> AsyncGenerator[str]:
    """Serve an application on loopback while the block runs; yield its base URL."""
    if trio.lowlevel.in_trio_task():
        from hypercorn.config import Config
        from hypercorn.trio import serve

        config = Config()
        config.bind, config.graceful_timeout, config.accesslog = ["127.0.0.1:0"], 0.2, None
        stop = trio.Event()
        async with trio.open_nursery() as nursery:
            (url,) = await nursery.start(partial(serve, app, config, shutdown_trigger=stop.wait))
            try:
                yield url
            finally:
                stop.set()
        return
    import uvicorn

    server = uvicorn.Server(uvicorn.Config(app, port=0, log_level="error", timeout_graceful_shutdown=1))
    async with anyio.create_task_group() as group:
        group.start_soon(server.serve)
        await until(lambda: server.started)
        try:
            yield f"http://127.0.0.1:{server.servers[0].sockets[0].getsockname()[1]}"
        finally:
            server.should_exit = True


class Wire:
    """A legacy client on one endpoint."""

    def __init__(self, http: httpx2.AsyncClient, path: str = "/mcp", **headers: str) -> None:
        self.http = http
        self.path = path
        self.headers = {"accept": "application/json, text/event-stream", **headers}
        self.last_id = 0

    async def post(self, method: str, params: Any = None, **headers: str) -> httpx2.Response:
        self.last_id += 1
        message = {"jsonrpc": "2.0", "id": self.last_id, "method": method, "params": params or {}}
        return await self.http.post(self.path, json=message, headers={**self.headers, **headers})

    async def introduce(self) -> dict[str, Any]:
        params = {"protocolVersion": LATEST_LEGACY, "capabilities": {}, "clientInfo": CLIENT_INFO}
        answer = await self.post("initialize", params)
        assert answer.status_code == 200, answer.text
        self.headers["mcp-session-id"] = answer.headers["mcp-session-id"]
        return answer.json()["result"]

    async def tools(self) -> dict[str, Any]:
        answer = await self.post("tools/list")
        return {tool["name"]: tool for tool in answer.json()["result"]["tools"]}

    async def call(self, name: str, **arguments: Any) -> dict[str, Any]:
        """Return the response's message, whether it came as JSON or as a stream."""
        answer = await self.post("tools/call", {"name": name, "arguments": arguments})
        if answer.headers["content-type"].startswith("text/event-stream"):
            lines = [line for line in answer.text.splitlines() if line.startswith("data: {")]
            return json.loads(lines[-1].removeprefix("data: "))
        return answer.json()

    @asynccontextmanager
    async def listen(self) -> AsyncGenerator[Callable[[], Awaitable[dict[str, Any]]]]:
        """Open the session's own stream; yield a function that waits for its next message."""
        async with self.http.stream("GET", self.path, headers=self.headers) as stream:
            assert stream.status_code == 200
            lines = stream.aiter_lines()

            async def message() -> dict[str, Any]:
                while True:
                    line = await anext(lines)
                    if line.startswith("data: {"):
                        return json.loads(line.removeprefix("data: "))

            yield message


@asynccontextmanager
async def open_wire(url: str, path: str = "/mcp", **headers: str) -> AsyncGenerator[Wire]:
    """A client after its handshake."""
    async with open_http(url) as http:
        wire = Wire(http, path, **headers)
        await wire.introduce()
        yield wire


@asynccontextmanager
async def open_http(url: str) -> AsyncGenerator[httpx2.AsyncClient]:
    async with httpx2.AsyncClient(base_url=url, trust_env=False, timeout=WITHIN) as http:
        yield http


def running(pid: int) -> bool:
    """Return whether a process exists and is not a zombie."""
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    return any(key[0] == pid and not line.startswith("Z") for key, line in leaks.take().children.items())
