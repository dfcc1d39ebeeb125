"""One task keeps the deadlines of all calls that are waited for: in any order, put off meanwhile, and after its end."""

from __future__ import annotations

import gc
from functools import partial
from typing import TYPE_CHECKING

import pytest
import trio

from gateway import jsonrpc
from gateway.calls import Notification
from gateway.errors import BackendTooSlow
from gateway.inflight.deadlines import Deadlines
from gateway.inflight.pending import PendingCall
from tests.support.fakes import RESULT, make_ticket, settle

if TYPE_CHECKING:
    from trio.testing import MockClock

PROGRESS = Notification("notifications/progress", {"progress": jsonrpc.raw(1)})


def make_kept(deadlines: Deadlines, timeout: float) -> PendingCall:
    ticket = make_ticket(timeout=timeout)
    ticket.deadlines = deadlines
    return ticket


class Waiters:
    """Tickets that are waited for, and when each was over."""

    def __init__(self, deadlines: Deadlines, nursery: trio.Nursery) -> None:
        self.deadlines, self.nursery = deadlines, nursery
        self.ended: dict[float, float] = {}
        self.items: list[object] = []

    def wait(self, timeout: float) -> PendingCall:
        ticket = make_kept(self.deadlines, timeout)
        self.nursery.start_soon(self._wait, ticket, timeout)
        return ticket

    async def _wait(self, ticket: PendingCall, timeout: float) -> None:
        while not ticket.over:
            self.items.append(await ticket.next())
        self.ended[timeout] = trio.current_time()
        ticket.close()


async def test_each_ends_in_its_own_time_in_whatever_order_they_came(autojump_clock: MockClock) -> None:
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


async def test_progress_puts_a_deadline_off_up_to_its_hard_maximum(autojump_clock: MockClock) -> None:
    del autojump_clock
    deadlines, begin = Deadlines(), trio.current_time()
    async with trio.open_nursery() as services:
        await services.start(deadlines.run)
        async with trio.open_nursery() as nursery:
            waiters = Waiters(deadlines, nursery)
            ticket = waiters.wait(10.0)
            ticket.limit(10.0, 24.0)
            for _ in range(6):
                await trio.sleep(4)
                ticket.notify(PROGRESS)
        assert waiters.ended == pytest.approx({10.0: begin + 24})
        assert waiters.items[:5] == [PROGRESS] * 5
        services.cancel_scope.cancel()


async def test_who_watches_is_rung_once_the_deadline_has_passed(autojump_clock: MockClock) -> None:
    del autojump_clock
    deadlines = Deadlines()
    rings: list[float] = []
    async with trio.open_nursery() as services:
        ticket = make_kept(deadlines, 10.0)
        assert not ticket.watch(partial(rings.append, 0))  # nobody keeps deadlines yet
        assert len(deadlines) == 0
        await services.start(deadlines.run)
        begin = trio.current_time()
        assert ticket.watch(lambda: rings.append(trio.current_time() - begin))
        await trio.sleep(5)
        ticket.extend()  # with nobody told
        await trio.sleep(9)
        assert rings == []
        await trio.sleep(2)
        assert rings == pytest.approx([15])
        assert ticket.settled is None
        ticket.unwatch()
        ticket.finish(RESULT)
        assert len(rings) == 1
        services.cancel_scope.cancel()


async def test_watching_what_is_over_rings_at_once() -> None:
    deadlines = Deadlines()
    rings: list[int] = []
    async with trio.open_nursery() as services:
        await services.start(deadlines.run)
        ticket = make_kept(deadlines, 10.0)
        ticket.finish(RESULT)
        assert ticket.watch(partial(rings.append, 1))
        assert rings == [1]
        assert ticket.settled is RESULT
        ticket.unwatch()
        assert len(deadlines) == 0
        services.cancel_scope.cancel()


async def test_after_its_end_those_who_wait_keep_their_own(autojump_clock: MockClock) -> None:
    del autojump_clock
    deadlines, begin = Deadlines(), trio.current_time()
    rings: list[int] = []
    async with trio.open_nursery() as nursery:
        services = trio.CancelScope()

        async def keep(*, task_status: trio.TaskStatus[None]) -> None:
            with services:
                await deadlines.run(task_status=task_status)

        await nursery.start(keep)
        waiters = Waiters(deadlines, nursery)
        waiters.wait(10.0)
        watched = make_kept(deadlines, 20.0)
        assert watched.watch(partial(rings.append, 1))
        await trio.sleep(1)
        services.cancel()
        await settle()
        assert rings == [1]  # so that somebody waits for it
        assert not deadlines.is_kept
        assert len(deadlines) == 0
    assert waiters.ended == pytest.approx({10.0: begin + 10})


async def test_one_who_gives_up_takes_no_deadline_from_who_waits_after_it(autojump_clock: MockClock) -> None:
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


async def test_it_holds_nothing_that_has_ended(autojump_clock: MockClock) -> None:
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
