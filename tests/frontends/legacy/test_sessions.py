"""Legacy sessions: bounded in number and time; a cancel affects exactly one request."""

from __future__ import annotations

import re

import msgspec
import pytest
import trio
from trio.testing import MockClock

from gateway.calls import ANYBODY, Era, Identity
from gateway.errors import Busy
from gateway.frontends.legacy.sessions import (
    EVICTABLE_AFTER,
    ClientIntroduction,
    DuplicateId,
    InFlight,
    LegacySession,
    SessionTable,
)
from tests.support.fakes import settle

HELLO = ClientIntroduction("2025-06-18", msgspec.Raw(b'{"roots":{}}'), msgspec.Raw(b'{"name":"c"}'))


def table(*, most: int = 3, idle_timeout: float = 1800.0) -> SessionTable:
    return SessionTable(most=most, idle_timeout=idle_timeout, max_requests=2)


def opened(sessions: SessionTable) -> LegacySession:
    session = sessions.create(HELLO)
    assert session is not None
    assert session.id is not None
    return session


# -- requests in flight ------------------------------------------------------------------------------------------------


def test_ids_are_used_once_at_a_time() -> None:
    requests = InFlight(10)
    requests.add(1)
    requests.add("1")  # another id: the type counts
    with pytest.raises(DuplicateId, match="request id 1 is still in use"):
        requests.add(1)
    requests.remove(1)
    requests.remove(1)
    requests.add(1)
    assert len(requests) == 2


def test_sessions_per_client_are_bounded() -> None:
    requests = InFlight(2)
    requests.add(1)
    requests.add(2)
    with pytest.raises(Busy, match="max_client_requests"):
        requests.add(3)
    requests.remove(1)
    requests.add(3)


async def test_a_cancel_hits_exactly_one(autojump_clock: MockClock) -> None:
    requests = InFlight(10)
    scopes = {request_id: requests.add(request_id) for request_id in (1, "1", 2)}
    requests.cancel("1")
    requests.cancel("unknown")
    assert [scope.cancel_called for scope in scopes.values()] == [False, True, False]
    requests.cancel_all()
    assert all(scope.cancel_called for scope in scopes.values())
    await settle()


# -- sessions ----------------------------------------------------------------------------------------------------------


async def test_a_session_remembers_who_was_introduced(autojump_clock: MockClock) -> None:
    session = opened(table())
    caller = session.caller
    assert (caller.era, caller.version, caller.session) == (Era.LEGACY, "2025-06-18", session.id)
    assert bytes(caller.capabilities) == b'{"roots":{}}'
    await settle()


async def test_ids_cannot_be_guessed(autojump_clock: MockClock) -> None:
    sessions = table(most=100)
    ids = {opened(sessions).id for _ in range(100)}
    assert len(ids) == 100
    assert all(re.fullmatch(r"[A-Za-z0-9_-]{32}", str(one)) for one in ids)
    assert sessions.find("x") is None
    await settle()


async def test_closing_a_session_cancels_its_requests(autojump_clock: MockClock) -> None:
    sessions = table()
    session = opened(sessions)
    request, session.stream = session.in_flight.add(1), trio.CancelScope()
    assert sessions.find(str(session.id)) is session
    sessions.close(session)
    sessions.close(session)
    assert sessions.find(str(session.id)) is None
    assert session.ended.is_set()
    assert request.cancel_called
    assert session.stream.cancel_called
    await settle()


def use(session: LegacySession, request_id: int = 1) -> None:
    """Have a session serve a request."""
    session.in_flight.add(request_id)
    session.in_flight.remove(request_id)


async def test_a_full_table_refuses_until_a_client_leaves(autojump_clock: MockClock) -> None:
    sessions = table(most=2)
    first, second = opened(sessions), opened(sessions)
    use(first)
    use(second)
    assert sessions.create(HELLO) is None
    await trio.sleep(EVICTABLE_AFTER - 1)
    assert sessions.create(HELLO) is None
    sessions.find(str(first.id))  # a sign of life
    await trio.sleep(1)
    third = opened(sessions)  # in the place of the one that was silent for longest
    assert second.ended.is_set()
    assert not first.ended.is_set()
    assert len(sessions) == 2
    assert sessions.find(str(third.id)) is third


async def test_the_oldest_unused_session_is_evicted(autojump_clock: MockClock) -> None:
    sessions = table(most=4)
    used, oldest, newer, streaming = (opened(sessions) for _ in range(4))
    use(used)
    streaming.stream = trio.CancelScope()
    opened(sessions)
    assert [one.ended.is_set() for one in (used, oldest, newer, streaming)] == [False, True, False, False]
    for _ in range(100):  # a client that only opens sessions replaces its own
        opened(sessions)
    assert [one.ended.is_set() for one in (used, newer, streaming)] == [False, True, False]
    assert len(sessions) == 4
    await settle()


@pytest.mark.parametrize("what", ["used", "busy", "with a stream", "of a principal"])
async def test_sessions_in_use_are_not_evicted(what: str, autojump_clock: MockClock) -> None:
    sessions = table(most=1)
    identity = Identity("alice") if what == "of a principal" else ANYBODY
    session = sessions.create(msgspec.structs.replace(HELLO, identity=identity))
    assert session is not None
    match what:
        case "used":
            use(session)
        case "busy":
            session.in_flight.add(1)
        case "with a stream":
            session.stream = trio.CancelScope()
    assert sessions.create(HELLO) is None
    assert not session.ended.is_set()
    await settle()


@pytest.mark.parametrize("by", ["request", "stream"])
async def test_an_active_session_is_neither_evicted_nor_swept(by: str, autojump_clock: MockClock) -> None:
    sessions = table(most=1, idle_timeout=100)
    session = opened(sessions)
    if by == "request":
        session.in_flight.add(1)
    else:
        session.stream = trio.CancelScope()
    async with trio.open_nursery() as nursery:
        await nursery.start(sessions.run)
        await trio.sleep(10_000)
        assert sessions.create(HELLO) is None
        assert not session.ended.is_set()
        session.in_flight.remove(1)
        session.stream = None
        session.touch()
        await trio.sleep(99)
        assert not session.ended.is_set()
        await trio.sleep(31)  # the sweep looks every 30 seconds
        assert session.ended.is_set()
        assert len(sessions) == 0
        nursery.cancel_scope.cancel()


async def test_shutdown_ends_all_sessions(autojump_clock: MockClock) -> None:
    sessions = table()
    all_of_them = [opened(sessions) for _ in range(3)]
    undone: list[int] = []
    all_of_them[0].on_end.append(lambda: undone.append(1))
    sessions.close_all()
    all_of_them[0].end()
    assert all(session.ended.is_set() for session in all_of_them)
    assert (len(sessions), undone) == (0, [1])
    await settle()
