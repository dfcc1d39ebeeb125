"""Legacy tasks over SSE: server requests share one stream, marked with their task."""

from __future__ import annotations

from typing import Any

import msgspec
import pytest
import trio

from gateway import jsonrpc
from gateway.calls import Call, ServerRequest
from gateway.errors import BackendExited
from gateway.inflight.pending import PendingCall
from tests.peers.http_peer import META, Reply, Request, SseServer, open_peer, text
from tests.support import http_sessions
from tests.support.http_sessions import open_session, outcome, result_of, start_call, text_of

pytestmark = pytest.mark.leak_check
STATE = {"taskId": "one", "ttl": None, "pollInterval": 20}
MARK = {"_meta": {META + "related-task": {"taskId": "one"}}}
ABLE = msgspec.structs.replace(http_sessions.CALLER, capabilities=jsonrpc.raw({"roots": {}}))


def make_pending_task() -> PendingCall:
    ticket = PendingCall(
        Call(method="tools/call", name="long", params={"name": jsonrpc.raw("long")}, meta={}, caller=ABLE),
        backend="b",
        own_name="long",
        timeout=60,
    )
    ticket.as_task = True
    return ticket


class TaskServer(SseServer):
    """Answers the tool `long` with a task, which asks for roots before it is done."""

    def __init__(self) -> None:
        super().__init__()
        self.received: list[Any] = []
        self.working = 1
        """Looks at the task that find it still working."""
        self.waiting: Request | None = None
        own = {"tools/call": self.call, "tasks/get": self.look, "tasks/result": self.result}
        self.on |= {**own, "tasks/cancel": self.cancel, "response": self.take}

    async def say_result(self, request: Request, result: Any) -> None:
        await self.say({"jsonrpc": "2.0", "id": request.message["id"], "result": result})

    async def call(self, request: Request, reply: Reply) -> None:
        await reply.send(202)
        if request.params["name"] == "long":
            self.received.append(("call", request.params.get("task")))
            await self.say_result(request, {"task": {**STATE, "status": "working"}})
        else:
            await self.answer(request)

    async def look(self, request: Request, reply: Reply) -> None:
        await reply.send(202)
        self.received.append(("get", request.params["taskId"]))
        self.working -= 1
        await self.say_result(request, {**STATE, "status": "working" if self.working >= 0 else "input_required"})

    async def result(self, request: Request, reply: Reply) -> None:
        await reply.send(202)
        self.received.append(("result", request.params["taskId"]))
        self.waiting = request
        await self.say({"jsonrpc": "2.0", "id": "q", "method": "roots/list", "params": MARK})

    async def take(self, request: Request, reply: Reply) -> None:
        await reply.send(202)
        self.received.append(("answer", request.message["id"], request.message.get("result")))
        assert self.waiting is not None
        await self.say_result(self.waiting, {**text("done"), **MARK})

    async def cancel(self, request: Request, reply: Reply) -> None:
        await reply.send(202)
        self.received.append(("cancel", request.params["taskId"]))
        await self.say_result(request, {**STATE, "status": "cancelled"})


async def test_a_task_completes_and_asks_its_own_client() -> None:
    server = TaskServer()
    async with open_peer(server, path="/sse") as peer, open_session(peer.url, transport="sse") as session:
        ticket = make_pending_task()
        session.send([ticket])
        other = start_call(session, "echo", {"text": "other"})
        assert text_of(await outcome(other)) == "other"
        with trio.fail_after(http_sessions.WITHIN):
            ask = await ticket.next()
        assert isinstance(ask, ServerRequest)
        assert ask.method == "roots/list"
        ask.answer(b'{"roots":[]}')
        assert result_of(await outcome(ticket)) == text("done")
        assert session.in_flight == 0
    assert server.received == [
        ("call", {}),
        ("get", "one"),
        ("get", "one"),
        ("result", "one"),
        ("answer", "q", {"roots": [], **MARK}),
    ]


async def test_a_disconnected_clients_task_is_cancelled() -> None:
    server = TaskServer()
    server.working = 1_000_000
    async with open_peer(server, path="/sse") as peer, open_session(peer.url, transport="sse") as session:
        ticket = make_pending_task()
        session.send([ticket])
        await peer.received("tasks/get")
        ticket.close("the client has gone")
        await peer.received("tasks/cancel")
    assert ("cancel", "one") in server.received


async def test_a_task_ends_with_its_stream() -> None:
    server = TaskServer()

    async def end(_request: Request, reply: Reply) -> None:
        await reply.send(202)
        assert server.stream is not None
        await server.stream.end()

    server.on["tasks/get"] = end

    async def use() -> None:
        async with open_session(peer.url, transport="sse") as session:
            session.send([ticket])
            assert "closed its event stream" in str(await outcome(ticket))
            await trio.sleep_forever()

    ticket = make_pending_task()
    async with open_peer(server, path="/sse") as peer:
        with pytest.raises(BackendExited, match="closed its event stream"):
            await use()
