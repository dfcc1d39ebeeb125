"""Stdio calls without a task, and every event that may reach them: each answers once."""

from __future__ import annotations

import gc
import json
import os
from contextlib import asynccontextmanager, suppress
from typing import TYPE_CHECKING, Any

import pytest
import trio

from gateway.budget import Budget
from gateway.calls import Complete, Era, ServerRequest
from gateway.errors import BackendExited, Revoked
from gateway.frontends.call_stream import CallStream
from gateway.frontends.delivery import Delivery
from gateway.frontends.stdio import END_GRACE, StdioFrontend
from gateway.inflight.pending import PendingCall
from tests.support.fakes import SOON, settle
from tests.support.http_frontends import ANSWER, HELLO, Harness, log_line, message_of, open_harness

if TYPE_CHECKING:
    from collections.abc import AsyncGenerator

    from trio.testing import MockClock

RAISED = {"elicitation": {"form": {}}, "sampling": {}, "roots": {}}


class Client:
    """A stdio client that is initialized, in front of a backend that the test plays."""

    def __init__(self, harness: Harness, stdin: int, stdout: int) -> None:
        self.harness = harness
        self.stdin = trio.lowlevel.FdStream(stdin)
        self._stdout = trio.lowlevel.FdStream(stdout)
        self._read = b""
        self.received: list[Any] = []
        """Every message that came, in order, but for changes of lists."""
        self.clean: bool | None = None
        """The frontend's return value."""
        self.ended = trio.Event()
        self.reading = trio.Event()
        """Clear it (put another one there) to stop reading."""
        self.reading.set()

    async def serve(self, frontend: StdioFrontend) -> None:
        self.clean = await frontend.run()
        self.ended.set()

    async def listen(self) -> None:
        with suppress(trio.ClosedResourceError):
            while data := await self._stdout.receive_some():
                await self.reading.wait()
                *lines, self._read = (self._read + data).split(b"\n")
                self.received += [json.loads(line) for line in lines if b"list_changed" not in line]

    async def say(self, *messages: dict[str, Any]) -> None:
        await self.stdin.send_all(b"".join(json.dumps(one).encode() + b"\n" for one in messages))
        await settle()

    def said(self) -> list[Any]:
        """What arrived, in short: methods, and ids of responses."""
        return [one.get("method") or one["id"] for one in self.received]

    def assert_at_rest(self) -> None:
        assert self.harness.answers.router.under_way == 0
        assert len(self.harness.answers.fleet.deadlines) == 0
        assert self.harness.fake.session.working == []

    async def aclose(self) -> None:
        await self.stdin.aclose()
        await self._stdout.aclose()


@asynccontextmanager
async def open_client(**settings: Any) -> AsyncGenerator[Client]:
    (theirs_in, ours_in), (ours_out, theirs_out) = os.pipe(), os.pipe()
    try:
        async with open_harness(**settings) as harness:
            client = Client(harness, ours_in, ours_out)
            frontend = StdioFrontend(harness.answers, theirs_in, theirs_out, trio.Event())
            harness.nursery.start_soon(client.serve, frontend)
            harness.nursery.start_soon(client.listen)
            await client.say(message_of("initialize", {**HELLO, "capabilities": RAISED}, 0))
            client.received.clear()
            try:
                yield client
            finally:
                await client.aclose()
    finally:
        os.close(theirs_in)


def call(request_id: int, **meta: Any) -> dict[str, Any]:
    params: dict[str, Any] = {"name": "a.x", "arguments": {}}
    return message_of("tools/call", {**params, "_meta": meta} if meta else params, request_id)


def cancel(request_id: int) -> dict[str, Any]:
    return message_of("notifications/cancelled", {"requestId": request_id})


def count_calls() -> int:
    """Objects in which calls of this process are, or were and still stay."""
    return sum(isinstance(one, PendingCall | CallStream | Delivery) for one in gc.get_objects())


async def test_all_are_answered_and_free_their_ids(mock_clock: MockClock) -> None:
    del mock_clock
    async with open_client(max_client_requests=8) as client:
        for _ in range(5):
            await client.say(*(call(number) for number in range(1, 10)))
            assert [one["id"] for one in client.received if "error" in one] == [9]
            client.harness.fake.session.answer(8, Complete(json.dumps(ANSWER).encode(), Era.LEGACY))
            await settle()
            assert sorted(client.said()) == list(range(1, 10))
            client.assert_at_rest()
            client.received.clear()


async def test_messages_before_the_outcome_precede_it(mock_clock: MockClock) -> None:
    del mock_clock
    async with open_client() as client:
        await client.say(call(1), call(2))
        for text in ("a", "b"):
            client.harness.fake.session.working[0].notify(log_line(text))
        client.harness.fake.session.answer(2)
        await settle()
        assert sorted(map(str, client.said())) == ["1", "2", "notifications/message", "notifications/message"]
        texts = [
            one["params"]["data"] if "method" in one else one["id"] for one in client.received if one.get("id") != 2
        ]
        assert texts == ["a", "b", 1]
        client.assert_at_rest()


async def test_a_cancelled_call_frees_its_id_immediately(mock_clock: MockClock) -> None:
    del mock_clock
    async with open_client() as client:
        await client.say(call(1), cancel(1), cancel(1), call(1), call(2))
        assert client.received == []
        assert len(client.harness.fake.session.working) == 2
        client.harness.fake.session.answer(2)
        await settle()
        assert sorted(client.said()) == [1, 2]
        await client.say(cancel(1), cancel(2))
        assert sorted(client.said()) == [1, 2]
        client.assert_at_rest()


async def test_a_call_with_its_own_task_is_cancellable(mock_clock: MockClock) -> None:
    del mock_clock
    async with open_client() as client:
        await client.say(call(1), call(2))
        await client.harness.tell("so that it has a task", client.harness.fake.session.working[0])
        await client.say(cancel(1), cancel(2))
        assert client.said() == ["notifications/message"]
        client.assert_at_rest()
        await client.say(call(1), call(2))
        client.harness.fake.session.answer(2)
        await settle()
        assert sorted(client.said()[1:]) == [1, 2]
        assert all("result" in one for one in client.received[1:])
        client.assert_at_rest()


async def test_an_otherwise_idle_call_expires(mock_clock: MockClock) -> None:
    async with open_client() as client:
        await client.say(call(1))
        mock_clock.jump(9_000)
        await client.say(call(2))
        mock_clock.jump(1_001)
        await settle()
        assert client.said() == [1]
        assert "call_timeout" in client.received[0]["error"]["message"]
        mock_clock.jump(9_000)
        await settle()
        assert client.said() == [1, 2]
        client.assert_at_rest()


async def test_server_requests_reach_the_client(mock_clock: MockClock) -> None:
    del mock_clock
    async with open_client() as client:
        await client.say(call(1))
        replies: list[Any] = []
        client.harness.pending.ask(ServerRequest("roots/list", {}, replies.append))
        await settle()
        assert client.said() == ["roots/list"]
        await client.say({"jsonrpc": "2.0", "id": client.received[0]["id"], "result": {"roots": []}})
        assert replies == [b'{"roots": []}']
        client.harness.fake.session.answer()
        await settle()
        assert client.said()[1:] == [1]
        client.assert_at_rest()


async def test_a_crash_answers_all(mock_clock: MockClock) -> None:
    del mock_clock
    async with open_client() as client:
        await client.say(*(call(number) for number in range(1, 65)))
        session = client.harness.fake.session
        session.crash(BackendExited("a", "was killed"))
        await settle()
        assert sorted(client.said()) == list(range(1, 65))
        assert all("error" in one for one in client.received)
        client.assert_at_rest()


async def test_running_calls_outlive_stdin_briefly(mock_clock: MockClock) -> None:
    async with open_client() as client:
        await client.say(*(call(number) for number in range(1, 4)))
        await client.stdin.aclose()
        await settle()
        client.harness.fake.session.answer()
        await settle()
        assert client.said() == [1]
        mock_clock.jump(END_GRACE + 0.01)
        await settle()
        with trio.fail_after(SOON):
            await client.ended.wait()
        assert sorted(client.said()) == [1, 2, 3]
        assert all("stdin has ended" in one["error"]["message"] for one in client.received[1:])
        assert client.clean is False
        client.assert_at_rest()


async def test_an_outcome_concurrent_with_eof_is_delivered(mock_clock: MockClock) -> None:
    del mock_clock
    async with open_client() as client:
        await client.say(call(1))
        await client.stdin.aclose()
        client.harness.fake.session.answer()
        await settle()
        assert client.said() == [1]
        assert client.clean is True
        client.assert_at_rest()


async def test_an_abandoned_call_gets_an_error(mock_clock: MockClock) -> None:
    del mock_clock
    async with open_client() as client:
        await client.say(call(1))
        client.harness.pending.abandon(Revoked(), "the client's access was revoked")
        await settle()
        assert client.said() == [1]
        assert "error" in client.received[0]
        client.assert_at_rest()


async def test_nothing_of_an_answered_call_stays(mock_clock: MockClock) -> None:
    del mock_clock
    gc.collect()
    before = count_calls()
    async with open_client() as client:
        gc.disable()
        try:
            await client.say(call(1), call(2), call(3), cancel(3))
            client.harness.fake.session.working[1].notify(log_line("so that it has a task"))
            client.harness.fake.session.answer(2, Complete(b'{"content":[],"mark":1}', Era.LEGACY))
            await settle()
            await client.say(call(4))
            assert count_calls() - before == 2  # the pending call and its delivery
        finally:
            gc.enable()
        client.harness.fake.session.answer()
        await settle()
        client.assert_at_rest()


async def test_an_encoding_error_leaves_no_running_call(mock_clock: MockClock, monkeypatch: Any) -> None:
    del mock_clock
    routers: list[Any] = []
    with pytest.RaisesGroup(ZeroDivisionError, flatten_subgroups=True):
        async with open_client() as client:
            routers.append(client.harness.answers.router)
            await client.say(call(1), call(2))
            monkeypatch.setattr(client.harness.answers, "encode_outcome", lambda *_: 1 / 0)
            await client.harness.answer()
            await trio.sleep_forever()
    assert [router.under_way for router in routers] == [0]


async def test_over_the_total_bound_the_client_is_closed(mock_clock: MockClock) -> None:
    del mock_clock
    result = Complete(json.dumps({"content": [{"type": "text", "text": "x" * 500_000}]}).encode(), Era.LEGACY)
    async with open_client(unsent=Budget(600_000)) as client:
        unsent = client.harness.answers.buffers
        client.reading = trio.Event()
        await client.say(call(1), call(2), call(3))
        client.harness.fake.session.answer(1, result)
        await settle()
        assert 400_000 < unsent.used < 600_000
        client.harness.fake.session.answer(1, result)
        await settle()
        assert (client.clean, unsent.used) == (False, 0)
        client.assert_at_rest()


async def test_a_client_that_stops_reading_loses_nothing(mock_clock: MockClock) -> None:
    del mock_clock
    count, burst, text = 10_000, 50, "x" * 2_000
    result = Complete(json.dumps({"content": [{"type": "text", "text": text}]}).encode(), Era.LEGACY)
    async with open_client() as client, trio.open_nursery() as nursery:
        client.reading = trio.Event()
        session = client.harness.fake.session
        written: list[int] = []

        async def write() -> None:
            first = len(written) + 1
            numbers = range(first, first + burst)
            await client.stdin.send_all(b"".join(json.dumps(call(number)).encode() + b"\n" for number in numbers))
            written.extend(numbers)

        async def run_to(end: int) -> None:
            """Write and answer bursts, up to this number or until the gateway stops reading."""
            while (before := len(written)) < end:
                nursery.start_soon(write)
                await settle()
                session.answer(burst, result)
                await settle()
                if len(written) == before:
                    return
                if len(session.names) < len(written):  # they wait in the pipe
                    return

        await run_to(count)
        assert client.received == []
        assert 100 < len(session.names) < 1_000  # a mebibyte waits for the client, so that nothing more is read
        client.reading.set()
        await settle()
        session.answer(burst, result)
        await run_to(count)
        await settle()
        assert sorted(client.said()) == list(range(1, count + 1))
        assert all("result" in one for one in client.received)
        client.assert_at_rest()
