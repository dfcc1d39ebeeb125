"""Tasks over streamable HTTP: task requests carry `Mcp-Name`; server requests come on their stream."""

from __future__ import annotations

from typing import Any

import msgspec
import pytest
import trio

from gateway import jsonrpc
from gateway.calls import Call, ServerRequest
from gateway.eras.tasks import EXTENSION
from gateway.inflight.pending import PendingCall
from tests.peers.http_peer import META, LegacyServer, ModernServer, Reply, Request, open_peer, text
from tests.support import http_sessions
from tests.support.http_sessions import open_session, outcome, result_of, start_call

pytestmark = pytest.mark.leak_check
STATE = {"taskId": "caf\u00e9 1", "ttl": None, "ttlMs": None, "pollInterval": 20, "pollIntervalMs": 20}
MARK = {"_meta": {META + "related-task": {"taskId": STATE["taskId"]}}}


@pytest.fixture(autouse=True)
def _able(monkeypatch: pytest.MonkeyPatch) -> None:
    able = msgspec.structs.replace(http_sessions.CALLER, capabilities=jsonrpc.raw({"roots": {}}))
    monkeypatch.setattr(http_sessions, "CALLER", able)


async def test_a_server_requiring_the_extension_is_called() -> None:
    server, received = ModernServer(), []
    left = [{"status": "working"}, {"status": "completed", "result": text("done")}]

    async def call(request: Request, reply: Reply) -> None:
        extensions = request.params["_meta"][META + "clientCapabilities"].get("extensions", {})
        received.append(("call", EXTENSION in extensions, request.headers["mcp-name"]))
        if EXTENSION in extensions:
            await reply.result({**STATE, "resultType": "task", "status": "working"})
        else:
            needed = {"requiredCapabilities": {"extensions": {EXTENSION: {}}}}
            await reply.error(-32021, "Missing required client capability", status=400, data=needed)

    async def look(request: Request, reply: Reply) -> None:
        received.append(("get", request.params["taskId"], request.headers["mcp-name"]))
        await reply.result({**STATE, "resultType": "complete", **left.pop(0)})

    server.on |= {"tools/call": call, "tasks/get": look}
    async with open_peer(server) as peer, open_session(peer.url) as session:
        found = result_of(await outcome(start_call(session)))
        assert found == text("done")
        assert session.in_flight == 0
    name = "=?base64?Y2Fmw6kgMQ==?="
    assert received == [("call", False, "echo"), ("call", True, "echo"), *[("get", STATE["taskId"], name)] * 2]


async def test_legacy_server_requests_arrive_on_the_result_stream() -> None:
    server, received = LegacyServer(), []
    answer: list[Any] = []
    answered = trio.Event()

    async def call(request: Request, reply: Reply) -> None:
        received.append(request.params.get("task"))
        await reply.result({"task": {**STATE, "status": "input_required"}})

    async def result(request: Request, reply: Reply) -> None:
        received.append(request.params["taskId"])
        await reply.begin()
        await reply.event({"jsonrpc": "2.0", "id": "q", "method": "roots/list", "params": MARK})
        await answered.wait()
        await reply.answer_event({**text("done"), **MARK})

    async def take(request: Request, reply: Reply) -> None:
        await reply.send(202)
        answer.append(request.message["result"])
        answered.set()

    server.on |= {"tools/call": call, "tasks/result": result, "response": take}
    async with open_peer(server) as peer, open_session(peer.url) as session:
        call_ = Call(method="tools/call", name="echo", params={}, meta={}, caller=http_sessions.CALLER)
        ticket = PendingCall(call_, backend="b", own_name="echo", timeout=60)
        ticket.as_task = True
        session.send([ticket])
        ask = await ticket.next()
        assert isinstance(ask, ServerRequest)
        assert ask.params == {}
        ask.answer(b'{"roots":[]}')
        assert result_of(await outcome(ticket)) == text("done")
        assert session.in_flight == 0
    assert received == [{}, STATE["taskId"]]
    assert answer == [{"roots": [], **MARK}]
