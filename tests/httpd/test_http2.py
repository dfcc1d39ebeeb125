"""HTTP/2 in hand-written frames: every connection and stream state ends or makes room."""

from __future__ import annotations

from contextlib import suppress
from dataclasses import replace
from typing import Any

import h2.config
import h2.connection
import h2.events
import hpack
import pytest
import trio
import trio.testing
from h2.errors import ErrorCodes
from hypothesis import given
from hypothesis import strategies as st

from gateway.budget import Budget
from gateway.httpd.connection_limit import Limits
from gateway.httpd.exchange import ClientGone
from gateway.httpd.http2 import FrameWatch
from tests.support.http_server import (
    BIG,
    LONG,
    PATIENCE,
    PATIENT,
    QUICK,
    START,
    Client,
    by_tls,
    drip_until_closed,
    echo,
    happens,
    keep_dripping,
    respond,
    serving,
)

pytestmark = pytest.mark.leak_check
PREFACE = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n"
DATA, HEADERS, RST_STREAM, SETTINGS, PING, GOAWAY, WINDOW_UPDATE, CONTINUATION = 0, 1, 3, 4, 6, 7, 8, 9
END_STREAM, END_HEADERS, PADDED = 1, 4, 8


def frame(kind: int, flags: int = 0, stream: int = 0, payload: bytes = b"", *, length: int | None = None) -> bytes:
    size = len(payload) if length is None else length
    return size.to_bytes(3, "big") + bytes([kind, flags]) + stream.to_bytes(4, "big") + payload


OPEN = PREFACE + frame(SETTINGS)


def block(method: str = "POST") -> bytes:
    head = [(":method", method), (":path", "/"), (":scheme", "https"), (":authority", "localhost")]
    return hpack.Encoder().encode(head, huffman=False)


def request(stream: int = 1, flags: int = END_HEADERS, **options: Any) -> bytes:
    return frame(HEADERS, flags, stream, block(), **options)


def whole(stream: int = 1) -> bytes:
    return request(stream, END_HEADERS | END_STREAM)


HEADS = {
    "no preface": (b"", b""),
    "half a preface": (PREFACE[:10], b""),
    "preface alone": (PREFACE, b""),
    "settings alone": (OPEN, b""),
    "half a settings frame": (PREFACE + frame(SETTINGS, length=6) + b"\0", b""),
    "pings": (OPEN, frame(PING, payload=b"12345678")),
    "settings again and again": (OPEN, frame(SETTINGS)),
    "window updates": (OPEN, frame(WINDOW_UPDATE, payload=b"\0\0\0\1")),
    "half a frame header": (OPEN + request()[:5], b""),
    "half a block of headers": (OPEN + request()[:20], b""),
    "headers without an end": (OPEN + request(flags=0), b""),
    "continuations": (OPEN + request(flags=0), frame(CONTINUATION, 0, 1, b"\x00\x01y\x01z")),
    "empty continuations": (OPEN + request(flags=0), frame(CONTINUATION, 0, 1)),
    "a frame dripped": (OPEN + request(length=5000), b"\x00\x01y\x01z"),
}
LATER_HEADS = {
    "half a frame header": (request(3)[:5], b""),
    "half a block of headers": (request(3)[:20], b""),
    "headers without an end": (request(3, flags=0), b""),
    "continuations": (request(3, flags=0), frame(CONTINUATION, 0, 3, b"\x00\x01y\x01z")),
    "half a ping": (frame(PING, payload=b"1234", length=8), b""),
    "data of a stream that has ended": (frame(DATA, 0, 1, length=9000), b"x"),
}
BODIES = {
    "no data": (b"", b""),
    "half a frame of data": (frame(DATA, 0, 1, length=9000), b""),
    "data dripped": (frame(DATA, 0, 1, length=9000), b"x"),
    "frames of one byte": (b"", frame(DATA, 0, 1, b"x")),
    "empty frames": (b"", frame(DATA, 0, 1)),
    "padding alone": (b"", frame(DATA, PADDED, 1, bytes([200]) + bytes(200))),
    "trailers without an end": (request(1, END_STREAM), b""),
    "trailers dripped": (request(1, END_STREAM, length=5000), b"\x00\x01y\x01z"),
}


async def receive_frames(client: Client, conn: h2.connection.H2Connection, wanted: type[h2.events.Event]) -> Any:
    with trio.fail_after(PATIENCE):
        while True:
            data = await client.stream.receive_some()
            assert data, "closed"
            for event in conn.receive_data(data):
                if isinstance(event, wanted):
                    return event


def peer() -> h2.connection.H2Connection:
    """Reads what the server sends; what it would send itself is not sent."""
    conn = h2.connection.H2Connection(h2.config.H2Configuration(client_side=True))
    conn.initiate_connection()
    for stream in (1, 3):
        conn.send_headers(stream, [(":method", "GET"), (":path", "/"), (":scheme", "https"), (":authority", "a")])
    return conn


@pytest.mark.parametrize(("sent", "drop"), HEADS.values(), ids=HEADS)
async def test_a_late_first_head_ends_the_connection(sent: bytes, drop: bytes, certificate: dict[str, str]) -> None:
    served = serving("ours", echo, limits=QUICK, keep_alive_timeout=LONG, **certificate)
    async with served as server, by_tls(server, certificate, "h2") as client:
        await client.send(sent)
        await drip_until_closed(client, drop)


@pytest.mark.parametrize(("sent", "drop"), LATER_HEADS.values(), ids=LATER_HEADS)
async def test_a_dripped_later_frame_is_cut_off(sent: bytes, drop: bytes, certificate: dict[str, str]) -> None:
    served = serving("ours", echo, limits=QUICK, keep_alive_timeout=LONG, **certificate)
    async with served as server, by_tls(server, certificate, "h2") as client:
        await client.send(OPEN + whole())
        await receive_frames(client, peer(), h2.events.StreamEnded)
        await client.send(sent)
        await drip_until_closed(client, drop)


@pytest.mark.parametrize(("sent", "drop"), BODIES.values(), ids=BODIES)
async def test_a_slow_body_costs_its_stream_alone(sent: bytes, drop: bytes, certificate: dict[str, str]) -> None:
    whole_frames = not sent or sent[:3] == len(sent[9:]).to_bytes(3, "big")
    served = serving("ours", echo, limits=QUICK, keep_alive_timeout=LONG, **certificate)
    async with served as server, by_tls(server, certificate, "h2") as client:
        await client.send(OPEN + request() + sent)
        if not whole_frames or sent:
            await drip_until_closed(client, drop)  # nothing else could be sent in the middle of a frame
            return
        conn = peer()
        async with trio.open_nursery() as nursery:
            nursery.start_soon(drip, client, drop)
            assert (await receive_frames(client, conn, h2.events.StreamReset)).stream_id == 1
            nursery.cancel_scope.cancel()
        await client.send(whole(3))
        assert (await receive_frames(client, conn, h2.events.StreamEnded)).stream_id == 3


async def drip(client: Client, drop: bytes) -> None:
    while drop:
        await client.send(drop)
        await trio.sleep(0.02)  # the dripping itself


async def test_an_idle_connection_ends(certificate: dict[str, str]) -> None:
    served = serving("ours", echo, keep_alive_timeout=0.2, **certificate)
    async with served as server, by_tls(server, certificate, "h2") as client:
        await client.send(OPEN + whole())
        await drip_until_closed(client, frame(PING, payload=b"12345678"))


@pytest.mark.parametrize(
    ("sent", "drop"),
    [*HEADS.values(), (OPEN + whole(), b""), *((OPEN + request() + sent, drop) for sent, drop in BODIES.values())],
    ids=[*HEADS, "idle", *BODIES],
)
async def test_stalled_connections_make_room(sent: bytes, drop: bytes, certificate: dict[str, str]) -> None:
    served = serving("ours", echo, limits=PATIENT, keep_alive_timeout=LONG, **certificate)
    async with served as server, by_tls(server, certificate, "h2") as client:
        await client.send(sent)
        async with keep_dripping(client, drop), by_tls(server, certificate, "h2") as newcomer:
            await newcomer.send(OPEN + whole())
            await receive_frames(newcomer, peer(), h2.events.StreamEnded)


async def test_a_call_outlasts_a_silent_client(certificate: dict[str, str]) -> None:
    async def app(scope: Any, receive: Any, send: Any) -> None:
        await trio.sleep(0.5)  # longer than each limit
        await respond(send, b"late")

    async with (
        serving("ours", app, limits=QUICK, keep_alive_timeout=0.2, read_timeout=0.2, **certificate) as server,
        by_tls(server, certificate, "h2") as client,
    ):
        await client.send(OPEN + whole())
        assert (await receive_frames(client, peer(), h2.events.DataReceived)).data == b"late"


async def test_a_slow_upload_at_the_least_rate_arrives(certificate: dict[str, str]) -> None:
    async def app(scope: Any, receive: Any, send: Any) -> None:
        size, more = 0, True
        while more:
            message = await receive()
            size, more = size + len(message["body"]), message["more_body"]
        await respond(send, b"%d" % size)

    served = serving("ours", app, limits=QUICK, **certificate)
    async with served as server, by_tls(server, certificate, "h2") as client:
        await client.send(OPEN + request() + frame(DATA, END_STREAM, 1, length=6000))
        for _ in range(60):
            await client.send(b"x" * 100)
            await trio.sleep(0.015)  # the slowness itself: nine windows, in one frame
        assert (await receive_frames(client, peer(), h2.events.DataReceived)).data == b"6000"


async def test_a_stream_that_is_not_read_ends_alone(certificate: dict[str, str]) -> None:
    problems: list[BaseException] = []

    async def app(scope: Any, receive: Any, send: Any) -> None:
        if scope["path"] == "/quick":
            await respond(send, b"quick")
            return
        await send(START)
        try:
            await send({"type": "http.response.body", "body": BIG, "more_body": True})
        except ClientGone as problem:
            problems.append(problem)
            raise

    served = serving("ours", app, limits=Limits(send=0.2), **certificate)
    async with served as server, by_tls(server, certificate, "h2") as client:
        conn = h2.connection.H2Connection(h2.config.H2Configuration(client_side=True))
        conn.initiate_connection()
        conn.increment_flow_control_window(2**24)
        head = [(":method", "GET"), (":scheme", "https"), (":authority", "localhost")]
        conn.send_headers(1, [*head, (":path", "/slow")], end_stream=True)
        await client.send(conn.data_to_send())
        reset = await receive_frames(client, conn, h2.events.StreamReset)
        assert (reset.stream_id, reset.error_code) == (1, ErrorCodes.CANCEL)
        conn.send_headers(3, [*head, (":path", "/quick")], end_stream=True)
        await client.send(conn.data_to_send())
        while (event := await receive_frames(client, conn, h2.events.DataReceived)).stream_id != 3:
            pass
        assert event.data == b"quick"
        assert [str(problem) for problem in problems] == ["the client has stopped reading"]


@pytest.mark.parametrize(
    "sent", [b"", frame(DATA, 0, 0, b"x"), frame(GOAWAY, payload=bytes(8))], ids=["hang-up", "no frame", "goaway"]
)
async def test_responses_end_with_their_connection(sent: bytes, certificate: dict[str, str]) -> None:
    begun = ended = 0
    all_ended = trio.Event()

    async def app(scope: Any, receive: Any, send: Any) -> None:
        nonlocal begun, ended
        begun += 1
        try:
            await respond(send, BIG, length=False)
        finally:
            ended += 1
            if ended == 3:
                all_ended.set()

    unsent = Budget(32 * len(BIG))
    async with serving("ours", app, limits=Limits(send=LONG), unsent=unsent, **certificate) as server:
        async with by_tls(server, certificate, "h2") as client:
            await client.send(OPEN + whole(1) + whole(3) + whole(5))
            await trio.testing.wait_all_tasks_blocked(0.05)
            assert (begun, ended) == (3, 0)
            assert unsent.used == 3 * len(BIG)
            await client.send(sent)
            await trio.aclose_forcefully(client.stream)
        await happens(all_ended)
        await trio.testing.wait_all_tasks_blocked(0.05)
        assert unsent.used == 0


@pytest.mark.parametrize("resets", [0, 40])
async def test_over_its_bound_a_clients_next_requests_wait(resets: int, certificate: dict[str, str]) -> None:
    served: list[str] = []

    async def app(scope: Any, receive: Any, send: Any) -> None:
        served.append(scope["path"])
        await respond(send, BIG * 17 if scope["path"] == "/big" else b"quick", length=False)

    unsent = Budget(32 * len(BIG))
    running = serving("ours", app, limits=Limits(send=LONG), unsent=unsent, h2_max_concurrent_streams=5, **certificate)
    async with running as server, by_tls(server, certificate, "h2") as client:
        conn = h2.connection.H2Connection(h2.config.H2Configuration(client_side=True))
        conn.initiate_connection()
        head = [(":method", "GET"), (":scheme", "https"), (":authority", "localhost")]
        conn.send_headers(1, [*head, (":path", "/big")], end_stream=True)
        await client.send(conn.data_to_send())
        await trio.testing.wait_all_tasks_blocked(0.05)
        assert 16 * len(BIG) < unsent.used <= 17 * len(BIG)
        for stream in range(3, 3 + 2 * resets, 2):  # streams opened and reset must not pile up
            conn.send_headers(stream, [*head, (":path", "/reset")], end_stream=True)
            conn.reset_stream(stream)
            await client.send(conn.data_to_send())
        last = 3 + 2 * resets
        if not resets:
            conn.send_headers(last, [*head, (":path", "/quick")], end_stream=True)
        await client.send(conn.data_to_send())
        await trio.testing.wait_all_tasks_blocked(0.05)
        assert served == ["/big"]
        conn.increment_flow_control_window(2**30)
        conn.increment_flow_control_window(2**30, 1)
        await client.send(conn.data_to_send())
        ended: set[int] = set()
        with trio.fail_after(PATIENCE):
            while not ended >= ({1} if resets else {1, last}):
                events = conn.receive_data(await client.stream.receive_some(2**16))
                ended |= {event.stream_id for event in events if isinstance(event, h2.events.StreamEnded)}
        await trio.testing.wait_all_tasks_blocked(0.05)
        assert len(served) == (6 if resets else 2)
    assert unsent.used == 0


async def test_a_body_continuing_after_the_response_is_harmless(certificate: dict[str, str]) -> None:
    async def app(scope: Any, receive: Any, send: Any) -> None:
        await respond(send, b"refused", status=401)

    async with serving("ours", app, **certificate) as server, by_tls(server, certificate, "h2") as client:
        conn = peer()
        for stream in (1, 3):
            await client.send((OPEN if stream == 1 else b"") + request(stream))
            await receive_frames(client, conn, h2.events.StreamEnded)
            await client.send(frame(DATA, 0, stream, b"x" * 100) + frame(DATA, END_STREAM, stream, b"x"))
        async with by_tls(server, certificate, "h2") as other:
            await other.send(OPEN + whole())
            await receive_frames(other, peer(), h2.events.StreamEnded)


def odd_request(*pairs: tuple[str, str | bytes], stream: int = 1) -> bytes:
    return frame(HEADERS, END_HEADERS | END_STREAM, stream, hpack.Encoder().encode(list(pairs), huffman=False))


METHOD, SCHEME, HOST = (":method", "GET"), (":scheme", "https"), (":authority", "localhost")
ODD = {
    "no preface": b"GET / HTTP/1.1\r\n\r\n",
    "path beyond ASCII": OPEN + odd_request(METHOD, SCHEME, HOST, (":path", b"/\xff")),
    "no path": OPEN + odd_request(METHOD, SCHEME, HOST),
    "empty path": OPEN + odd_request(METHOD, SCHEME, HOST, (":path", "")),
    "method beyond ASCII": OPEN + odd_request((":method", b"\xff"), SCHEME, HOST, (":path", "/")),
    "CONNECT": OPEN + odd_request((":method", "CONNECT"), HOST),
    "CONNECT to a web socket": OPEN
    + odd_request((":method", "CONNECT"), SCHEME, HOST, (":path", "/"), (":protocol", "websocket")),
    "no headers": OPEN + frame(HEADERS, END_HEADERS | END_STREAM, 1),
    "garbage in the block": OPEN + frame(HEADERS, END_HEADERS | END_STREAM, 1, b"\xff" * 40),
    "an even stream": OPEN + whole(2),
    "a stream twice": OPEN + whole() + whole(),
    "data of no stream": OPEN + frame(DATA, 0, 0, b"x"),
    "data of an idle stream": OPEN + frame(DATA, 0, 7, b"x"),
    "data after the end": OPEN + whole() + frame(DATA, 0, 1, b"x"),
    "reset of an idle stream": OPEN + frame(RST_STREAM, 0, 9, b"\0\0\0\0"),
    "reset at once": OPEN + b"".join(whole(n) + frame(RST_STREAM, 0, n, b"\0\0\0\x08") for n in range(1, 400, 2)),
    "a window of nothing": OPEN + frame(WINDOW_UPDATE, 0, 0, b"\0\0\0\0"),
    "a window too large": OPEN + frame(WINDOW_UPDATE, 0, 0, b"\x7f\xff\xff\xff") * 2,
    "settings of half a value": OPEN + frame(SETTINGS, 0, 0, b"\0\1\0"),
    "a stream that depends on itself": OPEN + frame(2, 0, 1, b"\0\0\0\1\x10"),
    "streams that depend on one another": OPEN
    + frame(2, 0, 1, b"\0\0\0\3\x10")
    + frame(2, 0, 3, b"\0\0\0\1\x10")
    + frame(2, 0, 1, b"\x80\0\0\3\x10"),
    "priorities of many streams": OPEN + b"".join(frame(2, 0, n, b"\0\0\0\0\x10") for n in range(1, 4001, 2)),
    "a stream that depends on none": OPEN + frame(2, 0, 1, b"\0\0\0\x63\x10"),
    "a push": OPEN + frame(5, END_HEADERS, 1, b"\0\0\0\2" + block()),
    "the end": OPEN + frame(7, 0, 0, bytes(8)),
    "a frame of no kind": OPEN + frame(99, 255, 1, b"x"),
    "a frame too long": OPEN + frame(DATA, 0, 1, length=2**24 - 1),
}


@pytest.mark.parametrize("sent", ODD.values(), ids=ODD)
async def test_whatever_one_client_sends_the_others_are_served(sent: bytes, certificate: dict[str, str]) -> None:
    served = serving("ours", echo, limits=replace(QUICK, handshake=LONG, head=LONG), **certificate)
    async with served as server, by_tls(server, certificate, "h2") as steady, by_tls(server, certificate, "h2") as odd:
        await odd.send(sent)
        with trio.move_on_after(0.1), suppress(trio.BrokenResourceError):  # answered, closed, or neither
            while await odd.stream.receive_some():
                pass
        await steady.send(OPEN + whole())
        await receive_frames(steady, peer(), h2.events.StreamEnded)
        async with by_tls(server, certificate, "h2") as newcomer:
            await newcomer.send(OPEN + whole())
            await receive_frames(newcomer, peer(), h2.events.StreamEnded)


STREAM_3 = {
    "path beyond ASCII": odd_request(METHOD, SCHEME, HOST, (":path", b"/\xff"), stream=3),
    "method beyond ASCII": odd_request((":method", b"\xff"), SCHEME, HOST, (":path", "/"), stream=3),
    "CONNECT": odd_request((":method", "CONNECT"), HOST, stream=3),
    "CONNECT to a web socket": odd_request(
        (":method", "CONNECT"), SCHEME, HOST, (":path", "/"), (":protocol", "websocket"), stream=3
    ),
    "CONNECT with a body": frame(
        HEADERS, END_HEADERS, 3, hpack.Encoder().encode([(":method", "CONNECT"), HOST], huffman=False)
    )
    + frame(DATA, END_STREAM, 3, b"x" * 100),
    "priorities of many streams": b"".join(frame(2, 0, n, b"\0\0\0\0\x10") for n in range(3, 4003, 2)),
    "a chain of priorities": b"".join(
        frame(2, 0, n, bytes([0, 0, *divmod(n - 2, 256), 16])) for n in range(3, 1803, 2)
    ),
    "a reset at once": whole(3) + frame(RST_STREAM, 0, 3, b"\0\0\0\x08"),
    "a window too large": whole(3) + frame(WINDOW_UPDATE, 0, 3, b"\x7f\xff\xff\xff"),
}


@pytest.mark.parametrize("sent", STREAM_3.values(), ids=STREAM_3)
async def test_whatever_one_stream_sends_the_others_are_served(
    sent: bytes, certificate: dict[str, str], caplog: pytest.LogCaptureFixture
) -> None:
    release = trio.Event()

    async def app(scope: Any, receive: Any, send: Any) -> None:
        await release.wait()
        await respond(send, b"served")

    async with serving("ours", app, **certificate) as server, by_tls(server, certificate, "h2") as client:
        await client.send(OPEN + whole() + sent + frame(PING, payload=b"12345678"))
        conn = peer()
        await receive_frames(client, conn, h2.events.PingAckReceived)
        release.set()
        event = await receive_frames(client, conn, h2.events.DataReceived)
        assert (event.stream_id, event.data) == (1, b"served")
    assert not caplog.records


async def test_a_reserve_request_waits_but_a_probe_passes(certificate: dict[str, str]) -> None:
    release = trio.Event()

    async def app(scope: Any, receive: Any, send: Any) -> None:
        if scope["path"] == "/":
            await release.wait()
        await respond(send, scope["path"].encode())

    limits = Limits(connections=1, reserve=1, probes=frozenset({"/livez"}), place=0.3)
    async with serving("ours", app, limits=limits, **certificate) as server, by_tls(server, certificate, "h2") as busy:
        await busy.send(OPEN + whole())
        async with by_tls(server, certificate, "h2") as client:
            conn = h2.connection.H2Connection(h2.config.H2Configuration(client_side=True))
            conn.initiate_connection()
            for stream, path in ((1, "/livez"), (3, "/")):
                head = [(":method", "GET"), (":scheme", "https"), (":authority", "localhost"), (":path", path)]
                conn.send_headers(stream, head, end_stream=True)
                await client.send(conn.data_to_send())
                answer = await receive_frames(client, conn, h2.events.ResponseReceived)
                assert dict(answer.headers)[b":status"] == (b"200" if stream == 1 else b"503")
        release.set()
        await receive_frames(busy, peer(), h2.events.StreamEnded)


WATCHED = {
    "preface": (PREFACE, 0, [], False),
    "settings": (OPEN, 0, [], False),
    "whole request": (OPEN + whole(), 1, [], False),
    "body awaited": (OPEN + request(), 1, [1], False),
    "body in a frame": (OPEN + request() + frame(DATA, 0, 1, b"x", length=9), 1, [1], False),
    "body done": (OPEN + request() + frame(DATA, END_STREAM, 1, b"x"), 1, [], False),
    "body without bytes done": (OPEN + request() + frame(DATA, END_STREAM, 1), 1, [], False),
    "body reset": (OPEN + request() + frame(RST_STREAM, 0, 1, b"\0\0\0\0"), 1, [], False),
    "trailers": (OPEN + request() + request(1, END_HEADERS | END_STREAM), 2, [], False),
    "two bodies": (OPEN + request() + request(3), 2, [1, 3], False),
    "block in pieces": (OPEN + request(flags=END_STREAM) + frame(CONTINUATION, END_HEADERS, 1), 1, [], False),
    "block open": (OPEN + whole() + request(3, flags=0), 1, [], True),
    "frame header open": (OPEN + whole() + request(3)[:4], 1, [], True),
    "ping open": (OPEN + whole() + frame(PING, payload=b"1", length=8), 1, [], True),
}


@pytest.mark.parametrize(("sent", "requests", "bodies", "is_open"), WATCHED.values(), ids=WATCHED)
@given(data=st.data())
def test_the_watch_is_independent_of_chunking(
    sent: bytes, requests: int, bodies: list[int], is_open: bool, data: st.DataObject
) -> None:
    watch = FrameWatch(Limits(), 0.0)
    cuts = sorted(data.draw(st.lists(st.integers(0, len(sent)), max_size=10)))
    for start, end in zip([0, *cuts], [*cuts, len(sent)], strict=True):
        watch.feed(sent[start:end], 5.0)
    assert watch.requests == requests
    assert list(watch.bodies) == bodies
    assert watch.head_since == (0.0 if not requests else 5.0 if is_open else None)


@given(st.binary())
def test_the_watch_takes_any_bytes(data: bytes) -> None:
    watch = FrameWatch(Limits(), 0.0)
    watch.feed(PREFACE + data, 1.0)
    assert watch.deadline() <= 1.0 + Limits().window or watch.requests


def test_the_watch_counts_what_is_a_body(monkeypatch: pytest.MonkeyPatch) -> None:
    limits = replace(Limits(), window=10.0, rate=1)
    watch = FrameWatch(limits, 0.0)
    watch.feed(OPEN + request(1) + request(3) + request(5), 0.0)
    assert watch.slow_bodies(10.0) == []  # the grace
    watch.feed(frame(DATA, 0, 1, b"x" * 10) + frame(DATA, PADDED, 3, bytes([50]) + b"x" * 9 + bytes(50)), 11.0)
    watch.pause(2.0)
    assert watch.slow_bodies(21.0) == []
    assert watch.slow_bodies(22.0) == [3, 5]
    assert list(watch.bodies) == [1]
