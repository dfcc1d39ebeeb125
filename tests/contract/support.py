"""Helpers of the black-box suites: shared gateways, and one client per cell.

A cell is an era and a frontend. `Client` does the same in each of them, so that one test holds for all: differences on
the wire (pipes or POSTs, `initialize` or `_meta`, forms of cancellation) are hidden here. Nothing reads ahead: a
message is read when a test waits for it.
"""

from __future__ import annotations

import base64
import dataclasses
import json
import os
import signal
import subprocess
import sys
import tempfile
import time
from contextlib import ExitStack, aclosing, asynccontextmanager, contextmanager
from pathlib import Path

import pytest
import trio

from tests.support import leaks
from tests.support.gateway_process import (
    ANSWER_WITHIN,
    ROOT,
    START_WITHIN,
    STOP_WITHIN,
    Exchange,
    HttpClient,
    StdioClient,
    make_notification,
    make_request,
    modern_params,
    open_sse,
)

ERAS, FRONTENDS = ("legacy", "modern"), ("stdio", "http")
CELLS = [(era, frontend) for era in ERAS for frontend in FRONTENDS]
SSE = ("legacy", "sse")
"""The cell of the older transport, for the tests that hold for it too."""
every_cell = pytest.mark.parametrize("cell", CELLS, ids="-".join)
every_cell_and_sse = pytest.mark.parametrize("cell", [*CELLS, SSE], ids="-".join)
POLL = 0.01  # seconds between two checks of a file that a process writes

FAST = {"initial_delay": 0.05, "max_delay": 0.1, "max_quick_failures": 1000, "healthy_after": 0.01}
"""A restart policy under which a backend that a test has broken is back at once, however often it breaks."""
SHUTDOWN_GRACE = [0.3, 0.3, 1.0]
RUNNING = set()
"""Pids of the gateways that outlive a test."""


class Gateway:
    """A gateway process whose stderr is a file, so that no task reads it."""

    def __init__(self, config, transport, folder, *extra):
        self.transport = transport
        config_path = folder / f"{transport}.json"
        config_path.write_text(json.dumps(config), encoding="utf-8")
        self.stderr_path = folder / f"{transport}.stderr"
        piped = subprocess.PIPE if transport == "stdio" else subprocess.DEVNULL
        command = [sys.executable, "-m", "gateway", "serve", "--config", str(config_path), "--transport", transport]
        with self.stderr_path.open("wb") as stderr:
            self.process = subprocess.Popen(
                [*command, "--port", "0", *extra], stdin=piped, stdout=piped, stderr=stderr, cwd=ROOT
            )
        RUNNING.add(self.process.pid)
        self.last_id = 1000  # of the requests of all tests on these pipes
        self.leftover = b""
        self.url = None

    @property
    def pid(self):
        return self.process.pid

    def log(self):
        return self.stderr_path.read_text(encoding="utf-8", errors="replace")

    def wait_log(self, text, within=START_WITHIN):
        """The first line of stderr that holds the text."""
        until = time.monotonic() + within
        while True:
            found = next((line for line in self.log().splitlines(keepends=True) if text in line), "")
            if found.endswith("\n"):
                return found.rstrip("\n")
            assert self.process.poll() is None, f"the gateway has ended:\n{self.log()}"
            assert time.monotonic() < until, f"no {text!r} within {within} s:\n{self.log()}"
            time.sleep(POLL)

    def wait_listening(self):
        line = self.wait_log("listening on http://")
        self.url = line[line.index("http://") :].split()[0]

    def stop(self):
        """Send SIGTERM; it must end in an orderly way, with exit status 0."""
        if self.process.poll() is None:
            self.process.send_signal(signal.SIGTERM)
        try:
            status = self.process.wait(STOP_WITHIN)
        finally:
            self.kill()
        assert status == 0, f"exit status {status}:\n{self.log()}"
        assert "Traceback" not in self.log(), self.log()

    def kill(self):
        RUNNING.discard(self.pid)
        if self.process.poll() is None:
            self.process.kill()
            self.process.wait(STOP_WITHIN)
        for pipe in (self.process.stdin, self.process.stdout):
            if pipe is not None:
                pipe.close()


@contextmanager
def open_gateways(config, transports=("stdio", "streamable-http"), *extra, ready=None):
    """Run gateways with one config, by frontend, for many tests; they must end well.

    The block begins when the backends in `ready` (None: all) are ready.
    """
    frontends = {"stdio": "stdio", "streamable-http": "http", "streamable-http,sse": "http"}
    with tempfile.TemporaryDirectory() as folder, ExitStack() as stack:
        found = {}
        for transport in transports:
            found[frontends[transport]] = gateway = Gateway(config, transport, Path(folder), *extra)
            stack.callback(gateway.kill)
        for gateway in found.values():
            if gateway.transport != "stdio":
                gateway.wait_listening()
            for name in config["mcpServers"] if ready is None else ready:
                gateway.wait_log(f"backend {name!r} is ready")
        yield found  # ruff: ignore[fallible-context-manager]
        for gateway in found.values():  # only after a block that went well
            gateway.stop()


def check_leaks():
    """The `leak_check` of tests that share gateways, whose children may change.

    They are checked when the gateway ends.
    """
    before = leaks.take()
    yield
    until = time.monotonic() + leaks.GRACE
    while (found := leaks._new(before, own_things())) and time.monotonic() < until:
        time.sleep(POLL)
    if found:
        pytest.fail("left behind:\n  " + "\n  ".join(found), pytrace=False)


def own_things():
    found = leaks.take()
    children = {key: text for key, text in found.children.items() if not is_of_gateway(key[0])}
    return dataclasses.replace(found, children=children)


def is_of_gateway(pid):
    """Return whether a process descends from a gateway that outlives the test.

    Also if the process has ended.
    """
    while pid > 1:
        if pid in RUNNING:
            return True
        try:
            pid = int(
                Path(f"/proc/{pid}/stat").read_text(encoding="utf-8", errors="replace").rpartition(")")[2].split()[1]
            )
        except OSError:
            return True
    return False


# -- clients -----------------------------------------------------------------------------------------------------------


class RecordingClient(StdioClient):
    """A client that records the lines."""

    lines: list[bytes]

    async def read_line(self):
        line = await super().read_line()
        self.lines.append(line)
        return line

    async def start(self, method, params=None):
        request_id = self.last_id = self.last_id + 1  # several tasks may do this at once
        await self.send(make_request(request_id, method, params))
        return request_id


def with_token(params, token):
    if token is None:
        return params
    return {**params, "_meta": {"progressToken": token, **params.get("_meta", {})}}


class Client:
    """One client in one cell; `stdio` or `http` is the raw client under it."""

    def __init__(self, cell, *, stdio=None, http=None):
        self.era, self.frontend = cell
        self.modern = self.era == "modern"
        self.stdio, self.http = stdio, http

    def params(self, params):
        return modern_params(params) if self.modern else params

    async def initialize(self, **options):
        return await (self.stdio or self.http).initialize(**options)

    async def request(self, method, params=None, *, within=ANSWER_WITHIN):
        """Send a request; return the response, a whole message."""
        with trio.fail_after(within):
            async with self.open_call(method, params) as call:
                return await call.response()

    async def exact(self, method, params=None):
        """The response as its bytes, without a line end."""
        with trio.fail_after(ANSWER_WITHIN):
            async with self.open_call(method, params) as call:
                await call.response()
                return call.raw

    async def call(self, name, arguments=None, *, token=None, **options):
        return await self.request(
            "tools/call", with_token({"name": name, "arguments": arguments or {}}, token), **options
        )

    def open_tool(self, name, arguments=None, *, token=None):
        return self.open_call("tools/call", with_token({"name": name, "arguments": arguments or {}}, token))

    @asynccontextmanager
    async def open_call(self, method, params=None):
        """Send one request; yield a `PipeCall` or `PostCall`, released after the block."""
        token = (params or {}).get("_meta", {}).get("progressToken")
        if self.stdio is not None:
            yield PipeCall(self.stdio, await self.stdio.start(method, self.params(params)), token)
            return
        async with self.open_post(method, params) as call:
            yield call

    @asynccontextmanager
    async def open_post(self, method, params):
        http = self.http
        if self.modern:
            message, headers = http.modern_request(method, params)
            if "Mcp-Name" in headers:
                headers["Mcp-Name"] = header_value(headers["Mcp-Name"])
        else:
            http.last_id += 1
            message, headers = make_request(http.last_id, method, params), http.session_headers()
        body = json.dumps(message).encode()
        given = {
            "host": f"{http.host}:{http.port}",
            "content-type": "application/json",
            "content-length": str(len(body)),
            "accept": "application/json, text/event-stream",
            **{name.lower(): value for name, value in headers.items()},
        }
        async with await trio.open_tcp_stream(http.host, http.port) as stream:
            exchange = Exchange(stream)
            await exchange.send("POST", http.path, list(given.items()), body)
            yield PostCall(self, exchange, message["id"])

    async def names(self):
        """The names that `tools/list` gives."""
        return [tool["name"] for tool in (await self.request("tools/list"))["result"]["tools"]]


def header_value(value):
    """Return the value as a header, in the Base64 sentinel if necessary."""
    text = value if isinstance(value, str) else json.dumps(value)
    text = text.encode("utf-16", "surrogatepass").decode("utf-16", "replace")  # as a browser's TextEncoder does
    if text.isascii() and text.isprintable() and text == text.strip():
        return text
    return f"=?base64?{base64.b64encode(text.encode()).decode()}?="


class PipeCall:
    """A request in flight on pipes."""

    def __init__(self, stdio, request_id, token):
        self.stdio, self.id, self.token = stdio, request_id, token
        self.raw = b""

    def belongs(self, message):
        if "method" not in message:
            return message.get("id") == self.id
        return self.token is not None and message.get("params", {}).get("progressToken") == self.token

    async def next(self):
        message = await self.stdio.wait_for(self.belongs, ANSWER_WITHIN)
        if "method" not in message:
            self.raw = next(line for line in reversed(self.stdio.lines) if json.loads(line) == message).rstrip(b"\n")
        return message

    async def response(self):
        while "method" in (message := await self.next()):
            pass
        return message

    async def cancel(self):
        """Cancel, and forget progress sent before the gateway was notified."""
        await self.stdio.notify("notifications/cancelled", {"requestId": self.id, "reason": "a test"})
        await self.stdio.request_modern("server/discover")
        arrived = self.stdio.arrived
        arrived[:] = [message for message in arrived if "method" not in message or not self.belongs(message)]

    async def assert_unanswered(self):
        """Assert that no message of this call has come, or precedes a ping's answer."""
        await self.stdio.request_modern("server/discover")
        assert not [message for message in self.stdio.arrived if self.belongs(message)]


class PostCall:
    """A pending POST request; its response is read on demand."""

    def __init__(self, client, exchange, request_id):
        self.client, self.exchange, self.id = client, exchange, request_id
        self.raw = b""
        self.hung_up = False

    async def read_head(self):
        if not self.exchange.status:
            with trio.fail_after(ANSWER_WITHIN):
                await self.exchange.read_head()
        return self.exchange

    async def next(self):
        """The next message; None at the end of the stream."""
        exchange = await self.read_head()
        with trio.fail_after(ANSWER_WITHIN):
            if not exchange.headers.get("content-type", "").startswith("text/event-stream"):
                body = b"" if self.raw else await exchange.read_body()
                self.raw = self.raw or body
                return json.loads(body) if body else None
            async with aclosing(exchange.events()) as events:
                async for event in events:
                    if event.data:
                        self.raw = event.data.encode()
                        return event.json()
        return None

    async def response(self):
        while (message := await self.next()) is not None and "method" in message:
            pass
        assert message is not None, "the stream ended without a response"
        return message

    async def cancel(self):
        if self.client.modern:
            self.hung_up = True
            await self.exchange.stream.aclose()
        else:
            cancelled = make_notification("notifications/cancelled", {"requestId": self.id, "reason": "a test"})
            assert (await self.client.http.post(cancelled)).status == 202

    async def assert_unanswered(self):
        """The stream ends with notifications at most."""
        while not self.hung_up and (message := await self.next()) is not None:
            assert "method" in message, f"answered: {message}"


@asynccontextmanager
async def open_client(gateways, cell, *, initialize=True):
    """Open a client in one cell of a module's gateways, after its handshake."""
    frontend = cell[1]
    gateway = gateways["http" if frontend == "sse" else frontend]
    async with open_raw(gateway, frontend) as raw:
        client = Client(cell, **{"stdio" if frontend == "sse" else frontend: raw})  # on both, all comes in one stream
        if initialize and not client.modern:
            await client.initialize()
        yield client


@asynccontextmanager
async def open_raw(gateway, frontend):
    if frontend == "http":
        yield HttpClient(gateway.url)
        return
    if frontend == "sse":
        async with open_sse(gateway.url.removesuffix("/mcp") + "/sse") as client:
            yield client
        return
    process = gateway.process
    async with (
        trio.lowlevel.FdStream(os.dup(process.stdin.fileno())) as send,
        trio.lowlevel.FdStream(os.dup(process.stdout.fileno())) as receive,
    ):
        stdio = RecordingClient(send, receive)
        stdio.lines = []
        stdio.last_id = gateway.last_id
        stdio.buffer += gateway.leftover
        try:
            yield stdio
        finally:
            gateway.last_id, gateway.leftover = stdio.last_id, bytes(stdio.buffer)


def text_of(message):
    assert "result" in message, message
    return message["result"]["content"][0]["text"]


def structured_of(message):
    assert "result" in message, message
    return message["result"]["structuredContent"]


def kilobytes(pid, field):
    """A figure of /proc/PID/status: VmRSS (now) or VmHWM (the most ever)."""
    lines = Path(f"/proc/{pid}/status").read_text(encoding="utf-8").splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith(field + ":"))


async def health(gateway):
    return (await HttpClient(gateway.url).get("/health")).json()


async def wait_health(gateway, wanted, *, within=ANSWER_WITHIN):
    """Ask /health until `wanted(report)`; each round trip takes time: no busy loop."""
    with trio.fail_after(within):
        while not wanted(report := await health(gateway)):
            pass
    return report
