"""What one client may hold of the HTTP server: a head for so long, and so many connections in all."""

from __future__ import annotations

import pytest
import trio
import trio.testing

from gateway.frontends import hypercorn_h11
from gateway.frontends.hypercorn_places import Places
from tests.test_frontends_hypercorn import PATIENCE, Client, Watched, connected, echo, get, happens, post, serving


@pytest.mark.parametrize("sent", [b"G", b"GET / HTTP/1.1\r\nHost: a\r\nX: y", get()[:-1]])
async def test_half_a_head_is_waited_for_only_so_long(sent: bytes, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(hypercorn_h11, "HEAD_WITHIN", 0.1)
    async with serving("ours", echo, keep_alive_timeout=1000) as server:
        async with connected(server) as client:
            await client.send(sent)
            assert await client.rest() == b""
        async with connected(server) as client:  # also behind a request that was whole
            await client.send(get() + sent)
            await client.answer()
            assert await client.rest() == b""


async def test_dribbling_does_not_extend_it_and_what_is_whole_is_served(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(hypercorn_h11, "HEAD_WITHIN", 0.3)
    async with serving("ours", echo, keep_alive_timeout=1000) as server, connected(server) as client:
        for number in range(3):  # in pieces, and each is in time
            for part in (post(b"n%d" % number)[:9], post(b"n%d" % number)[9:]):
                await client.send(part)
            assert (await client.answer())[2] == b"POST / n%d" % number
        with trio.fail_after(PATIENCE), pytest.raises(trio.BrokenResourceError):
            await dribble(client)


async def dribble(client: Client) -> None:
    while True:
        await client.send(b"G")
        await trio.sleep(0.02)  # the dribbling itself


async def test_over_the_bound_the_one_that_was_idle_longest_makes_room() -> None:
    app = Watched()
    async with (
        serving("ours", app, most=3) as server,
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


async def test_where_none_is_idle_newcomers_wait() -> None:
    app = Watched()
    async with serving("ours", app, most=1) as server, connected(server) as busy:
        await busy.send(get())
        await happens(app.running)
        async with connected(server) as newcomer:
            await newcomer.send(get())
            app.release.set()
            await busy.answer()
            assert (await newcomer.answer())[0] == 200
            assert await busy.rest() == b""  # which was idle by then


async def test_a_place_is_had_as_soon_as_one_is_free(autojump_clock: trio.testing.MockClock) -> None:
    asked: list[float] = []
    places = Places(1, lambda: asked.append(trio.current_time()))
    began = trio.current_time()
    await places.take()
    async with trio.open_nursery() as nursery:
        nursery.start_soon(places.take)
        await trio.sleep(0.6)
        assert [round(time - began, 2) for time in asked] == [0, 0.25, 0.5]
        places.free()
        with trio.fail_after(0.01):
            await trio.testing.wait_all_tasks_blocked()
    assert trio.current_time() - began == pytest.approx(0.6)
