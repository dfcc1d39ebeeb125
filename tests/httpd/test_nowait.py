"""Requests answered without a task: immediate writes, and responses that wait."""

from __future__ import annotations

import gc
import weakref
from contextlib import asynccontextmanager
from typing import TYPE_CHECKING, Any

import pytest
import trio
import trio.testing

from gateway.budget import Budget
from gateway.httpd.exchange import MAX_WHOLE_BODY, ClientGone, Exchange
from gateway.httpd.wire import MAX_ENCRYPTED, Wire
from tests.support.http_server import (
    BIG,
    GRACE,
    PATIENCE,
    START,
    by_tls,
    connected,
    echo,
    echo_nowait,
    get,
    happens,
    post,
    serving,
)
from tests.support.leaks import traced_growth

if TYPE_CHECKING:
    from collections.abc import AsyncGenerator, Callable
    from contextlib import AbstractAsyncContextManager

    from tests.support.http_server import Client

pytestmark = pytest.mark.leak_check

OK = (200, [(b"content-type", b"text/plain")])


async def fail(scope: Any, receive: Any, send: Any) -> None:
    await trio.lowlevel.checkpoint()
    raise AssertionError("the app was called")


class Held:
    """Takes every request, and answers it when the test says so."""

    def __init__(self) -> None:
        self.disconnects = 0
        self.disconnected = trio.Event()
        self._send, self._receive = trio.open_memory_channel[Exchange](100)

    def __call__(self, exchange: Exchange) -> bool:
        exchange.on_disconnect = self._note_disconnect
        self._send.send_nowait(exchange)
        return True

    def _note_disconnect(self) -> None:
        self.disconnects += 1
        self.disconnected.set()

    async def next(self) -> Exchange:
        with trio.fail_after(PATIENCE):
            return await self._receive.receive()

    def is_idle(self) -> bool:
        return not self._receive.statistics().current_buffer_used


class Spawned(trio.abc.Instrument):
    def __init__(self) -> None:
        self.names: list[str] = []

    def task_spawned(self, task: trio.lowlevel.Task) -> None:
        self.names.append(task.name)


async def test_no_task_is_started_for_a_request() -> None:
    async with serving("ours", fail, handle_nowait=echo_nowait) as server, connected(server) as client:
        await client.send(get())
        await client.answer()
        spawned = Spawned()
        trio.lowlevel.add_instrument(spawned)
        for number in range(10):
            await client.send(post(b"%d" % number))
            assert (await client.answer())[2] == b"POST / %d" % number
        trio.lowlevel.remove_instrument(spawned)
    assert spawned.names == []


async def test_the_body_comes_whole_however_it_is_sent() -> None:
    bodies: list[bytes] = []

    def collect(exchange: Exchange) -> bool:
        bodies.append(exchange.body)
        return exchange.respond_nowait(*OK, b"")

    data = post(b"some body")
    async with serving("ours", fail, handle_nowait=collect) as server, connected(server) as client:
        for at in range(1, len(data)):
            await client.send(data[:at])
            await trio.testing.wait_all_tasks_blocked()
            await client.send(data[at:])
            await client.answer()
        for byte in data:
            await client.send(bytes([byte]))
            await trio.testing.wait_all_tasks_blocked()
        await client.answer()
        await client.send(post(b"x" * MAX_WHOLE_BODY))
        await client.answer()
    assert bodies == [b"some body"] * len(data) + [b"x" * MAX_WHOLE_BODY]


@pytest.mark.parametrize(
    ("request_bytes", "body"),
    [
        (post(b"x" * (MAX_WHOLE_BODY + 1)), b"x" * (MAX_WHOLE_BODY + 1)),
        (get(method="POST", extra="Transfer-Encoding: chunked\r\n") + b"1\r\nx\r\n0\r\n\r\n", b"x"),
        (post(b"x", extra="Expect: 100-continue\r\n"), b"x"),
    ],
    ids=["large", "chunked", "expect"],
)
async def test_other_requests_go_to_the_app(request_bytes: bytes, body: bytes) -> None:
    def refuse(exchange: Exchange) -> bool:
        raise AssertionError

    async with serving("ours", echo, handle_nowait=refuse) as server, connected(server) as client:
        await client.send(request_bytes)
        assert (await client.answer())[2] == b"POST / " + body


async def test_a_request_the_handler_declines_reaches_the_app() -> None:
    async with serving("ours", echo, handle_nowait=lambda _: False) as server, connected(server) as client:
        for number in range(3):
            await client.send(post(b"%d" % number))
            assert (await client.answer())[2] == b"POST / %d" % number


async def test_a_taken_request_may_still_start_an_app() -> None:
    async def stream(scope: Any, receive: Any, send: Any) -> None:
        assert (await receive())["body"] == b"ask"
        await send(START)
        for part in (b"one", b"two"):
            await send({"type": "http.response.body", "body": part, "more_body": True})
        await send({"type": "http.response.body", "body": b""})

    held = Held()
    async with serving("ours", fail, handle_nowait=held) as server, connected(server) as client:
        for _ in range(2):
            await client.send(post(b"ask"))
            (await held.next()).start(stream)
            assert (await client.answer())[2] == b"onetwo"
    assert held.disconnects == 0


async def test_an_exception_in_the_handler_returns_500() -> None:
    def fails(exchange: Exchange) -> bool:
        raise ValueError("a bug")

    async with serving("ours", fail, handle_nowait=fails) as server, connected(server) as client:
        await client.send(get())
        assert (await client.rest()).startswith(b"HTTP/1.1 500")


async def test_a_handler_failing_after_its_answer_stays_silent() -> None:
    def fails(exchange: Exchange) -> bool:
        echo_nowait(exchange)
        raise ValueError("a bug")

    async with serving("ours", fail, handle_nowait=fails) as server, connected(server) as client:
        await client.send(get() + post(b"next", extra="Connection: close\r\n"))
        assert (await client.answer())[2] == b"GET / "
        assert (await client.answer())[2] == b"POST / next"
        assert await client.rest() == b""


@pytest.mark.parametrize(
    ("headers", "body"), [([(b"x y", b"z")], b""), ([(b"content-length", b"3")], b"four")], ids=["name", "length"]
)
async def test_illegal_responses_are_refused(headers: Any, body: bytes) -> None:
    held = Held()
    async with serving("ours", fail, handle_nowait=held) as server, connected(server) as client:
        await client.send(get())
        exchange = await held.next()
        with pytest.raises(ValueError, match=r"legal|Content-Length"):
            exchange.respond_nowait(200, headers, body)
        assert exchange.respond_nowait(500, [], b"sorry")
        status, _, body = await client.answer()
        assert (status, body) == (500, b"sorry")


async def test_pipelined_requests_are_handled_by_the_reader() -> None:
    held = Held()
    async with serving("ours", fail, handle_nowait=held) as server, connected(server) as client:
        await client.send(b"".join(post(b"%d" % number) for number in range(10)))
        for number in range(10):
            exchange = await held.next()
            await trio.testing.wait_all_tasks_blocked()
            assert held.is_idle()
            assert exchange.respond_nowait(*OK, b"answer to " + exchange.body)
            assert held.is_idle()  # the next one is not handled in this step
            assert (await client.answer())[2] == b"answer to %d" % number


async def test_many_pipelined_requests_do_not_hold_the_loop() -> None:
    handled, most = 0, 0

    def count(exchange: Exchange) -> bool:
        nonlocal handled
        handled += 1
        return exchange.respond_nowait(204, [], b"")

    async def watch() -> None:
        nonlocal most
        before = handled
        while True:
            await trio.lowlevel.checkpoint()
            most, before = max(most, handled - before), handled

    async with (
        serving("ours", fail, handle_nowait=count, keep_alive_max_requests=10**6) as server,
        connected(server) as client,
        trio.open_nursery() as nursery,
    ):
        nursery.start_soon(watch)
        await client.send(get() * 1000)
        for _ in range(1000):
            await client.until(b"\r\n\r\n")
        nursery.cancel_scope.cancel()
    assert most <= 2


@pytest.mark.parametrize("ahead", [b"", get()], ids=["alone", "with a request ahead"])
async def test_a_hang_up_is_notified_once(ahead: bytes) -> None:
    held = Held()
    async with serving("ours", fail, handle_nowait=held) as server:
        async with connected(server) as client:
            await client.send(get() + ahead)
            exchange = await held.next()
        await happens(held.disconnected)
        assert not exchange.respond_nowait(*OK, b"late")
    assert held.disconnects == 1


async def test_an_answered_request_gets_no_disconnect() -> None:
    held = Held()
    async with serving("ours", fail, handle_nowait=held) as server:
        async with connected(server) as client:
            await client.send(get())
            assert (await held.next()).respond_nowait(*OK, b"x")
            await client.answer()
        await trio.testing.wait_all_tasks_blocked(0.05)
    assert held.disconnects == 0


async def read_all(client: Client, size: int) -> bytes:
    await client.until(b"\r\n\r\n")
    with trio.fail_after(PATIENCE):
        while len(client.data) < size:
            client.data += await client.stream.receive_some() or pytest.fail("closed")
    data, client.data = client.data[:size], client.data[size:]
    return data


@asynccontextmanager
async def opened(
    scheme: str, certificate: dict[str, str], held: Held, unsent: Budget | None = None
) -> AsyncGenerator[Callable[[], AbstractAsyncContextManager[Client]]]:
    settings: dict[str, Any] = dict(certificate) if scheme == "https" else {}
    async with serving("ours", fail, handle_nowait=held, unsent=unsent, **settings) as server:
        yield lambda: by_tls(server, certificate, "http/1.1") if settings else connected(server)


@asynccontextmanager
async def asked(scheme: str, certificate: dict[str, str], held: Held) -> AsyncGenerator[Client]:
    async with opened(scheme, certificate, held) as connect, connect() as client:
        yield client


@pytest.mark.parametrize("scheme", ["http", "https"])
async def test_a_large_response_holds_back_the_next_request(scheme: str, certificate: dict[str, str]) -> None:
    held = Held()
    size = 8 * len(BIG)
    async with asked(scheme, certificate, held) as client:
        await client.send(get() + get("/next"))
        exchange = await held.next()
        assert exchange.respond_nowait(200, [(b"content-length", b"%d" % size)], BIG * 8)
        await trio.testing.wait_all_tasks_blocked(0.05)
        assert held.is_idle()
        assert await read_all(client, size) == BIG * 8
        assert (await held.next()).respond_nowait(*OK, b"small")
        assert (await client.answer())[2] == b"small"


async def test_a_large_response_is_encrypted_in_pieces(
    certificate: dict[str, str], monkeypatch: pytest.MonkeyPatch
) -> None:
    held, sizes, send_nowait = Held(), list[int](), Wire.send_nowait

    def note(wire: Wire, data: bytes) -> None:
        sizes.append(len(data))
        send_nowait(wire, data)

    monkeypatch.setattr(Wire, "send_nowait", note)
    async with asked("https", certificate, held) as client:
        await client.send(get())
        exchange = await held.next()
        assert exchange.respond_nowait(200, [(b"content-length", b"%d" % len(BIG))], BIG)
        assert await read_all(client, len(BIG)) == BIG
    assert len(BIG) < sum(sizes)
    assert max(sizes) < 1.1 * MAX_ENCRYPTED < len(BIG)


@pytest.mark.parametrize("scheme", ["http", "https"])
async def test_small_answers_need_no_task(scheme: str, certificate: dict[str, str]) -> None:
    held = Held()
    async with asked(scheme, certificate, held) as client:
        for _ in range(3):
            await client.send(get())
            exchange = await held.next()
            spawned = Spawned()
            trio.lowlevel.add_instrument(spawned)
            assert exchange.respond_nowait(*OK, b"x" * 1000)
            assert (await client.answer())[2] == b"x" * 1000
            trio.lowlevel.remove_instrument(spawned)
            assert spawned.names == []


async def test_a_client_that_does_not_read_is_reset() -> None:
    held = Held()
    async with serving("ours", fail, handle_nowait=held, send_timeout=0.2) as server, connected(server) as client:
        await client.send(get() + get())
        assert (await held.next()).respond_nowait(*OK, BIG * 16)
        await trio.testing.wait_all_tasks_blocked(0.3)
        with pytest.raises(trio.BrokenResourceError):
            await client.rest()
        assert held.is_idle()
    assert held.disconnects == 0  # it was answered


@pytest.mark.parametrize("scheme", ["http", "https"])
async def test_over_the_bound_for_all_the_largest_ends(scheme: str, certificate: dict[str, str]) -> None:
    held, unsent = Held(), Budget(40 * len(BIG))
    size = 16 * len(BIG)
    async with opened(scheme, certificate, held, unsent) as connect, connect() as first, connect() as second:
        for _ in range(2):  # what has been sent counts no longer
            await first.send(get())
            assert (await held.next()).respond_nowait(200, [(b"content-length", b"%d" % size)], BIG * 16)
            async with connect() as largest:
                await largest.send(get())
                assert (await held.next()).respond_nowait(*OK, BIG * 20)
                await second.send(get())
                assert (await held.next()).respond_nowait(200, [(b"content-length", b"%d" % size)], BIG * 16)
                with pytest.raises(trio.BrokenResourceError):
                    await largest.rest()
            assert await read_all(first, size) == BIG * 16
            assert await read_all(second, size) == BIG * 16
    assert unsent.used == 0


async def test_a_response_over_the_bound_ends_its_connection() -> None:
    held, unsent = Held(), Budget(len(BIG))
    async with serving("ours", fail, handle_nowait=held, unsent=unsent) as server, connected(server) as client:
        await client.send(get())
        assert not (await held.next()).respond_nowait(*OK, BIG * 16)
        with pytest.raises(trio.BrokenResourceError):
            await client.rest()
    assert unsent.used == 0


@pytest.mark.parametrize("body", [BIG * 16, (b"x", *[memoryview(BIG)] * 16)], ids=["whole", "in parts"])
async def test_a_stream_over_the_bound_ends_its_connection(body: Any) -> None:
    unsent, gone = Budget(len(BIG) * 8), trio.Event()

    async def app(scope: Any, receive: Any, send: Any) -> None:
        await send(START)
        with pytest.raises(ClientGone):
            await send({"type": "http.response.body", "body": body, "more_body": True})
        gone.set()

    async with serving("ours", app, unsent=unsent) as server, connected(server) as client:
        await client.send(get())
        await happens(gone)
        with pytest.raises(trio.BrokenResourceError):
            await client.rest()
    assert unsent.used == 0


@pytest.mark.parametrize("scheme", ["http", "https"])
@pytest.mark.parametrize("length", [None, 3 * len(BIG) + 3])
async def test_the_parts_of_a_body_are_sent_as_one(
    scheme: str, length: int | None, certificate: dict[str, str]
) -> None:
    parts = (b"a", memoryview(BIG), b"b", memoryview(BIG), memoryview(BIG), b"c")

    async def app(scope: Any, receive: Any, send: Any) -> None:
        headers = [] if length is None else [(b"content-length", b"%d" % length)]
        await send({"type": "http.response.start", "status": 200, "headers": headers})
        await send({"type": "http.response.body", "body": parts})

    settings: dict[str, Any] = dict(certificate) if scheme == "https" else {}
    async with (
        serving("ours", app, **settings) as server,
        by_tls(server, certificate, "http/1.1") if settings else connected(server) as client,
    ):
        await client.send(get())
        assert (await client.answer())[2] == b"".join(parts)


async def test_an_ended_connection_needs_no_collector() -> None:
    held = Held()
    gc.collect()
    gc.disable()
    try:
        async with serving("ours", fail, handle_nowait=held) as server:
            async with connected(server) as client:
                await client.send(get())
                exchange = await held.next()
                ended = [weakref.ref(exchange), weakref.ref(exchange._connection)]
                del exchange
            await happens(held.disconnected)
            await trio.testing.wait_all_tasks_blocked(0.05)
            assert [one() for one in ended] == [None, None]
    finally:
        gc.enable()


async def test_draining_waits_for_the_answer() -> None:
    held = Held()
    served = serving("ours", fail, handle_nowait=held, graceful_timeout=PATIENCE)
    async with served as server, connected(server) as idle, connected(server) as busy:
        await idle.send(get())
        (await held.next()).respond_nowait(*OK, b"")
        await idle.answer()
        await busy.send(get())
        exchange = await held.next()
        server.stop.set()
        assert await idle.rest() == b""
        assert exchange.respond_nowait(*OK, b"last")
        answer = await busy.rest()
        assert b"connection: close" in answer
        assert answer.endswith(b"\r\n\r\nlast")


async def test_shutdown_notifies_unanswered_requests() -> None:
    held = Held()
    async with serving("ours", fail, handle_nowait=held) as server, connected(server) as client:
        await client.send(get())
        exchange = await held.next()
        server.stop.set()
        with trio.fail_after(GRACE + PATIENCE):
            await held.disconnected.wait()
        assert not exchange.respond_nowait(*OK, b"late")


async def test_the_last_request_of_a_connection_ends_it() -> None:
    async with serving("ours", fail, handle_nowait=echo_nowait) as server, connected(server) as client:
        await client.send(post(b"bye", extra="Connection: close\r\n") + get())
        answer = await client.rest()
        assert answer.count(b"HTTP/1.1") == 1
        assert answer.endswith(b"POST / bye")


@pytest.mark.parametrize(
    ("method", "status", "headers"),
    [
        ("GET", 200, [(b"content-type", b"text/plain")]),
        ("GET", 404, []),
        ("GET", 200, [(b"connection", b"close")]),
        ("GET", 599, []),
        ("HEAD", 200, []),
    ],
    ids=["plain", "refusal", "close", "unknown status", "head"],
)
async def test_a_whole_response_has_a_content_length(method: str, status: int, headers: Any) -> None:
    held = Held()
    async with serving("ours", fail, handle_nowait=held) as server, connected(server) as client:
        await client.send(get(method=method))
        assert (await held.next()).respond_nowait(status, headers, b"12345")
        head = await client.until(b"\r\n\r\n")
        assert head.startswith(b"HTTP/1.1 %d " % status)
        assert head.count(b"\r\ncontent-length: 5\r\n") == 1
        assert b"transfer-encoding" not in head
        assert b"\r\ndate: " in head
        if method != "HEAD":
            await client.until(b"12345")


async def test_a_head_request_has_no_body() -> None:
    async with serving("ours", fail, handle_nowait=echo_nowait) as server, connected(server) as client:
        await client.send(get(method="HEAD") + get())
        assert b"content-length: 7\r\n" in await client.until(b"\r\n\r\n")
        assert (await client.answer())[2] == b"GET / "


async def test_long_targets_that_differ_are_not_kept() -> None:
    async with serving("ours", fail, handle_nowait=echo_nowait) as server, connected(server) as client:
        with traced_growth() as kept:
            for number in range(100):
                path = f"/{number}{'a' * 15_000}"
                await client.send(get(path))
                assert (await client.answer())[0] == 200
        assert kept() < 200_000
