"""A call under way: notices in order, one outcome, a deadline, and a backend that is told when nobody waits."""

from __future__ import annotations

import msgspec
import pytest
import trio
import trio.testing

from gateway import jsonrpc
from gateway.calls import Notification
from gateway.errors import BackendTooSlow, BackendUnavailable
from gateway.inflight.pending import MAX_NOTICES, PendingCall
from tests.support.fakes import RESULT, make_ticket, settle


def notice(number: int) -> Notification:
    return Notification("notifications/progress", {"progress": jsonrpc.raw(number)})


def watched(ticket: PendingCall) -> list[str]:
    """Note why the backend was told to stop."""
    told: list[str] = []
    ticket.on_close = lambda _ticket, reason: told.append(reason)
    return told


async def test_notices_come_in_order_and_before_the_outcome(autojump_clock: trio.testing.MockClock) -> None:
    del autojump_clock
    ticket = make_ticket()
    told = watched(ticket)
    for number in range(3):
        ticket.notify(notice(number))
    ticket.finish(RESULT)
    with trio.fail_after(1):
        assert [await ticket.next() for _ in range(4)] == [notice(0), notice(1), notice(2), RESULT]
        assert await ticket.next() is RESULT  # it stays
    ticket.close()
    assert told == []


async def test_only_the_first_end_counts() -> None:
    ticket = make_ticket()
    ticket.finish(RESULT)
    ticket.finish(BackendUnavailable("b", "later"))
    ticket.notify(notice(1))
    ticket.abandon(BackendUnavailable("b", "later"), "later")
    with trio.fail_after(1):
        assert await ticket.next() is RESULT
    assert ticket.over


async def test_the_oldest_notice_is_dropped_and_counted() -> None:
    ticket = make_ticket()
    for number in range(MAX_NOTICES + 3):
        ticket.notify(notice(number))
    assert ticket.dropped == 3
    with trio.fail_after(1):
        assert await ticket.next() == notice(3)


async def test_who_waits_is_woken() -> None:
    ticket = make_ticket()
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
    ticket = make_ticket(timeout=10)
    told = watched(ticket)
    started = trio.current_time()
    await trio.sleep(4)
    with trio.fail_after(100):
        outcome = await ticket.next()
    assert trio.current_time() - started == pytest.approx(10)
    assert isinstance(outcome, BackendTooSlow)
    assert str(outcome) == "backend 'b' did not answer within 10 s (call_timeout)"
    assert told == ["the gateway's deadline passed"]
    ticket.finish(RESULT)
    assert await ticket.next() is outcome


async def test_progress_does_not_put_the_deadline_off(autojump_clock: trio.testing.MockClock) -> None:
    del autojump_clock
    ticket = make_ticket(timeout=10)
    told = watched(ticket)
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
    assert told == ["the gateway's deadline passed"]


async def test_closing_tells_the_backend_once() -> None:
    ticket = make_ticket()
    told = watched(ticket)
    ticket.close("the client hung up")
    ticket.close("again")
    ticket.abandon(BackendUnavailable("b", "later"), "later")
    assert told == ["the client hung up"]
    ticket.notify(notice(1))
    ticket.finish(RESULT)
    with trio.fail_after(1):
        assert await ticket.next() is None


async def test_after_closing_no_notice_comes_any_more() -> None:
    ticket = make_ticket()
    ticket.notify(notice(1))
    ticket.close()
    with trio.fail_after(1):
        assert await ticket.next() is None


async def test_who_waits_hears_that_it_was_closed() -> None:
    ticket = make_ticket()
    with trio.fail_after(5):
        async with trio.open_nursery() as nursery:
            nursery.start_soon(ticket.next)
            await settle()
            ticket.close()


async def test_abandoning_ends_it_and_tells_the_backend() -> None:
    ticket = make_ticket()
    told = watched(ticket)
    problem = BackendUnavailable("b", "was cut off")
    ticket.abandon(problem, "shutting down")
    with trio.fail_after(1):
        assert await ticket.next() is problem
    assert told == ["shutting down"]


async def test_a_cancelled_wait_leaves_it_open(autojump_clock: trio.testing.MockClock) -> None:
    del autojump_clock
    ticket = make_ticket()
    told = watched(ticket)
    with trio.move_on_after(5):
        await ticket.next()
    assert (ticket.over, told) == (False, [])
    ticket.finish(RESULT)
    assert await ticket.next() is RESULT


def test_what_a_full_pipe_brings_finds_room() -> None:
    params = b'{"level":"info","data":"line 1"}'
    assert 65_536 / len(jsonrpc.notification("notifications/message", params)) < MAX_NOTICES


async def test_large_notices_are_bounded_by_their_bytes() -> None:
    ticket = make_ticket(token="t")
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
