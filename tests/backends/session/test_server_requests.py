"""Server requests and log messages reach the one client they can belong to, or none."""

# ruff: noqa: RUF029 - tickets need the clock of a running loop

from __future__ import annotations

import json
import logging
from typing import Any

import pytest

from gateway import jsonrpc
from gateway.backends.session.server_requests import MAX_OPEN
from gateway.calls import Caller, Era, Notification, ServerRequest, Withdrawn
from gateway.errors import BackendExited
from gateway.inflight.pending import PendingCall
from tests.support.fakes import Script
from tests.support.suspended import CAN, ELICITATION, ROOTS, SAMPLING, make_call, make_caller


def pending_of(**caller: Any) -> PendingCall:
    call = make_call(Era.LEGACY, caller=make_caller(Era.LEGACY, **caller))
    return PendingCall(call, backend="b", own_name="x", timeout=300)


def working(script: Script, *tickets: PendingCall) -> None:
    for ticket in tickets:
        script.send(ticket)
    script.posted.clear()


def ask(
    script: Script, request_id: Any, method: str = ROOTS, params: Any = None, ticket: PendingCall | None = None
) -> None:
    message = {"jsonrpc": "2.0", "id": request_id, "method": method, "params": {} if params is None else params}
    script.conversation.feed(json.dumps(message).encode(), ticket)


async def asked(ticket: PendingCall) -> ServerRequest:
    item = await ticket.next()
    assert isinstance(item, ServerRequest), item
    return item


async def test_an_answer_reaches_the_backend_unchanged() -> None:
    script, ticket = Script(), pending_of(session="one")
    working(script, ticket)
    ask(script, "r-1", ELICITATION, {"message": "m", "x-extra": None})
    found = await asked(ticket)
    assert (found.method, {name: bytes(span) for name, span in found.params.items()}) == (
        ELICITATION,
        {"message": b'"m"', "x-extra": b"null"},
    )
    found.answer(b'{"action":"accept", "n":1.00}')
    found.answer(b"{}")  # once counts
    assert script.posted == [{"jsonrpc": "2.0", "id": "r-1", "result": {"action": "accept", "n": 1.0}}]


async def test_a_refusal_reaches_the_backend_with_data() -> None:
    script, ticket = Script(), pending_of(session="one")
    working(script, ticket)
    ask(script, 7)
    (await asked(ticket)).refuse(-1, "no", b'{"why":null}')
    assert script.posted == [{"jsonrpc": "2.0", "id": 7, "error": {"code": -1, "message": "no", "data": {"why": None}}}]


async def test_a_single_clients_latest_call_is_asked() -> None:
    script = Script()
    first, second = pending_of(session="one"), pending_of(session="one")
    working(script, first, second)
    ask(script, 1)
    await asked(second)


async def test_a_call_is_asked_on_its_own_stream() -> None:
    script = Script()
    first, second = pending_of(session="one"), pending_of(session="two")
    working(script, first, second)
    ask(script, 1, ticket=first)
    await asked(first)
    assert script.posted == []


@pytest.mark.parametrize("others", [{"session": "two"}, {"session": None}, {"principal": "ada", "session": None}])
async def test_requests_ambiguous_between_clients_are_refused(others: dict[str, Any]) -> None:
    script = Script()
    working(script, pending_of(session="one"), pending_of(**others))
    ask(script, 1)
    (refusal,) = script.posted
    assert refusal["error"]["code"] == jsonrpc.INTERNAL_ERROR
    assert "session: client (or call)" in refusal["error"]["message"]


async def test_requests_without_a_waiting_call_are_refused() -> None:
    script = Script()
    ask(script, 1)
    assert "no call is in flight" in script.posted[0]["error"]["message"]


@pytest.mark.parametrize(
    ("capabilities", "method", "params", "code"),
    [
        ({}, ROOTS, {}, jsonrpc.METHOD_NOT_FOUND),
        ({"elicitation": {}}, SAMPLING, {}, jsonrpc.METHOD_NOT_FOUND),
        ({"sampling": {}}, SAMPLING, {"tools": []}, jsonrpc.INVALID_PARAMS),
        ({"elicitation": {}}, ELICITATION, {"mode": "url"}, jsonrpc.INVALID_PARAMS),
        ({"elicitation": {"url": {}}}, ELICITATION, {}, jsonrpc.INVALID_PARAMS),
        ({"roots": {}}, ROOTS, [], jsonrpc.INVALID_PARAMS),
        ({"roots": {}}, ROOTS, {"_meta": {"progressToken": []}}, jsonrpc.INVALID_PARAMS),
        ({"roots": {}}, "tools/list", {}, jsonrpc.METHOD_NOT_FOUND),
    ],
)
async def test_requests_beyond_client_capabilities_are_refused(
    capabilities: Any, method: str, params: Any, code: int
) -> None:
    script = Script()
    working(script, pending_of(session="one", capabilities=jsonrpc.raw(capabilities)))
    ask(script, 1, method, params)
    assert [message["error"]["code"] for message in script.posted] == [code]


async def test_a_ping_is_answered_immediately() -> None:
    script = Script()
    ask(script, "p", "ping")
    assert script.posted == [{"jsonrpc": "2.0", "id": "p", "result": {}}]


async def test_an_id_that_is_in_use_is_refused() -> None:
    script, ticket = Script(), pending_of(session="one")
    working(script, ticket)
    ask(script, 1)
    ask(script, 1)
    assert script.posted[0]["error"]["code"] == jsonrpc.INVALID_REQUEST
    (await asked(ticket)).answer(b"{}")
    assert script.posted[1] == {"jsonrpc": "2.0", "id": 1, "result": {}}


async def test_withdrawn_requests_reach_the_client_and_ignore_answers() -> None:
    script, ticket = Script(), pending_of(session="one")
    working(script, ticket)
    ask(script, 1)
    found = await asked(ticket)
    for params in ({"requestId": 2}, {}, {"requestId": 1}, {"requestId": 1}):
        script.feed({"method": "notifications/cancelled", "params": params})
    assert await ticket.next() == Withdrawn(found)
    found.answer(b"{}")
    assert script.posted == []


async def test_client_progress_reaches_the_requesting_backend() -> None:
    script, ticket = Script(), pending_of(session="one")
    working(script, ticket)
    ask(script, 1, SAMPLING, {"_meta": {"progressToken": "theirs"}})
    found = await asked(ticket)
    assert found.on_progress is not None
    found.on_progress({"progressToken": jsonrpc.raw("theirs"), "progress": jsonrpc.raw(1)})
    assert script.posted == [
        {"jsonrpc": "2.0", "method": "notifications/progress", "params": {"progressToken": "theirs", "progress": 1}}
    ]
    ask(script, 2, SAMPLING)
    assert (await asked(ticket)).on_progress is None


async def test_nothing_is_written_after_the_session_is_over() -> None:
    """Another client may use its former connection by now."""
    script, ticket = Script(), pending_of(session="one")
    working(script, ticket)
    ask(script, 1, SAMPLING, {"_meta": {"progressToken": "theirs"}})
    ask(script, 2)
    first, second = await asked(ticket), await asked(ticket)
    script.conversation.close(BackendExited("b", "exited"))
    first.answer(b"{}")
    second.refuse(-1, "no")
    assert first.on_progress is not None
    first.on_progress({"progress": jsonrpc.raw(1)})
    assert script.posted == []


async def test_unanswered_requests_are_bounded() -> None:
    script = Script()
    for number in range(MAX_OPEN + 2):  # each in a call of its own, which ends without the answer
        ticket = pending_of(session="one")
        call_id = script.send(ticket)
        ask(script, f"r-{number}")
        script.feed({"id": call_id, "result": {}})
    refused = [message["id"] for message in script.posted if "error" in message]
    assert refused == ["r-0", "r-1"]


async def test_backend_logs_reach_the_only_client_or_ours(caplog: pytest.LogCaptureFixture) -> None:
    script, ticket = Script(), pending_of(session="one")
    line = {"method": "notifications/message", "params": {"level": "info", "data": "hello"}}
    with caplog.at_level(logging.INFO, "gateway.backend"):
        script.feed(line)
    assert "hello" in caplog.text
    working(script, ticket)
    script.feed(line)
    notification = await ticket.next()
    assert isinstance(notification, Notification)
    working(script, pending_of(session="two"))
    caplog.clear()
    with caplog.at_level(logging.INFO, "gateway.backend"):
        script.feed(line)
    assert "hello" in caplog.text
    assert ticket._events == type(ticket._events)()


def test_callers_match_only_where_identity_is_certain() -> None:
    def caller(**fields: Any) -> Caller:
        return Caller(era=Era.MODERN, version="v", capabilities=CAN, **fields)

    anonymous = caller()
    assert anonymous.same_client(anonymous)
    assert not anonymous.same_client(caller())
    assert caller(session="a").same_client(caller(session="a"))
    assert not caller(session="a").same_client(caller(session="b"))
    assert caller(principal="p").same_client(caller(principal="p"))


async def test_elicitation_completion_reaches_the_client_shown_the_url() -> None:
    script = Script()
    working(script, pending_of(session="one", capabilities=CAN))
    ask(script, 1, ELICITATION, {"mode": "url", "elicitationId": "e-1", "url": "https://x.example", "message": "m"})
    done = {"jsonrpc": "2.0", "method": "notifications/elicitation/complete", "params": {"elicitationId": "e-1"}}
    script.conversation.close(BackendExited("b", "was stopped"))  # the call is over by then
    for message in (done, done, done | {"params": {"elicitationId": "e-2"}}, done | {"params": {}}):
        script.conversation.feed(json.dumps(message).encode())
    assert script.ears.received.count("notifications/elicitation/complete for one") == 1
