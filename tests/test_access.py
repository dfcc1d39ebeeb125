"""Access control: who is let in, as whom, and what a principal's sessions, calls and limits are."""

from __future__ import annotations

import json

from trio.testing import MockClock

from gateway.access.keys import digest_in, digest_of, hash_key, make_key
from tests.access import ALICE, BOB, keys, open_house


def test_keys_are_random_and_found_by_their_hash() -> None:
    one, other = make_key(), make_key()
    assert one != other
    assert one.startswith("mcpgw_")
    assert len(one) >= 6 + 43
    assert digest_in(hash_key(one)) == digest_of(one.encode())
    assert one not in hash_key(one)


async def test_the_principal_is_on_every_call(autojump_clock: MockClock) -> None:
    async with open_house(keys()) as house:
        session = await house.initialize()
        await house.call(session)
        await house.call(None, key=BOB)
        working = house.fakes["a"].session.working
        assert [ticket.call.caller.principal for ticket in working] == ["alice", "bob"]
        await house.answer()
        await house.answer()


async def test_without_keys_nobody_is_anybody(autojump_clock: MockClock) -> None:
    async with open_house(None) as house:
        exchange = await house.call(await house.initialize(None), key="whatever")
        assert house.fakes["a"].session.working[0].call.caller.principal is None
        await house.answer()
        assert json.loads(exchange.body)["result"]["content"][0]["text"] == "done"


async def test_a_session_is_its_principals_alone(autojump_clock: MockClock) -> None:
    async with open_house(keys()) as house:
        session = await house.initialize()
        for method, body in (("POST", {"jsonrpc": "2.0", "id": 1, "method": "ping"}), ("GET", None), ("DELETE", None)):
            mine = await house.start(method, "/mcp", body, key=BOB, mcp_session_id=session)
            unknown = await house.start(method, "/mcp", body, key=BOB, mcp_session_id="x" * 32)
            assert mine.status == unknown.status == 404
            assert mine.body == unknown.body
        assert (await house.call(session, key=ALICE)).sent == []  # it is under way: the session stands
        await house.answer()
