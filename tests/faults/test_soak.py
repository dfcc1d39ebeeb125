"""Many clients at random: every answer reaches its own client, once, and nothing is left.

A short form of `python -m benchmarks soak`; see there for what the clients do. That it would see what is wrong is
shown first, with answers made up.
"""

from __future__ import annotations

from argparse import Namespace

import pytest

from benchmarks import soak
from benchmarks.soak_client import Asked, Tally
from benchmarks.soak_legacy import LegacyClient, Reading


@pytest.fixture
def client() -> LegacyClient:
    client = LegacyClient("one", "http://127.0.0.1:1/mcp", 0, Tally())
    client.open_asks = {}
    return client


def make_answer(text: str, request_id: int = 1) -> dict[str, object]:
    return {"jsonrpc": "2.0", "id": request_id, "result": {"content": [{"type": "text", "text": text}]}}


@pytest.mark.parametrize(
    ("messages", "mistake"),
    [
        ([make_answer("mine")], None),
        ([], "lost"),
        ([make_answer("another's")], "misdirected"),
        ([make_answer("mine", 2), make_answer("mine")], "misdirected"),
        ([make_answer("mine"), make_answer("mine")], "doubled"),
        ([{"jsonrpc": "2.0", "id": 1, "error": {"code": -32603, "message": "no"}}], "unexpected"),
        ([{"method": "notifications/progress", "params": {"progressToken": "x", "progress": 1}}, make_answer("mine")],
         "misdirected"),
    ],
)  # fmt: skip
def test_a_wrong_answer_is_detected(client, messages, mistake) -> None:
    reading = Reading(client, 1, "token")
    for message in messages:
        reading.take(message, None)
    client.judge(reading.answer, "mine", "echo")
    assert client.tally.mistakes == ({} if mistake is None else {mistake: 1})


def test_a_request_for_another_client_is_detected(client) -> None:
    asked = Asked("mine", "elicitation/create", "never")
    client.expect({"one": asked})
    client.asked({"id": 1, **asked.request})
    assert client.tally.mistakes == {}
    client.asked({"id": 1, **asked.request})  # once more
    client.asked({"id": 1, **Asked("another's", "sampling/createMessage", "never").request})
    assert client.tally.mistakes == {"misasked": 2}


def test_every_answer_reaches_its_own_client() -> None:
    claims, (text, data) = soak.run(Namespace(minutes=None, seconds=3.0, clients=10, seed=7, quick=True))
    assert not data["wrong"], text
    assert not soak.fatal(claims), [claim.row() for claim in claims if not claim.reached]
    assert sum(data["done"].values()) > 50, text
