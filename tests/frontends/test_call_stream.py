"""A call as its client sees it: modern rounds become requests to legacy clients only."""

from __future__ import annotations

import json
from typing import Any

import pytest
import trio
from trio.testing import MockClock

from gateway import jsonrpc
from gateway.calls import Complete, Era, Failure, Notification, ServerRequest, Withdrawn
from gateway.errors import BackendProtocol, Busy
from gateway.frontends.call_stream import EMPTY_ROUND_DELAY, MAX_ROUNDS, CallStream
from gateway.inflight.pending import PendingCall
from tests.support.suspended import ELICITATION, ROOTS, SAMPLING, Lines, done, make_caller, open_flow, required

NOTICE = Notification("notifications/message", {"level": jsonrpc.raw("info")})


async def next_ask(flow: CallStream) -> ServerRequest:
    item = await flow.next()
    assert isinstance(item, ServerRequest), item
    return item


async def next_pending(lines: Lines, flow: CallStream) -> PendingCall:
    """Advance the stream until it waits for its backend; return the call sent."""
    count = len(lines.pending_calls)
    with trio.move_on_after(5):
        item = await flow.next()
        raise AssertionError(f"the flow has ended: {item}")
    assert len(lines.pending_calls) == count + 1
    return lines.pending_calls[-1]


def params_of(pending: PendingCall) -> dict[str, Any]:
    return {name: json.loads(bytes(span)) for name, span in pending.call.params.items()}


async def test_a_round_asks_the_client_and_resends(autojump_clock: MockClock) -> None:
    lines = Lines()
    flow, pending = open_flow(Era.LEGACY, lines, token="t", arguments={"a": 1})
    state = "\u00e9 \\u0000 /"
    pending.finish(required({"a": (ELICITATION, {"message": "m"}), "b": (ROOTS, {})}, requestState=state))
    first, second = await next_ask(flow), await next_ask(flow)
    assert (first.method, second.method) == (ELICITATION, ROOTS)
    second.answer(b'{"roots":[]}')
    first.answer(b'{"action":"accept", "content":{}}')
    again = await next_pending(lines, flow)
    answers = {"a": {"action": "accept", "content": {}}, "b": {"roots": []}}
    assert params_of(again) == {
        "name": "x",
        "arguments": {"a": 1},
        "inputResponses": answers,
        "requestState": state,
    }
    assert bytes(again.call.params["requestState"]) == json.dumps(state).encode()  # byte by byte
    assert again.call.progress_token == "t"
    assert params_of(pending) == {"name": "x", "arguments": {"a": 1}}
    assert lines.released == [pending]
    again.finish(done())
    assert await flow.next() == done()
    assert lines.cancelled == []


async def test_each_round_has_its_own_state(autojump_clock: MockClock) -> None:
    lines = Lines()
    flow, pending = open_flow(Era.LEGACY, lines)
    pending.finish(required({"a": (ROOTS, {})}, requestState="one"))
    (await next_ask(flow)).answer(b"{}")
    pending = await next_pending(lines, flow)
    pending.finish(required({"b": (ROOTS, {})}))
    (await next_ask(flow)).answer(b"[]")
    pending = await next_pending(lines, flow)
    assert params_of(pending) == {"name": "x", "inputResponses": {"b": []}}


async def test_a_round_without_requests_is_resent_later(autojump_clock: MockClock) -> None:
    lines = Lines()
    flow, pending = open_flow(Era.LEGACY, lines)
    began = trio.current_time()
    for number in (1, 2, 3):
        pending.finish(required(requestState=str(number)))
        pending = await next_pending(lines, flow)
        assert params_of(pending) == {"name": "x", "requestState": str(number)}
    assert pending.opened_at - began >= EMPTY_ROUND_DELAY * (1 + 2 + 3)


async def test_rounds_of_a_call_are_bounded(autojump_clock: MockClock) -> None:
    lines = Lines()
    flow, pending = open_flow(Era.LEGACY, lines)
    for _ in range(MAX_ROUNDS):
        pending.finish(required({"a": (ROOTS, {})}))
        (await next_ask(flow)).answer(b"{}")
        pending = await next_pending(lines, flow)
    pending.finish(required({"a": (ROOTS, {})}))
    problem = await flow.next()
    assert isinstance(problem, BackendProtocol)
    assert f"more than {MAX_ROUNDS} times" in str(problem)


async def test_a_refused_elicitation_is_a_cancelled_one(autojump_clock: MockClock) -> None:
    lines = Lines()
    flow, pending = open_flow(Era.LEGACY, lines)
    pending.finish(required({"a": (ELICITATION, {"message": "m"})}))
    (await next_ask(flow)).refuse(-1, "no")
    assert params_of(await next_pending(lines, flow))["inputResponses"] == {"a": {"action": "cancel"}}


@pytest.mark.parametrize("method", [SAMPLING, ROOTS])
async def test_another_refusal_is_the_end_of_the_call(method: str, autojump_clock: MockClock) -> None:
    lines = Lines()
    flow, pending = open_flow(Era.LEGACY, lines)
    pending.finish(required({"a": (method, {}), "b": (ELICITATION, {})}))
    (await next_ask(flow)).refuse(-1, "no", b'{"why":1}')
    (await next_ask(flow)).answer(b'{"action":"accept"}')
    assert await flow.next() == Failure(-1, "no", b'{"why":1}', Era.LEGACY)
    assert len(lines.pending_calls) == 1


async def test_clients_get_no_requests_beyond_their_capabilities(autojump_clock: MockClock) -> None:
    lines = Lines()
    caller = make_caller(Era.LEGACY, capabilities=jsonrpc.raw({"roots": {}}))
    flow, pending = open_flow(Era.LEGACY, lines, caller=caller)
    pending.finish(required({"a": (ELICITATION, {"message": "m"}), "b": (ROOTS, {})}))
    ask = await next_ask(flow)
    assert ask.method == ROOTS
    ask.answer(b"{}")
    assert params_of(await next_pending(lines, flow))["inputResponses"] == {"a": {"action": "cancel"}, "b": {}}


async def test_a_url_request_gets_the_legacy_id(autojump_clock: MockClock) -> None:
    flow, pending = open_flow(Era.LEGACY, Lines())
    pending.finish(required({"a": (ELICITATION, {"mode": "url", "url": "https://example.com/", "message": "m"})}))
    assert jsonrpc.decode_string((await next_ask(flow)).params["elicitationId"])


@pytest.mark.parametrize(
    ("outcome", "said"),
    [
        (required({"a": ("tools/list", {})}), "'tools/list', which is not an input request"),
        (required(inputRequests=[]), "in an invalid form"),
        (required(inputRequests={"a": {}}), "in an invalid form"),
        (required({"a": (ROOTS, [])}), "in an invalid form"),
    ],
)
async def test_an_invalid_request_ends_the_call(outcome: Any, said: str, autojump_clock: MockClock) -> None:
    flow, pending = open_flow(Era.LEGACY, Lines())
    pending.finish(outcome)
    problem = await flow.next()
    assert isinstance(problem, BackendProtocol)
    assert said in str(problem)


async def test_a_silent_client_is_not_awaited(autojump_clock: MockClock) -> None:
    lines = Lines()
    flow, pending = open_flow(Era.LEGACY, lines, timeout=50)
    pending.finish(required({"a": (ROOTS, {})}))
    await next_ask(flow)
    began = trio.current_time()
    problem = await flow.next()
    assert isinstance(problem, BackendProtocol)
    assert "did not give in time" in str(problem)
    assert trio.current_time() - began == pytest.approx(50)
    assert len(lines.pending_calls) == 1


async def test_a_cancelled_wait_loses_no_event(autojump_clock: MockClock) -> None:
    """Frontends send comments while they wait: a cancelled wait loses nothing."""
    lines = Lines()
    flow, pending = open_flow(Era.LEGACY, lines)
    pending.finish(required({"a": (ROOTS, {})}))
    ask = await next_ask(flow)
    for _ in range(3):
        with trio.move_on_after(1):
            await flow.next()
            raise AssertionError("nothing has come")
    ask.answer(b"{}")
    (await next_pending(lines, flow)).finish(done())
    assert isinstance(await flow.next(), Complete)


async def test_messages_between_reads_start_no_other_round(autojump_clock: MockClock) -> None:
    lines = Lines()
    flow, pending = open_flow(Era.LEGACY, lines)
    pending.finish(required({"a": (ROOTS, {})}))
    (await next_ask(flow)).answer(b"{}")
    again = await next_pending(lines, flow)
    again.notify(NOTICE)
    again.finish(done())
    assert [await flow.next(), await flow.next()] == [NOTICE, done()]
    assert len(lines.pending_calls) == 2


async def test_a_refused_round_ends_with_its_error(autojump_clock: MockClock) -> None:
    lines = Lines()
    flow, pending = open_flow(Era.LEGACY, lines)
    pending.finish(required({"a": (ROOTS, {})}))
    (await next_ask(flow)).answer(b"{}")
    lines.problem = Busy("too many")
    assert await flow.next() is lines.problem


async def test_closing_during_a_round_cancels_its_requests(autojump_clock: MockClock) -> None:
    lines = Lines()
    flow, pending = open_flow(Era.LEGACY, lines)
    pending.finish(required({"a": (ROOTS, {})}))
    (await next_ask(flow)).answer(b"{}")
    await next_pending(lines, flow)
    flow.close("enough")
    flow.close("enough")
    assert lines.cancelled == ["enough"]
    assert await flow.next() is None


async def test_a_modern_client_gets_the_round_unchanged(autojump_clock: MockClock) -> None:
    flow, pending = open_flow(Era.MODERN, Lines())
    outcome = required({"a": (ROOTS, {})}, requestState="s")
    pending.finish(outcome)
    assert await flow.next() is outcome


async def test_notifications_keep_order_and_stream_closes_are_dropped(autojump_clock: MockClock) -> None:
    flow, pending = open_flow(Era.MODERN, Lines())
    ask = ServerRequest(ROOTS, {}, lambda _reply: None)
    later = Notification("notifications/message", {})
    pending.notify(NOTICE)
    pending.close_stream(5)
    pending.ask(ask)
    pending.notify(later)
    pending.withdraw_ask(ask)
    assert await flow.next_but_notices() is ask
    assert await flow.next_but_notices() == Withdrawn(ask)
    pending.finish(done())
    assert [await flow.next() for _ in range(3)] == [NOTICE, later, done()]
