"""A pending call: ordered notifications, one outcome, a deadline, and a cancel for the backend."""

from __future__ import annotations

from typing import Any

import msgspec
import pytest
import trio
import trio.testing

from gateway import jsonrpc
from gateway.budget import SMALL_BYTES, Budget
from gateway.calls import Complete, Notification, ServerRequest
from gateway.errors import BackendExited, BackendTooSlow, BackendUnavailable, IllegalTransition
from gateway.inflight.pending import MAX_NOTICES, PendingCall
from gateway.inflight.state import TRANSITIONS, CallState
from tests.support.fakes import RESULT, Carrier, make_pending, settle


def notice(number: int) -> Notification:
    return Notification("notifications/progress", {"progress": jsonrpc.raw(number)})


def watched(ticket: PendingCall) -> list[str]:
    """Record the reason of the cancel sent to the backend."""
    carrier = Carrier()
    ticket.sent(carrier, 1)
    return carrier.reasons


async def test_notices_come_in_order_and_before_the_outcome(autojump_clock: trio.testing.MockClock) -> None:
    del autojump_clock
    ticket = make_pending()
    notified = watched(ticket)
    for number in range(3):
        ticket.notify(notice(number))
    ticket.finish(RESULT)
    with trio.fail_after(1):
        assert [await ticket.next() for _ in range(4)] == [notice(0), notice(1), notice(2), RESULT]
        assert await ticket.next() is RESULT  # it stays
    ticket.close()
    assert notified == []


async def test_only_the_first_end_counts() -> None:
    ticket = make_pending()
    ticket.finish(RESULT)
    ticket.finish(BackendUnavailable("b", "later"))
    ticket.notify(notice(1))
    ticket.abandon(BackendUnavailable("b", "later"), "later")
    with trio.fail_after(1):
        assert await ticket.next() is RESULT
    assert ticket.over


async def test_the_oldest_notice_is_dropped_and_counted() -> None:
    ticket = make_pending()
    for number in range(MAX_NOTICES + 3):
        ticket.notify(notice(number))
    assert ticket.dropped == 3
    with trio.fail_after(1):
        assert await ticket.next() == notice(3)


async def test_notices_are_dropped_when_buffers_are_full() -> None:
    size = len(jsonrpc.raw(10))
    buffers = Budget(3 * size)
    ticket, other = (make_pending(pending={"buffers": buffers}) for _ in range(2))
    for number in range(10, 14):
        ticket.notify(notice(number))
    other.notify(notice(20))  # one call does not pay for another
    assert (ticket.dropped, other.dropped, buffers.used) == (1, 1, 3 * size)
    with trio.fail_after(1):
        assert await ticket.next() == notice(11)
    other.notify(notice(21))
    assert (other.dropped, buffers.used, other.held) == (1, 3 * size, size)


async def test_an_outcome_that_waits_for_its_task_counts() -> None:
    buffers = Budget(2**20)
    ticket = make_pending(pending={"buffers": buffers})
    result = Complete(b'{"content":"%b"}' % (b"x" * SMALL_BYTES), RESULT.era)
    ticket.finish(result)
    assert (await ticket.next(), buffers.used) == (result, len(result.result))
    ticket.drop_outcome()
    assert buffers.used == ticket.held == 0


async def test_a_waiter_is_woken() -> None:
    ticket = make_pending()
    got: list[object] = []

    async def wait() -> None:
        while len(got) < 3:
            got.append(await ticket.next())

    with trio.fail_after(5):
        async with trio.open_nursery() as nursery:
            nursery.start_soon(wait)
            for what in (lambda: ticket.notify(notice(1)), lambda: ticket.notify(notice(2))):
                await settle()
                what()
            await settle()
            ticket.finish(RESULT)
    assert got == [notice(1), notice(2), RESULT]


async def test_the_deadline_counts_from_the_beginning(autojump_clock: trio.testing.MockClock) -> None:
    del autojump_clock
    ticket = make_pending(timeout=10)
    notified = watched(ticket)
    started = trio.current_time()
    await trio.sleep(4)
    with trio.fail_after(100):
        outcome = await ticket.next()
    assert trio.current_time() - started == pytest.approx(10)
    assert isinstance(outcome, BackendTooSlow)
    assert str(outcome) == "backend 'b' did not answer within 10 s (call_timeout)"
    assert notified == ["the gateway's deadline passed"]
    ticket.finish(RESULT)
    assert await ticket.next() is outcome


async def test_progress_does_not_extend_the_deadline(autojump_clock: trio.testing.MockClock) -> None:
    del autojump_clock
    ticket = make_pending(timeout=10)
    notified = watched(ticket)
    for number in range(12):  # there is always a notice left when the client asks for the next
        ticket.notify(notice(number))
    got: list[object] = []
    with trio.fail_after(100):
        while not got or isinstance(got[-1], Notification):
            await trio.sleep(1)
            ticket.notify(notice(99))
            got.append(await ticket.next())
            assert len(got) < 40
    assert isinstance(got[-1], BackendTooSlow)
    assert notified == ["the gateway's deadline passed"]


async def test_closing_notifies_the_backend_once() -> None:
    ticket = make_pending()
    notified = watched(ticket)
    ticket.close("the client hung up")
    ticket.close("again")
    ticket.abandon(BackendUnavailable("b", "later"), "later")
    assert notified == ["the client hung up"]
    ticket.notify(notice(1))
    ticket.finish(RESULT)
    with trio.fail_after(1):
        assert await ticket.next() is None


async def test_no_notification_follows_closing() -> None:
    ticket = make_pending()
    ticket.notify(notice(1))
    ticket.close()
    with trio.fail_after(1):
        assert await ticket.next() is None


async def test_a_waiter_learns_of_closing() -> None:
    ticket = make_pending()
    with trio.fail_after(5):
        async with trio.open_nursery() as nursery:
            nursery.start_soon(ticket.next)
            await settle()
            ticket.close()


async def test_abandoning_ends_it_and_notifies_the_backend() -> None:
    ticket = make_pending()
    notified = watched(ticket)
    problem = BackendUnavailable("b", "was cut off")
    ticket.abandon(problem, "shutting down")
    with trio.fail_after(1):
        assert await ticket.next() is problem
    assert notified == ["shutting down"]


async def test_a_cancelled_wait_leaves_it_open(autojump_clock: trio.testing.MockClock) -> None:
    del autojump_clock
    ticket = make_pending()
    notified = watched(ticket)
    with trio.move_on_after(5):
        await ticket.next()
    assert (ticket.over, notified) == (False, [])
    ticket.finish(RESULT)
    assert await ticket.next() is RESULT


def test_messages_from_a_full_pipe_fit() -> None:
    params = b'{"level":"info","data":"line 1"}'
    assert 65_536 / len(jsonrpc.notification("notifications/message", params)) < MAX_NOTICES


async def test_large_notices_are_bounded_by_their_bytes() -> None:
    ticket = make_pending(token="t")
    large = Notification("notifications/message", {"data": msgspec.Raw(b'"' + b"x" * 1_000_000 + b'"')})
    for _ in range(50):
        ticket.notify(large)
    assert ticket.dropped == 46  # four of a million bytes fit
    ticket.notify(Notification("notifications/message", {"data": msgspec.Raw(b'"' + b"x" * 9_000_000 + b'"')}))
    ticket.finish(RESULT)
    found = [await ticket.next() for _ in range(2)]
    assert isinstance(found[0], Notification)
    assert len(bytes(found[0].params["data"])) == 9_000_002
    assert found[1] is RESULT


# -- the state ---------------------------------------------------------------------------------------------------------


class Owner:
    """Implements `gateway.inflight.pending.CallOwner`: the calls that have ended, and whether one is taken back."""

    def __init__(self, *, takes_back: bool = False) -> None:
        self.takes_back = takes_back
        self.ended: list[object] = []

    def call_ended(self, pending: PendingCall) -> None:
        self.ended.append(pending.outcome)

    def take_back(self, pending: PendingCall, outcome: object) -> bool:
        return self.takes_back and not pending.was_resent


class Sink:
    """Implements `gateway.inflight.pending.ClientSink`: the messages it received, in order."""

    def __init__(self, *, problem: Exception | None = None) -> None:
        self.problem = problem
        self.notified: list[object] = []

    def finish(self, pending: PendingCall, outcome: object) -> None:
        self.notified.append(outcome)
        if self.problem is not None:
            raise self.problem

    def start_task(self, pending: PendingCall) -> None:
        self.notified.append("task")
        if self.problem is not None:
            raise self.problem

    def fail(self, problem: Exception) -> None:
        self.notified.append(problem)


CRASH = BackendExited("b", "was killed")


def bring_to(state: CallState, ticket: PendingCall) -> None:
    """Bring a call to a state in a way that calls go."""
    if state is CallState.QUEUED:
        return
    ticket.sent(Carrier(), 1)
    if state is CallState.WAITING_FOR_CLIENT:
        ticket.ask(ServerRequest("roots/list", {}, lambda _reply: None))
    elif state is CallState.DONE:
        ticket.finish(RESULT)
    elif state is CallState.CANCELLED:
        ticket.close()


@pytest.mark.parametrize("state", list(CallState))
async def test_the_state_follows_what_happens(state: CallState) -> None:
    await trio.lowlevel.checkpoint()
    ticket = make_pending()
    bring_to(state, ticket)
    assert ticket.state is state
    assert ticket.over is (not TRANSITIONS[state])


@pytest.mark.parametrize("state", [CallState.DONE, CallState.CANCELLED])
async def test_a_call_that_is_over_cannot_be_sent(state: CallState) -> None:
    await trio.lowlevel.checkpoint()
    ticket = make_pending()
    bring_to(state, ticket)
    with pytest.raises(IllegalTransition, match="cannot become sent"):
        ticket.sent(Carrier(), 2)


@pytest.mark.parametrize("before", [CallState.QUEUED, CallState.SENT])
async def test_the_last_answer_ends_the_client_wait(before: CallState) -> None:
    await trio.lowlevel.checkpoint()
    ticket = make_pending()
    bring_to(before, ticket)
    asks = [ServerRequest("roots/list", {}, lambda _reply: None) for _ in range(2)]
    for ask in asks:
        ticket.ask(ask)
        ask.answer(b"{}") if ask is asks[0] else None
    assert ticket.state is CallState.WAITING_FOR_CLIENT
    asks[1].refuse(1, "no")
    assert ticket.state is before


async def test_a_requeued_call_is_queued_once() -> None:
    await trio.lowlevel.checkpoint()
    owner = Owner(takes_back=True)
    ticket = make_pending()
    ticket.queued(owner)
    ticket.sent(Carrier(), 1)
    ticket.finish(CRASH)
    assert (ticket.state, ticket.is_sent, owner.ended) == (CallState.QUEUED, False, [])
    ticket.sent(Carrier(), 1)
    ticket.finish(CRASH)
    assert (ticket.state, owner.ended) == (CallState.DONE, [CRASH])


END = {
    "outcome": lambda ticket: ticket.finish(RESULT),
    "deadline": lambda ticket: ticket.wake_expired(),
    "client": lambda ticket: ticket.close("the client disconnected"),
    "gateway": lambda ticket: ticket.abandon(BackendUnavailable("b", "was cut off"), "the gateway is shutting down"),
}


@pytest.mark.parametrize("second", list(END))
@pytest.mark.parametrize("first", list(END))
async def test_two_ends_in_one_instant_are_one(first: str, second: str) -> None:
    await trio.lowlevel.checkpoint()
    owner, carrier, sink = Owner(), Carrier(), Sink()
    ticket = make_pending(timeout=0, pending={"sink": sink})
    ticket.queued(owner)
    ticket.sent(carrier, 1)
    END[first](ticket)
    END[second](ticket)
    assert len(owner.ended) == 1
    assert len(carrier.reasons) == (first != "outcome")
    assert len(sink.notified) == (first != "client")  # a client that has cancelled gets no response
    assert owner.ended == (sink.notified or [None])


EVENTS: dict[str, Any] = {
    "notification": lambda ticket: ticket.notify(notice(1)),
    "server request": lambda ticket: ticket.ask(ServerRequest("roots/list", {}, lambda _reply: None)),
    "closed stream": lambda ticket: ticket.close_stream(1),
    "patience": lambda ticket: ticket.wake_expired(),
}


@pytest.mark.parametrize("event", list(EVENTS))
async def test_whatever_comes_before_the_outcome_starts_one_task(event: str) -> None:
    await trio.lowlevel.checkpoint()
    sink = Sink()
    ticket = make_pending(pending={"sink": sink})
    EVENTS[event](ticket)
    EVENTS[event](ticket)
    ticket.finish(Complete(b"{}", RESULT.era))
    assert sink.notified == ["task"]
    assert ticket.outcome is not None


@pytest.mark.parametrize("event", ["outcome", "notification"])
async def test_a_bug_in_a_sink_spares_the_backend(event: str) -> None:
    await trio.lowlevel.checkpoint()
    problem = ZeroDivisionError()
    sink = Sink(problem=problem)
    ticket = make_pending(pending={"sink": sink})
    {**END, **EVENTS}[event](ticket)
    assert sink.notified[1:] == [problem]
