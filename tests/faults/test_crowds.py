"""Thousands of clients that disconnect in every phase, or stop reading: nothing is left."""

from __future__ import annotations

import json
import os
import signal
import socket
import struct

import h11
import pytest
import trio

from tests.contract.support import SHUTDOWN_GRACE, kilobytes, open_gateways, structured_of, text_of, wait_health
from tests.peers.http_peer import LegacyServer, open_peer
from tests.support.gateway_process import STOP_WITHIN, HttpClient, echo_backend, make_request, open_gateway_process

IDLE_TIMEOUT = 3  # seconds; more than a client needs between two messages of its handshake, on a busy machine too
CONFIG = {
    "mcpServers": {
        "echo": echo_backend() | {"shutdown_grace": SHUTDOWN_GRACE, "max_concurrency": 1000, "queue_size": 2000},
    },
    "gateway": {"start_grace": 10, "session_idle_timeout": IDLE_TIMEOUT, "max_sessions": 5000, "sse_after": 0.1},
}
CROWD = 1000
AT_ONCE = 50
LARGE = 600_000  # bytes, nearly all of which wait in the gateway: a thousand times that is twice the bound
SLACK = 100_000  # kilobytes beside what waits: a thousand connections, the results on their way, fragmentation
RESULTS = 64
ANNOUNCED = 2**26  # bytes of each of them: 4 GiB in all
ARRIVING = 2**23  # bytes of each that do arrive: eight times the bound in all
BOUND = 2**26
GROWTH = 8_000  # kilobytes of memory that may stay: fragmentation and caches; a thousand leaked clients would be more


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


async def test_a_thousand_slow_readers_stay_within_the_bound():
    patient = echo_backend() | {"max_concurrency": CROWD, "queue_size": CROWD}
    config = {"mcpServers": {"echo": patient, "other": echo_backend()}, "gateway": {"start_grace": 10}}
    async with open_gateway_process(config, extra_args=("--no-watch",)) as gateway:
        client = HttpClient(gateway.url)
        small = {"name": "other.echo", "arguments": {"text": "alive"}}
        assert text_of(await client.call_modern("tools/call", small)) == "alive"
        before = kilobytes(gateway.pid, "VmRSS")
        closed = 0

        async def read_slowly():
            nonlocal closed
            socket_ = trio.socket.socket()
            # As over a network: on loopback alone the kernel would take three million bytes for each.
            socket_.setsockopt(socket.IPPROTO_TCP, socket.TCP_MAXSEG, 1400)
            socket_.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
            await socket_.connect((client.host, client.port))
            async with trio.SocketStream(socket_) as stream:
                await stream.send_all(modern_call(client, {"name": "echo.big", "arguments": {"n": LARGE}}))
                try:
                    while await stream.receive_some(4096):  # ruff: ignore[async-busy-wait]
                        await trio.sleep(1)  # the slowness itself: they take something all the time, and are not done
                except trio.BrokenResourceError:
                    closed += 1

        async with trio.open_nursery() as nursery:
            for _ in range(CROWD):
                nursery.start_soon(read_slowly)
            with trio.fail_after(120):
                while closed < CROWD // 2:
                    # No other client is excluded; a call may be refused while a connection ends, never for longer.
                    answer = await client.call_modern("tools/call", small)
                    assert "error" not in answer or answer["error"]["data"]["reason"] == "busy"
                    await trio.sleep(0.05)
            assert kilobytes(gateway.pid, "VmHWM") - before < 256 * 1024 + SLACK
            nursery.cancel_scope.cancel()
        assert text_of(await client.call_modern("tools/call", small)) == "alive"
        assert "Traceback" not in gateway.stderr_text


async def test_four_gigabytes_of_arriving_results_stay_within_the_bound():
    async def stall(request, reply):
        reply.begun = True
        fields = [("content-type", "application/json"), ("content-length", str(ANNOUNCED))]
        await reply._send(h11.Response(status_code=200, headers=fields))
        for _ in range(ARRIVING // 2**16):
            await reply.raw(b" " * 2**16)
        await trio.sleep_forever()

    server = LegacyServer()
    server.on["tools/call"] = stall
    async with open_peer(server) as peer:
        remote = {"url": peer.url, "era": "legacy", "max_concurrency": RESULTS, "max_line_bytes": ANNOUNCED}
        settings = {"start_grace": 10, "max_buffered_bytes": BOUND}
        config = {"mcpServers": {"remote": remote, "other": echo_backend()}, "gateway": settings}
        async with open_gateway_process(config, extra_args=("--no-watch",)) as gateway:
            client = HttpClient(gateway.url)
            small = {"name": "other.echo", "arguments": {"text": "alive"}}
            assert text_of(await client.call_modern("tools/call", small)) == "alive"
            before = kilobytes(gateway.pid, "VmRSS")
            refused = 0

            async def ask():
                nonlocal refused
                answer = await client.call_modern("tools/call", {"name": "remote.echo", "arguments": {"text": "x"}})
                assert answer["error"]["data"]["reason"] == "buffers_full"
                refused += 1

            async with trio.open_nursery() as nursery:
                for _ in range(RESULTS):
                    nursery.start_soon(ask)
                with trio.fail_after(60):
                    while refused < RESULTS - BOUND // ARRIVING:  # the others fit, and never end
                        assert text_of(await client.call_modern("tools/call", small)) == "alive"
                        await trio.sleep(0.05)
                assert kilobytes(gateway.pid, "VmHWM") - before < 2 * BOUND // 1024 + SLACK
                nursery.cancel_scope.cancel()
            assert text_of(await client.call_modern("tools/call", small)) == "alive"
            assert "Traceback" not in gateway.stderr_text
