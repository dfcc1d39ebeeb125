"""Tasks driven by the gateway: `<<` posted and when, `>>` received, and the client's view."""

from __future__ import annotations

import json
from contextlib import asynccontextmanager
from typing import TYPE_CHECKING, Any

import msgspec
import pytest
import trio
from trio.testing import MockClock

from gateway import jsonrpc
from gateway.backends.session import tasks as driver
from gateway.calls import Call, Caller, Complete, Era, Failure, Notification, ServerRequest
from gateway.eras import tasks
from gateway.eras.requests import Hop, backend_params
from gateway.errors import BackendExited, BackendProtocol, BackendTooSlow
from tests.support.fakes import Script, make_call, make_pending, settle

if TYPE_CHECKING:
    from collections.abc import AsyncGenerator

    from gateway.inflight.pending import PendingCall

META = "io.modelcontextprotocol/"
MARK = {"_meta": {tasks.RELATED: {"taskId": "t"}}}
ABLE = jsonrpc.raw({"elicitation": {}, "roots": {}, "sampling": {}, "extensions": {"x/y": {"z": 1}}})
OLD = Caller(era=Era.LEGACY, version="2025-11-25", capabilities=ABLE, session="one")
NEW = Caller(era=Era.MODERN, version="2026-07-28", capabilities=ABLE)
WANTED = {"code": -32021, "message": "m", "data": {"requiredCapabilities": {"extensions": {tasks.EXTENSION: {}}}}}


@asynccontextmanager
async def running(answers: dict[str, Any] | None = None, *, era: Era = Era.LEGACY) -> AsyncGenerator[Script]:
    script = Script(answers, era=era)
    with trio.fail_after(100_000):  # of the clock that jumps
        async with trio.open_nursery() as nursery:
            nursery.start_soon(script.conversation.tasks.run)
            yield script  # ruff: ignore[fallible-context-manager] - where the block raised, that is what matters
            nursery.cancel_scope.cancel()


def task_pending(*, caller: Caller = OLD, **kwargs: Any) -> PendingCall:
    ticket = make_pending(caller=caller, **kwargs)
    ticket.as_task = caller.era is Era.LEGACY
    return ticket


def legacy(status: str = "working", **kwargs: Any) -> dict[str, Any]:
    return {"taskId": "t", "status": status, "ttl": None, **kwargs}


def states(*found: dict[str, Any]) -> Any:
    left = list(found)
    return lambda _params: left.pop(0) if len(left) > 1 else left[0]


def plain(members: dict[str, msgspec.Raw]) -> Any:
    return {name: json.loads(bytes(span)) for name, span in members.items()}


# -- the legacy era ----------------------------------------------------------------------------------------------------


async def test_a_task_is_polled_and_its_result_returned(autojump_clock: MockClock) -> None:
    asked_at: list[float] = []

    def look(_params: Any) -> Any:
        asked_at.append(trio.current_time())
        intervals = [3000, None, 0, 10**9]
        return legacy("completed") if len(asked_at) > 4 else legacy(pollInterval=intervals[len(asked_at) - 1])

    result = {"content": [], "x": None, "_meta": {**MARK["_meta"], "kept": 1}}
    async with running({"tasks/get": look, "tasks/result": result}) as script:
        ticket = task_pending(timeout=1000.0)
        began = trio.current_time()
        script.send(ticket)
        assert script.posted[0]["params"] == {"name": "x", "task": {}}
        script.feed({"id": 1, "result": {"task": legacy(pollInterval=2000)}})
        assert (script.conversation.in_flight, ticket.outcome) == (1, None)
        assert not script.conversation.waits_for(1)
        outcome = await ticket.next()
        assert outcome == Complete(b'{"content":[],"x":null,"_meta":{"kept":1}}', Era.LEGACY)
        assert [at - began for at in asked_at] == pytest.approx([2, 5, 6, 6 + tasks.LEAST_POLL, 66 + tasks.LEAST_POLL])
        assert script.methods == ["tools/call", *["tasks/get"] * 5, "tasks/result"]
        assert {message["params"]["taskId"] for message in script.posted[1:]} == {"t"}
        await settle()
        assert script.conversation.in_flight == 0
        assert script.ears.received == ["freed"]


async def test_task_requests_reach_the_tasks_client(autojump_clock: MockClock) -> None:
    async with running({"tasks/get": legacy("input_required")}) as script:
        ticket, other = task_pending(), make_pending("other", caller=msgspec.structs.replace(OLD, session="two"))
        script.send(ticket)
        script.send(other)  # so that nothing but the mark says whose it is
        script.feed({"id": 1, "result": {"task": legacy(pollInterval=100)}})
        await trio.sleep(0.2)
        assert script.methods[2:] == ["tasks/get", "tasks/result"]
        params = {"message": "m", "task": {"ttl": 1}, "_meta": {**MARK["_meta"], "kept": None}}
        script.feed({"id": "q", "method": "elicitation/create", "params": params})
        ask = await ticket.next()
        assert isinstance(ask, ServerRequest)
        assert plain(ask.params) == {"message": "m", "_meta": {"kept": None}}
        ask.answer(b'{"action":"accept","_meta":{"x":1}}')
        answer = script.posted[-1]
        assert answer["result"] == {"action": "accept", "_meta": {"x": 1, **MARK["_meta"]}}
        script.feed({"id": script.posted[3]["id"], "result": {"content": [], **MARK}})
        assert await ticket.next() == Complete(b'{"content":[]}', Era.LEGACY)
        assert other.outcome is None
        assert "tasks/cancel" not in script.methods


async def test_cancelling_a_task_sends_only_tasks_cancel(autojump_clock: MockClock) -> None:
    async with running({"tasks/get": legacy(), "tasks/cancel": legacy("cancelled")}) as script:
        ticket = task_pending()
        script.send(ticket)
        script.feed({"id": 1, "result": {"task": legacy()}})
        await trio.sleep(2.5)
        ticket.close()
        await settle()
        assert script.methods == ["tools/call", "tasks/get", "tasks/get", "tasks/cancel"]
        assert script.conversation.in_flight == 0
        assert script.ears.received == ["freed"]


async def test_a_call_cancelled_early_cancels_its_task(autojump_clock: MockClock) -> None:
    async with running({"tasks/cancel": legacy("cancelled")}) as script:
        tickets = [task_pending() for _ in range(driver.MAX_ORPHANS + 1)]
        for ticket in tickets:
            script.send(ticket)
            ticket.close()
        await settle()
        assert set(script.methods) == {"tools/call"}
        assert script.conversation.in_flight == 0
        for request_id in (1, 2, 3):  # the first was evicted, as there were too many; the last was not a task
            result = {"content": []} if request_id == 3 else {"task": legacy(taskId=f"t{request_id}")}
            script.feed({"id": request_id, "result": result})
        await settle()
        assert [message["params"] for message in script.posted if message["method"] == "tasks/cancel"] == [
            {"taskId": "t2"}
        ]
        assert script.conversation.unmatched == 1


async def test_a_calls_deadline_bounds_its_task(autojump_clock: MockClock) -> None:
    for answers in ({"tasks/get": legacy()}, {"tasks/get": legacy("completed")}):  # whose result never comes
        async with running({**answers, "tasks/cancel": {"code": -32602, "message": "ended"}}) as script:
            ticket = task_pending(timeout=10.0)
            script.send(ticket)
            script.feed({"id": 1, "result": {"task": legacy()}})
            assert isinstance(await ticket.next(), BackendTooSlow)
            await settle()
            assert script.methods.count("tasks/cancel") == 1
            assert script.conversation.in_flight == 0


@pytest.mark.parametrize(
    ("answers", "expected", "cancelled"),
    [
        ({"tasks/get": {"code": 7, "message": "no"}}, Failure(7, "no", None, Era.LEGACY), False),
        ({"tasks/get": {"x": 1}}, BackendProtocol("b", "answered tasks/get without a task"), True),
        ({"tasks/get": None}, BackendTooSlow("b", "did not answer tasks/get within 30 s"), True),
        (
            {"tasks/get": legacy("failed"), "tasks/result": {"code": 7, "message": "no", "data": [1]}},
            Failure(7, "no", b"[1]", Era.LEGACY),
            False,
        ),
        (
            {"tasks/get": legacy("failed"), "tasks/result": {"isError": True}},
            Complete(b'{"isError": true}', Era.LEGACY),
            False,
        ),
    ],
)
async def test_every_task_status_has_an_outcome(
    answers: Any, expected: Any, cancelled: bool, autojump_clock: MockClock
) -> None:
    async with running({**answers, "tasks/cancel": legacy("cancelled")}) as script:
        ticket = task_pending()
        script.send(ticket)
        script.feed({"id": 1, "result": {"task": legacy()}})
        outcome = await ticket.next()
        assert (type(outcome), str(outcome)) == (type(expected), str(expected))
        await settle()
        assert ("tasks/cancel" in script.methods) == cancelled


@pytest.mark.parametrize(
    "result",
    [{"content": []}, {"task": 7}, {"task": {}}, {"task": {"taskId": ""}}, {"taskId": "t", "status": "working"}],
)
async def test_a_direct_result_needs_no_task(result: Any, autojump_clock: MockClock) -> None:
    async with running() as script:
        ticket = task_pending()
        script.send(ticket)
        script.feed({"id": 1, "result": result})
        assert ticket.outcome == Complete(json.dumps(result).encode(), Era.LEGACY)


async def test_progress_continues_under_the_calls_own_token(autojump_clock: MockClock) -> None:
    async with running({"tasks/get": legacy()}) as script:
        ticket = task_pending(token="mine")
        script.send(ticket)
        script.feed({"id": 1, "result": {"task": legacy()}})
        script.feed({"method": "notifications/progress", "params": {"progressToken": 1, "progress": 1}})
        notification = await ticket.next()
        assert isinstance(notification, Notification)
        assert plain(notification.params) == {"progressToken": "mine", "progress": 1}


@pytest.mark.parametrize("modern", [False, True])
async def test_when_the_session_ends_its_tasks_do(modern: bool, autojump_clock: MockClock) -> None:
    async with running({"tasks/get": legacy()}, era=Era.MODERN if modern else Era.LEGACY) as script:
        ticket = task_pending(caller=NEW if modern else OLD)
        ticket.as_task = True
        script.send(ticket)
        script.feed({"id": 1, "result": {"resultType": "task", **legacy()} if modern else {"task": legacy()}})
        await settle()
        gone = BackendExited("b", "exited")
        script.conversation.close(gone)
        assert ticket.outcome is gone
        assert script.conversation.in_flight == 0


def test_a_clients_task_request_is_not_forwarded() -> None:
    call = make_call()
    call.params["task"] = msgspec.Raw(b'{"ttl":1}')
    hop = Hop(era=Era.LEGACY, client_info=jsonrpc.EMPTY_OBJECT)
    assert jsonrpc.encode(backend_params(call, "x", None, hop)) == b'{"name":"x"}'
    other = Call(method="x/y", name="", params={"task": msgspec.Raw(b"1")}, meta={}, caller=OLD)
    assert jsonrpc.encode(backend_params(other, "", None, hop)) == b'{"task":1}'


# -- the modern era ----------------------------------------------------------------------------------------------------


def modern(status: str, **kwargs: Any) -> dict[str, Any]:
    return {"resultType": "complete", "taskId": "t", "status": status, "ttlMs": None, "pollIntervalMs": 100, **kwargs}


CREATED = {**modern("working"), "resultType": "task"}
DONE = modern("completed", result={"resultType": "complete", "content": [], "x": None})


def capabilities(message: Any) -> Any:
    return message["params"]["_meta"][META + "clientCapabilities"]


async def test_the_extension_is_declared_where_required(autojump_clock: MockClock) -> None:
    async with running({"tasks/get": states(modern("working"), DONE)}, era=Era.MODERN) as script:
        for again in (False, True):
            ticket = task_pending(caller=NEW)
            first = script.send(ticket)
            assert (tasks.EXTENSION in capabilities(script.posted[-1])["extensions"]) == again
            if not again:
                script.feed({"id": first, "error": WANTED})
                assert ticket.outcome is None
                assert script.posted[-1]["method"] == "tools/call"
            sent = script.posted[-1]
            assert capabilities(sent) == {
                **json.loads(bytes(ABLE)),
                "extensions": {"x/y": {"z": 1}, tasks.EXTENSION: {}},
            }
            script.feed({"id": sent["id"], "result": CREATED})
            outcome = await ticket.next()
            assert isinstance(outcome, Complete)
            assert json.loads(outcome.result) == DONE["result"]
        assert all(tasks.EXTENSION in capabilities(message)["extensions"] for message in script.posted[1:])
        assert script.ears.received == ["freed", "freed"]


@pytest.mark.parametrize(
    "data", [None, {}, {"requiredCapabilities": {"extensions": {"x": {}}}}, {"requiredCapabilities": 7}]
)
async def test_other_missing_capabilities_are_the_clients(data: Any, autojump_clock: MockClock) -> None:
    async with running(era=Era.MODERN) as script:
        ticket = task_pending(caller=NEW)
        script.send(ticket)
        script.feed({"id": 1, "error": {"code": -32021, "message": "m", **({} if data is None else {"data": data})}})
        assert isinstance(ticket.outcome, Failure)


async def test_a_refused_mandatory_task_is_tried_once(autojump_clock: MockClock) -> None:
    async with running({"tools/call": WANTED}, era=Era.MODERN) as script:
        ticket = task_pending(caller=NEW)
        script.send(ticket)
        assert isinstance(await ticket.next(), Failure)
        assert script.methods == ["tools/call", "tools/call"]


@pytest.mark.parametrize(
    ("state", "expected"),
    [
        (modern("failed", error={"code": 7, "message": "no", "data": 1}), Failure(7, "no", b"1", Era.MODERN)),
        (modern("failed"), BackendProtocol),
        (modern("cancelled"), BackendProtocol),
        (modern("completed"), BackendProtocol),
        (modern("completed", result=[]), BackendProtocol),
        ({"code": -32602, "message": "no such task"}, Failure(-32602, "no such task", None, Era.MODERN)),
    ],
)
async def test_every_modern_task_status_has_an_outcome(state: Any, expected: Any, autojump_clock: MockClock) -> None:
    async with running({"tasks/get": state, "tasks/cancel": {}}, era=Era.MODERN) as script:
        ticket = task_pending(caller=NEW)
        ticket.as_task = True
        script.send(ticket)
        script.feed({"id": 1, "result": CREATED})
        outcome = await ticket.next()
        assert outcome == expected if isinstance(expected, Failure) else isinstance(outcome, expected)


ROOTS = {"method": "roots/list", "params": {}}
FORM = {"method": "elicitation/create", "params": {"mode": "form", "message": "m"}}


async def test_a_modern_tasks_requests_are_asked_once(autojump_clock: MockClock) -> None:
    wanted = modern("input_required", inputRequests={"r": ROOTS, "f": FORM})
    more = modern("input_required", inputRequests={"r": ROOTS, "g": FORM})
    answers = {"tasks/get": states(wanted, wanted, more, DONE), "tasks/update": {"resultType": "complete"}}
    async with running(answers, era=Era.MODERN) as script:
        ticket = task_pending(caller=OLD)
        ticket.as_task = True
        script.send(ticket)
        script.feed({"id": 1, "result": CREATED})
        for expected in (["roots/list", "elicitation/create"], ["elicitation/create"]):
            asks = [await ticket.next() for _ in expected]
            assert [ask.method for ask in asks if isinstance(ask, ServerRequest)] == expected
            for ask in asks:
                assert isinstance(ask, ServerRequest)
                if ask.method == "roots/list":
                    ask.answer(b'{"roots":[]}')
                else:
                    ask.refuse(-1, "the user said no")
        assert isinstance(await ticket.next(), Complete)
        updates = [
            message["params"]["inputResponses"] for message in script.posted if message["method"] == "tasks/update"
        ]
        assert updates == [{"r": {"roots": []}, "f": {"action": "cancel"}}, {"g": {"action": "cancel"}}]


@pytest.mark.parametrize(
    ("wanted", "able", "code"),
    [
        ({"method": "sampling/createMessage", "params": {"messages": []}}, {}, -32601),
        ({"method": "tools/call", "params": {}}, {"roots": {}}, -32601),
    ],
)
async def test_unsupported_task_requests_end_call_and_task(
    wanted: Any, able: Any, code: int, autojump_clock: MockClock
) -> None:
    answers = {"tasks/get": modern("input_required", inputRequests={"r": wanted}), "tasks/cancel": {}}
    async with running(answers, era=Era.MODERN) as script:
        ticket = task_pending(caller=msgspec.structs.replace(NEW, capabilities=jsonrpc.raw(able)))
        ticket.as_task = True
        script.send(ticket)
        script.feed({"id": 1, "result": CREATED})
        outcome = await ticket.next()
        assert isinstance(outcome, Failure)
        assert outcome.code == code
        await settle()
        assert script.methods[-1] == "tasks/cancel"


async def test_a_client_declaring_the_extension_sees_no_task(autojump_clock: MockClock) -> None:
    able = jsonrpc.raw({"extensions": {tasks.EXTENSION: {}}})
    async with running({"tasks/get": DONE}, era=Era.MODERN) as script:
        ticket = task_pending(caller=msgspec.structs.replace(NEW, capabilities=able))
        script.send(ticket)
        script.feed({"id": 1, "result": CREATED})
        assert isinstance(await ticket.next(), Complete)


async def test_an_undeclared_task_is_not_an_answer(autojump_clock: MockClock) -> None:
    async with running(era=Era.MODERN) as script:
        ticket = task_pending(caller=NEW)
        script.send(ticket)
        script.feed({"id": 1, "result": CREATED})
        assert isinstance(ticket.outcome, BackendProtocol)


async def test_a_task_of_a_large_message_is_polled_by_its_own_id(autojump_clock: MockClock) -> None:
    task_id = "t" * 2**20
    async with running({"tasks/get": legacy("working", taskId=task_id), "tasks/cancel": {}}) as script:
        script.send(task_pending())
        answer = {"jsonrpc": "2.0", "id": 1, "result": {"task": legacy(taskId=task_id)}}
        await script.conversation.feed_large(json.dumps(answer).encode())
        await trio.sleep(5)
        assert {message["params"]["taskId"] for message in script.posted[1:]} == {task_id}
