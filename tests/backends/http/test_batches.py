"""JSON arrays of messages (batches, 2025-03-26 basic, "Batching") in answers of HTTP backends."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import pytest

from gateway.calls import Era, Failure, Notification
from gateway.errors import BackendError, BackendProtocol
from tests.peers.http_peer import LegacyServer, ModernServer, Reply, Request, SseServer, dump, open_peer, text
from tests.support.http_sessions import Received, call, open_session, outcome, start_call, text_of

if TYPE_CHECKING:
    from collections.abc import Callable

pytestmark = pytest.mark.leak_check
BATCHING = "2025-03-26"


def answer(request: Request) -> dict[str, Any]:
    return {"jsonrpc": "2.0", "id": request.message["id"], "result": text("batched")}


def progress(request: Request) -> dict[str, Any]:
    params = {"progressToken": request.params["_meta"]["progressToken"], "progress": 1}
    return {"jsonrpc": "2.0", "method": "notifications/progress", "params": params}


CHANGED = {"jsonrpc": "2.0", "method": "notifications/tools/list_changed"}
PARTS: dict[str, Callable[[Request], list[Any]]] = {
    "alone": lambda request: [answer(request)],
    "after a notification": lambda request: [CHANGED, progress(request), answer(request)],
    "before a notification": lambda request: [answer(request), CHANGED],
    "beside a foreign answer": lambda request: [{"jsonrpc": "2.0", "id": 4711, "result": {}}, answer(request)],
    "beside an invalid message": lambda request: [5, answer(request)],
}


def speaking(server: LegacyServer, version: str) -> LegacyServer:
    async def hello(request: Request, reply: Reply) -> None:
        server.session += 1
        capabilities = {"tools": {"listChanged": True}}
        result = {"protocolVersion": version, "capabilities": capabilities, "serverInfo": {"name": "p", "version": "1"}}
        await reply.result(result, mcp_session_id=f"session-{server.session}")

    server.on["initialize"] = hello
    return server


def batched(parts: Callable[[Request], list[Any]], how: str) -> Any:
    async def handler(request: Request, reply: Reply) -> None:
        body = dump(parts(request))
        if how == "json":
            await reply.send(200, body)
            return
        await reply.begin()
        if how == "event":
            await reply.event(body.decode())
        else:  # spread over lines, which an event joins by line feeds
            await reply.raw(
                b"".join(b"data: " + line + b"\n" for line in body.replace(b",", b",\n").split(b"\n")) + b"\n"
            )

    return handler


@pytest.mark.parametrize("parts", PARTS.values(), ids=PARTS)
@pytest.mark.parametrize("how", ["json", "event", "lines"])
async def test_a_batch_is_split_into_messages(parts: Any, how: str) -> None:
    server, listener = speaking(LegacyServer(), BATCHING), Received()
    server.on["tools/call"] = batched(parts, how)
    async with open_peer(server) as peer, open_session(peer.url, listener=listener) as session:
        assert session.greeting.version == BATCHING
        pending = start_call(session, progress=True)
        notifications = []
        while isinstance(found := await pending.next(), Notification):
            notifications.append(found.method)
        assert text_of(found) == "batched"
        assert notifications == (["notifications/progress"] if parts is PARTS["after a notification"] else [])
        if "notification" in next(name for name, each in PARTS.items() if each is parts):
            await listener.change()
            assert "tools" in listener.received


async def test_one_batch_may_answer_several_calls() -> None:
    server = speaking(LegacyServer(), BATCHING)
    first: list[Request] = []

    async def both(request: Request, reply: Reply) -> None:
        await reply.begin()
        first.append(request)
        if len(first) == 2:
            await reply.event(dump([answer(each) for each in first]).decode())
        else:
            await reply.hung_up()

    server.on["tools/call"] = both
    async with open_peer(server) as peer, open_session(peer.url) as session:
        pending_calls = [start_call(session), start_call(session)]
        assert [text_of(await outcome(pending)) for pending in pending_calls] == ["batched", "batched"]


async def test_batches_on_the_get_stream_and_in_errors() -> None:
    server, listener = speaking(LegacyServer(), BATCHING), Received()

    async def stream(request: Request, reply: Reply) -> None:
        await reply.begin()
        await reply.event(dump([CHANGED, {"jsonrpc": "2.0", "id": "p", "method": "ping"}]).decode())
        await reply.hung_up()

    async def refuse(request: Request, reply: Reply) -> None:
        error = {"code": -32050, "message": "own"}
        await reply.send(400, dump([CHANGED, {"jsonrpc": "2.0", "id": request.message["id"], "error": error}]))

    server.on |= {"GET": stream, "tools/call": refuse}
    async with open_peer(server) as peer, open_session(peer.url, listener=listener) as session:
        await listener.change()
        assert (await peer.received("response")).message == {"jsonrpc": "2.0", "id": "p", "result": {}}
        assert await call(session) == Failure(-32050, "own", None, Era.LEGACY)


async def test_a_batch_on_the_sse_stream_is_split() -> None:
    server = SseServer()

    async def reply_batch(request: Request, reply: Reply) -> None:
        await reply.send(202)
        await server.say([CHANGED, answer(request)])

    server.on["tools/call"] = reply_batch
    async with open_peer(server, path="/sse") as peer, open_session(peer.url, transport="sse") as session:
        assert text_of(await call(session)) == "batched"


@pytest.mark.parametrize("body", [b"[]", b"[", b"[1,2]", b"[" + b"1," * 2_000 + b"1]"])
@pytest.mark.parametrize("how", ["json", "event"])
async def test_an_array_without_an_answer_fails_its_call(body: bytes, how: str) -> None:
    server = speaking(LegacyServer(), BATCHING)

    async def send(request: Request, reply: Reply) -> None:
        if how == "json":
            await reply.send(200, body)
        else:
            await reply.begin()
            await reply.event(body.decode())

    server.on["tools/call"] = send
    async with open_peer(server) as peer, open_session(peer.url) as session:
        assert isinstance(await call(session), BackendError)
        del server.on["tools/call"]
        assert text_of(await call(session, "echo", {"text": "x"})) == "x"


@pytest.mark.parametrize("how", ["json", "event"])
async def test_the_modern_era_has_no_batches(how: str) -> None:
    server = ModernServer()
    server.on["tools/call"] = batched(PARTS["alone"], how)
    async with open_peer(server) as peer, open_session(peer.url) as session:
        found = await call(session)
        assert isinstance(found, BackendError)
        if how == "json":
            assert found.reason.endswith("with a JSON array, which protocol version 2026-07-28 does not have")


@pytest.mark.parametrize("version", ["2024-11-05", "2025-06-18", "2025-11-25"])
async def test_other_legacy_versions_are_as_tolerant(version: str) -> None:
    server = speaking(LegacyServer(), version)
    server.on["tools/call"] = batched(PARTS["alone"], "event")
    async with open_peer(server) as peer, open_session(peer.url) as session:
        found = await call(session)
        assert not isinstance(found, BackendProtocol)
        assert text_of(found) == "batched"
