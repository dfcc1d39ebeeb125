"""The HTTP server compared with Hypercorn (most tests run against both), and Hypercorn's gaps.

Real sockets on loopback, real clock. A ``test_upstream_still_lacks_*`` that fails is good news: a newer Hypercorn does
the thing itself, and that part of ``gateway.httpd`` can go.
"""

from __future__ import annotations

import logging
import os
import socket
from functools import partial
from typing import TYPE_CHECKING, Any

import h2.config
import h2.connection
import h2.events
import hypercorn.trio.run
import hypercorn.trio.tcp_server
import pytest
import trio
import trio.testing

from gateway.httpd.connection import MAX_AHEAD
from gateway.httpd.exchange import ClientGone
from gateway.httpd.server import serve_http
from tests.support.http_server import (
    BIG,
    GRACE,
    PATIENCE,
    START,
    Client,
    Watched,
    by_tls,
    connected,
    echo,
    get,
    happens,
    make_config,
    post,
    quiet,
    read_body,
    respond,
    serving,
)

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable

    Message = dict[str, Any]
    App = Callable[[Message, Callable[[], Awaitable[Message]], Callable[[Message], Awaitable[None]]], Awaitable[None]]


quiet.propagate = False
quiet.addHandler(logging.NullHandler())


@pytest.fixture(params=["stock", "ours"])
def kind(request: pytest.FixtureRequest) -> str:
    return request.param


async def flood(scope: Message, receive: Any, send: Any) -> None:
    """Stream without end."""
    await send(START)
    while True:
        await send({"type": "http.response.body", "body": BIG, "more_body": True})


pytestmark = pytest.mark.leak_check

# --- like upstream


async def test_serves_request_after_request_on_one_connection(kind: str) -> None:
    async with serving(kind, echo) as server, connected(server) as client:
        for number in range(3):
            await client.send(post(b"%d" % number))
            status, headers, body = await client.answer()
            assert (status, body) == (200, b"POST / %d" % number)
            assert "date" in headers
            assert "server" not in headers
            assert "connection" not in headers


async def test_the_scope_is_hypercorns() -> None:
    scopes: list[Message] = []

    async def app(scope: Message, receive: Any, send: Any) -> None:
        scopes.append(dict(scope))
        await respond(send, b"")

    for kind in ("stock", "ours"):
        async with serving(kind, app, root_path="/root") as server, connected(server) as client:
            await client.send(get("/a%20b/%C3%BC?x=%20&y", extra="X-Thing: One \r\nAccept: a\r\naccept: b\r\n"))
            await client.answer()
            scopes[-1]["port"] = scopes[-1].pop("server")[1] == server.address[1]
            scopes[-1]["client"] = scopes[-1]["client"][0]
    assert scopes[0] == scopes[1]
    assert list(scopes[0]) == list(scopes[1])


async def test_serves_chunked_request_bodies(kind: str) -> None:
    async with serving(kind, echo) as server, connected(server) as client:
        await client.send(get(method="PUT", extra="Transfer-Encoding: chunked\r\n") + b"3\r\nabc\r\n")
        await client.send(b"4;ext=1\r\ndefg\r\n0\r\nTrailer: 1\r\n\r\n")
        assert (await client.answer())[2] == b"PUT / abcdefg"
        await client.send(post(b"next"))
        assert (await client.answer())[2] == b"POST / next"


async def test_a_request_without_length_has_no_body(kind: str) -> None:
    async with serving(kind, echo) as server, connected(server) as client:
        await client.send(get(method="POST"))
        assert (await client.answer())[2] == b"POST / "


async def test_a_request_that_comes_byte_by_byte(kind: str) -> None:
    async with serving(kind, echo) as server, connected(server) as client:
        for byte in post(b"slow"):
            await client.send(bytes([byte]))
            await trio.lowlevel.checkpoint()
        assert (await client.answer())[2] == b"POST / slow"


async def test_a_body_of_unknown_length_is_chunked(kind: str) -> None:
    async def app(scope: Message, receive: Any, send: Any) -> None:
        await send(START)
        for part in (b"one", b"", b"two"):
            await send({"type": "http.response.body", "body": part, "more_body": True})
        await send({"type": "http.response.body", "body": b"three"})

    async with serving(kind, app) as server, connected(server) as client:
        for _ in range(2):
            await client.send(get())
            status, headers, body = await client.answer()
            assert (status, body) == (200, b"onetwothree")
            assert headers["transfer-encoding"] == "chunked"


async def test_each_part_of_a_stream_is_sent_immediately(kind: str) -> None:
    sent, seen = trio.open_memory_channel[bytes](0)

    async def app(scope: Message, receive: Any, send: Any) -> None:
        await send(START)
        await send({"type": "http.response.body", "body": b"", "more_body": True})
        async for part in seen:
            await send({"type": "http.response.body", "body": part, "more_body": True})
        await send({"type": "http.response.body", "body": b""})

    async with serving(kind, app) as server, connected(server) as client:
        await client.send(get())
        await client.until(b"\r\n\r\n")
        async with sent:
            for part in (b"data: 1\n\n", b"data: 22\n\n"):
                await sent.send(part)
                assert await client.until(part + b"\r\n") == b"%x\r\n%b\r\n" % (len(part), part)
        assert await client.until(b"0\r\n\r\n") == b"0\r\n\r\n"


async def test_head_has_headers_and_no_body(kind: str) -> None:
    async with serving(kind, echo) as server, connected(server) as client:
        await client.send(get(method="HEAD"))
        head = await client.until(b"\r\n\r\n")
        assert b"content-length: 7\r\n" in head
        await client.send(post(b"after"))
        assert (await client.answer())[2] == b"POST / after"


@pytest.mark.parametrize("status", [204, 304])
async def test_some_statuses_have_no_body(kind: str, status: int) -> None:
    async def app(scope: Message, receive: Any, send: Any) -> None:
        await respond(send, b"ignored", status=status, length=False)

    async with serving(kind, app) as server, connected(server) as client:
        for _ in range(2):
            await client.send(get())
            head = await client.until(b"\r\n\r\n")
            assert head.startswith(b"HTTP/1.1 %d" % status)
            assert b"transfer-encoding" not in head.lower()
        assert client.data == b""


async def test_http_1_0_bodies_end_with_the_connection(kind: str) -> None:
    async def app(scope: Message, receive: Any, send: Any) -> None:
        assert scope["http_version"] == "1.0"
        await respond(send, b"plain", length=False)

    async with serving(kind, app) as server, connected(server) as client:
        await client.send(b"GET / HTTP/1.0\r\n\r\n")
        head, _, body = (await client.rest()).partition(b"\r\n\r\n")
        assert head.startswith(b"HTTP/1.1 200")
        assert b"chunked" not in head
        assert b"connection: close" in head.lower()
        assert body == b"plain"


@pytest.mark.parametrize(
    ("request_bytes", "status"),
    [
        (b"\x16\x03\x01\x02\x00garbage\r\n\r\n", 400),
        (b"GET / HTTP/1.1\r\n\r\n", 400),  # no Host
        (b"GET / HTTP/1.1\r\nHost: a\r\nHost: b\r\n\r\n", 400),
        (b"POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 1\r\nContent-Length: 2\r\n\r\nab", 400),
        (b"POST / HTTP/1.1\r\nHost: a\r\nContent-Length: x\r\n\r\n", 400),
        (b"POST / HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: gzip\r\n\r\n", 501),
        (b"GET / HTTP/1.1\r\nHost: a\r\nX: " + b"y" * 30_000, 431),
    ],
)
async def test_invalid_http_is_refused_and_ends_the_connection(kind: str, request_bytes: bytes, status: int) -> None:
    async with serving(kind, echo) as server, connected(server) as client:
        await client.send(request_bytes)
        head = await client.until(b"\r\n\r\n")
        assert head.startswith(b"HTTP/1.1 %d" % status)
        assert b"connection: close" in head.lower()
        assert await client.rest() == b""


async def test_an_app_failing_before_the_response_returns_500(kind: str) -> None:
    async def app(scope: Message, receive: Any, send: Any) -> None:
        await read_body(receive)
        if scope["raw_path"] == b"/raise":
            raise ValueError("a bug")

    for path in ("/raise", "/return"):
        async with serving(kind, app) as server, connected(server) as client:
            await client.send(get(path))
            answer = await client.rest()
            assert answer.startswith(b"HTTP/1.1 500")
            assert b"content-length: 0" in answer


@pytest.mark.parametrize("length", [b"", b"100"])
@pytest.mark.parametrize("fails", [True, False])
async def test_an_interrupted_response_is_recognizable(kind: str, fails: bool, length: bytes) -> None:
    async def app(scope: Message, receive: Any, send: Any) -> None:
        await read_body(receive)
        headers = [(b"content-length", length)] if length else []
        await send({**START, "headers": headers})
        await send({"type": "http.response.body", "body": b"some", "more_body": True})
        if fails:
            raise ValueError("a bug")

    async with serving(kind, app) as server, connected(server) as client:
        await client.send(get())
        body = (await client.rest()).partition(b"\r\n\r\n")[2]
        assert body == (b"some" if length else b"4\r\nsome\r\n")  # and no last chunk


async def test_an_app_may_not_exceed_its_content_length(kind: str) -> None:
    errors: list[str] = []

    async def app(scope: Message, receive: Any, send: Any) -> None:
        size = int(scope["query_string"])
        await send({**START, "headers": [(b"content-length", b"4")]})
        try:
            await send({"type": "http.response.body", "body": b"x" * size})
        except Exception as error:
            errors.append(str(error))
            raise

    async with serving(kind, app) as server:
        for size in (3, 5):
            async with connected(server) as client:
                await client.send(get(f"/?{size}"))
                await client.rest()
    assert errors == [
        "Too little data for declared Content-Length",
        "Too much data for declared Content-Length",
    ]


@pytest.mark.parametrize(
    "header", [(b"x-a", b"b\r\nset-cookie: c"), (b"x a", b"b"), (b":status", b"200"), (b"content-length", b"-1")]
)
async def test_illegal_headers_never_reach_the_wire(kind: str, header: tuple[bytes, bytes]) -> None:
    async def app(scope: Message, receive: Any, send: Any) -> None:
        await send({**START, "headers": [header]})
        await send({"type": "http.response.body", "body": b""})

    async with serving(kind, app) as server, connected(server) as client:
        await client.send(get())
        answer = await client.rest()
        assert b"set-cookie" not in answer
        if kind == "ours":  # stock leaves some of these without any answer
            assert answer.startswith(b"HTTP/1.1 500")


async def test_connection_close_is_honoured(kind: str) -> None:
    async with serving(kind, echo) as server, connected(server) as client:
        await client.send(post(b"bye", extra="Connection: close\r\n"))
        answer = await client.rest()
        assert b"connection: close\r\n" in answer.lower()
        assert answer.endswith(b"bye")


async def test_a_doubly_framed_body_ends_the_connection() -> None:
    twice = b"POST / HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\nContent-Length: 3\r\n\r\n2\r\nhi\r\n0\r\n\r\n"
    async with serving("ours", echo) as server, connected(server) as client:
        await client.send(twice + post(b"smuggled"))
        answer = await client.rest()
        assert b"connection: close\r\n" in answer.lower()
        assert answer.startswith(b"HTTP/1.1 400")
        assert answer.count(b"HTTP/1.1") == 1


async def test_the_app_may_close_the_connection(kind: str) -> None:
    async def app(scope: Message, receive: Any, send: Any) -> None:
        await send({**START, "headers": [(b"Connection", b"Close"), (b"content-length", b"0")]})
        await send({"type": "http.response.body", "body": b""})

    async with serving(kind, app) as server, connected(server) as client:
        await client.send(get())
        assert (await client.rest()).lower().count(b"connection: close") == 1


async def test_requests_per_connection_are_limited(kind: str) -> None:
    async with serving(kind, echo, keep_alive_max_requests=2) as server, connected(server) as client:
        await client.send(post())
        assert "connection" not in (await client.answer())[1]
        await client.send(post())
        assert b"connection: close" in (await client.rest()).lower()


async def test_pipelined_requests_are_served_in_order(kind: str) -> None:
    async with serving(kind, echo) as server, connected(server) as client:
        await client.send(b"".join(post(b"n%d" % number, f"/{number}") for number in range(20)))
        for number in range(20):
            assert (await client.answer())[2] == b"POST /%d n%d" % (number, number)


async def test_idle_connections_end_and_busy_ones_do_not(kind: str) -> None:
    app = Watched()
    async with serving(kind, app, keep_alive_timeout=0.3) as server, connected(server) as client:
        start = trio.current_time()
        await client.send(get())
        with trio.move_on_after(0.7):  # longer than the timeout: the client waits for a slow app
            await client.rest()
        assert not app.disconnected.is_set()
        app.release.set()
        assert (await client.answer())[2] == b"released"
        assert trio.current_time() - start > 0.65
        end = trio.current_time()
        assert await client.rest() == b""
        assert 0.2 < trio.current_time() - end < 10  # counted from the response's end


async def test_an_incomplete_request_ends_the_connection(kind: str) -> None:
    async with serving(kind, echo, keep_alive_timeout=0.2) as server, connected(server) as client:
        await client.send(b"GET / HTTP/1.1\r\nHo")
        assert b" 200" not in await client.rest()


async def test_a_stalled_body_ends_the_connection(kind: str) -> None:
    gone = trio.Event()

    async def waits(scope: Message, receive: Any, send: Any) -> None:
        assert (await receive())["body"] == b"1234"
        assert (await receive()) == {"type": "http.disconnect"}
        gone.set()

    async with serving(kind, waits, read_timeout=0.2) as server, connected(server) as client:
        await client.send(post(b"12345678")[:-4])
        await happens(gone)


async def test_expect_100_continue_is_answered_on_body_read(kind: str) -> None:
    async with serving(kind, echo) as server, connected(server) as client:
        for _ in range(2):
            await client.send(post(b"four", extra="Expect: 100-continue\r\n")[:-4])
            assert (await client.until(b"\r\n\r\n")).startswith(b"HTTP/1.1 100")
            await client.send(b"four")
            assert (await client.answer())[2] == b"POST / four"


async def test_an_unread_body_waits_at_the_client(kind: str) -> None:
    app = Watched()
    taken = 0

    async def lazy(scope: Message, receive: Any, send: Any) -> None:
        await app.release.wait()
        await respond(send, b"%d" % len(await read_body(receive)))

    async with serving(kind, lazy) as server, connected(server) as client:
        total = 32 * len(BIG)
        await client.send(f"POST / HTTP/1.1\r\nHost: a\r\nContent-Length: {total}\r\n\r\n".encode())
        with trio.move_on_after(0.5):
            while taken < total:
                taken += await client.stream.socket.send(BIG[: min(len(BIG), total - taken)])
        assert taken < 16 * len(BIG)  # the kernel's buffers and less than 1 MiB of ours
        app.release.set()
        with trio.fail_after(PATIENCE):
            while taken < total:
                taken += await client.stream.socket.send(BIG[: min(len(BIG), total - taken)])
        assert (await client.answer())[2] == b"%d" % total


@pytest.mark.parametrize("starts", [False, True])
@pytest.mark.parametrize("abruptly", [False, True])
async def test_a_disconnect_is_reported(kind: str, starts: bool, abruptly: bool) -> None:
    app = Watched(starts=starts)
    async with serving(kind, app) as server:
        async with connected(server) as client:
            await client.send(post(b"ask"))
            await happens(app.running)
            if abruptly:
                client.stream.socket.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, b"\1\0\0\0\0\0\0\0")
        await happens(app.disconnected)


async def test_half_closing_counts_as_a_hang_up(kind: str) -> None:
    app = Watched()
    async with serving(kind, app) as server, connected(server) as client:
        await client.send(get())
        await happens(app.running)
        await client.stream.send_eof()
        await happens(app.disconnected)


async def test_receive_after_the_response_reports_disconnect(kind: str) -> None:
    messages: list[Message] = []

    async def app(scope: Message, receive: Any, send: Any) -> None:
        await echo(scope, receive, send)
        messages.extend([await receive(), await receive()] if kind == "ours" else [await receive()])

    async with serving(kind, app) as server, connected(server) as client:
        await client.send(get())
        await client.answer()
        await client.send(get("/again"))
        assert (await client.answer())[2] == b"GET /again "
    assert messages
    assert all(message == {"type": "http.disconnect"} for message in messages)


async def test_shutdown_closes_idle_connections_and_finishes_busy_ones(kind: str) -> None:
    app = Watched()
    async with serving(kind, app, graceful_timeout=PATIENCE) as server:
        async with connected(server) as idle, connected(server) as fresh, connected(server) as busy:
            await idle.send(post(path="/quick"))
            await idle.answer()
            await busy.send(get())
            await happens(app.running)
            server.stop.set()
            assert await idle.rest() == b""
            assert await fresh.rest() == b""
            app.release.set()
            assert (await busy.rest()).endswith(b"released")
            await happens(server.ended)
        with pytest.raises(OSError, match="failed"):
            await trio.open_tcp_stream(*server.address)


async def test_shutdown_cancels_what_outlasts_the_grace(kind: str) -> None:
    app = Watched(starts=True)
    async with serving(kind, app) as server, connected(server) as client:
        await client.send(get())
        await client.until(b"hello")
        server.stop.set()
        start = trio.current_time()
        await happens(server.ended)
        assert GRACE - 0.1 < trio.current_time() - start < GRACE + 10
        assert app.cancelled.is_set()


async def test_only_named_hosts_are_served(kind: str) -> None:
    async with serving(kind, echo, server_names=["a"]) as server:
        async with connected(server) as client:
            await client.send(get())
            assert (await client.answer())[0] == 200
        async with connected(server) as client:
            await client.send(get().replace(b"Host: a", b"Host: evil"))
            assert (await client.until(b"\r\n\r\n")).startswith(b"HTTP/1.1 404")


async def test_the_access_log_has_each_response_once() -> None:  # stock adds a line for the end of each stream
    lines: list[str] = []
    log = logging.getLogger("tests.hypercorn.access")
    log.setLevel(logging.INFO)
    handler = logging.Handler()
    handler.emit = lambda record: lines.append(record.getMessage())  # type: ignore[method-assign]
    log.addHandler(handler)
    settings = {"accesslog": log, "access_log_format": "%(m)s %(U)s %(s)s"}
    async with serving("ours", echo, **settings) as server, connected(server) as client:
        for path in ("/a", "/b"):
            await client.send(get(path))
            await client.answer()
    assert lines == ["GET /a 200", "GET /b 200"]


# --- beyond upstream: bounded sends


async def test_shutdown_ends_although_a_client_does_not_read() -> None:
    async with serving("ours", flood) as server, connected(server) as client:
        await client.send(get())
        await client.until(b"xxx")
        server.stop.set()
        start = trio.current_time()
        await happens(server.ended)
        assert trio.current_time() - start < GRACE + 10


async def test_upstream_still_hangs_shutdown_on_stalled_clients() -> None:
    async with serving("stock", flood) as server:
        async with connected(server) as client:
            await client.send(get())
            await client.until(b"xxx")
            server.stop.set()
            with trio.move_on_after(GRACE + 1):
                await server.ended.wait()
            assert not server.ended.is_set()
        await happens(server.ended)  # the client's end sets it free


async def test_a_stalled_client_is_disconnected() -> None:
    notified: list[Message] = []
    ended = trio.Event()

    async def app(scope: Message, receive: Any, send: Any) -> None:
        await read_body(receive)
        start = trio.current_time()
        with pytest.raises(ClientGone, match="stopped reading"):
            await flood(scope, receive, send)
        assert 0.15 < trio.current_time() - start < 10
        notified.append(await receive())
        with pytest.raises(OSError, match="gone"):
            await send({"type": "http.response.body", "body": b"more"})
        ended.set()

    async with serving("ours", app, send_timeout=0.2) as server, connected(server) as client:
        await client.send(get())
        await happens(ended)
        assert notified == [{"type": "http.disconnect"}]
        with pytest.raises(trio.BrokenResourceError):  # reset: what it did not take is thrown away
            await client.rest()


async def test_a_slow_reader_is_not_disconnected() -> None:
    async def app(scope: Message, receive: Any, send: Any) -> None:
        await respond(send, BIG * 4)

    async with serving("ours", app, send_timeout=0.4) as server, connected(server, receive_buffer=2**16) as client:
        start = trio.current_time()
        await client.send(get())
        got = 0
        while got < 4 * len(BIG):
            got += len(await client.stream.receive_some(2**17))
            with trio.move_on_after(0.02):  # the slowness itself, not a wait for something
                await trio.sleep_forever()
        assert trio.current_time() - start > 0.4


async def test_an_app_timeout_ends_the_send_and_connection() -> None:
    ended = trio.Event()

    async def app(scope: Message, receive: Any, send: Any) -> None:
        with trio.move_on_after(0.2) as scope_:
            await flood(scope, receive, send)
        assert scope_.cancelled_caught
        assert (await receive())["type"] in {"http.request", "http.disconnect"}
        ended.set()

    async with serving("ours", app) as server, connected(server) as client:
        await client.send(get())
        await happens(ended)
        with pytest.raises(trio.BrokenResourceError):
            await client.rest()


async def test_messages_of_two_tasks_do_not_mix() -> None:
    async def app(scope: Message, receive: Any, send: Any) -> None:
        async def part(letter: bytes) -> None:
            await send({"type": "http.response.body", "body": letter * len(BIG), "more_body": True})

        await send(START)
        async with trio.open_nursery() as nursery:
            for letter in (b"a", b"b"):
                nursery.start_soon(part, letter)
                await trio.testing.wait_all_tasks_blocked()
            with trio.move_on_after(0) as waiting:
                await part(b"c")
            assert waiting.cancelled_caught
            release.set()
        await send({"type": "http.response.body", "body": b"end"})

    release = trio.Event()
    async with serving("ours", app) as server, connected(server, receive_buffer=2**16) as client:
        await client.send(get())
        await happens(release)
        _, _, body = await client.answer()
        assert body == b"a" * len(BIG) + b"b" * len(BIG) + b"end"


# --- beyond upstream: a hang-up is seen while a response is pending


async def hang_up_with_a_request_in_waiting(kind: str, app: Watched, patience: float) -> None:
    async with serving(kind, app) as server:
        async with connected(server) as client:
            await client.send(get() + get("/quick"))
            await happens(app.running)
            await client.send(get("/quick"))
        with trio.move_on_after(patience):
            await app.disconnected.wait()
        app.release.set()


async def test_a_disconnect_is_reported_behind_pipelined_requests() -> None:
    app = Watched()
    await hang_up_with_a_request_in_waiting("ours", app, PATIENCE)
    assert app.disconnected.is_set()


async def test_upstream_still_misses_disconnects_behind_pipelined_requests() -> None:
    app = Watched()
    await hang_up_with_a_request_in_waiting("stock", app, 0.5)
    assert not app.disconnected.is_set()


async def test_requests_sent_ahead_are_bounded_and_then_served() -> None:
    app = Watched()
    one = post(b"x" * 1000, "/quick")
    total = 64 * len(BIG) // len(one)
    async with serving("ours", app, keep_alive_max_requests=10**6) as server, connected(server) as client:
        await client.send(get())
        await happens(app.running)
        data = one * total
        sent = 0
        with trio.move_on_after(0.5):
            while sent < len(data):
                sent += await client.stream.socket.send(data[sent : sent + len(BIG)])
        assert MAX_AHEAD < sent < len(data) // 2
        app.release.set()
        assert (await client.answer())[2] == b"released"
        for _ in range(sent // len(one)):
            assert len((await client.answer())[2]) == 1000 + len(b"POST /quick ")


# --- beyond upstream: speed


async def test_upstream_still_lacks_one_send_a_response(monkeypatch: pytest.MonkeyPatch) -> None:
    sends = 0
    stream_send = trio.SocketStream.send_all
    served: list[Any] = []

    async def counted(self: trio.SocketStream, data: bytes) -> None:
        nonlocal sends
        sends += self.socket.getsockname()[1] in served
        await stream_send(self, data)

    async with serving("stock", echo) as server, connected(server) as client:
        served.append(server.address[1])
        monkeypatch.setattr(trio.SocketStream, "send_all", counted)
        await client.send(post())
        await client.answer()
        monkeypatch.undo()
    assert sends > 1


async def test_a_response_is_sent_in_one_write() -> None:
    """One write is one read on loopback: a waiting reader sees each write."""

    async def app(scope: Message, receive: Any, send: Any) -> None:
        await read_body(receive)
        await respond(send, b"body", length=scope["raw_path"] == b"/length")

    async with serving("ours", app) as server, connected(server) as client:
        for path, end in (("/length", b"\r\n\r\nbody"), ("/chunked", b"\r\n\r\n4\r\nbody\r\n0\r\n\r\n")):
            await client.send(get(path))
            with trio.fail_after(PATIENCE):
                assert (await client.stream.receive_some()).endswith(end)


# --- beyond upstream: answers that arrive


async def fail_with_the_head_held(scope: Message, receive: Any, send: Any) -> None:
    await send(START)
    raise ValueError("a bug")


async def test_upstream_still_leaves_late_app_failures_unanswered() -> None:
    async with serving("stock", fail_with_the_head_held) as server, connected(server) as client:
        await client.send(get())
        assert (await client.rest()).startswith(b"HTTP/1.1 200")


async def test_an_app_failing_before_its_body_returns_500() -> None:
    async with serving("ours", fail_with_the_head_held) as server, connected(server) as client:
        await client.send(get())
        assert (await client.rest()).startswith(b"HTTP/1.1 500")


async def refuse(scope: Message, receive: Any, send: Any) -> None:
    await respond(send, b"too large", status=413)


async def test_a_refusal_comes_instead_of_100_continue() -> None:
    async with serving("ours", refuse) as server, connected(server) as client:
        await client.send(post(b"body", extra="Expect: 100-continue\r\n")[:-4])
        status, headers, _ = await client.answer()
        assert (status, headers["connection"]) == (413, "close")
        assert await client.rest() == b""


async def test_upstream_still_cannot_refuse_instead_of_100_continue() -> None:
    async with serving("stock", refuse) as server, connected(server) as client:
        await client.send(post(b"body", extra="Expect: 100-continue\r\n")[:-4])
        assert (await client.answer())[0] == 100


async def test_a_client_still_sending_gets_the_refusal() -> None:
    async with serving("ours", refuse) as server, connected(server) as client:
        await client.send(post(BIG * 16))
        answer = await client.rest()
        assert answer.startswith(b"HTTP/1.1 413")
        assert answer.endswith(b"too large")


async def test_an_invalid_body_is_refused_and_reported() -> None:
    notified = trio.Event()

    async def app(scope: Message, receive: Any, send: Any) -> None:
        assert (await receive())["body"] == b"abc"
        assert await receive() == {"type": "http.disconnect"}
        with pytest.raises(ClientGone):
            await send(START)
        notified.set()

    async with serving("ours", app) as server, connected(server) as client:
        await client.send(get(method="POST", extra="Transfer-Encoding: chunked\r\n") + b"3\r\nabc\r\n")
        await client.send(b"nonsense\r\n")
        assert (await client.until(b"\r\n\r\n")).startswith(b"HTTP/1.1 400")
        await happens(notified)
        assert await client.rest() == b""


async def test_an_interrupted_chunked_body_is_reset() -> None:
    async def app(scope: Message, receive: Any, send: Any) -> None:
        await send(START)
        await send({"type": "http.response.body", "body": b"some", "more_body": True})
        await release.wait()
        raise ValueError("a bug")

    release = trio.Event()
    async with serving("ours", app) as server, connected(server) as client:
        await client.send(b"GET / HTTP/1.0\r\n\r\n")
        await client.until(b"some")
        release.set()
        with pytest.raises(trio.BrokenResourceError):
            await client.rest()


@pytest.mark.parametrize(
    "extra",
    [
        "Connection: Upgrade\r\nUpgrade: websocket\r\nSec-WebSocket-Version: 13\r\nSec-WebSocket-Key: AAAA\r\n",
        "Connection: Upgrade, HTTP2-Settings\r\nUpgrade: h2c\r\nHTTP2-Settings: AAMAAABkAAQCAAAAAAIAAAAA\r\n",
    ],
)
async def test_upgrades_are_not_granted(extra: str) -> None:
    async with serving("ours", echo) as server, connected(server) as client:
        for _ in range(2):
            await client.send(get(extra=extra))
            status, headers, body = await client.answer()
            assert (status, body) == (200, b"GET / ")
            assert "upgrade" not in headers
        await client.send(get(extra=extra.replace("Upgrade", "close, Upgrade", 1)))
        assert (await client.rest()).endswith(b"GET / ")


# --- the server as a whole


async def test_clients_that_vanish_leave_nothing_behind() -> None:
    app = Watched()
    async with serving("ours", app) as server:
        await trio.testing.wait_all_tasks_blocked()
        files, tasks = len(os.listdir("/proc/self/fd")), trio.lowlevel.current_statistics().tasks_living

        async def vanish(number: int) -> None:
            async with connected(server) as client:
                await client.send(get()[: number % 40])

        async with trio.open_nursery() as nursery:
            for number in range(100):
                nursery.start_soon(vanish, number)
        with trio.fail_after(PATIENCE):
            while trio.lowlevel.current_statistics().tasks_living > tasks:
                await trio.testing.wait_all_tasks_blocked(0.01)
        assert len(os.listdir("/proc/self/fd")) == files


async def test_cancelling_the_server_ends_everything() -> None:
    app = Watched(starts=True)
    async with trio.open_nursery() as nursery:
        serve = partial(serve_http, app, make_config(), shutdown_trigger=trio.sleep_forever)
        (address,) = await nursery.start(serve)
        stream = await trio.open_tcp_stream("127.0.0.1", int(address.rsplit(":", 1)[1]))
        async with stream:
            await stream.send_all(get())
            await happens(app.running)
            with trio.fail_after(GRACE):
                nursery.cancel_scope.cancel()
                await app.cancelled.wait()


@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")  # Hypercorn drops the socket unclosed
async def test_a_taken_port_is_a_plain_error() -> None:
    async with serving("ours", echo) as server:
        config = make_config(bind=["{}:{}".format(*server.address)])
        with pytest.raises(OSError, match="in use"):
            await serve_http(echo, config, shutdown_trigger=trio.sleep_forever)


async def test_given_sockets_are_served() -> None:
    stop = trio.Event()
    config = make_config()
    sockets = config.create_sockets()
    async with trio.open_nursery() as nursery:
        serve = partial(serve_http, echo, config, sockets=sockets, shutdown_trigger=stop.wait)
        addresses = await nursery.start(serve)
        host, port = sockets.insecure_sockets[0].getsockname()
        assert addresses == [f"http://{host}:{port}"]
        async with await trio.open_tcp_stream(host, port) as stream:
            client = Client(stream)
            await client.send(get())
            assert (await client.answer())[2] == b"GET / "
        stop.set()


async def test_hypercorn_itself_is_unchanged() -> None:
    async with serving("ours", echo) as server, connected(server) as client:
        await client.send(get())
        await client.answer()
        assert hypercorn.trio.run.TCPServer is hypercorn.trio.tcp_server.TCPServer
        assert hypercorn.trio.tcp_server.ProtocolWrapper.__module__ == "hypercorn.protocol"


# --- TLS


async def test_http_1_over_tls(kind: str, certificate: dict[str, str]) -> None:
    async with serving(kind, echo, **certificate) as server, by_tls(server, certificate, "http/1.1") as client:
        for body in (b"small", BIG):
            await client.send(post(body))
            assert (await client.answer())[2] == b"POST / " + body


async def test_a_stalled_tls_client_is_disconnected(certificate: dict[str, str]) -> None:
    ended = trio.Event()

    async def app(scope: Message, receive: Any, send: Any) -> None:
        with pytest.raises(ClientGone, match="stopped reading"):
            await flood(scope, receive, send)
        ended.set()

    served = serving("ours", app, send_timeout=0.2, **certificate)
    async with served as server, by_tls(server, certificate, "http/1.1") as client:
        await client.send(get())
        await happens(ended)


async def ask_by_h2(client: Client, window: int) -> tuple[h2.connection.H2Connection, bytes]:
    """Send one request; return the body at its end, or once ``window`` is full."""
    conn = h2.connection.H2Connection(h2.config.H2Configuration(client_side=True, header_encoding="utf-8"))
    conn.initiate_connection()
    conn.increment_flow_control_window(window)
    headers = [(":method", "GET"), (":path", "/h2"), (":scheme", "https"), (":authority", "localhost")]
    conn.send_headers(1, headers, end_stream=True)
    conn.increment_flow_control_window(window, stream_id=1)
    await client.send(conn.data_to_send())
    body = b""
    while True:
        with trio.fail_after(PATIENCE):
            data = await client.stream.receive_some()
        for event in conn.receive_data(data):
            if isinstance(event, h2.events.DataReceived):
                body += event.data
            if isinstance(event, h2.events.StreamEnded) or len(body) > 1000:
                return conn, body


async def test_http_2_over_tls_is_hypercorns(kind: str, certificate: dict[str, str]) -> None:
    async with serving(kind, echo, **certificate) as server, by_tls(server, certificate, "h2") as client:
        assert (await ask_by_h2(client, 1000))[1] == b"GET /h2 "


async def test_shutdown_ends_despite_a_stalled_h2_client(certificate: dict[str, str]) -> None:
    served = serving("ours", flood, send_timeout=0.3, **certificate)
    async with served as server, by_tls(server, certificate, "h2") as client:
        await ask_by_h2(client, 2**30)
        server.stop.set()
        start = trio.current_time()
        await happens(server.ended)
        assert trio.current_time() - start < GRACE + 10


async def test_upstream_still_hangs_shutdown_on_stalled_h2_clients(
    certificate: dict[str, str],
) -> None:
    async with serving("stock", flood, **certificate) as server:
        async with by_tls(server, certificate, "h2") as client:
            await ask_by_h2(client, 2**30)
            server.stop.set()
            with trio.move_on_after(GRACE + 1):
                await server.ended.wait()
            assert not server.ended.is_set()
        await happens(server.ended)
