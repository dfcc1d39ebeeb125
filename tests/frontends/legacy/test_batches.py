"""Batches over both transports: refusals, and cancellation by a later message of the batch."""

from __future__ import annotations

import json
import os
from typing import TYPE_CHECKING, Any

import msgspec
import pytest
import trio

from gateway.frontends.legacy.sessions import ClientIntroduction, SessionTable
from gateway.frontends.legacy.streamable import StreamableFrontend
from gateway.frontends.stdio import StdioFrontend
from tests.support.fakes import FakeExchange, settle
from tests.support.http_frontends import HELLO, STREAM, Harness, message_of, open_harness

if TYPE_CHECKING:
    from trio.testing import MockClock

VERSION = "2025-03-26"
CALL = {"name": "a.x"}


async def post_batch(harness: Harness, batch: list[Any], answers: int) -> Any:
    """Send a batch over HTTP; have the backend answer so many calls.

    Return the response, None if it has no body.
    """
    sessions = SessionTable(most=3, idle_timeout=1e6, max_requests=3)
    await harness.nursery.start(sessions.run)
    session = sessions.create(ClientIntroduction(VERSION, msgspec.Raw(b"{}"), msgspec.Raw(b"")))
    assert session is not None
    exchange = FakeExchange(headers={**STREAM, "mcp-session-id": str(session.id)})
    frontend = StreamableFrontend(harness.answers, sessions)
    await harness.start(frontend.post_batch, exchange, json.dumps(batch).encode())
    for _ in range(answers):
        await harness.answer()
    assert len(session.in_flight) == 0
    return json.loads(exchange.body) if exchange.status == 200 else None


async def write_batch(harness: Harness, batch: list[Any], answers: int) -> Any:
    """The same on stdio."""
    (theirs_in, ours_in), (ours_out, theirs_out) = os.pipe(), os.pipe()
    frontend = StdioFrontend(harness.answers, theirs_in, theirs_out, trio.Event())
    harness.nursery.start_soon(frontend.run)
    async with trio.lowlevel.FdStream(ours_in) as stdin, trio.lowlevel.FdStream(ours_out) as stdout:
        for message in (message_of("initialize", {**HELLO, "protocolVersion": VERSION}, 0), batch):
            await stdin.send_all(json.dumps(message).encode() + b"\n")
            await settle()
        for _ in range(answers):
            await harness.answer()
        await stdin.aclose()
        data = b""
        while more := await stdout.receive_some():
            data += more
    os.close(theirs_in)
    return next((one for one in map(json.loads, data.splitlines()) if isinstance(one, list)), None)


@pytest.mark.parametrize("send", [post_batch, write_batch])
async def test_a_batch_is_answered_as_one(send: Any, autojump_clock: MockClock) -> None:
    batch = [
        message_of("tools/call", CALL, 1),
        message_of("tools/call", CALL, 1),
        message_of("tools/call", CALL, 2),
        message_of("notifications/cancelled", {"requestId": 1}),
        message_of("ping", None, 3),
        message_of("tools/call", CALL, 4),
    ]
    async with open_harness(max_client_requests=3) as harness:
        responses = await send(harness, batch, 1)
        assert {one["id"]: "result" in one for one in responses if one["id"] != 1} == {2: True, 3: True, 4: False}
        assert [one["error"]["message"] for one in responses if one["id"] == 1] == ["request id 1 is still in use"]
        assert harness.answers.router.refused == {("", "duplicate_id"): 1, ("a", "busy"): 1}
        assert harness.answers.router.under_way == 0


@pytest.mark.parametrize("send", [post_batch, write_batch])
async def test_a_batch_without_requests_has_no_response(send: Any, autojump_clock: MockClock) -> None:
    async with open_harness() as harness:
        cancelled = [message_of("tools/call", CALL, 1), message_of("notifications/cancelled", {"requestId": 1})]
        for batch in (cancelled, [message_of("notifications/initialized")]):
            assert await send(harness, batch, 0) is None
        assert harness.answers.router.under_way == 0
