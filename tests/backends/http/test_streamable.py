"""Streamable HTTP backends against a raw, misbehaving server and the SDK's."""

from __future__ import annotations

import json
import subprocess
import sys
from contextlib import asynccontextmanager
from itertools import pairwise
from typing import TYPE_CHECKING, Any

import h11
import pytest
import trio

from gateway import jsonrpc
from gateway.backends.http.detect import HttpOpener
from gateway.backends.http.recovery import Timing
from gateway.budget import Budget
from gateway.calls import Era, Failure, Notification
from gateway.eras.methods import Kind
from gateway.errors import BackendExited, BackendProtocol, BackendTooSlow, BackendUnavailable, BuffersFull
from gateway.http_client.client import MAX_COOKIE_BYTES, MAX_COOKIES, MAX_REDIRECTS
from gateway.http_client.errors import HttpRefused
from tests.peers.http_peer import LegacyServer, ModernServer, Reply, Request, open_peer, text, tool
from tests.support.gateway_process import PEERS
from tests.support.http_sessions import QUICK, Received, call, open_session, outcome, result_of, start_call, text_of
from tests.support.log_events import logged_events

if TYPE_CHECKING:
    from collections.abc import AsyncGenerator

pytestmark = pytest.mark.leak_check


async def streamed(request: Request, reply: Reply) -> None:
    """The answer to a call as a stream: progress, then the result."""
    await reply.begin()
    token = request.params["_meta"].get("progressToken")
    for number in (1, 2):
        params = {"progressToken": token, "progress": number}
        await reply.event({"jsonrpc": "2.0", "method": "notifications/progress", "params": params})
    await reply.answer_event(text("streamed"))


# -- legacy ------------------------------------------------------------------------------------------------------------


async def test_a_legacy_session_runs_from_probe_to_delete() -> None:
    server = LegacyServer()
    async with open_peer(server) as peer:
        async with open_session(peer.url, headers={"Authorization": "Bearer t", "X-Own": "1"}) as session:
            assert session.greeting.era is Era.LEGACY
            assert [item.own for item in session.listing.items[Kind.TOOLS]] == ["echo"]
            assert text_of(await call(session, "echo", {"text": "hé"})) == "hé"
            assert (session.in_flight, session.pid) == (0, None)
        assert [request.rpc for request in peer.requests if request.rpc != "GET"] == [
            "server/discover",
            "initialize",
            "notifications/initialized",
            "tools/list",
            "tools/call",
            "DELETE",
        ]
        probe, initialize, *later = [request.headers for request in peer.requests]
        assert probe["mcp-protocol-version"] == "2026-07-28"
        assert probe["mcp-method"] == "server/discover"
        assert "mcp-protocol-version" not in initialize
        assert "mcp-session-id" not in initialize
        for headers in later:
            assert headers["mcp-session-id"] == "session-1"
            assert headers["mcp-protocol-version"] == "2025-11-25"
            assert "mcp-method" not in headers
        for request in peer.requests:
            assert request.headers["authorization"] == "Bearer t"
            assert request.headers["x-own"] == "1"
            if request.method == "POST":
                assert request.headers["accept"] == "application/json, text/event-stream"
                assert request.headers["content-type"] == "application/json"


async def test_streamed_progress_is_ordered_under_the_clients_token() -> None:
    server = LegacyServer()
    server.on["tools/call"] = streamed
    async with open_peer(server) as peer, open_session(peer.url) as session:
        pending = start_call(session, progress=True)
        notifications = [await pending.next() for _ in range(2)]
        params = [
            jsonrpc.decode_any(jsonrpc.encode(notification.params))
            for notification in notifications
            if isinstance(notification, Notification)
        ]
        assert params == [{"progressToken": "client-token", "progress": number} for number in (1, 2)]
        assert text_of(await outcome(pending)) == "streamed"


async def test_concurrent_calls_share_few_connections() -> None:
    server = LegacyServer()
    async with open_peer(server) as peer:
        async with open_session(peer.url, max_concurrency=8) as session:
            for _ in range(5):
                pending_calls = [start_call(session, "echo", {"text": str(number)}) for number in range(8)]
                assert [text_of(await outcome(pending)) for pending in pending_calls] == [
                    str(number) for number in range(8)
                ]
        assert peer.connections <= 10


async def test_cancelling_sends_a_notification() -> None:
    server = LegacyServer()

    async def hang(request: Request, reply: Reply) -> None:
        await reply.begin()
        await reply.hung_up()

    server.on["tools/call"] = hang
    async with open_peer(server) as peer, open_session(peer.url) as session:
        pending = start_call(session)
        sent = await peer.received("tools/call")
        pending.close("changed my mind")
        cancelled = await peer.received("notifications/cancelled")
        assert cancelled.params == {"requestId": sent.message["id"], "reason": "changed my mind"}
        assert session.in_flight == 0
        server.on.clear()
        assert text_of(await call(session, "echo", {"text": "still here"})) == "still here"
        await peer.wait(lambda: peer.open_connections <= 2)


async def test_pings_are_answered_and_undeclared_requests_refused() -> None:
    server = LegacyServer()
    replies: list[Any] = []

    async def ask(request: Request, reply: Reply) -> None:
        await reply.begin()
        await reply.event({"jsonrpc": "2.0", "id": "p1", "method": "ping"})
        await reply.event({"jsonrpc": "2.0", "id": "p2", "method": "vendor/thing", "params": {}})
        await peer.wait(lambda: len(peer.all("response")) == 2)
        await reply.answer_event(text("done"))

    server.on["tools/call"] = ask
    async with open_peer(server) as peer, open_session(peer.url) as session:
        assert text_of(await call(session)) == "done"
        replies = [request.message for request in peer.all("response")]
    assert replies[0] == {"jsonrpc": "2.0", "id": "p1", "result": {}}
    assert replies[1]["id"] == "p2"
    assert replies[1]["error"]["code"] == -32601


# -- sessions that are lost --------------------------------------------------------------------------------------------


@pytest.mark.parametrize("how", ["404", "400 with a page", "404 naming the request"])
async def test_a_lost_session_is_replaced_and_calls_resent(how: str) -> None:
    server = LegacyServer()
    listener = Received()

    async def restarted(request: Request, reply: Reply) -> None:
        if request.headers["mcp-session-id"] != "session-1":
            await server.on_tools_call(request, reply)
        elif how == "404":
            await reply.send(404)
        elif how == "400 with a page":
            await reply.send(400, b"Bad Request: No valid session ID provided", "text/plain")
        else:
            await reply.error(-32001, "Session not found", status=404)

    server.on["tools/call"] = restarted
    async with open_peer(server) as peer, open_session(peer.url, listener=listener) as session:
        pending_calls = [start_call(session, "echo", {"text": str(number)}) for number in range(3)]
        assert [text_of(await outcome(pending)) for pending in pending_calls] == ["0", "1", "2"]
        assert server.session == 2
        assert len(peer.all("notifications/initialized")) == 2
        assert "mcp-session-id" not in peer.all("initialize")[1].headers
        await listener.change()  # the new server may offer something else


async def test_a_server_rejecting_every_session_fails_the_call() -> None:
    server = LegacyServer()

    async def never(request: Request, reply: Reply) -> None:
        await reply.send(404, b"<html>", "text/html")

    server.on["tools/call"] = never
    async with open_peer(server) as peer, open_session(peer.url) as session:
        found = await call(session)
        assert isinstance(found, HttpRefused)
        assert "HTTP 404 and text/html" in found.reason
        assert len(peer.all("tools/call")) == 2


async def test_a_session_without_a_replacement_ends() -> None:
    server = LegacyServer()
    async with open_peer(server) as peer:

        async def use() -> None:
            async with open_session(peer.url) as session:
                server.session = 99
                server.on["initialize"] = server.on_ping  # no valid result
                assert isinstance(await call(session), BackendExited)
                await trio.sleep_forever()

        with pytest.raises(BackendExited, match="forgotten the session"):
            await use()


async def test_an_unknown_method_is_not_a_lost_session() -> None:
    server = LegacyServer()

    async def unknown(request: Request, reply: Reply) -> None:
        await reply.error(-32601, "no such method", status=404)

    server.on["tools/call"] = unknown
    async with open_peer(server) as peer, open_session(peer.url) as session:
        assert await call(session) == Failure(-32601, "no such method", None, Era.LEGACY)
        assert server.session == 1


# -- streams that are cut ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("clean", [True, False])
async def test_a_cut_stream_without_ids_fails_its_call(clean: bool) -> None:
    server = LegacyServer()
    other = trio.Event()

    async def cut(request: Request, reply: Reply) -> None:
        await reply.begin()
        if request.params.get("name") == "other":
            await other.wait()
            await reply.answer_event(text("other"))
            return
        await reply.raw(b'data: {"jsonrpc":"2.0",')
        if not clean:
            await reply.cut()

    server.on["tools/call"] = cut
    async with open_peer(server) as peer, open_session(peer.url) as session:
        undisturbed = start_call(session, "other")
        found = await call(session)
        assert isinstance(found, BackendExited), found
        other.set()
        assert text_of(await outcome(undisturbed)) == "other"


@pytest.mark.parametrize("clean", [True, False])
async def test_a_cut_stream_resumes_after_the_retry_delay(clean: bool) -> None:
    server = LegacyServer()

    async def poll(request: Request, reply: Reply) -> None:
        await reply.begin()
        await reply.raw(b"id: s/0\nretry: 30\ndata:\n\n")
        times.append(trio.current_time())
        if not clean:
            await reply.cut()

    async def resume(request: Request, reply: Reply) -> None:
        last = request.headers.get("last-event-id")
        if last is None:
            await reply.send(405)
            return
        times.append(trio.current_time())
        await reply.begin()
        if last == "s/0":
            await reply.event({"jsonrpc": "2.0", "method": "notifications/message", "params": {}}, id="s/1")
            return
        assert last == "s/1"
        answer = {"jsonrpc": "2.0", "id": peer.all("tools/call")[0].message["id"], "result": text("late")}
        await reply.event(answer, id="s/2")

    times: list[float] = []
    server.on["tools/call"] = poll
    server.on["GET"] = resume
    async with open_peer(server) as peer, open_session(peer.url) as session:
        assert text_of(await call(session)) == "late"
        assert len(peer.all("tools/call")) == 1
    assert len(times) == 3
    assert all(later - earlier >= 0.03 for earlier, later in pairwise(times))


@pytest.mark.parametrize("end", ["cancelled", "answered", "cut for good"])
async def test_a_resumed_stream_counts_nothing_after_its_end(end: str) -> None:
    server, buffers = LegacyServer(), Budget(2**20)
    arrived = trio.Event()

    async def prime(request: Request, reply: Reply) -> None:
        await reply.begin()
        await reply.raw(b"id: s/0\ndata:\n\n")

    async def resume(request: Request, reply: Reply) -> None:
        if request.headers.get("last-event-id") is None or arrived.is_set():
            await reply.send(405)
            return
        await reply.begin()
        if end == "answered":
            answer = {"jsonrpc": "2.0", "id": peer.all("tools/call")[0].message["id"], "result": text("late")}
            await reply.raw(b"data: %s\n\ndata: %s" % (json.dumps(answer).encode(), b"x" * 60_000))
        else:
            await reply.raw(b"data: " + b"x" * 60_000)
            while not buffers.used:
                await trio.lowlevel.checkpoint()
            arrived.set()
        if end == "cancelled":
            await reply.hung_up()

    server.on["tools/call"] = prime
    server.on["GET"] = resume
    opener = HttpOpener(buffers=buffers, timing=QUICK)
    async with open_peer(server) as peer, open_session(peer.url, opener=opener) as session:
        pending = start_call(session)
        if end == "cancelled":
            await arrived.wait()
            pending.close()
        else:
            await outcome(pending)
    assert buffers.used == 0


async def test_a_stream_that_cannot_resume_ends_its_call() -> None:
    server = LegacyServer()

    async def prime(request: Request, reply: Reply) -> None:
        await reply.begin()
        await reply.raw(b"id: s/0\ndata:\n\n")

    server.on["tools/call"] = prime
    async with open_peer(server) as peer, open_session(peer.url) as session:
        found = await call(session)
        assert isinstance(found, BackendExited)
        assert "does not resume it (HTTP 405)" in found.reason


async def test_a_stream_left_open_after_its_answer_closes() -> None:
    server = LegacyServer()

    closed = trio.Event()

    async def linger(request: Request, reply: Reply) -> None:
        await reply.begin()
        await reply.answer_event(text("answered"))
        try:
            await reply.hung_up()
        finally:
            closed.set()

    server.on["tools/call"] = linger
    async with open_peer(server) as peer, open_session(peer.url) as session:
        assert text_of(await call(session)) == "answered"
        await closed.wait()


# -- the GET stream ----------------------------------------------------------------------------------------------------


async def test_the_get_stream_is_resumed_where_it_ended() -> None:
    server, listener = LegacyServer(), Received()
    hold = trio.Event()

    async def stream(request: Request, reply: Reply) -> None:
        assert request.headers["accept"] == "text/event-stream"
        assert request.headers["mcp-session-id"] == "session-1"
        number = len(peer.all("GET"))
        await reply.begin()
        if number == 1:
            await reply.raw(b": hello\n\n")
        elif number == 2:
            change = {"jsonrpc": "2.0", "method": "notifications/tools/list_changed"}
            await reply.event(change, id="g/7")
            await reply.cut()
        else:
            await hold.wait()

    server.on["GET"] = stream
    async with open_peer(server) as peer, open_session(peer.url, listener=listener):
        third = await peer.received("GET", 3)
        assert "last-event-id" not in peer.all("GET")[1].headers
        assert third.headers["last-event-id"] == "g/7"
        # Once for what the second connection may have missed, once for its notification; the third missed nothing.
        assert listener.received.count("tools") == 2
        hold.set()


async def test_the_get_stream_is_tried_only_once() -> None:
    server, opener = LegacyServer(), HttpOpener(timing=Timing(stream_pause=0.0))
    async with open_peer(server) as peer, open_session(peer.url, opener=opener) as session:
        await peer.received("GET")
        for _ in range(10):
            await call(session)
        assert len(peer.all("GET")) == 1


async def test_a_new_session_has_its_own_get_stream() -> None:
    server = LegacyServer()

    async def stream(request: Request, reply: Reply) -> None:
        await reply.begin()
        await reply.event({"jsonrpc": "2.0", "method": "vendor/hello"}, id=request.headers["mcp-session-id"])
        await reply.hung_up()

    server.on["GET"] = stream
    async with open_peer(server) as peer, open_session(peer.url) as session:
        await peer.received("GET")
        server.session = 7
        assert text_of(await call(session, "echo", {"text": "x"})) == "x"
        second = await peer.received("GET", 2)
        assert second.headers["mcp-session-id"] == "session-8"
        assert "last-event-id" not in second.headers


async def test_a_server_without_sessions_has_no_get_stream() -> None:
    async with open_peer(LegacyServer(sessions=False)) as peer:
        async with open_session(peer.url) as session:
            assert text_of(await call(session, "echo", {"text": "x"})) == "x"
        assert peer.all("GET") == []
        assert peer.all("DELETE") == []


# -- answers that are none ---------------------------------------------------------------------------------------------


def page(status: int, kind: str = "text/html") -> Any:
    async def answer(request: Request, reply: Reply) -> None:
        await reply.send(status, b"<html>no</html>", kind)

    return answer


def json_body(value: Any, status: int = 200) -> Any:
    async def answer(request: Request, reply: Reply) -> None:
        body = json.dumps(value).replace('"ID"', str(request.message["id"])).encode()
        await reply.send(status, body)

    return answer


async def accepted(request: Request, reply: Reply) -> None:
    await reply.send(202)


async def huge(request: Request, reply: Reply) -> None:
    await reply.result(text("x" * 100_000))


async def huge_chunked(request: Request, reply: Reply) -> None:
    reply.begun = True
    fields = [("content-type", "application/json"), ("transfer-encoding", "chunked")]
    await reply._send(h11.Response(status_code=200, headers=fields))
    for _ in range(100):
        await reply.raw(b" " * 1_000)


async def huge_event(request: Request, reply: Reply) -> None:
    await reply.begin()
    await reply.answer_event(text("x" * 100_000))


async def no_response(request: Request, reply: Reply) -> None:
    await reply.cut()


@pytest.mark.parametrize(
    ("answer", "kind", "says"),
    [
        (page(200), BackendProtocol, "HTTP 200 and text/html, not MCP"),
        (page(500), BackendProtocol, "HTTP 500 and text/html"),
        (page(401), BackendProtocol, "requires authorization (HTTP 401)"),
        (page(403), BackendProtocol, "HTTP 403"),
        (page(200, "application/json"), BackendProtocol, "without a response to it"),
        (json_body([]), BackendProtocol, "without a response to it"),
        (json_body({"jsonrpc": "2.0", "id": "ID", "result": 5}), BackendProtocol, "not an object"),
        (json_body({"jsonrpc": "2.0", "id": 4711, "result": {}}), BackendProtocol, "without a response to it"),
        (accepted, BackendProtocol, "without answering"),
        (huge, BackendProtocol, "max_line_bytes"),
        (huge_chunked, BackendProtocol, "max_line_bytes"),
        (huge_event, BackendProtocol, "max_line_bytes"),
        (no_response, BackendExited, "broke the connection"),
    ],
)
async def test_an_invalid_answer_ends_its_call_clearly(answer: Any, kind: type, says: str) -> None:
    server = LegacyServer()
    server.on["tools/call"] = answer
    async with open_peer(server) as peer, open_session(peer.url, max_line_bytes=10_000) as session:
        found = await call(session)
        assert isinstance(found, kind), found
        assert says in found.reason
        server.on.clear()
        assert text_of(await call(session, "echo", {"text": "fine"})) == "fine"


@pytest.mark.parametrize("answer", [huge, huge_chunked, huge_event])
async def test_a_result_that_fits_no_buffer_ends_its_call_only(answer: Any) -> None:
    server, buffers = LegacyServer(), Budget(50_000)
    server.on["tools/call"] = answer
    opener = HttpOpener(buffers=buffers)
    async with open_peer(server) as peer, open_session(peer.url, opener=opener) as session:
        assert isinstance(await call(session), BuffersFull)
        server.on.clear()
        assert text_of(await call(session, "echo", {"text": "fine"})) == "fine"
        buffers.most = 200_000
        server.on["tools/call"] = huge_event
        assert text_of(await call(session)) == "x" * 100_000
    assert buffers.used == 0


@pytest.mark.parametrize(
    ("value", "status"),
    [
        ({"jsonrpc": "2.0", "id": "ID", "error": {"code": -32000, "message": "own", "data": 1}}, 200),
        ({"jsonrpc": "2.0", "id": "ID", "error": {"code": -32000, "message": "own", "data": 1}}, 400),
        ({"jsonrpc": "2.0", "id": None, "error": {"code": -32000, "message": "own", "data": 1}}, 200),
        ({"jsonrpc": "2.0", "id": None, "error": {"code": -32000, "message": "own", "data": 1}}, 500),
    ],
)
async def test_a_servers_own_error_reaches_the_call(value: Any, status: int) -> None:
    server = LegacyServer()
    server.on["tools/call"] = json_body(value, status)
    async with open_peer(server) as peer, open_session(peer.url) as session:
        assert await call(session) == Failure(-32000, "own", b"1", Era.LEGACY)


async def test_an_expired_call_leaves_no_connection() -> None:
    server = LegacyServer()

    async def silent(request: Request, reply: Reply) -> None:
        await reply.hung_up()

    server.on["tools/call"] = silent
    async with open_peer(server) as peer, open_session(peer.url) as session:
        pending = start_call(session)
        pending.deadline = trio.current_time() + 0.05
        assert isinstance(await outcome(pending), BackendTooSlow)
        await peer.received("notifications/cancelled")
        await peer.wait(lambda: peer.open_connections <= 2)


# -- redirects ---------------------------------------------------------------------------------------------------------


def moved(status: int, where: str) -> Any:
    async def answer(request: Request, reply: Reply) -> None:
        await reply.send(status, location=where)

    return answer


@pytest.mark.parametrize("status", [301, 302, 307, 308])
async def test_same_origin_redirects_keep_method_and_body(status: int) -> None:
    server = LegacyServer()

    async def handler(request: Request, reply: Reply) -> None:
        if request.target == "/mcp":
            await reply.send(status, location="/mcp/")
        else:
            await server(request, reply)

    async with open_peer(handler) as peer, open_session(peer.url, transport="http") as session:
        assert text_of(await call(session, "echo", {"text": "x"})) == "x"
        assert {request.method for request in peer.requests} <= {"POST", "GET"}
        # A permanent redirect is remembered.
        assert (len([request for request in peer.requests if request.target == "/mcp"]) == 1) is (status in {301, 308})


@pytest.mark.parametrize(
    ("status", "where", "says"),
    [
        (307, "http://127.0.0.1:9/mcp", "another origin, http://127.0.0.1:9 "),
        (308, "https://127.0.0.1/mcp", "another origin, https://127.0.0.1 "),
        (302, "//example.invalid/mcp", "another origin, http://example.invalid "),
        (307, "/mcp", "in a loop"),
        (303, "/elsewhere", "cannot be followed (HTTP 303)"),
    ],
)
async def test_any_other_redirect_is_a_clear_error(status: int, where: str, says: str) -> None:
    async with open_peer(moved(status, where)) as peer:
        with pytest.raises(BackendProtocol) as caught:
            async with open_session(peer.url, headers={"Authorization": "secret"}):
                pytest.fail("opened")
        assert says in caught.value.reason
        assert len(peer.requests) <= 2 * (MAX_REDIRECTS + 1)


# -- servers that are not there ----------------------------------------------------------------------------------------


async def test_a_refused_connection_is_unavailable() -> None:
    async with open_peer(LegacyServer()) as peer:
        url = peer.url
    with pytest.raises(BackendUnavailable, match="cannot be reached"):
        async with open_session(url):
            pytest.fail("opened")


async def test_a_disappearing_server_ends_session_and_calls() -> None:
    server = LegacyServer()
    hung = trio.Event()

    async def hang(request: Request, reply: Reply) -> None:
        hung.set()
        await reply.hung_up()

    server.on["tools/call"] = hang

    async def use(url: str) -> None:
        async with open_session(url) as session:
            pending = start_call(session)
            await hung.wait()
            peer.stop()
            assert isinstance(await outcome(pending), BackendExited)
            await trio.sleep_forever()

    async with open_peer(server) as peer:
        with pytest.raises(BackendExited):
            await use(peer.url)


async def test_a_new_call_may_discover_the_server_gone() -> None:
    async def use(url: str) -> None:
        async with open_session(url) as session:
            peer.stop()
            found = await call(session)
            assert isinstance(found, (BackendUnavailable, BackendExited))
            await trio.sleep_forever()

    async with open_peer(LegacyServer()) as peer:
        with pytest.raises(BackendExited, match="cannot be reached"):
            await use(peer.url)


async def test_a_silent_handshake_is_too_slow() -> None:
    async def silent(request: Request, reply: Reply) -> None:
        await reply.hung_up()

    async with open_peer(silent) as peer:
        with pytest.raises((trio.TooSlowError, BackendTooSlow)):
            async with open_session(peer.url, connect_timeout=0.2, probe_timeout=0.05, transport="http"):
                pytest.fail("opened")
        await peer.wait(lambda: peer.open_connections == 0)


async def test_an_unanswered_delete_does_not_delay_shutdown() -> None:
    server = LegacyServer()

    async def silent(request: Request, reply: Reply) -> None:
        await reply.hung_up()

    server.on["DELETE"] = silent
    async with open_peer(server) as peer:
        async with open_session(peer.url):
            began = trio.current_time()
        assert trio.current_time() - began < 5
        assert len(peer.all("DELETE")) == 1


# -- modern ------------------------------------------------------------------------------------------------------------


async def test_a_modern_server_gets_headers_and_no_initialize() -> None:
    server = ModernServer()
    nested = {"type": "object", "properties": {"city": {"type": "string", "x-mcp-header": "City"}}}
    server.tools = [
        tool("naïve tool", region={"type": "string", "x-mcp-header": "Region"}, place=nested, n={"type": "integer"}),
        tool("plain"),
    ]
    async with open_peer(server) as peer:
        async with open_session(peer.url) as session:
            assert session.greeting.era is Era.MODERN
            arguments = {"region": "Zürich", "place": {"city": "a b"}, "n": 1, "text": "x"}
            assert text_of(await call(session, "naïve tool", arguments)) == "x"
            await call(session, "plain", {"text": "y"})
            await call(session, "file:///ä", method="resources/read")
        assert {request.method for request in peer.requests} == {"POST"}
        assert {request.rpc for request in peer.requests} == {
            "server/discover", "tools/list", "tools/call", "resources/read",
        }  # fmt: skip
        for request in peer.requests:
            assert request.headers["mcp-protocol-version"] == "2026-07-28"
            assert request.headers["mcp-method"] == request.rpc
            assert "mcp-session-id" not in request.headers
        special, plain = (request.headers for request in peer.all("tools/call"))
        assert special["mcp-name"] == "=?base64?bmHDr3ZlIHRvb2w=?="
        assert special["mcp-param-region"] == "=?base64?WsO8cmljaA==?="
        assert special["mcp-param-city"] == "a b"
        assert plain["mcp-name"] == "plain"
        assert not [name for name in plain if name.startswith("mcp-param-")]
        assert peer.all("resources/read")[0].headers["mcp-name"] == "=?base64?ZmlsZTovLy/DpA==?="


async def test_tools_with_invalid_annotations_are_dropped_and_logged(caplog: pytest.LogCaptureFixture) -> None:
    server = ModernServer()
    server.tools = [tool("good"), tool("bad", x={"type": "number", "x-mcp-header": "X"})]
    async with open_peer(server) as peer, open_session(peer.url) as session:
        assert [item.own for item in session.listing.items[Kind.TOOLS]] == ["good"]
        assert [item.own for item in (await session.relist("tools")).items[Kind.TOOLS]] == ["good"]
        assert "tool 'bad' left out" in session.listing.warnings[0]
    assert logged_events(caplog, "list_problem")


async def test_a_header_mismatch_rereads_tools_and_retries() -> None:
    server, listener = ModernServer(), Received()

    async def strict(request: Request, reply: Reply) -> None:
        if request.headers.get("mcp-param-r") == "v":
            await server.on_tools_call(request, reply)
        else:
            server.tools = [tool("echo", r={"type": "string", "x-mcp-header": "R"})]
            await reply.error(-32020, "Header mismatch", status=400)

    server.on["tools/call"] = strict
    async with open_peer(server) as peer, open_session(peer.url, listener=listener) as session:
        assert text_of(await call(session, "echo", {"r": "v", "text": "x"})) == "x"
        assert "tools" in listener.received
        found = await call(session, "echo", {"r": "other"})
        assert isinstance(found, Failure)
        assert found.code == -32020
        assert len(peer.all("tools/call")) == 4


async def test_modern_cancel_closes_the_stream_silently() -> None:
    server = ModernServer()
    gone = trio.Event()

    async def hang(request: Request, reply: Reply) -> None:
        await reply.begin()
        try:
            await reply.hung_up()
        finally:
            gone.set()

    server.on["tools/call"] = hang
    async with open_peer(server) as peer, open_session(peer.url) as session:
        pending = start_call(session)
        await peer.received("tools/call")
        pending.close()
        await gone.wait()
        assert peer.all("notifications/cancelled") == []
        server.on.clear()
        assert text_of(await call(session, "echo", {"text": "x"})) == "x"


async def test_modern_changes_arrive_and_ended_subscriptions_are_reopened() -> None:
    server, listener = ModernServer(), Received()

    async def discover(request: Request, reply: Reply) -> None:
        capabilities = {"tools": {"listChanged": True}}
        await reply.result({
            "resultType": "complete",
            "supportedVersions": ["2026-07-28"],
            "capabilities": capabilities,
        })

    async def listen(request: Request, reply: Reply) -> None:
        assert request.params["notifications"] == {"toolsListChanged": True}
        await reply.begin()
        if len(peer.all("subscriptions/listen")) == 1:
            await reply.event({"jsonrpc": "2.0", "method": "notifications/tools/list_changed", "params": {}})
            await reply.cut()
        await reply.hung_up()

    server.on |= {"server/discover": discover, "subscriptions/listen": listen}
    async with open_peer(server) as peer:
        async with open_session(peer.url, listener=listener):
            await peer.received("subscriptions/listen", 2)
            assert listener.received.count("tools") == 2
        await peer.wait(lambda: peer.open_connections == 0)


async def test_a_cut_modern_stream_is_never_resumed() -> None:
    server = ModernServer()

    async def prime(request: Request, reply: Reply) -> None:
        await reply.begin()
        await reply.raw(b"id: s/0\nretry: 1\ndata:\n\n")

    server.on["tools/call"] = prime
    async with open_peer(server) as peer, open_session(peer.url) as session:
        assert isinstance(await call(session), BackendExited)
        assert peer.all("GET") == []


async def test_the_detected_transport_is_kept_until_disproved() -> None:
    server: Any = LegacyServer()

    async def handler(request: Request, reply: Reply) -> None:
        await server(request, reply)

    opener = HttpOpener()
    async with open_peer(handler) as peer:
        for _ in range(2):
            async with open_session(peer.url, opener=opener) as session:
                assert session.greeting.era is Era.LEGACY
        assert len(peer.all("server/discover")) == 1
        server = ModernServer()
        with pytest.raises(BackendProtocol):
            async with open_session(peer.url, opener=opener):
                pytest.fail("a modern server knows no initialize")
        async with open_session(peer.url, opener=opener) as session:
            assert session.greeting.era is Era.MODERN


# -- the SDK's server --------------------------------------------------------------------------------------------------


@asynccontextmanager
async def sdk_server(*options: str) -> AsyncGenerator[str]:
    command = [sys.executable, str(PEERS / "sdk_server.py"), "--transport", "streamable-http", *options]
    process = await trio.lowlevel.open_process(command, stderr=subprocess.PIPE)
    assert process.stderr is not None
    try:
        said = b""
        with trio.fail_after(20):
            while b"\n" not in said:
                more = await process.stderr.receive_some(4096)
                assert more, said
                said += more
        yield said.decode().split("listening on ")[1].split()[0]
    finally:
        process.kill()
        with trio.CancelScope(shield=True, deadline=trio.current_time() + 10):
            await process.wait()
            await process.stderr.aclose()


@pytest.mark.parametrize("options", [(), ("--json",), ("--stateless",)], ids=["sse", "json", "stateless"])
async def test_the_sdks_server_in_both_eras(options: tuple[str, ...]) -> None:
    async with sdk_server(*options) as url:
        for era in ("legacy", "modern"):
            async with open_session(url, era=era) as session:
                assert session.greeting.era == era
                names = {item.own for item in session.listing.items[Kind.TOOLS]}
                assert names == {"echo", "add", "progress", "structured", "fail"}
                assert text_of(await call(session, "echo", {"text": "x"})) == "x"
                pending = start_call(session, "progress", {"n": 3}, progress=True)
                notifications = 0
                while isinstance(found := await pending.next(), Notification):
                    notifications += 1
                assert text_of(found) == "3 steps"
                assert notifications == (0 if "--json" in options else 3)
                assert result_of(await call(session, "structured", {"x": 1, "y": 2}))["structuredContent"]["x"] == 1
                read = result_of(await call(session, "note://today", method="resources/read"))
                assert read["contents"][0]["text"] == "Nothing today."


# -- the environment ---------------------------------------------------------------------------------------------------


async def test_environment_proxies_are_used_except_for_loopback(monkeypatch: pytest.MonkeyPatch) -> None:
    async def proxy(request: Request, reply: Reply) -> None:
        assert request.target.startswith("http://backend.invalid/")
        await server(Request(request.method, "/mcp", request.headers, request.body, 0), reply)

    server = LegacyServer()
    async with open_peer(proxy, path="") as middle, open_peer(LegacyServer()) as peer:
        for name in ("http_proxy", "HTTP_PROXY"):
            monkeypatch.setenv(name, middle.url)
        for name in ("no_proxy", "NO_PROXY", "all_proxy", "ALL_PROXY"):
            monkeypatch.delenv(name, raising=False)
        async with open_session(peer.url) as session:
            assert text_of(await call(session, "echo", {"text": "direct"})) == "direct"
        assert middle.requests == []
        async with open_session("http://backend.invalid/mcp", headers={"X-Key": "k"}) as session:
            assert text_of(await call(session, "echo", {"text": "by proxy"})) == "by proxy"
        assert {request.headers["x-key"] for request in middle.requests} == {"k"}


async def test_a_tls_failure_is_a_clear_error() -> None:
    async with open_peer(LegacyServer()) as peer:
        with pytest.raises(BackendUnavailable, match=r"cannot be reached: .*(SSL|wrong version|record layer)"):
            async with open_session(peer.url.replace("http:", "https:")):
                pytest.fail("opened")


async def test_load_balancer_cookies_are_sent_back() -> None:
    server = LegacyServer()

    async def sticky(request: Request, reply: Reply) -> None:
        server.session += 1
        result = {"protocolVersion": "2025-11-25", "capabilities": {"tools": {}}, "serverInfo": {"name": "p"}}
        await reply.result(result, mcp_session_id="session-1", set_cookie="node=7; Path=/")

    server.on["initialize"] = sticky
    async with open_peer(server) as peer, open_session(peer.url) as session:
        await call(session)
        assert peer.all("tools/call")[0].headers["cookie"] == "node=7"


@pytest.mark.parametrize("size", [0, 2_000], ids=["many", "long"])
async def test_cookies_are_kept_within_bounds(size: int) -> None:
    server = LegacyServer()

    async def generous(request: Request, reply: Reply) -> None:
        cookie = f"n{len(peer.all('tools/call'))}={'v' * size}; Path=/"
        await reply.result({"content": [{"type": "text", "text": "ok"}]}, set_cookie=cookie)

    server.on["tools/call"] = generous
    async with open_peer(server) as peer, open_session(peer.url) as session:
        for _ in range(2 * MAX_COOKIES):
            await call(session)
        sent = [request.headers.get("cookie", "") for request in peer.all("tools/call")]
    counts = [cookies.count("=") for cookies in sent]
    assert 1 < max(counts) <= MAX_COOKIES
    assert max(map(len, sent)) <= MAX_COOKIE_BYTES + len("=; ") * MAX_COOKIES
    assert any(counts[-10:])  # those that come later are kept again


async def test_stdio_backends_do_not_load_the_http_client() -> None:
    code = "import sys, gateway.app; sys.exit('httpx2' in sys.modules)"
    assert (await trio.run_process([sys.executable, "-c", code], check=False, cwd=PEERS.parent.parent)).returncode == 0
