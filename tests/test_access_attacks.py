"""What somebody with a key, or without one, may try against the gateway and its other clients."""

from __future__ import annotations

import json

import pytest
import trio
from trio.testing import MockClock

from tests.access import ALICE, BOB, HELLO, House, keys, make_config, open_house, tool_call
from tests.fakes import FakeExchange, settle

HELLO_MESSAGE = {"jsonrpc": "2.0", "id": 0, "method": "initialize", "params": HELLO}


async def try_session(house: House, key: str) -> int:
    return (await house.start("POST", "/mcp", HELLO_MESSAGE, key=key)).status


async def test_one_key_cannot_take_all_sessions(autojump_clock: MockClock) -> None:
    async with open_house(keys(max_sessions=2)) as house:
        house.face._endpoint.sessions._most = 6
        assert [await try_session(house, ALICE) for _ in range(3)] == [200, 200, 429]
        assert [await try_session(house, BOB) for _ in range(4)] == [
            200,
            200,
            200,
            429,
        ]  # half of them, if nothing is said
        streams = [await house.start("GET", "/sse", key=ALICE) for _ in range(3)]
        assert [stream.status for stream in streams] == [200, 200, 429]
        assert "max_sessions" in json.loads(streams[2].body)["error"]["message"]


async def test_what_was_abandoned_makes_room_for_its_own_client(autojump_clock: MockClock) -> None:
    async with open_house(keys(max_sessions=1)) as house:
        first = await house.initialize()
        bobs = await house.initialize(BOB)
        await trio.sleep(100)
        second = await house.initialize()
        ping = {"jsonrpc": "2.0", "id": 1, "method": "ping"}
        found = [(first, ALICE), (second, ALICE), (bobs, BOB)]
        assert [
            (await house.start("POST", "/mcp", ping, key=key, mcp_session_id=one)).status for one, key in found
        ] == [
            404,
            200,
            200,
        ]


@pytest.mark.parametrize("name", ["authorization", "x-api-key", "host", "origin", "mcp-session-id"])
async def test_a_header_that_decides_must_stand_there_once(name: str, autojump_clock: MockClock) -> None:
    async with open_house(keys()) as house:
        fake = FakeExchange(
            json.dumps(tool_call(modern=False)).encode(),
            headers={"host": "localhost", "authorization": f"Bearer {ALICE}", "content-type": "application/json"},
        )
        fake.scope["headers"] += [(name.encode(), b"x"), (name.encode(), b"y")]
        house.nursery.start_soon(house.face._route, fake.scope, fake.receive, fake.send)
        await settle()
        assert (fake.status, house.sent) == (400, 0)
        assert name in fake.body.decode()


async def test_streams_go_by_the_rules_that_hold_now(autojump_clock: MockClock) -> None:
    async with open_house(keys(), "a", "b") as house:
        listening = await house.listen()
        session = await house.initialize()
        stream = await house.start("GET", "/mcp", key=ALICE, mcp_session_id=session)
        old = await house.start("GET", "/sse", key=ALICE)
        narrow = make_config(keys(servers=["a"]), "a", "b").access
        assert narrow is not None
        house.access.apply(narrow)
        await settle()
        for exchange in (listening, stream):  # what they have listed does not hold any more
            assert b"notifications/tools/list_changed" in exchange.body
        (subscription,) = house.answers.listeners
        (kept,) = house.face._sse._streams.values()
        (legacy,) = house.face._endpoint.sessions._sessions.values()
        for scope in (subscription._caller.scope, kept.identity.scope, legacy.caller.scope):
            assert scope is not None
            assert scope.servers == ("a",)
        assert not old.ended


async def test_streams_at_views_that_are_closed_to_their_key_end(autojump_clock: MockClock) -> None:
    async with open_house(keys()) as house:
        listening = await house.listen()
        session = await house.initialize()
        stream = await house.start("GET", "/mcp", key=ALICE, mcp_session_id=session)
        old = await house.start("GET", "/sse", key=ALICE)
        other = await house.listen(key=BOB)
        narrow = make_config(keys(views=["small"])).access
        assert narrow is not None
        house.access.apply(narrow)
        await settle()
        assert [exchange.ended for exchange in (listening, stream, old, other)] == [True, True, True, False]
