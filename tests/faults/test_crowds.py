"""Thousands of clients that are idle, read slowly or disconnect: nothing is left."""

from __future__ import annotations

import contextlib
import json
import os
import re
import resource
import signal
import socket
import struct

import h11
import pytest
import trio

from tests.contract.support import SHUTDOWN_GRACE, kilobytes, open_gateways, structured_of, text_of, wait_health
from tests.peers.http_peer import LegacyServer, open_peer
from tests.support.fakes import SOON
from tests.support.gateway_process import (
    STOP_WITHIN,
    HttpClient,
    echo_backend,
    initialize_params,
    make_request,
    open_gateway_process,
)

IDLE_TIMEOUT = 3  # seconds; more than a client needs between two messages of its handshake, on a busy machine too
CONFIG = {
    "mcpServers": {
        "echo": echo_backend() | {"shutdown_grace": SHUTDOWN_GRACE, "max_concurrency": 1000, "queue_size": 2000},
    },
    "gateway": {"start_grace": 10, "session_idle_timeout": IDLE_TIMEOUT, "max_sessions": 5000, "sse_after": 0.1},
}
CROWD = 1000
AT_ONCE = 50
GROWTH = 8_000  # kilobytes of memory that may stay: fragmentation and caches; a thousand leaked clients would be more

IDLE = 9000  # connections that have had an answer
SESSIONS = 2000  # of these, the ones with a session
SLOW = 1000  # connections of slow readers
LARGE = 300_000  # bytes, nearly all of which wait in the gateway: a thousand times that is four times the bound
RESULTS = 64
ANNOUNCED = 2**26  # bytes of each of them: 4 GiB in all
ARRIVING = 2**23  # bytes of each that do arrive: eight times the bound in all
BOUND = 2**26
PER_CONNECTION = 20  # kilobytes of memory for each connection, calls and fragmentation included; 16 were measured
ROOMY = {"start_grace": 10, "max_connections": 11_000, "max_sessions": 10_000, "max_buffered_bytes": BOUND}
MIN_FILES = 16_000  # of which the gateway uses three quarters for connections
OVERLOAD_WITHIN = 60
POOLED = 10  # connections to the HTTP backend that may be kept for reuse: cancellations are sent to it
REFUSED_FOR = 5  # seconds for which a light client may be refused, on a busy machine
PAUSE = 0.05  # seconds between two calls of the light client
SMALL = {"name": "other.echo", "arguments": {"text": "alive"}}


@pytest.fixture(scope="module")
def gateway():
    # The watch of the config opens files of its own a second after the start, in the middle of the counting.
    with open_gateways(CONFIG, ("streamable-http",), "--no-watch") as found:
        yield found["http"]


def open_files(pid):
    return len(os.listdir(f"/proc/{pid}/fd"))


def threads(pid):
    return len(os.listdir(f"/proc/{pid}/task"))


def head(client, method, headers, length=None):
    lines = [f"{method} {client.path} HTTP/1.1", f"host: {client.host}:{client.port}"]
    lines += [f"{name}: {value}" for name, value in headers.items()]
    if length is not None:
        lines += ["content-type: application/json", f"content-length: {length}"]
    return ("\r\n".join(lines) + "\r\n\r\n").encode()


async def vanish(stream, i):
    """Hang up: every second one by a reset, like a crash or lost network."""
    if i % 2:
        stream.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    await stream.aclose()


def modern_call(client, params):
    message, headers = client.modern_request("tools/call", params)
    body = json.dumps(message).encode()
    return head(client, "POST", headers, len(body)) + body


SLEEP = {"name": "echo.sleep", "arguments": {"seconds": 30}}


async def only_connects(client, stream):
    """Sends nothing."""


async def half_a_head(client, stream):
    await stream.send_all(b"POST /mcp HTTP/1.1\r\nhost: 127.0")


async def before_the_body(client, stream):
    await stream.send_all(head(client, "POST", client.modern_headers("tools/list"), 1000) + b'{"jsonrpc"')


async def in_a_modern_call(client, stream):
    await stream.send_all(modern_call(client, SLEEP))


async def in_a_modern_stream(client, stream):
    await stream.send_all(
        modern_call(client, {"name": "echo.progress", "arguments": {"n": 3}, "_meta": {"progressToken": 1}})
    )
    await stream.receive_some(1)


async def in_a_listen(client, stream):
    message, headers = client.modern_request("subscriptions/listen", {"notifications": {"toolsListChanged": True}})
    body = json.dumps(message).encode()
    await stream.send_all(head(client, "POST", headers, len(body)) + body)
    await stream.receive_some(1)


async def after_initialize(client, stream):
    await client.initialize()


async def in_a_legacy_call(client, stream):
    await client.initialize()
    params = {"name": "echo.sleep", "arguments": {"seconds": 0.1}}
    body = json.dumps(make_request(1, "tools/call", params)).encode()
    await stream.send_all(head(client, "POST", client.session_headers(), len(body)) + body)


async def with_an_open_get_stream(client, stream):
    await client.initialize()
    await stream.send_all(head(client, "GET", client.session_headers() | {"accept": "text/event-stream"}))
    await stream.receive_some(1)


PHASES = (
    only_connects,
    half_a_head,
    before_the_body,
    in_a_modern_call,
    in_a_modern_stream,
    in_a_listen,
    after_initialize,
    in_a_legacy_call,
    with_an_open_get_stream,
)


async def crowd(gateway, size):
    """Have so many clients vanish in every phase; return their sessions' ids."""
    sessions = []
    places = trio.CapacityLimiter(AT_ONCE)

    async def visit(i):
        async with places:
            client = HttpClient(gateway.url)
            async with await trio.open_tcp_stream(client.host, client.port) as stream:
                await PHASES[i % len(PHASES)](client, stream)
                await vanish(stream, i // len(PHASES))
            if client.session_id is not None:
                sessions.append(client.session_id)

    with trio.fail_after(60):
        async with trio.open_nursery() as nursery:
            for i in range(size):
                nursery.start_soon(visit, i)
    return sessions


async def wait_quiet(gateway, files):
    """Wait until no call is in flight, and no other connection is open."""
    await wait_health(
        gateway,
        lambda report: report["backends"]["echo"]["in_flight"] == 0 and open_files(gateway.pid) <= files + 1,
    )


async def test_a_thousand_clients_that_vanish_leave_nothing_behind(gateway):
    client = HttpClient(gateway.url)
    await client.call_modern("tools/list")
    files = open_files(gateway.pid)
    await crowd(gateway, 3 * len(PHASES) * 4)  # what a first crowd leaves for good: caches, arenas, a worker thread
    await wait_quiet(gateway, files)
    memory, at_work = kilobytes(gateway.pid, "VmRSS"), threads(gateway.pid)
    sessions = await crowd(gateway, CROWD)
    await wait_quiet(gateway, files)
    assert threads(gateway.pid) <= at_work
    # Twice the idle timeout, since the gateway looks for idle sessions that often; a look at one would keep it alive.
    await client.call_modern("tools/call", {"name": "echo.sleep", "arguments": {"seconds": 2 * IDLE_TIMEOUT + 0.1}})
    for session_id in sessions:
        assert (await client.send("DELETE", headers={"Mcp-Session-Id": session_id})).status == 404
    assert len(sessions) > CROWD // 4
    assert kilobytes(gateway.pid, "VmRSS") - memory < GROWTH
    # The calls of the modern ones were cancelled, or they would sleep for half a minute.
    log = structured_of(await client.call_modern("tools/call", {"name": "echo.cancelled_log"}))
    assert len(log["cancelled"]) > CROWD // len(PHASES) // 2
    assert (
        text_of(await client.call_modern("tools/call", {"name": "echo.echo", "arguments": {"text": "alive"}}))
        == "alive"
    )
    assert "Traceback" not in gateway.log()


@pytest.mark.parametrize("era", ["legacy", "modern"])
async def test_a_client_ignoring_a_flood_delays_no_shutdown(era):
    config = {
        "mcpServers": {"echo": echo_backend() | {"shutdown_grace": SHUTDOWN_GRACE}},
        "gateway": {"drain_grace": 0.3, "start_grace": 10},
    }
    async with open_gateway_process(config, status=None) as gateway:
        client = HttpClient(gateway.url)
        params = {"name": "echo.progress", "arguments": {"n": 300_000}, "_meta": {"progressToken": 1}}
        if era == "legacy":
            await client.initialize()
            stream = client.stream(make_request(1, "tools/call", params))
        else:
            stream = client.stream_modern("tools/call", params)
        before = kilobytes(gateway.pid, "VmRSS")
        async with stream as exchange:
            await exchange.next_sse()
            # From here on it reads no more. Others do not notice.
            for _ in range(20):
                assert "result" in await HttpClient(gateway.url).call_modern("tools/list")
            assert kilobytes(gateway.pid, "VmRSS") - before < 30_000
            gateway.process.send_signal(signal.SIGTERM)
            with trio.fail_after(STOP_WITHIN):
                assert await gateway.process.wait() in {0, 1}
        assert "Traceback" not in gateway.stderr_text


class LightClient:
    """Makes one small call after another, each on a new connection."""

    def __init__(self, client):
        self._client = client
        self.seconds = []
        """How long each answered call took."""
        self.refused = 0
        self.longest_refusal = 0
        """The longest time in seconds for which calls were refused."""

    async def call(self):
        """Return whether the call was answered; it may be refused while connections are being closed."""
        began = trio.current_time()
        answer = await self._client.call_modern("tools/call", SMALL)
        if "error" in answer:
            assert answer["error"]["data"]["reason"] == "busy", answer
            self.refused += 1
            return False
        assert text_of(answer) == "alive"
        self.seconds.append(trio.current_time() - began)
        return True

    async def run(self):
        answered_at = trio.current_time()
        while True:
            if await self.call():
                answered_at = trio.current_time()
            else:
                self.longest_refusal = max(self.longest_refusal, trio.current_time() - answered_at)
            await trio.sleep(PAUSE)

    def percentile(self, percent):
        return sorted(self.seconds)[len(self.seconds) * percent // 100]


def open_idle(client):
    """Open connections that have had one answer; return them.

    Those of sessions are by their ids. Blocking sockets, to be used in a thread: they cost less than the gateway's side
    of the connections.
    """
    body = json.dumps(make_request(0, "initialize", initialize_params())).encode()
    initialize = head(client, "POST", {"accept": "application/json, text/event-stream"}, len(body)) + body
    sessions, idle = {}, []
    while len(idle) + len(sessions) < IDLE:
        request = initialize if len(sessions) < SESSIONS else probe(client)
        batch = [socket.create_connection((client.host, client.port), SOON) for _ in range(AT_ONCE)]
        for sock in batch:
            sock.sendall(request)
        for sock in batch:
            answer = sock.recv(2**16)
            assert answer.startswith(b"HTTP/1.1 200 "), answer
            if found := re.search(rb"(?i)\r\nmcp-session-id: (\S+)\r\n", answer):
                sessions[found[1].decode()] = sock
            else:
                idle.append(sock)
    return sessions, idle


def close_idle(client, sessions, idle):
    """End the sessions, each on its connection, and close all; none was closed before."""
    for session_id, sock in sessions.items():
        sock.sendall(head(client, "DELETE", {"mcp-session-id": session_id}))
    for sock in sessions.values():
        assert sock.recv(2**16).startswith(b"HTTP/1.1 200 ")
    for sock in idle:
        sock.setblocking(False)
        with pytest.raises(BlockingIOError):
            sock.recv(1)
    for sock in (*sessions.values(), *idle):
        sock.close()


def probe(client):
    return f"GET /livez HTTP/1.1\r\nhost: {client.host}:{client.port}\r\n\r\n".encode()


async def announce(request, reply):
    """Announce a large result, send a part of it, and no more."""
    reply.begun = True
    fields = [("content-type", "application/json"), ("content-length", str(ANNOUNCED))]
    await reply._send(h11.Response(status_code=200, headers=fields))
    for _ in range(ARRIVING // 2**16):
        await reply.raw(b" " * 2**16)
    await trio.sleep_forever()


class Overload:
    """Slow readers of large results, and calls whose results never end; all begin at once."""

    def __init__(self, client):
        self._client = client
        self._begin = trio.Event()
        self.connected = self.closed = self.failed = 0

    async def open(self, nursery):
        """Connect the slow readers; return when all have had an answer."""
        for _ in range(SLOW):
            nursery.start_soon(self._read_slowly)
        for _ in range(RESULTS):
            nursery.start_soon(self._call)
        await wait_for(lambda: self.connected == SLOW)

    def begin(self):
        self._begin.set()

    async def _read_slowly(self):
        sock = trio.socket.socket()
        # As over a network: on loopback alone the kernel would take three million bytes for each.
        sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_MAXSEG, 1400)
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
        await sock.connect((self._client.host, self._client.port))
        async with trio.SocketStream(sock) as stream:
            await stream.send_all(probe(self._client))
            await stream.receive_some(4096)
            self.connected += 1
            await self._begin.wait()
            await stream.send_all(modern_call(self._client, {"name": "echo.big", "arguments": {"n": LARGE}}))
            with contextlib.suppress(trio.BrokenResourceError):
                while await stream.receive_some(4096):  # ruff: ignore[async-busy-wait]
                    await trio.sleep(1)  # the slowness itself: they take something all the time, and are not done
            self.closed += 1

    async def _call(self):
        await self._begin.wait()
        params = {"name": "remote.echo", "arguments": {"text": "x"}}
        answer = await self._client.call_modern("tools/call", params, within=OVERLOAD_WITHIN)
        assert answer["error"]["data"]["reason"] in {"buffers_full", "busy"}, answer
        self.failed += 1


async def wait_for(is_true):
    """Wait until a figure of another process is right."""
    with trio.fail_after(OVERLOAD_WITHIN):
        while True:
            if is_true():
                return
            await trio.sleep(PAUSE)


async def wait_empty(client):
    with trio.fail_after(OVERLOAD_WITHIN):
        while True:
            if holds_nothing((await client.get("/metrics")).body.decode()):
                return
            await trio.sleep(PAUSE)


def holds_nothing(metrics):
    names = ("sessions", "calls_in_flight", "buffered_bytes")
    return all(re.search(rf"(?m)^mcp_gateway_{name} 0(\.0)?$", metrics) for name in names)


@pytest.fixture
def many_files():
    """Raise the limit of open files of this process; skip if it cannot be enough."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if hard not in {resource.RLIM_INFINITY, max(hard, MIN_FILES)}:
        pytest.skip(f"the hard limit of open files is {hard}; {IDLE + SLOW} connections need {MIN_FILES}")
    resource.setrlimit(resource.RLIMIT_NOFILE, (max(soft, MIN_FILES), hard))
    yield
    resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))


async def test_an_overload_of_every_kind_stays_within_the_bound(many_files):
    """Run with `-rP` for the figures."""
    server = LegacyServer()
    server.on["tools/call"] = announce
    async with open_peer(server) as peer:
        remote = {"url": peer.url, "era": "legacy", "max_concurrency": RESULTS, "max_line_bytes": ANNOUNCED}
        patient = echo_backend() | {"max_concurrency": SLOW, "queue_size": SLOW}
        config = {"mcpServers": {"echo": patient, "remote": remote, "other": echo_backend()}, "gateway": ROOMY}
        async with open_gateway_process(config, extra_args=("--no-watch",)) as gateway:
            client = HttpClient(gateway.url)
            began = trio.current_time()
            light, overload = LightClient(client), Overload(client)
            assert await light.call()
            files, before = open_files(gateway.pid), kilobytes(gateway.pid, "VmRSS")
            async with trio.open_nursery() as nursery:
                nursery.start_soon(light.run)
                opened = await trio.to_thread.run_sync(open_idle, client)
                idle = kilobytes(gateway.pid, "VmRSS") - before
                await overload.open(nursery)
                assert open_files(gateway.pid) >= IDLE + SLOW
                light.seconds.clear()
                overload.begin()
                # Of the announced results, those that fit are kept, and never end.
                await wait_for(lambda: overload.failed >= RESULTS - BOUND // ARRIVING)
                await wait_for(lambda: min(overload.closed, len(light.seconds)) >= AT_ONCE)
                growth = kilobytes(gateway.pid, "VmHWM") - before
                nursery.cancel_scope.cancel()
            print(
                f"{IDLE + SLOW} connections: {growth} KB more memory, {idle / IDLE:.1f} KB for each idle one;",
                f"light client: p50 {light.percentile(50):.3f} s, p99 {light.percentile(99):.3f} s,",
                f"{trio.current_time() - began:.1f} s in all;",
                f"{light.refused} of {light.refused + len(light.seconds)} refused, for {light.longest_refusal:.2f} s",
            )
            assert growth < BOUND // 1024 + (IDLE + SLOW) * PER_CONNECTION
            assert light.longest_refusal < REFUSED_FOR
            await trio.to_thread.run_sync(close_idle, client, *opened)
            await wait_for(lambda: open_files(gateway.pid) <= files + POOLED)
            await wait_empty(client)
            assert await light.call()
            assert "Traceback" not in gateway.stderr_text
