"""The HTTP+SSE frontend: one ordered, bounded stream per session, with the same lifetime."""

from __future__ import annotations

import json
import logging
from typing import TYPE_CHECKING, Any

import pytest
import trio
from trio.testing import MockClock

from gateway import jsonrpc
from gateway.budget import Budget
from gateway.calls import Complete, Era, ServerRequest
from gateway.frontends.legacy.sse import MAX_WAITING_BYTES, MAX_WAITING_MESSAGES, PATIENCE, SseFrontend
from tests.support.fakes import FakeExchange, make_news, settle
from tests.support.http_frontends import (
    STREAM,
    events_of,
    is_complete,
    log_line,
    message_of,
    open_harness,
    texts_of,
)
from tests.support.leaks import traced_growth
from tests.support.sse_client import SseClient, open_client
from tests.support.wire_http import parse_events

if TYPE_CHECKING:
    from gateway.inflight.pending import PendingCall


async def test_the_stream_begins_with_where_to_post(autojump_clock: MockClock) -> None:
    async with open_client(version=None) as client:
        (first,) = parse_events(client.stream.body)
        assert first.event == "endpoint"
        assert first.data.startswith("/messages/?session_id=")
        assert len(first.data) > 50
        assert client.stream.headers["content-type"] == "text/event-stream"


async def test_the_endpoint_uri_includes_the_mount_point(autojump_clock: MockClock) -> None:
    async with open_harness() as harness:
        client = SseClient(harness, SseFrontend(harness.answers, "/messages/", trio.Event()))
        client.stream.scope["root_path"] = "/a b/"
        await client.open()
        assert client.endpoint.startswith("/a%20b/messages/?session_id=")


@pytest.mark.parametrize("version", ["2024-11-05", "2025-11-25"])
async def test_a_conversation(version: str, autojump_clock: MockClock) -> None:
    async with open_client(version=version) as client:
        assert client.messages[0]["result"]["protocolVersion"] == version
        accepted = await client.post(message_of("notifications/initialized"))
        assert (accepted.status, accepted.body) == (202, b"")
        await client.call("an id")
        await client.harness.tell("one")
        await client.harness.answer()
        assert texts_of(client.stream)[-2:] == ["one", "done"]
        assert client.messages[-1]["id"] == "an id"
        assert {event.event for event in events_of(client.stream)[1:]} == {"message"}
        assert not any(event.id for event in events_of(client.stream))


async def test_before_initialize_only_a_ping_is_answered(autojump_clock: MockClock) -> None:
    async with open_client(version=None) as client:
        await client.ask("ping")
        await client.ask("tools/list", request_id=2)
        await client.ask("server/discover", {"_meta": {"io.modelcontextprotocol/protocolVersion": "2026-07-28"}}, 3)
        await client.post(message_of("notifications/cancelled", {"requestId": 2}))
        assert client.messages[0]["result"] == {}
        for message in client.messages[1:]:
            assert message["error"]["code"] == jsonrpc.INVALID_REQUEST
            assert "initialize" in message["error"]["message"]
        await client.initialize()
        await client.initialize()
        assert "another stream" in client.messages[-1]["error"]["message"]


async def test_a_malformed_initialize_can_be_repeated(autojump_clock: MockClock) -> None:
    async with open_client(version=None) as client:
        assert (await client.ask("initialize", {"protocolVersion": 3})).status == 202
        assert client.messages[0]["error"]["code"] == jsonrpc.INVALID_PARAMS
        await client.initialize()
        assert "result" in client.messages[1]


@pytest.mark.parametrize(
    ("change", "status"),
    [
        ({"endpoint": "/messages/"}, 400),
        ({"endpoint": "/messages/?session_id="}, 400),
        ({"endpoint": "/messages/?session_id=nobody"}, 404),
        ({"content-type": "text/plain"}, 415),
        ({"message": b"x" * 2_000}, 413),
        ({"message": b"{"}, 400),
        ({"message": b'{"jsonrpc":"2.0","id":1,"method":"tools/call","params":\xff}'}, 400),
        ({"message": [message_of("ping", request_id=1)]}, 400),
    ],
)
async def test_posts_that_are_refused(change: dict[str, Any], status: int, autojump_clock: MockClock) -> None:
    async with open_client(max_body_bytes=1_000) as client:
        before = len(client.messages)
        given = {"message": message_of("ping", request_id=1), **change}
        refused = await client.post(given.pop("message"), **given)
        assert refused.status == status
        assert json.loads(refused.body)["error"]["message"]
        assert len(client.messages) == before


async def test_long_queries_that_differ_are_not_kept(autojump_clock: MockClock) -> None:
    async with open_client() as client:
        with traced_growth() as kept:
            for number in range(100):
                query = f"{client.endpoint.partition('?')[2]}&{number}={'a' * 15_000}"
                assert (await client.post(message_of("ping", request_id=1), endpoint=f"?{query}")).status == 202
                assert client.begin(number + 2, query=query.encode()) is not None
                await client.harness.answer()
            client.stream.sent.clear()
        assert kept() < 200_000


async def test_wrong_methods_are_refused(autojump_clock: MockClock) -> None:
    async with open_client() as client:
        for method, serve, allowed in (("POST", client.frontend.open, "GET"), ("GET", client.frontend.post, "POST")):
            exchange = await client.harness.start(serve, FakeExchange(method=method, headers=STREAM))
            assert (exchange.status, exchange.headers["allow"]) == (405, allowed)
        plain = FakeExchange(method="GET", headers={"accept": "application/json"})
        assert (await client.harness.start(client.frontend.open, plain)).status == 406


async def test_a_batch_in_the_version_that_has_them(autojump_clock: MockClock) -> None:
    async with open_client(version="2025-03-26") as client:
        batch = [message_of("ping", request_id=1), message_of("notifications/x"), message_of("ping", request_id="1")]
        assert (await client.post(batch)).status == 202
        assert {message["id"] for message in client.messages[1:]} == {1, "1"}


async def test_a_duplicate_id_is_refused_alone(autojump_clock: MockClock) -> None:
    async with open_client(max_client_requests=2) as client:
        await client.call(1)
        refused = await client.call(1)
        assert refused.status == 400
        assert "still in use" in json.loads(refused.body)["error"]["message"]
        await client.call(2)
        await client.call(3)
        assert client.messages[-1]["id"] == 3
        assert "max_client_requests" in client.messages[-1]["error"]["message"]
        await client.harness.answer()
        assert client.messages[-1]["id"] == 1


async def test_answers_come_in_order_of_completion(autojump_clock: MockClock) -> None:
    async with open_client() as client:
        for number in range(1, 4):
            await client.call(number)
        first, second, third = client.harness.fake.session.working
        for pending in (third, first, second):
            pending.notify(log_line(pending.call.name))
        await settle()
        client.harness.fake.session.working.reverse()
        await client.harness.answer()
        await client.harness.answer()
        await client.harness.answer()
        assert [message["id"] for message in client.messages if "result" in message][1:] == [3, 2, 1]


async def test_a_tool_call_needs_no_task(autojump_clock: MockClock) -> None:
    async with open_client() as client:
        request = client.begin(1)
        assert request is not None
        assert (request.responses, request.has_task) == ([(202, b"")], False)
        await client.harness.answer()
        assert client.messages[-1]["id"] == 1
        assert len(client.harness.answers.fleet.deadlines) == 0


@pytest.mark.parametrize("case", ["id in use", "unknown session", "no session", "not initialized", "full buffer"])
async def test_messages_needing_a_task_are_left_alone(case: str, autojump_clock: MockClock) -> None:
    async with open_client(version=None if case == "not initialized" else "2025-11-25") as client:
        if case == "id in use":
            await client.call(1)
        elif case == "full buffer":
            client.stream.reading = trio.Event()
            for number in (8, 9):
                await client.call(number)
                await client.harness.answer({"content": [], "x": "x" * MAX_WAITING_BYTES})
                await settle()
        before = list(client.harness.fake.session.working)
        query = {"unknown session": b"session_id=x", "no session": b""}.get(case)
        assert client.begin(1, query=query) is None
        assert client.harness.fake.session.working == before


async def test_a_server_asks_the_client(autojump_clock: MockClock) -> None:
    async with open_client() as client:
        settled: list[Any] = []
        await client.call()
        client.harness.pending.ask(ServerRequest("roots/list", {}, settled.append))
        await settle()
        assert client.messages[-1]["method"] == "roots/list"
        await client.post({"jsonrpc": "2.0", "id": client.messages[-1]["id"], "result": {"roots": []}})
        assert settled == [b'{"roots": []}']


async def test_changes_reach_initialized_clients(autojump_clock: MockClock) -> None:
    async with open_client(version=None) as client:
        client.frontend.notify_list_changed(make_news("tools"))
        await settle()
        assert client.messages == []
        await client.initialize()
        client.frontend.notify_list_changed(make_news("tools"))
        await settle()
        assert client.messages[-1]["method"] == "notifications/tools/list_changed"


async def test_a_cancel_ends_one_call_unanswered(autojump_clock: MockClock) -> None:
    async with open_client() as client:
        await client.call(1)
        await client.call(2)
        await client.post(message_of("notifications/cancelled", {"requestId": 1}))
        await client.harness.answer()
        assert client.withdrawn == ["x"]
        assert [message["id"] for message in client.messages[1:]] == [2]
        await client.call(1)  # its id is free again


async def test_closing_the_stream_cancels_only_its_calls(autojump_clock: MockClock) -> None:
    async with open_client() as client:
        other = SseClient(client.harness, client.frontend)
        await other.open()
        await other.initialize()
        await client.call()
        await other.call()
        stream = client.frontend._streams[client.endpoint.partition("=")[2]]
        undone: list[str] = []
        assert stream.session is not None
        stream.session.on_end.append(lambda: undone.append("its subscriptions"))
        client.stream.gone.set()
        await settle()
        assert undone == ["its subscriptions"]
        assert client.withdrawn == ["x"]
        assert len(client.frontend) == 1
        assert (await client.call()).status == 404
        await client.harness.answer()
        assert texts_of(other.stream)[-1] == "done"


@pytest.mark.parametrize("step", range(8))
async def test_calls_end_with_their_stream_whatever_comes_meanwhile(
    step: int, autojump_clock: MockClock, caplog: pytest.LogCaptureFixture
) -> None:
    async with open_harness() as harness:
        frontend = SseFrontend(harness.answers, "/messages/", trio.Event())
        clients = [SseClient(harness, frontend) for _ in range(16)]  # their tasks end in different orders
        calls: list[PendingCall] = []
        for client in clients:
            await client.open()
            await client.initialize()
            await client.call()
            calls.append(harness.pending)
        for client in clients:
            client.stream.gone.set()
        for _ in range(step):
            await trio.lowlevel.checkpoint()
        for client, call in zip(clients, calls, strict=True):
            call.notify(log_line("news"))
            client.begin(2)
        await settle()
        assert not [record for record in caplog.records if record.levelno >= logging.WARNING]
        assert len(frontend) == harness.answers.router.under_way == harness.answers.buffers.used == 0


class LateBody(FakeExchange):
    """A POST whose body comes when `arrives` is set."""

    def __init__(self, body: bytes, query: str) -> None:
        super().__init__(body, headers=STREAM)
        self.scope["query_string"] = query.encode()
        self.arrives = trio.Event()

    async def receive(self) -> dict[str, Any]:
        await self.arrives.wait()
        return await super().receive()


async def test_a_stream_ending_mid_batch_takes_no_more(autojump_clock: MockClock) -> None:
    async with open_client(version="2025-03-26", max_client_requests=2) as client:
        batch = [message_of("tools/call", {"name": "a.x"}, number) for number in (2, 3, 4, 5)]
        post = LateBody(json.dumps(batch).encode(), client.endpoint.partition("?")[2])
        await client.harness.start(client.frontend.post, post)
        client.stream.reading = trio.Event()
        await fill(client, 2, size=MAX_WAITING_BYTES)
        post.arrives.set()
        await settle()
        assert not post.ended  # the third message is refused, for which the buffer has no room
        client.stream.gone.set()
        await settle()
        assert post.ended
        assert client.harness.answers.router.under_way == 0


async def test_silence_is_filled_with_comments(autojump_clock: MockClock) -> None:
    async with open_client(keep_alive_interval=5.0) as client:
        before = client.stream.body
        await trio.sleep(11)
        comments = parse_events(client.stream.body[len(before) :])
        assert [event.comment for event in comments] == ["keep-alive", "keep-alive"]


async def test_open_streams_are_bounded(autojump_clock: MockClock) -> None:
    async with open_client(max_sessions=1) as client:
        refused = SseClient(client.harness, client.frontend)
        await client.harness.start(client.frontend.open, refused.stream)
        assert refused.stream.status == 503
        assert "max_sessions" in json.loads(refused.stream.body)["error"]["message"]
        client.stream.gone.set()
        await settle()
        await SseClient(client.harness, client.frontend).open()


async def test_streams_that_never_initialize_make_room(autojump_clock: MockClock) -> None:
    async with open_client(max_sessions=3) as client:
        silent = [SseClient(client.harness, client.frontend) for _ in range(10)]
        for one in silent:
            await one.open()
        await settle()
        assert [one.stream.ended for one in silent] == [True] * 8 + [False] * 2
        assert not client.stream.ended
        assert len(client.frontend) == 3
        await silent[-1].initialize()
        assert silent[-1].messages[0]["result"]["protocolVersion"] == "2024-11-05"


# -- clients that read slowly, or not at all ---------------------------------------------------------------------------


async def fill(client: SseClient, count: int, *, size: int) -> None:
    """Have that many answers wait for the client."""
    for number in range(count):
        await client.call(number)
    text = {"content": [{"type": "text", "text": "x" * size}]}
    for _ in range(count):
        await client.harness.answer(text)


@pytest.mark.parametrize(("count", "size"), [(20, MAX_WAITING_BYTES // 8), (MAX_WAITING_MESSAGES + 50, 1)])
async def test_a_stalled_client_is_dropped_with_a_reason(
    count: int, size: int, autojump_clock: MockClock, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.WARNING)
    async with open_client(max_client_requests=count + 1) as client:
        client.stream.reading = trio.Event()
        if size > 1:
            await fill(client, count, size=size)
        else:  # one message at a time, so that none is dropped where the call keeps them
            await client.call()
            for number in range(count):
                await client.harness.tell(str(number))
        calls = len(client.harness.fake.session.names)
        waiting = await client.call("not read")
        assert (len(client.frontend), waiting.sent) == (1, [])
        assert len(client.harness.fake.session.names) == calls
        await trio.sleep(PATIENCE + 1)
        assert len(client.frontend) == 0
        assert "does not read" in caplog.text
        if size > 1:
            assert int(caplog.text.split("(")[1].split()[0]) > MAX_WAITING_BYTES
        else:
            assert f"{MAX_WAITING_MESSAGES} messages" in caplog.text
        assert waiting.status == 404
        assert client.harness.answers.buffers.used == 0
        assert (await client.call("later")).status == 404


async def test_a_late_reader_gets_everything_in_order(autojump_clock: MockClock) -> None:
    async with open_client(max_client_requests=100) as client:
        client.stream.reading = trio.Event()
        stalled = client.stream.reading
        await fill(client, 40, size=MAX_WAITING_BYTES // 8)
        await trio.sleep(PATIENCE - 1)
        client.stream.reading.set()
        stalled.set()
        await settle()
        assert [message["id"] for message in client.messages[1:]] == list(range(40))


async def test_ten_thousand_calls_of_a_stalled_client(mock_clock: MockClock) -> None:
    count, burst, size = 10_000, 50, 2_000
    async with open_client() as client:
        unsent, session = client.harness.answers.buffers, client.harness.fake.session
        text = {"content": [{"type": "text", "text": "x" * size}]}
        outcome = Complete(json.dumps(text).encode(), Era.LEGACY)
        stalled = client.stream.reading = trio.Event()
        posts: list[FakeExchange] = []
        while len(posts) < count:
            first = len(posts)
            posts += [await client.call(number) for number in range(first, first + burst)]
            session.answer(len(session.working), outcome)
            await settle()
            if not posts[-1].sent and not stalled.is_set():  # the POSTs wait, so the client's own bound is reached
                assert MAX_WAITING_BYTES <= unsent.used < MAX_WAITING_BYTES + burst * (size + 200)
                assert 100 < len(session.names) < 1_000
                client.stream.reading.set()
                stalled.set()
                await settle()
        session.answer(len(session.working), outcome)
        await settle()
        assert sorted(message["id"] for message in client.messages[1:]) == list(range(count))
        assert unsent.used == client.harness.answers.router.under_way == 0


async def test_clients_that_do_not_read_share_a_bound(autojump_clock: MockClock) -> None:
    most, size, streams = 200_000, 10_000, 50
    async with open_harness(max_client_requests=100, max_sessions=100, unsent=Budget(most)) as harness:
        frontend = SseFrontend(harness.answers, "/messages/", trio.Event())
        clients = [SseClient(harness, frontend) for _ in range(streams)]
        for client in clients:
            await client.open()
            await client.initialize()
            client.stream.reading = trio.Event()
        reader = clients[0]
        reader.stream.reading.set()
        for _ in range(3):
            for client in clients:
                if (await client.call(len(client.messages))).status == 202:
                    await harness.answer({"content": [{"type": "text", "text": "x" * size}]})
                assert harness.answers.buffers.used <= most
        assert most - 3 * size < harness.answers.buffers.used
        assert len(frontend) < streams / 2
        assert not reader.stream.ended
        await reader.call(100)
        await harness.answer()
        assert reader.messages[-1]["id"] == 100


async def test_an_exception_in_a_sink_ends_its_stream(
    autojump_clock: MockClock, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    async with open_client() as client:
        other = SseClient(client.harness, client.frontend)
        await other.open()
        await other.initialize()
        await client.call(1)
        await client.call(2)
        await other.call(3)
        with monkeypatch.context() as patch:
            patch.setattr(client.harness.answers, "encode_outcome", lambda *_: 1 / 0)
            await client.harness.answer()  # the backend's reader, which must not see it
        assert "because of a bug" in caplog.text
        assert (await client.call(4)).status == 404
        assert client.withdrawn == ["x"]
        await client.harness.answer()
        assert other.messages[-1]["id"] == 3
        assert client.harness.answers.router.under_way == client.harness.answers.buffers.used == 0


async def test_a_message_larger_than_the_buffer_goes_through(autojump_clock: MockClock) -> None:
    async with open_client() as client:
        await fill(client, 2, size=3 * MAX_WAITING_BYTES)
        assert [len(text) for text in texts_of(client.stream)[1:]] == [3 * MAX_WAITING_BYTES] * 2


# -- the end -----------------------------------------------------------------------------------------------------------


async def test_shutdown_ends_streams_after_their_last_answers(autojump_clock: MockClock) -> None:
    async with open_client() as client:
        await client.call()
        client.frontend.end_all()
        await settle()
        assert not is_complete(client.stream)
        await client.harness.answer()
        assert texts_of(client.stream)[-1] == "done"
        assert is_complete(client.stream)
        assert len(client.frontend) == 0
