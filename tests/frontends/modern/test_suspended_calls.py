"""Suspended calls: asked together, answered once, bounded in number and time, never rerun."""

from __future__ import annotations

import json
from contextlib import asynccontextmanager
from typing import TYPE_CHECKING, Any

import pytest
import trio
from trio.testing import MockClock

from gateway import jsonrpc
from gateway.calls import Era, Failure, Notification, Withdrawn
from gateway.errors import InvalidParams
from gateway.frontends.modern.request_state import RequestStateCodec
from gateway.frontends.modern.suspended_calls import GATHER_TURNS, MAX_PARKED_EACH, PARKED_FOR, SuspendedCalls
from tests.support.fakes import settle
from tests.support.suspended import ELICITATION, ROOTS, Asked, Lines, done, make_call, make_caller, open_flow

if TYPE_CHECKING:
    from collections.abc import AsyncGenerator

    from gateway.frontends.call_stream import CallStream


@asynccontextmanager
async def open_lot(**limits: int) -> AsyncGenerator[SuspendedCalls]:
    parking = SuspendedCalls(RequestStateCodec(), **limits)
    with trio.fail_after(1e6):  # of the clock that jumps
        async with trio.open_nursery() as nursery:
            nursery.start_soon(parking.run)
            yield parking  # ruff: ignore[fallible-context-manager]
            nursery.cancel_scope.cancel()


async def park(parking: SuspendedCalls, flow: CallStream, *asked: Asked) -> dict[str, Any]:
    """Have a flow's backend send a request; return the suspended call's result."""
    pending = flow._pending
    for one in asked:
        pending.ask(one.ask)
    answer = await parking.park(flow, await flow.next())  # type: ignore[arg-type] - it is the first ask
    assert isinstance(answer, bytes), answer
    return json.loads(answer)


def key_of(parking: SuspendedCalls, flow: CallStream, result: dict[str, Any]) -> str:
    return parking.sealer.decode(flow.call, result["requestState"]).parked


def resume(parking: SuspendedCalls, flow: CallStream, result: dict[str, Any], responses: object, **kwargs: Any) -> Any:
    retry = make_call(Era.MODERN, inputResponses=responses, **kwargs)
    return parking.resume(key_of(parking, flow, result), retry)


async def test_simultaneous_requests_are_asked_together(autojump_clock: MockClock) -> None:
    async with open_lot() as parking:
        flow, pending = open_flow(Era.MODERN, Lines())
        form = Asked(ELICITATION, message="m", requestedSchema={}, task={"ttl": 1}, _meta={"progressToken": 1})
        roots = Asked(ROOTS)
        result = await park(parking, flow, form, roots)
        assert result["resultType"] == "input_required"
        params = {"message": "m", "requestedSchema": {}}
        expected = {
            "input-1": {"method": ELICITATION, "params": params},
            "input-2": {"method": ROOTS, "params": {}},
        }
        assert result["inputRequests"] == expected
        found = resume(parking, flow, result, {"input-2": {"roots": []}, "input-1": {"action": "accept"}})
        assert found is flow
        assert (form.result, roots.result) == ({"action": "accept"}, {"roots": []})
        pending.finish(done())
        assert await flow.next() == done()
        assert len(parking) == 0


async def test_nearly_simultaneous_requests_are_gathered(autojump_clock: MockClock) -> None:
    async with open_lot() as parking:
        flow, pending = open_flow(Era.MODERN, Lines())
        first, second, third = Asked(), Asked(), Asked()
        pending.ask(first.ask)
        item: Any = await flow.next()
        async with trio.open_nursery() as nursery:

            async def ask_later() -> None:
                for one, turns in ((second, 3), (third, GATHER_TURNS * 3)):
                    for _ in range(turns):
                        await trio.lowlevel.checkpoint()
                    pending.ask(one.ask)

            nursery.start_soon(ask_later)
            result = json.loads(await parking.park(flow, item))  # type: ignore[arg-type] - a result
        assert list(result["inputRequests"]) == ["input-1", "input-2"]
        resume(parking, flow, result, {"input-1": {}, "input-2": {}})
        assert await flow.next() is third.ask


async def test_a_token_resumes_once(autojump_clock: MockClock) -> None:
    async with open_lot() as parking:
        lines = Lines()
        flow, _ = open_flow(Era.MODERN, lines)
        result = await park(parking, flow, Asked())
        resume(parking, flow, result, {"input-1": {}})
        with pytest.raises(InvalidParams, match="not run again"):
            resume(parking, flow, result, {"input-1": {}})
        assert len(lines.pending_calls) == 1


async def test_missing_answers_are_requested_and_unknown_ones_ignored(autojump_clock: MockClock) -> None:
    async with open_lot() as parking:
        flow, _ = open_flow(Era.MODERN, Lines())
        first, second = Asked(), Asked(ELICITATION, message="m")
        result = await park(parking, flow, first, second)
        again = json.loads(resume(parking, flow, result, {"input-1": {"a": 1}, "input-9": {}}))
        assert list(again["inputRequests"]) == ["input-2"]
        assert first.result == {"a": 1}
        assert second.reply is None
        with pytest.raises(InvalidParams):
            resume(parking, flow, result, {"input-2": {}})
        assert resume(parking, flow, again, {"input-1": {"a": 2}, "input-2": {"b": 1}}) is flow
        assert (first.result, second.result) == ({"a": 1}, {"b": 1})


async def test_a_late_answer_matches_no_later_request(autojump_clock: MockClock) -> None:
    async with open_lot() as parking:
        flow, pending = open_flow(Era.MODERN, Lines())
        first, second = Asked(), Asked()
        result = await park(parking, flow, first)
        resume(parking, flow, result, {"input-1": {"a": 1}})
        later = await park(parking, flow, second)
        assert list(later["inputRequests"]) == ["input-2"]
        again = json.loads(resume(parking, flow, later, {"input-1": {"a": 1}}))
        assert (list(again["inputRequests"]), second.reply) == (["input-2"], None)
        assert resume(parking, flow, again, {"input-2": {"b": 1}}) is flow
        assert second.result == {"b": 1}
        pending.finish(done())
        assert await flow.next() == done()


@pytest.mark.parametrize("responses", [[], "x", 1, {"input-1": 1}, {"input-1": None}, {"input-1": {}, "input-2": []}])
async def test_answers_of_a_wrong_form_change_nothing(responses: object, autojump_clock: MockClock) -> None:
    async with open_lot() as parking:
        flow, _ = open_flow(Era.MODERN, Lines())
        asked = Asked()
        result = await park(parking, flow, asked)
        with pytest.raises(InvalidParams, match="an object of objects"):
            resume(parking, flow, result, responses)
        assert asked.reply is None
        assert resume(parking, flow, result, {"input-1": {}}) is flow


async def test_withdrawn_requests_are_not_asked(autojump_clock: MockClock) -> None:
    async with open_lot() as parking:
        flow, pending = open_flow(Era.MODERN, Lines())
        first, second = Asked(), Asked(ELICITATION, message="m")
        for one in (first, second):
            pending.ask(one.ask)
        pending.withdraw_ask(first.ask)
        result = json.loads(await parking.park(flow, await flow.next()))  # type: ignore[arg-type] - an ask, a result
        assert [one["method"] for one in result["inputRequests"].values()] == [ELICITATION]

        flow, pending = open_flow(Era.MODERN, Lines())
        pending.ask(first.ask)
        pending.withdraw_ask(first.ask)
        assert await parking.park(flow, await flow.next()) is None  # type: ignore[arg-type] - an ask


async def test_a_call_that_ends_meanwhile_is_not_suspended(autojump_clock: MockClock) -> None:
    async with open_lot() as parking:
        flow, pending = open_flow(Era.MODERN, Lines())
        pending.ask(Asked().ask)
        pending.finish(done())
        assert await parking.park(flow, await flow.next()) == done()  # type: ignore[arg-type] - an ask
        assert len(parking) == 0


async def test_an_answer_during_suspension_waits_for_its_client(autojump_clock: MockClock) -> None:
    async with open_lot() as parking:
        flow, pending = open_flow(Era.MODERN, Lines())
        result = await park(parking, flow, Asked())
        pending.finish(done("early"))
        other, _ = open_flow(Era.MODERN, Lines())
        await park(parking, other, Asked())  # wakes the task that lets calls expire
        await settle()
        assert resume(parking, flow, result, {"input-1": {}}) is flow
        assert await flow.next() == done("early")


async def test_notifications_during_suspension_await_the_retry(autojump_clock: MockClock) -> None:
    async with open_lot() as parking:
        flow, pending = open_flow(Era.MODERN, Lines(), token="old")
        pending.ask(Asked().ask)
        pending.notify(Notification("notifications/progress", {"progress": jsonrpc.raw(1)}))
        result = json.loads(await parking.park(flow, await flow.next()))  # type: ignore[arg-type] - an ask, a result
        pending.notify(Notification("notifications/progress", {"progress": jsonrpc.raw(2)}))
        caller = make_caller(Era.MODERN, log_level="debug")
        resume(parking, flow, result, {"input-1": {}}, token="new", caller=caller)
        assert (flow.token, flow.level) == ("new", "debug")
        notified: list[Any] = [await flow.next(), await flow.next()]
        assert [bytes(notice.params["progress"]) for notice in notified] == [b"1", b"2"]


async def test_a_slow_client_may_outlast_the_call_timeout(autojump_clock: MockClock) -> None:
    async with open_lot() as parking:
        flow, pending = open_flow(Era.MODERN, Lines(), timeout=10)
        result = await park(parking, flow, Asked())
        await trio.sleep(100)
        resume(parking, flow, result, {"input-1": {}})
        with trio.move_on_after(9):
            await flow.next()
        pending.finish(done())
        assert await flow.next() == done()


async def test_an_expired_suspended_call_notifies_its_backend(autojump_clock: MockClock) -> None:
    async with open_lot() as parking:
        lines, asked = Lines(), Asked()
        flow, _ = open_flow(Era.MODERN, lines)
        result = await park(parking, flow, asked)
        await trio.sleep(PARKED_FOR - 1)
        later, _ = open_flow(Era.MODERN, lines)
        await park(parking, later, Asked())
        assert (len(parking), lines.cancelled) == (2, [])
        await trio.sleep(2)
        assert (len(parking), lines.cancelled) == (1, ["the client did not return with its input"])
        assert "did not return" in asked.refusal.message
        with pytest.raises(InvalidParams):
            resume(parking, flow, result, {"input-1": {}})
        await trio.sleep(PARKED_FOR)
        assert (len(parking), len(lines.cancelled)) == (0, 2)


async def test_suspended_calls_are_bounded_for_each_principal(autojump_clock: MockClock) -> None:
    async with open_lot() as parking:
        lines = Lines()
        for _ in range(MAX_PARKED_EACH):
            flow, _ticket = open_flow(Era.MODERN, lines, caller=make_caller(Era.MODERN, principal="ada"))
            await park(parking, flow, Asked())
        flow, pending = open_flow(Era.MODERN, lines, caller=make_caller(Era.MODERN, principal="ada"))
        asked = Asked()
        pending.ask(asked.ask)
        assert await parking.park(flow, await flow.next()) is None  # type: ignore[arg-type] - an ask
        assert asked.refusal.code == jsonrpc.INTERNAL_ERROR
        other, _ = open_flow(Era.MODERN, lines, caller=make_caller(Era.MODERN, principal="eve"))
        await park(parking, other, Asked())
        assert lines.cancelled == []


async def test_suspended_calls_are_bounded_in_total(autojump_clock: MockClock) -> None:
    async with open_lot(max_calls=2) as parking:
        for principal in "ab":
            flow, _ = open_flow(Era.MODERN, Lines(), caller=make_caller(Era.MODERN, principal=principal))
            await park(parking, flow, Asked())
        flow, pending = open_flow(Era.MODERN, Lines(), caller=make_caller(Era.MODERN, principal="c"))
        asked = Asked()
        pending.ask(asked.ask)
        assert await parking.park(flow, await flow.next()) is None  # type: ignore[arg-type] - an ask
        assert isinstance(asked.reply, Failure)


async def test_shutdown_releases_all_suspended_calls(autojump_clock: MockClock) -> None:
    async with open_lot() as parking:
        lines = Lines()
        asked = [Asked(), Asked()]
        for one in asked:
            flow, _ = open_flow(Era.MODERN, lines)
            await park(parking, flow, one)
        parking.close_all()
        assert len(parking) == 0
        assert lines.cancelled == ["the gateway is shutting down"] * 2
        assert all(isinstance(one.reply, Failure) for one in asked)


async def test_the_suspending_request_can_no_longer_close_it(autojump_clock: MockClock) -> None:
    """A quick client's retry precedes the end of the suspending request."""
    async with open_lot() as parking:
        lines = Lines()
        flow, _ = open_flow(Era.MODERN, lines)
        first = flow.acquire()
        result = await park(parking, flow, Asked())
        resume(parking, flow, result, {"input-1": {}})
        second = flow.acquire()
        flow.release_by(first)
        assert lines.cancelled == []
        flow.release_by(second, "the client hung up")
        assert lines.cancelled == ["the client hung up"]


async def test_the_retry_learns_of_withdrawn_requests(autojump_clock: MockClock) -> None:
    async with open_lot() as parking:
        flow, pending = open_flow(Era.MODERN, Lines())
        asked = Asked()
        result = await park(parking, flow, asked)
        pending.withdraw_ask(asked.ask)
        resume(parking, flow, result, {"input-1": {}})
        assert await flow.next() == Withdrawn(asked.ask)
