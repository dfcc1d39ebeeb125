"""Bounds per client of the HTTP server: every connection state ends or makes room."""

from __future__ import annotations

import errno
from contextlib import asynccontextmanager
from dataclasses import replace
from functools import partial
from typing import TYPE_CHECKING, Any

import pytest
import trio
import trio.testing

from gateway.httpd import server as server_module
from gateway.httpd.connection_limit import ConnectionLimit, Limits, Rank, Slot
from tests.support.http_server import (
    LONG,
    PATIENCE,
    PATIENT,
    QUICK,
    Client,
    Server,
    Watched,
    by_tls,
    connected,
    drip_until_closed,
    echo,
    echo_nowait,
    get,
    happens,
    keep_dripping,
    post,
    read_body,
    respond,
    serving,
)

if TYPE_CHECKING:
    from collections.abc import AsyncGenerator

BODY = b"POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 99999\r\n\r\n"
CHUNKS = b"POST / HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\n"
# What is sent at once, and then again and again.
HEADS = {
    "silent": (b"", b""),
    "blank lines": (b"", b"\r\n"),
    "half a method": (b"G", b""),
    "half a head": (b"GET / HTTP/1.1\r\nHost: a\r\nX: y", b""),
    "all but the last byte": (get()[:-1], b""),
    "target dripped": (b"GET /", b"x"),
    "header dripped": (b"GET / HTTP/1.1\r\nHost: a\r\nX: ", b"y"),
    "headers dripped": (b"GET / HTTP/1.1\r\nHost: a\r\n", b"X: y\r\n"),
    "head of a body": (b"POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 9\r\n", b""),
}
BODIES = {
    "body silent": (BODY, b""),
    "body dripped": (BODY, b"x"),
    "half a body": (BODY + b"x" * 50_000, b""),
    "chunk size awaited": (CHUNKS, b""),
    "chunk size without its end": (CHUNKS + b"5", b""),
    "chunk extension dripped": (CHUNKS + b"5;", b"x"),
    "chunk dripped": (CHUNKS + b"fff\r\n", b"x"),
    "chunk without its end": (CHUNKS + b"1\r\nx", b""),
    "chunks of one byte": (CHUNKS, b"1\r\nx\r\n"),
    "chunks of one byte with extensions": (CHUNKS, b"1;" + b"e" * 200 + b"\r\nx\r\n"),
    "last chunk without its end": (CHUNKS + b"0\r\n", b""),
    "trailer dripped": (CHUNKS + b"0\r\nX: ", b"y"),
    "trailers dripped": (CHUNKS + b"0\r\n", b"X: y\r\n"),
}
HANDSHAKES = {
    "no handshake": (b"", b""),
    "half a hello": (b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03", b""),
    "hello dripped": (b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03", b"\x00"),
}


@pytest.mark.parametrize("handle_nowait", [None, echo_nowait], ids=["task", "no task"])
@pytest.mark.parametrize("after", [b"", get()], ids=["first", "after a request"])
@pytest.mark.parametrize(("sent", "drop"), [*HEADS.values(), *BODIES.values()], ids=[*HEADS, *BODIES])
async def test_every_connection_state_has_a_deadline(
    sent: bytes, drop: bytes, after: bytes, handle_nowait: Any
) -> None:
    idle = 0.2 if after and not sent else LONG  # then it is idle
    served = serving("ours", echo, limits=QUICK, keep_alive_timeout=idle, handle_nowait=handle_nowait)
    async with served as server, connected(server) as client:
        if after:
            await client.send(after)
            await client.answer()
        await client.send(sent)
        await drip_until_closed(client, drop)


@pytest.mark.parametrize(("sent", "drop"), HANDSHAKES.values(), ids=HANDSHAKES)
async def test_every_handshake_has_a_deadline(sent: bytes, drop: bytes, certificate: dict[str, str]) -> None:
    async with serving("ours", echo, limits=QUICK, **certificate) as server, connected(server) as client:
        await client.send(sent)
        await drip_until_closed(client, drop)


@pytest.mark.parametrize("handle_nowait", [None, echo_nowait], ids=["task", "no task"])
@pytest.mark.parametrize(("sent", "drop"), [*HEADS.values(), *BODIES.values()], ids=[*HEADS, *BODIES])
async def test_stalled_connections_make_room(sent: bytes, drop: bytes, handle_nowait: Any) -> None:
    served = serving("ours", echo, limits=PATIENT, keep_alive_timeout=LONG, handle_nowait=handle_nowait)
    async with served as server, connected(server) as client:
        await client.send(sent)
        async with keep_dripping(client, drop), connected(server) as newcomer:
            await newcomer.send(post(b"x"))
            assert (await newcomer.answer())[2] == b"POST / x"


@pytest.mark.parametrize(("sent", "drop"), HANDSHAKES.values(), ids=HANDSHAKES)
async def test_a_handshake_makes_room(sent: bytes, drop: bytes, certificate: dict[str, str]) -> None:
    async with serving("ours", echo, limits=PATIENT, **certificate) as server, connected(server) as client:
        await client.send(sent)
        async with keep_dripping(client, drop), by_tls(server, certificate, "http/1.1") as newcomer:
            await newcomer.send(post(b"x"))
            assert (await newcomer.answer())[2] == b"POST / x"


async def test_a_slow_upload_at_the_least_rate_arrives() -> None:
    async with serving("ours", echo, limits=QUICK) as server, connected(server) as client:
        await client.send(b"POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 6000\r\n\r\n")
        for _ in range(60):
            await client.send(b"x" * 100)
            await trio.sleep(0.015)  # the slowness itself: nine windows
        assert (await client.answer())[2] == b"POST / " + b"x" * 6000


async def test_an_app_that_reads_late_causes_no_timeout() -> None:
    release = trio.Event()

    async def app(scope: Any, receive: Any, send: Any) -> None:
        await release.wait()
        await respond(send, await read_body(receive))

    async with serving("ours", app, limits=QUICK) as server, connected(server) as client:
        await client.send(CHUNKS + b"1\r\nx\r\n")
        await trio.sleep(0.05)  # so that the body has begun to be awaited
        await client.send(b"1\r\nx\r\n" * 50 + b"0\r\n\r\n")  # more than the app's queue holds, and all there is
        await trio.sleep(0.5)  # five windows
        release.set()
        assert (await client.answer())[2] == b"x" * 51


async def test_an_app_that_never_reads_causes_no_timeout() -> None:
    release = trio.Event()

    async def app(scope: Any, receive: Any, send: Any) -> None:
        await release.wait()
        await respond(send, b"%d" % len(await read_body(receive)))

    async with (
        serving("ours", app, limits=QUICK) as server,
        connected(server) as client,
        trio.open_nursery() as nursery,
    ):
        nursery.start_soon(client.send, post(b"x" * 2**22))
        await trio.sleep(0.8)  # five windows
        release.set()
        assert (await client.answer())[2] == b"%d" % 2**22


async def test_heads_in_pieces_are_served() -> None:
    async with serving("ours", echo, limits=QUICK) as server, connected(server) as client:
        for number in range(3):
            for part in (post(b"n%d" % number)[:9], post(b"n%d" % number)[9:]):
                await client.send(part)
            assert (await client.answer())[2] == b"POST / n%d" % number


async def test_over_the_bound_the_longest_idle_makes_room() -> None:
    app = Watched()
    async with (
        serving("ours", app, limits=Limits(connections=3, settle=0.1)) as server,
        connected(server) as busy,
        connected(server) as first,
        connected(server) as second,
    ):
        await busy.send(get())
        await happens(app.running)
        for client in (first, second):
            await client.send(get("/quick"))
            await client.answer()
        async with connected(server) as newcomer:
            assert await first.rest() == b""
            for client in (newcomer, second):
                await client.send(get("/quick"))
                assert (await client.answer())[0] == 200
            app.release.set()
            assert (await busy.answer())[2] == b"released"


async def test_without_idle_connections_newcomers_wait() -> None:
    app = Watched()
    async with serving("ours", app, limits=Limits(connections=1, settle=0.1)) as server, connected(server) as busy:
        await busy.send(get())
        await happens(app.running)
        async with connected(server) as newcomer:
            await newcomer.send(get())
            app.release.set()
            await busy.answer()
            assert (await newcomer.answer())[0] == 200
            assert await busy.rest() == b""  # which was idle by then


async def test_silent_connections_are_evicted_before_idle_and_slow() -> None:
    limits = replace(PATIENT, connections=3)
    async with serving("ours", echo, limits=limits) as server, connected(server) as slow:
        await slow.send(BODY)
        async with connected(server) as idle:
            await idle.send(get())
            await idle.answer()
            async with connected(server) as silent:
                await trio.sleep(limits.settle)  # the age itself
                newcomers = []
                for expected in (silent, idle, slow):
                    stream = await trio.open_tcp_stream(*server.address)
                    newcomers.append(Client(stream))
                    # Busy: what waits for its client would make room itself.
                    await newcomers[-1].send(BODY.replace(b"99999", b"2") + b"x")
                    with trio.fail_after(PATIENCE):
                        try:
                            assert await expected.stream.receive_some() == b""
                        except trio.BrokenResourceError:
                            assert expected is slow  # cut off
                for newcomer in newcomers:
                    await newcomer.stream.aclose()


@asynccontextmanager
async def full(limits: Limits) -> AsyncGenerator[tuple[Server, Watched]]:
    """A server whose only place is taken by a call."""
    app = Watched()

    async def probed(scope: Any, receive: Any, send: Any) -> None:
        await (echo if scope["path"] == "/livez" else app)(scope, receive, send)

    async with serving("ours", probed, limits=limits) as server, connected(server) as busy:
        await busy.send(get())
        await happens(app.running)
        try:
            yield server, app
        finally:
            app.release.set()


FULL = Limits(connections=1, reserve=1, probes=frozenset({"/livez"}), settle=0.05)


async def test_a_probe_is_answered_where_all_are_busy() -> None:
    async with full(FULL) as (server, _):
        for _ in range(3):
            async with connected(server) as probe:
                await probe.send(get("/livez"))
                status, headers, _body = await probe.answer()
                assert (status, headers["connection"]) == (200, "close")
                assert await probe.rest() == b""


async def test_a_probe_is_answered_although_others_wait() -> None:
    async with full(replace(FULL, place=LONG)) as (server, _), connected(server) as first:
        await first.send(get())  # waits in the reserve
        async with connected(server) as probe:
            await probe.send(get("/livez"))
            assert (await probe.answer())[0] == 200
        assert (await first.answer())[0] == 503  # its place in the reserve was needed


async def test_silent_reserve_connections_make_room_for_probes() -> None:
    async with full(replace(FULL, head=LONG)) as (server, _), connected(server), connected(server) as probe:
        await probe.send(get("/livez"))
        assert (await probe.answer())[0] == 200


async def test_a_request_waits_briefly_for_a_slot() -> None:
    async with full(replace(FULL, place=0.2)) as (server, _), connected(server) as client:
        await client.send(get())
        status, headers, body = await client.answer()
        assert (status, headers["retry-after"], headers["connection"]) == (503, "1", "close")
        assert body == b"too many connections; retry in 1 s\n"
        assert await client.rest() == b""


async def test_a_crowd_of_silent_connections_excludes_no_client() -> None:
    limits = Limits(connections=20, settle=0.1, reserve=4)
    async with serving("ours", echo, limits=limits, keep_alive_timeout=LONG) as server, trio.open_nursery() as nursery:
        streams = [await trio.open_tcp_stream(*server.address) for _ in range(40)]
        async with connected(server) as client:
            await client.send(get())
            assert (await client.answer())[0] == 200
        for stream in streams:
            nursery.start_soon(stream.aclose)


async def test_silent_connections_per_address_are_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(server_module, "_address_of", lambda _stream: "192.0.2.7")
    async with (
        serving("ours", echo, limits=Limits(per_address=2, settle=0.05, head=LONG)) as server,
        connected(server) as used,
        connected(server) as first,
    ):
        await used.send(get())
        await used.answer()  # it counts no longer
        async with connected(server) as second:
            await trio.sleep(0.1)  # older than `settle`
            async with connected(server) as third:
                assert await first.rest() == b""
                for client in (second, third, used):
                    await client.send(get())
                    assert (await client.answer())[0] == 200


@pytest.fixture
def limits() -> Limits:
    return Limits(connections=1, settle=1.0, per_address=2, reserve=0)


async def test_addresses_are_counted_apart_and_forgotten(
    autojump_clock: trio.testing.MockClock, limits: Limits
) -> None:
    places = ConnectionLimit(replace(limits, connections=100))
    old = [await places.enter("a") for _ in range(2)]
    others = [await places.enter(address) for address in ("b", None, None, None)]
    await trio.sleep(0.5)
    third = await places.enter("a")
    assert not any(slot.ended for slot in (*old, *others))  # a crowd that comes at once is none that is silent
    await trio.sleep(0.6)
    fourth = await places.enter("a")
    assert [slot.ended for slot in (*old, *others, third, fourth)] == [True, *[False] * 7]
    for slot in (*old, *others, third, fourth):
        places.leave(slot)
    assert not places._silent
    assert not places._slots


async def test_without_a_bound_for_addresses_none_is_counted(autojump_clock: trio.testing.MockClock) -> None:
    places = ConnectionLimit(Limits(per_address=0))
    slots = [await places.enter("a") for _ in range(1000)]
    await trio.sleep(10)
    await places.enter("a")
    assert not any(slot.ended for slot in slots)


async def test_a_free_slot_is_used_immediately(autojump_clock: trio.testing.MockClock, limits: Limits) -> None:
    places = ConnectionLimit(limits)
    slot = await places.enter(None)
    slot.waits = lambda: None  # busy
    entered: list[float] = []
    began = trio.current_time()

    async def enter() -> None:
        await places.enter(None)
        entered.append(trio.current_time() - began)

    async with trio.open_nursery() as nursery:
        nursery.start_soon(enter)
        await trio.sleep(0.6)
        assert not entered
        places.leave(slot)
    assert entered == [pytest.approx(0.6)]


async def test_many_silent_connections_end_in_one_check(autojump_clock: trio.testing.MockClock) -> None:
    places = ConnectionLimit(Limits(connections=1000, reserve=0))
    slots = [await places.enter(None) for _ in range(1000)]
    for slot in slots[:500]:
        slot.waits = lambda: (Rank.IDLE, 0.0)
    await trio.sleep(2)
    with trio.move_on_after(0.1):  # no connection ends here
        await places.enter(None)
    assert [slot.ended for slot in slots] == [*[False] * 500, *[True] * 20, *[False] * 480]


@pytest.mark.parametrize("rank", [Rank.IDLE, None])
async def test_many_newcomers_cost_few_looks_at_each_connection(
    rank: Rank | None, autojump_clock: trio.testing.MockClock
) -> None:
    """Where all wait for their client, and where none does."""
    limit = ConnectionLimit(Limits(connections=1_000, reserve=100))
    looks, ended = 0, list[int]()

    def waits(i: int) -> tuple[Rank, float] | None:
        nonlocal looks
        looks += 1
        return None if rank is None else (rank, float(-i))

    async def leave(slot: Slot) -> None:
        await trio.lowlevel.checkpoint()
        limit.leave(slot)

    def end(i: int) -> None:
        ended.append(i)
        nursery.start_soon(leave, slots[i])

    slots = [await limit.enter(None) for _ in range(1_000)]
    for i, slot in enumerate(slots):
        slot.waits, slot.end = partial(waits, i), partial(end, i)
    async with trio.open_nursery() as nursery:
        newcomers = [await limit.enter(None) for _ in range(100)]
    assert [slot.placed for slot in newcomers] == [rank is not None] * 100
    assert ended == ([] if rank is None else list(range(999, 899, -1)))  # the longest idle ones
    assert looks < 20 * len(slots)  # a scan for a fiftieth of them, and looks at those that it found


async def test_without_descriptors_the_silent_make_room(monkeypatch: pytest.MonkeyPatch) -> None:
    failures = 3
    accept = trio.SocketListener.accept

    async def fail_first(listener: trio.SocketListener) -> trio.SocketStream:
        nonlocal failures
        stream = await accept(listener)
        if stream_count and failures:
            failures -= 1
            await stream.aclose()
            raise OSError(errno.EMFILE, "Too many open files")
        return stream

    stream_count = 0
    monkeypatch.setattr(trio.SocketListener, "accept", fail_first)
    async with serving("ours", echo, limits=Limits(settle=0.0, head=LONG)) as server, connected(server) as silent:
        stream_count = 1
        await trio.testing.wait_all_tasks_blocked()
        async with connected(server):
            assert await silent.rest() == b""
        failures = 0
        async with connected(server) as newcomer:
            await newcomer.send(get())
            assert (await newcomer.answer())[0] == 200
