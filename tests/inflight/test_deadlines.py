"""One task for the deadlines of all calls: any order, extensions, and its end."""

from __future__ import annotations

import gc
from typing import TYPE_CHECKING, Any

import pytest
import trio

from gateway import jsonrpc
from gateway.calls import Notification
from gateway.errors import BackendTooSlow
from gateway.inflight.deadlines import Deadlines
from gateway.inflight.pending import PendingCall
from tests.support.fakes import RESULT, make_pending, settle

if TYPE_CHECKING:
    from trio.testing import MockClock

PROGRESS = Notification("notifications/progress", {"progress": jsonrpc.raw(1)})


def make_kept(deadlines: Deadlines, timeout: float, **pending: Any) -> PendingCall:
    return make_pending(timeout=timeout, pending={"deadlines": deadlines, **pending})


class Sink:
    """Implements `gateway.inflight.pending.ClientSink`: when what was called."""

    def __init__(self) -> None:
        self.begin = trio.current_time()
        self.called: list[tuple[float, object]] = []

    def finish(self, pending: PendingCall, outcome: object) -> None:
        self.called.append((trio.current_time() - self.begin, outcome))

    def start_task(self, pending: PendingCall) -> None:
        self.called.append((trio.current_time() - self.begin, "task"))

    def fail(self, problem: Exception) -> None:
        raise AssertionError from problem


class Waiters:
    """Tickets that are waited for, and when each was over."""

    def __init__(self, deadlines: Deadlines, nursery: trio.Nursery) -> None:
        self.deadlines, self.nursery = deadlines, nursery
        self.ended: dict[float, float] = {}
        self.items: list[object] = []

    def wait(self, timeout: float, **pending: Any) -> PendingCall:
        ticket = make_kept(self.deadlines, timeout, **pending)
        self.nursery.start_soon(self._wait, ticket, timeout)
        return ticket

    async def _wait(self, ticket: PendingCall, timeout: float) -> None:
        while not ticket.over:
            self.items.append(await ticket.next())
        self.ended[timeout] = trio.current_time()
        ticket.close()


async def test_deadlines_expire_in_order_of_time(autojump_clock: MockClock) -> None:
    del autojump_clock
    deadlines, begin = Deadlines(), trio.current_time()
    async with trio.open_nursery() as services:
        await services.start(deadlines.run)
        async with trio.open_nursery() as nursery:
            waiters = Waiters(deadlines, nursery)
            for timeout in (30.0, 0.05, 7.0, 300.0, 7.5, 0.0):
                waiters.wait(timeout)
            await trio.sleep(1)
            waiters.wait(2.0)  # nearer than all that the task looks out for now
            await settle()
            assert len(deadlines) == 5
        after = {timeout: when - begin for timeout, when in waiters.ended.items()}
        assert after == pytest.approx({0.0: 0, 0.05: 0.05, 2.0: 3, 7.0: 7, 7.5: 7.5, 30.0: 30, 300.0: 300})
        assert all(isinstance(item, BackendTooSlow) for item in waiters.items)
        assert len(deadlines) == 0
        services.cancel_scope.cancel()


async def test_progress_extends_a_deadline_up_to_its_maximum(autojump_clock: MockClock) -> None:
    del autojump_clock
    deadlines, begin = Deadlines(), trio.current_time()
    async with trio.open_nursery() as services:
        await services.start(deadlines.run)
        async with trio.open_nursery() as nursery:
            waiters = Waiters(deadlines, nursery)
            ticket = waiters.wait(10.0, max_time=24.0)
            for _ in range(6):
                await trio.sleep(4)
                ticket.notify(PROGRESS)
        assert waiters.ended == pytest.approx({10.0: begin + 24})
        assert waiters.items[:5] == [PROGRESS] * 5
        services.cancel_scope.cancel()


async def test_a_sink_gets_the_deadline_as_outcome(autojump_clock: MockClock) -> None:
    del autojump_clock
    deadlines = Deadlines()
    async with trio.open_nursery() as services:
        await services.start(deadlines.run)
        sink = Sink()
        ticket = make_kept(deadlines, 10.0, sink=sink)
        await trio.sleep(5)
        ticket.extend()
        await trio.sleep(9)
        assert sink.called == []
        await trio.sleep(2)
        [(at, outcome)] = sink.called
        assert at == pytest.approx(15)
        assert isinstance(outcome, BackendTooSlow)
        ticket.finish(RESULT)
        assert (len(sink.called), len(deadlines)) == (1, 0)
        services.cancel_scope.cancel()


async def test_a_sink_starts_its_task_when_patience_ends(autojump_clock: MockClock) -> None:
    del autojump_clock
    deadlines = Deadlines()
    async with trio.open_nursery() as services:
        await services.start(deadlines.run)
        sink = Sink()
        ticket = make_kept(deadlines, 10.0, sink=sink, patience=4.0)
        with trio.move_on_after(6):
            await trio.sleep_forever()
        assert sink.called == [(pytest.approx(4), "task")]
        assert isinstance(await ticket.next(), BackendTooSlow)  # the task keeps the deadline
        assert trio.current_time() - sink.begin == pytest.approx(10)
        services.cancel_scope.cancel()


async def test_waiters_keep_their_deadlines_after_the_service_ends(autojump_clock: MockClock) -> None:
    del autojump_clock
    deadlines, begin = Deadlines(), trio.current_time()
    async with trio.open_nursery() as nursery:
        services = trio.CancelScope()

        async def keep(*, task_status: trio.TaskStatus[None]) -> None:
            with services:
                await deadlines.run(task_status=task_status)

        await nursery.start(keep)
        waiters = Waiters(deadlines, nursery)
        waiters.wait(10.0)
        sink = Sink()
        watched = make_kept(deadlines, 20.0, sink=sink)
        await trio.sleep(1)
        services.cancel()
        await settle()
        assert sink.called == [(pytest.approx(1), "task")]
        watched.close()
        assert not deadlines.is_running
        assert len(deadlines) == 0
    assert waiters.ended == pytest.approx({10.0: begin + 10})


async def test_leaving_keeps_the_deadlines_of_later_waiters(autojump_clock: MockClock) -> None:
    del autojump_clock
    deadlines, begin = Deadlines(), trio.current_time()
    first = trio.CancelScope()
    async with trio.open_nursery() as services:
        await services.start(deadlines.run)
        ticket = make_kept(deadlines, 10.0)

        async def wait_first() -> None:
            with first:
                await ticket.next()

        services.start_soon(wait_first)
        await settle()

        async def give_up() -> None:
            await trio.sleep(1)
            first.cancel()

        services.start_soon(give_up)
        with trio.fail_after(60):
            assert isinstance(await ticket.next(), BackendTooSlow)
        assert trio.current_time() == pytest.approx(begin + 10)
        services.cancel_scope.cancel()


async def test_ended_calls_are_not_kept_alive(autojump_clock: MockClock) -> None:
    del autojump_clock
    deadlines = Deadlines()
    async with trio.open_nursery() as services:
        await services.start(deadlines.run)
        async with trio.open_nursery() as nursery:
            ticket = Waiters(deadlines, nursery).wait(1.0)
        number = ticket.number
        del ticket
        await settle()
        gc.collect()  # of what the test itself has made; what a variable holds stays
        assert not [one for one in gc.get_objects() if type(one) is PendingCall and one.number == number]
        services.cancel_scope.cancel()
