"""A playbook fails wherever a message differs from the transcript."""

from __future__ import annotations

from typing import Any

import pytest
import trio

from tests.support.playbook import Playbook, parse_transcript

EXPECTED = '<< {"id": "$id", "result": {"n": 1, "more": "...", "list": [{"x": true}]}}'
GOOD = {"jsonrpc": "2.0", "id": 7, "result": {"n": 1, "more": [2], "list": [{"x": True}]}}


def make_playbook(received: Any, sent: list[Any]) -> Playbook:
    async def send(message: Any) -> None:
        await trio.lowlevel.checkpoint()
        sent.append(message)

    async def receive() -> Any:
        await trio.lowlevel.checkpoint()
        return received

    return Playbook(send, receive)


async def test_a_placeholder_keeps_its_first_value() -> None:
    sent: list[Any] = []
    play = make_playbook(GOOD, sent)
    await play(EXPECTED)
    await play('>> {"method": "m", "params": {"ids": ["$id", "$given"]}}', given=None)
    assert sent == [{"jsonrpc": "2.0", "method": "m", "params": {"ids": [7, None]}}]
    await play(EXPECTED)
    with pytest.raises(AssertionError, match=r"message\.id is 7, not 8"):
        await play(EXPECTED, id=8)


@pytest.mark.parametrize(
    "result",
    [
        {"n": 2, "more": 0, "list": [{"x": True}]},
        {"n": 1.0, "more": 0, "list": [{"x": True}]},
        {"n": True, "more": 0, "list": [{"x": True}]},
        {"n": 1, "list": [{"x": True}]},
        {"n": 1, "more": 0, "list": [{"x": True}], "further": 0},
        {"n": 1, "more": 0, "list": []},
        {"n": 1, "more": 0, "list": [{"x": 1}]},
        {"n": 1, "more": 0, "list": [{"x": True}, {"x": True}]},
        [],
        None,
    ],
)
async def test_a_difference_anywhere_fails(result: Any) -> None:
    with pytest.raises(AssertionError):
        await make_playbook({**GOOD, "result": result}, [])(EXPECTED)


async def test_further_members_are_allowed_where_marked() -> None:
    play = make_playbook(GOOD, [])
    await play('<< {"id": 7, "...": "..."}')
    with pytest.raises(AssertionError):
        await play('<< {"id": 7}')


def test_a_transcript_begins_with_a_direction() -> None:
    with pytest.raises(AssertionError, match="neither"):
        parse_transcript('{"id": 1}')
