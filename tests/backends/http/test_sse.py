"""Backends over the SSE transport of 2024-11-05, and detection of the transport of a `url`."""

from __future__ import annotations

import json
import subprocess
import sys
from typing import Any

import pytest
import trio

from gateway.backends.http import streamable
from gateway.backends.http.detect import HttpOpener
from gateway.backends.http.sse import SseSession
from gateway.backends.http.streamable import StreamableSession
from gateway.budget import Budget
from gateway.calls import Era, Failure
from gateway.eras.methods import Kind
from gateway.errors import BackendError, BackendExited, BackendProtocol, BackendTooSlow, BackendUnfit, BuffersFull
from tests.peers import http_peer
from tests.peers.http_peer import LegacyServer, ModernServer, Reply, Request, SseServer, open_peer, text
from tests.support.http_sessions import call, open_session, outcome, start_call, text_of

pytestmark = pytest.mark.leak_check

SDK_SERVER = """
import socket, sys, uvicorn
from mcp.server.mcpserver import MCPServer
server = MCPServer("sdk", log_level="WARNING")

@server.tool(structured_output=False)
def echo(text: str) -> str:
    return text

listener = socket.socket(socket.AF_INET, socket.SOCK_STREAM, socket.IPPROTO_TCP)
listener.bind(("127.0.0.1", 0))
listener.listen(10)
print(f"listening on http://127.0.0.1:{listener.getsockname()[1]}/sse", file=sys.stderr, flush=True)
uvicorn.Server(uvicorn.Config(server.sse_app(), log_level="warning")).run(sockets=[listener])
"""


async def test_a_session_runs_from_endpoint_event_to_close() -> None:
    server = SseServer()
    async with open_peer(server, path="/sse") as peer:
        async with open_session(peer.url, transport="sse", headers={"X-Key": "k"}) as session:
            assert session.greeting.version == "2024-11-05"
            assert session.greeting.era is Era.LEGACY
            assert [item.own for item in session.listing.items[Kind.TOOLS]] == ["echo"]
            pending_calls = [start_call(session, "echo", {"text": str(number)}) for number in range(20)]
            assert [text_of(await outcome(pending)) for pending in pending_calls] == [
                str(number) for number in range(20)
            ]
            assert (session.in_flight, session.pid) == (0, None)
        assert [request.rpc for request in peer.requests][:4] == [
            "GET",
            "initialize",
            "notifications/initialized",
            "tools/list",
        ]
        assert {request.target for request in peer.requests} == {"/sse", "/messages/?session_id=1"}
        assert all(request.headers["x-key"] == "k" for request in peer.requests)
        await peer.wait(lambda: peer.open_connections == 0)


@pytest.mark.parametrize(
    ("server", "path"), [(LegacyServer(), "/mcp"), (ModernServer(), "/mcp"), (SseServer(), "/sse")], ids=["l", "m", "s"]
)
async def test_a_bom_before_every_message_is_skipped(server: Any, path: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(http_peer, "dump", lambda value: b"\xef\xbb\xbf" + json.dumps(value).encode())
    async with open_peer(server, path=path) as peer, open_session(peer.url) as session:
        assert text_of(await call(session, "echo", {"text": "x"})) == "x"


@pytest.mark.parametrize(
    ("endpoint", "good"),
    [
        ("http://127.0.0.1:{port}/m", True),
        ("m?x=1", True),
        ("http://127.0.0.1:9/m", False),
        ("https://127.0.0.1:{port}/m", False),
        ("//example.invalid/m", False),
        ("http://[", False),
    ],
)
async def test_the_endpoint_must_be_of_the_same_origin(endpoint: str, good: bool) -> None:
    server = SseServer()

    async def stream(request: Request, reply: Reply) -> None:
        await reply.begin()
        server.stream = reply
        port = peer.url.split(":")[2].split("/")[0]
        server.endpoint = "/m?x=1" if endpoint.startswith("m") else "/m"
        await reply.event(endpoint.format(port=port), event="endpoint")
        await reply.hung_up()

    server.on["GET"] = stream
    async with open_peer(server, path="/sse") as peer:
        if good:
            async with open_session(peer.url, transport="sse") as session:
                assert text_of(await call(session, "echo", {"text": "x"})) == "x"
            return
        with pytest.raises(BackendProtocol, match="not the origin"):
            async with open_session(peer.url, transport="sse"):
                pytest.fail("opened")
        assert len(peer.requests) == 1


@pytest.mark.parametrize("clean", [True, False])
async def test_the_end_of_the_stream_ends_the_session(clean: bool) -> None:
    server = SseServer()
    cut = trio.Event()

    async def stream(request: Request, reply: Reply) -> None:
        await reply.begin()
        server.stream = reply
        await reply.event(server.endpoint, event="endpoint")
        await cut.wait()
        if not clean:
            await reply.cut()

    async def swallow(request: Request, reply: Reply) -> None:
        await reply.send(202)

    async def use() -> None:
        async with open_session(peer.url, transport="sse") as session:
            server.on["tools/call"] = swallow
            pending = start_call(session)
            await peer.received("tools/call")
            cut.set()
            assert isinstance(await outcome(pending), BackendExited)
            assert isinstance(await call(session), BackendExited)
            await trio.sleep_forever()

    server.on["GET"] = stream
    async with open_peer(server, path="/sse") as peer:
        with pytest.raises(BackendExited):
            await use()


async def test_cancelling_a_call_notifies_the_server() -> None:
    server = SseServer()

    async def swallow(request: Request, reply: Reply) -> None:
        await reply.send(202)

    async with open_peer(server, path="/sse") as peer, open_session(peer.url, transport="sse") as session:
        server.on["tools/call"] = swallow
        pending = start_call(session)
        sent = await peer.received("tools/call")
        pending.close("changed my mind")
        cancelled = await peer.received("notifications/cancelled")
        assert cancelled.params == {"requestId": sent.message["id"], "reason": "changed my mind"}


@pytest.mark.parametrize("bound", ["max_line_bytes", "max_buffered_bytes"])
async def test_an_oversized_event_costs_its_own_call_only(bound: str) -> None:
    server = SseServer()

    async def answer(request: Request, reply: Reply) -> None:
        await reply.send(202)
        size = 100_000 if request.params["name"] == "big" else 1
        await server.say({"jsonrpc": "2.0", "id": request.message["id"], "result": text("x" * size)})

    server.on["tools/call"] = answer
    opener = HttpOpener(buffers=Budget(50_000)) if bound == "max_buffered_bytes" else None
    fields = {"transport": "sse"} | ({"max_line_bytes": 10_000} if opener is None else {})
    async with (
        open_peer(server, path="/sse") as peer,
        open_session(peer.url, opener=opener, **fields) as session,
    ):
        pending_calls = [start_call(session, name) for name in ("small", "big", "small")]
        one, big, two = [await outcome(pending) for pending in pending_calls]
        assert text_of(one) == text_of(two) == "x"
        assert isinstance(big, BackendProtocol if opener is None else BuffersFull)
        assert bound in big.reason


async def test_a_refused_post_ends_its_call() -> None:
    server = SseServer()

    async def refuse(request: Request, reply: Reply) -> None:
        await reply.send(500, b"<html>", "text/html")

    async with open_peer(server, path="/sse") as peer, open_session(peer.url, transport="sse") as session:
        server.on["tools/call"] = refuse
        found = await call(session)
        assert isinstance(found, BackendProtocol)
        assert "HTTP 500 and text/html" in found.reason
        server.on.clear()
        assert text_of(await call(session, "echo", {"text": "x"})) == "x"


async def test_a_lost_session_that_cannot_be_replaced_ends() -> None:
    server = SseServer()

    async def forgotten(request: Request, reply: Reply) -> None:
        await reply.send(404, b"Could not find session", "text/plain")

    async def use() -> None:
        async with open_session(peer.url, transport="sse") as session:
            server.on |= {"tools/call": forgotten, "GET": forgotten}
            assert isinstance(await call(session), BackendError)
            await trio.sleep_forever()

    async with open_peer(server, path="/sse") as peer:
        with pytest.raises(BackendExited, match="forgotten the session"):
            await use()


async def test_a_ping_is_answered_by_a_post() -> None:
    server = SseServer()
    async with open_peer(server, path="/sse") as peer, open_session(peer.url, transport="sse"):
        await server.say({"jsonrpc": "2.0", "id": 9, "method": "ping"})
        answered = await peer.received("response")
        assert answered.message == {"jsonrpc": "2.0", "id": 9, "result": {}}


async def test_the_modern_era_is_not_possible() -> None:
    with pytest.raises(BackendProtocol, match="era 'modern'"):
        async with open_session("http://127.0.0.1:9/sse", transport="sse", era="modern"):
            pytest.fail("opened")


@pytest.mark.parametrize(
    ("answer", "says"),
    [
        ((200, b"<html>", "text/html"), "HTTP 200 and text/html, not an event stream"),
        ((401, b"", "text/html"), "HTTP 401"),
    ],
)
async def test_a_get_without_a_stream_fails_clearly(answer: Any, says: str) -> None:
    async def handler(request: Request, reply: Reply) -> None:
        await reply.send(*answer)

    async with open_peer(handler, path="/sse") as peer:
        with pytest.raises(BackendProtocol) as caught:
            async with open_session(peer.url, transport="sse"):
                pytest.fail("opened")
        assert says in caught.value.reason


async def test_a_stream_without_an_endpoint_is_too_slow() -> None:
    async def handler(request: Request, reply: Reply) -> None:
        await reply.begin()
        await reply.hung_up()

    async with open_peer(handler, path="/sse") as peer:
        with pytest.raises((trio.TooSlowError, BackendTooSlow)):
            async with open_session(peer.url, transport="sse", connect_timeout=0.1):
                pytest.fail("opened")
        await peer.wait(lambda: peer.open_connections == 0)


# -- telling them apart ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("server", "kind", "era"),
    [
        (LegacyServer, StreamableSession, Era.LEGACY),
        (ModernServer, StreamableSession, Era.MODERN),
        (SseServer, SseSession, Era.LEGACY),
    ],
)
async def test_guarantee_g2_a_url_without_transport_is_probed_and_recorded(server: Any, kind: type, era: Era) -> None:
    opener = HttpOpener()
    async with open_peer(server(), path="/x") as peer:
        async with open_session(peer.url, opener=opener) as session:
            assert isinstance(session, kind)
            assert session.greeting.era is era
            assert text_of(await call(session, "echo", {"text": "x"})) == "x"
        probes = len(peer.requests)
        async with open_session(peer.url, opener=opener) as session:
            assert isinstance(session, kind)
        again = peer.requests[probes:]
        if kind is SseSession:
            assert again[0].rpc == "GET"
        if era is Era.LEGACY:
            assert not [request for request in again if request.rpc == "server/discover"]


async def test_an_unknown_transport_is_reported_with_both_reasons() -> None:
    async def handler(request: Request, reply: Reply) -> None:
        await reply.send(404, b"<html>", "text/html")

    async with open_peer(handler) as peer:
        with pytest.raises(BackendProtocol, match=r"neither streamable HTTP .*HTTP 404.* nor SSE .*HTTP 404"):
            async with open_session(peer.url):
                pytest.fail("opened")


@pytest.mark.parametrize(
    ("server", "kwargs"),
    [
        (LegacyServer, {"era": "modern"}),
        (LegacyServer, {"era": "modern", "transport": "streamable-http"}),
        (SseServer, {"era": "modern"}),
        (ModernServer, {"era": "legacy"}),
        (ModernServer, {"era": "legacy", "transport": "streamable-http"}),
    ],
)
async def test_a_server_of_another_era_is_unfit(server: Any, kwargs: dict[str, str]) -> None:
    async with open_peer(server()) as peer:
        with pytest.raises(BackendUnfit, match=f"era: {kwargs['era']}"):
            async with open_session(peer.url, **kwargs):
                pytest.fail("opened")
        assert "GET" not in {request.method for request in peer.requests}


async def test_a_404_is_not_a_permanent_failure() -> None:
    async def handler(request: Request, reply: Reply) -> None:
        await reply.send(404, b"<html>", "text/html")

    async with open_peer(handler) as peer:
        with pytest.raises(BackendProtocol, match="HTTP 404") as caught:
            async with open_session(peer.url, era="modern"):
                pytest.fail("opened")
        assert not isinstance(caught.value, BackendUnfit)


@pytest.mark.parametrize("status", [401, 403, 500])
async def test_other_refusals_do_not_trigger_the_fallback_transport(status: int) -> None:
    async def handler(request: Request, reply: Reply) -> None:
        await reply.send(status)

    async with open_peer(handler) as peer:
        with pytest.raises(BackendProtocol, match=f"HTTP {status}"):
            async with open_session(peer.url):
                pytest.fail("opened")
        assert "GET" not in {request.method for request in peer.requests}


async def test_a_transport_that_is_given_is_not_probed() -> None:
    async with open_peer(SseServer(), path="/sse") as peer:
        with pytest.raises(BackendProtocol, match="HTTP 405"):
            async with open_session(peer.url, transport="streamable-http"):
                pytest.fail("opened")
        assert "GET" not in {request.method for request in peer.requests}


async def test_errors_in_the_block_are_not_refusals() -> None:
    async def use() -> None:
        async with open_session(peer.url):
            raise streamable.HttpRefused("b", "from the block", 404)

    async with open_peer(LegacyServer()) as peer:
        with pytest.raises(BackendProtocol, match=r"^backend 'b' from the block$"):
            await use()


async def test_the_sdks_server_is_found_and_used() -> None:
    process = await trio.lowlevel.open_process([sys.executable, "-c", SDK_SERVER], stderr=subprocess.PIPE)
    assert process.stderr is not None
    try:
        said = b""
        with trio.fail_after(20):
            while b"\n" not in said:
                said += await process.stderr.receive_some(4096)
        url = said.decode().split("listening on ")[1].split()[0]
        async with open_session(url) as session:
            assert isinstance(session, SseSession)
            assert [text_of(await call(session, "echo", {"text": f"é{n}"})) for n in range(3)] == ["é0", "é1", "é2"]
            unknown = await call(session, "nothing")
            assert isinstance(unknown, Failure) or "Unknown tool" in text_of(unknown)
    finally:
        process.kill()
        with trio.CancelScope(shield=True, deadline=trio.current_time() + 10):
            await process.wait()
            await process.stderr.aclose()
