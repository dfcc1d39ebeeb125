"""A legacy call and its stream over any connection: nothing is lost or duplicated."""

from __future__ import annotations

import json
from contextlib import asynccontextmanager
from typing import TYPE_CHECKING, Any

import msgspec
import pytest
import trio
from trio.testing import MockClock

from gateway import jsonrpc
from gateway.calls import Complete, Era, Failure, ServerRequest
from gateway.frontends.legacy.event_store import MAX_STREAM_BYTES, MAX_STREAM_EVENTS, RESUME_WITHIN
from gateway.frontends.legacy.resumable import MAX_RETRY_MS
from gateway.frontends.legacy.sessions import ClientIntroduction, SessionTable
from gateway.frontends.legacy.streamable import StreamableFrontend
from tests.support.fakes import FakeExchange, settle
from tests.support.http_frontends import (
    ANSWER,
    STREAM,
    Harness,
    events_of,
    is_complete,
    log_line,
    message_of,
    open_harness,
    texts_of,
)

if TYPE_CHECKING:
    from collections.abc import AsyncGenerator

OLDER = ["2025-06-18", "2025-03-26"]


class Client:
    """A client with one session at the legacy frontend."""

    def __init__(self, harness: Harness, sessions: SessionTable, version: str) -> None:
        self.harness = harness
        self.sessions = sessions
        self.frontend = StreamableFrontend(harness.answers, sessions)
        session = sessions.create(ClientIntroduction(version, msgspec.Raw(b'{"roots":{}}'), msgspec.Raw(b"")))
        assert session is not None
        self.session = session
        self.last_id = 0

    def headers(self, **kwargs: str) -> dict[str, str]:
        return {**STREAM, "mcp-session-id": str(self.session.id), **kwargs}

    async def send(self, message: dict[str, Any], **kwargs: str) -> FakeExchange:
        exchange = FakeExchange(headers=self.headers(**kwargs))
        return await self.harness.start(self.frontend.post, exchange, jsonrpc.decode(json.dumps(message).encode()))

    async def call(self, **kwargs: str) -> FakeExchange:
        self.last_id += 1
        return await self.send(message_of("tools/call", {"name": "a.x"}, self.last_id), **kwargs)

    async def get(self, last_event_id: str | None = None) -> FakeExchange:
        kwargs = {} if last_event_id is None else {"last-event-id": last_event_id}
        return await self.harness.start(self.frontend.get, FakeExchange(method="GET", headers=self.headers(**kwargs)))

    async def cancel(self, request_id: int = 1) -> None:
        await self.send(message_of("notifications/cancelled", {"requestId": request_id}))


@asynccontextmanager
async def open_client(version: str = "2025-11-25", **settings: Any) -> AsyncGenerator[Client]:
    async with open_harness(**settings) as harness:
        sessions = SessionTable(most=3, idle_timeout=1e6, max_requests=5)
        await harness.nursery.start(sessions.run)
        yield Client(harness, sessions, version)


def last_id(exchange: FakeExchange) -> str:
    return str([event.id for event in events_of(exchange) if event.id][-1])


async def hang_up(exchange: FakeExchange) -> None:
    exchange.gone.set()
    await settle()


# -- streams that do not break ----------------------------------------------------------------------------------------


async def test_a_quick_answer_is_json_and_keeps_nothing(autojump_clock: MockClock) -> None:
    async with open_client() as client:
        exchange = await client.call()
        await client.harness.answer()
        assert exchange.headers["content-type"] == "application/json"
        assert json.loads(exchange.body)["result"]["content"][0]["text"] == "done"
        assert len(client.session.events) == len(client.session.replies) == len(client.session.in_flight) == 0


async def test_a_stream_is_primed_and_numbers_its_events(autojump_clock: MockClock) -> None:
    async with open_client() as client:
        exchange = await client.call()
        await client.harness.tell("one")
        await client.harness.answer()
        first, *rest = events_of(exchange)
        assert first.id
        assert not first.data
        assert texts_of(exchange) == ["one", "done"]
        assert len({first.id, *(event.id for event in rest)}) == 3
        assert is_complete(exchange)
        assert not client.session.replies


@pytest.mark.parametrize("version", OLDER)
async def test_older_clients_get_no_empty_event(version: str, autojump_clock: MockClock) -> None:
    async with open_client(version, sse_after=5.0) as client:
        exchange = await client.call()
        await trio.sleep(6)
        await client.harness.tell("one")
        client.harness.pending.close_stream(1000)
        await client.harness.answer()
        own = await client.get()
        client.session.changes.add({"tools"})
        await settle()
        for stream in (exchange, own):
            assert all(event.data and event.id for event in events_of(stream))
        assert texts_of(exchange) == ["one", "done"]


async def test_a_post_error_keeps_its_status(autojump_clock: MockClock) -> None:
    async with open_client() as client:
        exchange = await client.call()
        client.harness.fake.session.answer(outcome=Failure(jsonrpc.METHOD_NOT_FOUND, "no such thing", None, Era.LEGACY))
        await settle()
        assert exchange.status == 200
        assert json.loads(exchange.body)["error"]["code"] == jsonrpc.METHOD_NOT_FOUND


# -- streams that break -----------------------------------------------------------------------------------------------


async def test_messages_without_a_connection_await_the_next(autojump_clock: MockClock) -> None:
    async with open_client() as client:
        exchange = await client.call()
        await client.harness.tell("one")
        await hang_up(exchange)
        await client.harness.tell("two")  # is lost on the way
        await client.harness.tell("three")
        again = await client.get(last_id(exchange))
        assert texts_of(again) == ["two", "three"]
        await client.harness.tell("four")
        assert texts_of(again) == ["two", "three", "four"]
        await client.harness.answer()
        assert texts_of(again) == ["two", "three", "four", "done"]
        assert is_complete(again)
        assert client.harness.fake.session.withdrawn == []
        assert len(client.session.in_flight) == 0


async def test_the_answer_waits_for_a_late_reconnect(autojump_clock: MockClock) -> None:
    async with open_client() as client:
        exchange = await client.call()
        await client.harness.tell("one")
        primed = events_of(exchange)[0].id
        await hang_up(exchange)
        await client.harness.tell("two")
        await client.harness.answer()
        assert len(client.session.in_flight) == 0
        await trio.sleep(RESUME_WITHIN - 1)
        for _ in range(2):  # this one may break, too
            again = await client.get(primed)
            assert texts_of(again) == ["one", "two", "done"]
            assert is_complete(again)


async def test_a_stream_may_break_again_and_again(autojump_clock: MockClock) -> None:
    async with open_client() as client:
        exchange = await client.call()
        await client.harness.tell("0")
        seen = texts_of(exchange)
        for number in range(1, 6):
            await hang_up(exchange)
            await client.harness.tell(f"{number} unseen")
            exchange = await client.get(last_id(exchange))
            await client.harness.tell(f"{number} seen")
            seen += texts_of(exchange)
        await client.harness.answer()
        expected = ["0", *(f"{number} {how}" for number in range(1, 6) for how in ("unseen", "seen"))]
        assert seen == expected
        assert texts_of(exchange)[-1] == "done"


async def test_a_client_that_comes_back_early_takes_over(autojump_clock: MockClock) -> None:
    """The old connection still seems intact, but nothing more is sent on it."""
    async with open_client() as client:
        exchange = await client.call()
        await client.harness.tell("one")
        second = await client.get(last_id(exchange))
        third = await client.get(last_id(exchange))
        await client.harness.tell("two")
        await client.harness.answer()
        assert [texts_of(one) for one in (exchange, second, third)] == [["one"], [], ["two", "done"]]
        assert all(map(is_complete, (exchange, second, third)))
        assert client.harness.fake.session.withdrawn == []


async def test_many_clients_reconnect_concurrently(autojump_clock: MockClock) -> None:
    async with open_client() as client:
        exchange = await client.call()
        await client.harness.tell("one")
        came = last_id(exchange)
        gets = [FakeExchange(method="GET", headers=client.headers(**{"last-event-id": came})) for _ in range(5)]
        await hang_up(exchange)
        client.harness.pending.notify(log_line("two"))
        async with trio.open_nursery() as nursery:
            for get in gets:
                nursery.start_soon(client.harness.start, client.frontend.get, get)
        await client.harness.answer()
        complete = [texts_of(get) for get in gets if texts_of(get)[-1:] == ["done"]]
        assert complete == [["two", "done"]]
        assert all(map(is_complete, gets))
        assert len(client.session.in_flight) == 0


class PromptExchange(FakeExchange):
    """A client whose connection takes everything at once, as the kernel's buffer does: no checkpoint."""

    async def send(self, message: Any) -> None:
        if self.gone.is_set():
            raise OSError("the client has gone")
        self.sent.append(message)


@pytest.mark.parametrize("event", ["message", "answer", "break", "break and message", "break and answer"])
async def test_messages_during_a_reconnect_arrive_once(event: str, autojump_clock: MockClock) -> None:
    """In either order, each message arrives once, and no client is left waiting."""
    for _ in range(30):
        async with open_client() as client:
            exchange = PromptExchange(headers=client.headers())
            call = jsonrpc.decode(json.dumps(message_of("tools/call", {"name": "a.x"}, 1)).encode())
            await client.harness.start(client.frontend.post, exchange, call)
            await client.harness.tell("one")
            pending = client.harness.pending
            pending.notify(log_line("two"))
            if "break" in event:
                exchange.gone.set()
            if "answer" in event:
                client.harness.fake.session.answer(outcome=Complete(json.dumps(ANSWER).encode(), Era.LEGACY))
            headers = client.headers(**{"last-event-id": last_id(exchange)})
            again = await client.harness.start(client.frontend.get, PromptExchange(method="GET", headers=headers))
            if "answer" not in event:
                await client.harness.tell("three", pending)
                await client.harness.answer()
            middle = [] if "answer" in event else ["three"]
            assert texts_of(again) == ["two", *middle, "done"]
            assert is_complete(again)
            assert len(client.session.in_flight) == len(client.session.replies) == 0


async def test_only_the_one_stream_is_replayed(autojump_clock: MockClock) -> None:
    async with open_client() as client:
        one = await client.call()
        first = client.harness.pending
        await client.harness.tell("first a")
        other = await client.call()
        second = client.harness.pending
        await client.harness.tell("second a")
        for exchange in (one, other):
            await hang_up(exchange)
        for text, pending in (("first b", first), ("second b", second)):
            await client.harness.tell(text, pending)
        assert texts_of(await client.get(last_id(other))) == ["second b"]
        assert texts_of(await client.get(last_id(one))) == ["first b"]


async def test_unfetched_events_are_dropped_and_the_call_continues(autojump_clock: MockClock) -> None:
    async with open_client() as client:
        exchange = await client.call()
        await client.harness.tell("one")
        await hang_up(exchange)
        await client.harness.tell("two")
        ask = make_ask()
        client.harness.pending.ask(ask)
        await trio.sleep(RESUME_WITHIN + 1)
        refused = await client.get(last_id(exchange))
        assert refused.status == 400
        assert "Last-Event-ID" in json.loads(refused.body)["error"]["message"]
        assert client.session.events.size == 0
        assert len(client.session.in_flight) == 1
        assert client.harness.fake.session.withdrawn == []
        await client.harness.answer()
        assert len(client.session.in_flight) == 0


def make_ask(settled: list[Any] | None = None) -> ServerRequest:
    return ServerRequest("roots/list", {}, (settled if settled is not None else []).append)


async def test_a_request_to_the_client_survives_the_break(autojump_clock: MockClock) -> None:
    async with open_client() as client:
        settled: list[Any] = []
        exchange = await client.call()
        await client.harness.tell("one")
        await hang_up(exchange)
        client.harness.pending.ask(make_ask(settled))
        await settle()
        again = await client.get(last_id(exchange))
        assert texts_of(again) == ["roots/list"]
        asked = events_of(again)[-1].json()
        await client.send({"jsonrpc": "2.0", "id": asked["id"], "result": {"roots": []}})
        assert settled == [b'{"roots": []}']


async def test_an_interrupted_call_without_events_is_not_kept(autojump_clock: MockClock) -> None:
    async with open_client(sse_after=5.0) as client:
        exchange = await client.call()
        await hang_up(exchange)
        await client.harness.answer()
        assert exchange.sent == []
        assert len(client.session.in_flight) == len(client.session.replies) == 0
        assert client.harness.fake.session.withdrawn == []


async def test_a_cancel_ends_a_call_without_a_connection(autojump_clock: MockClock) -> None:
    async with open_client() as client:
        exchange = await client.call()
        await client.harness.tell("one")
        await hang_up(exchange)
        await client.harness.tell("two")
        await client.cancel()
        assert [name for name, _ in client.harness.fake.session.withdrawn] == ["x"]
        assert len(client.session.in_flight) == 0
        assert (await client.get(last_id(exchange))).status == 400  # nothing follows a cancel


async def test_a_cancel_ends_a_resumed_call(autojump_clock: MockClock) -> None:
    async with open_client() as client:
        exchange = await client.call()
        await client.harness.tell("one")
        await hang_up(exchange)
        again = await client.get(last_id(exchange))
        await client.cancel()
        assert is_complete(again)
        assert texts_of(again) == []
        assert [name for name, _ in client.harness.fake.session.withdrawn] == ["x"]


async def test_closing_a_session_ends_its_disconnected_calls(autojump_clock: MockClock) -> None:
    async with open_client() as client:
        exchange = await client.call()
        await client.harness.tell("one")
        await hang_up(exchange)
        await client.harness.tell("two")
        client.sessions.close(client.session)
        await settle()
        assert [name for name, _ in client.harness.fake.session.withdrawn] == ["x"]
        assert client.session.events.size == 0
        assert len(client.session.in_flight) == len(client.session.replies) == 0


async def test_closing_a_session_frees_its_events(autojump_clock: MockClock) -> None:
    async with open_client() as client:
        await client.call()
        await client.harness.tell("one")
        await client.harness.answer()
        assert client.session.events.size > 0
        client.sessions.close(client.session)
        assert client.session.events.size == 0


async def test_a_flood_without_a_connection_stays_within_bounds(autojump_clock: MockClock) -> None:
    async with open_client() as client:
        exchange = await client.call()
        await client.harness.tell("one")
        await hang_up(exchange)
        for number in range(MAX_STREAM_EVENTS + 50):
            await client.harness.tell(str(number))
        await client.harness.answer()
        again = await client.get(last_id(exchange))
        assert len(texts_of(again)) == MAX_STREAM_EVENTS
        assert texts_of(again)[-1] == "done"


async def test_a_huge_answer_cannot_be_resumed(autojump_clock: MockClock) -> None:
    huge = {"content": [{"type": "text", "text": "x" * MAX_STREAM_BYTES}]}
    async with open_client() as client:
        exchange = await client.call()
        await client.harness.tell("one")
        last = last_id(exchange)
        await client.harness.answer(huge)
        assert len(texts_of(exchange)[-1]) == MAX_STREAM_BYTES
        assert "too large to keep" in texts_of(await client.get(last))[0]


@pytest.mark.parametrize("event_id", ["", "0", "x-1-1", "%00", "1-1-1-1", "9" * 1000])
async def test_an_unknown_event_id_is_refused(event_id: str, autojump_clock: MockClock) -> None:
    async with open_client() as client:
        refused = await client.get(event_id)
        assert refused.status == 400
        assert json.loads(refused.body)["error"]["code"] == jsonrpc.INVALID_REQUEST


async def test_an_id_of_another_session_is_refused(autojump_clock: MockClock) -> None:
    async with open_harness() as harness:
        sessions = SessionTable(most=3, idle_timeout=1e6, max_requests=5)
        await harness.nursery.start(sessions.run)
        one, other = Client(harness, sessions, "2025-11-25"), Client(harness, sessions, "2025-11-25")
        for client in (one, other):
            await client.call()
            await harness.tell("secret")
        exchange = await one.call()
        await harness.tell("mine")
        assert (await other.get(last_id(exchange))).status == 400


# -- streams that the backend closes for a while ----------------------------------------------------------------------


@pytest.mark.parametrize(("asked", "notified"), [(500, 500), (10**9, MAX_RETRY_MS)])
async def test_a_backend_closing_the_stream_closes_the_clients(
    asked: int, notified: int, autojump_clock: MockClock
) -> None:
    async with open_client() as client:
        exchange = await client.call()
        client.harness.pending.close_stream(asked)
        await settle()
        assert is_complete(exchange)
        first, last = events_of(exchange)
        assert (first.data, last.data, last.retry) == ("", "", notified)
        assert first.id != last.id
        await client.harness.tell("meanwhile")
        again = await client.get(last.id)
        assert texts_of(again) == ["meanwhile"]
        client.harness.pending.close_stream(asked)
        await settle()
        assert is_complete(again)
        third = await client.get(last_id(again))
        await client.harness.answer()
        assert texts_of(third) == ["done"]
        assert len(client.session.in_flight) == 0


async def test_a_disconnected_stream_needs_no_closing(autojump_clock: MockClock) -> None:
    async with open_client() as client:
        exchange = await client.call()
        await client.harness.tell("one")
        await hang_up(exchange)
        await client.harness.tell("two")
        client.harness.pending.close_stream(500)
        await client.harness.tell("three")
        assert texts_of(await client.get(last_id(exchange))) == ["two", "three"]


async def test_a_client_without_streams_is_not_bothered(autojump_clock: MockClock) -> None:
    async with open_client() as client:
        exchange = await client.call(accept="application/json")
        client.harness.pending.close_stream(500)
        await client.harness.answer()
        assert json.loads(exchange.body)["result"]["content"][0]["text"] == "done"


# -- the session's own stream -----------------------------------------------------------------------------------------


async def change(client: Client, feature: str) -> None:
    client.session.changes.add({feature})
    await settle()


async def test_the_own_stream_resumes_after_the_last_event(autojump_clock: MockClock) -> None:
    async with open_client() as client:
        own = await client.get()
        await change(client, "tools")
        seen = last_id(own)
        await change(client, "prompts")
        await hang_up(own)
        await change(client, "resources")
        again = await client.get(seen)
        assert texts_of(again) == [f"notifications/{what}/list_changed" for what in ("prompts", "resources")]
        call = await client.call()
        await client.harness.tell("one")
        assert texts_of(call) == ["one"]
        assert len(texts_of(again)) == 2


async def test_undelivered_messages_come_once_on_a_fresh_stream(autojump_clock: MockClock) -> None:
    async with open_client() as client:
        own = await client.get()
        await change(client, "tools")
        client.session.changes.add({"prompts"})
        own.gone.set()  # while it is being notified
        await settle()
        fresh = await client.get()
        await change(client, "resources")
        assert texts_of(own) == ["notifications/tools/list_changed"]
        assert texts_of(fresh) == [f"notifications/{what}/list_changed" for what in ("prompts", "resources")]


async def test_a_newer_own_stream_takes_over(autojump_clock: MockClock) -> None:
    async with open_client() as client:
        own = await client.get()
        fresh = await client.get()
        await change(client, "tools")
        assert is_complete(own)
        assert texts_of(own) == []
        assert texts_of(fresh) == ["notifications/tools/list_changed"]


async def test_repeated_backend_closes_use_no_memory(autojump_clock: MockClock) -> None:
    async with open_client() as client:
        exchange = await client.call(accept="application/json")
        pending = client.harness.pending
        for number in range(100):
            pending.close_stream(number)
        assert len(pending._events or ()) == 1
        await client.harness.answer()
        pending.close_stream(1)
        assert exchange.status == 200
