"""Backends that offer both eras: the session of each call, and restarts of child processes."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import pytest
import trio

from gateway.calls import Era
from gateway.errors import BackendExited
from gateway.inflight.pending import PendingCall
from gateway.supervisor.lifecycle import ERA_LINGER, State
from tests.support.fakes import LEGACY_CALLER, MODERN_CALLER, FakeBackend, make_call, settle
from tests.support.supervision import running_router

if TYPE_CHECKING:
    from trio.testing import MockClock

    from gateway.router import Router

CALLERS = {Era.LEGACY: LEGACY_CALLER, Era.MODERN: MODERN_CALLER}


def dual() -> FakeBackend:
    fake = FakeBackend()
    fake.eras = (Era.LEGACY, Era.MODERN)
    return fake


def eras(fake: FakeBackend) -> list[Era]:
    return [session.greeting.era for session in fake.sessions]


def ask(router: Router, era: Era) -> PendingCall:
    call = make_call("x", caller=CALLERS[era])
    pending = PendingCall(call, backend="a", own_name="x", timeout=100)
    router.fleet.supervisors["a"].submit(pending)
    return pending


def working(fake: FakeBackend) -> dict[Era, int]:
    return {session.greeting.era: session.in_flight for session in fake.sessions if session.in_flight}


def answer_all(fake: FakeBackend) -> None:
    for session in fake.sessions:
        session.answer(session.in_flight)


every_way = pytest.mark.parametrize("settings", [{"url": "http://localhost/mcp"}, {"command": "x", "era": "each"}])


@every_way
@pytest.mark.parametrize("first", list(Era))
async def test_each_era_gets_a_session(first: Era, settings: dict[str, Any], autojump_clock: MockClock) -> None:
    fake = dual()
    async with running_router({"a": fake}, **settings) as router:
        for era in (first, *Era, first):
            ask(router, era)
            await settle()
            assert working(fake) == {era: 1}
            answer_all(fake)
        assert sorted(eras(fake)) == ["legacy", "modern"]
        assert router.fleet.supervisors["a"].status().warnings == ()


async def ask_while_starting(fake: FakeBackend, router: Router, *asked: Era) -> None:
    """Ask before the first session is open; `fake` must be held."""
    for era in asked:
        ask(router, era)
    await settle()
    fake.on_start = None
    fake.held.set()
    await settle()


async def test_calls_queued_before_the_start_are_sorted(autojump_clock: MockClock) -> None:
    fake = dual()
    fake.hold()
    async with running_router({"a": fake}, url="http://localhost/mcp") as router:
        await ask_while_starting(fake, router, Era.MODERN, Era.LEGACY, Era.MODERN)
        assert working(fake) == {Era.LEGACY: 1, Era.MODERN: 2}
        answer_all(fake)


async def serve_both(fake: FakeBackend, router: Router, first: Era) -> None:
    """Open the session of each era, and answer a call in it."""
    for era in (first, first.other):
        ask(router, era)
        await settle()
        assert working(fake) == {era: 1}
        answer_all(fake)
    assert eras(fake) == [first, first.other]


@every_way
@pytest.mark.parametrize("first", list(Era))
@pytest.mark.parametrize("used", list(Era))
async def test_a_backend_is_idle_when_both_sessions_are(
    used: Era, first: Era, settings: dict[str, Any], autojump_clock: MockClock
) -> None:
    fake = dual()
    async with running_router({"a": fake}, start="lazy", idle_timeout=10, **settings) as router:
        await trio.sleep(30)
        fake.sessions.clear()
        await serve_both(fake, router, first)
        for _ in range(10):
            ask(router, used)
            await settle()
            assert working(fake) == {used: 1}
            answer_all(fake)
            await trio.sleep(4)
        ask(router, used)
        await trio.sleep(30)  # one call alone takes longer than the timeout
        assert (working(fake), eras(fake)) == ({used: 1}, [first, first.other])
        assert router.fleet.supervisors["a"].state is State.READY
        answer_all(fake)
        await trio.sleep(30)
        assert (fake.open, router.fleet.supervisors["a"].state) == (0, State.STOPPED)


@every_way
@pytest.mark.parametrize("first", list(Era))
@pytest.mark.parametrize("number", [0, 1])
async def test_a_crash_of_one_session_leaves_the_other(
    number: int, first: Era, settings: dict[str, Any], autojump_clock: MockClock
) -> None:
    fake = dual()
    async with running_router({"a": fake}, start="lazy", idle_timeout=1000, **settings) as router:
        await trio.sleep(2000)
        fake.sessions.clear()
        await serve_both(fake, router, first)
        dead, alive = fake.sessions[number], fake.sessions[1 - number]
        before = router.fleet.supervisors["a"].status()
        dead.crash(BackendExited("a", "exited with status 1"))
        await settle()
        ask(router, alive.greeting.era)
        await settle()
        assert alive.in_flight == 1
        answer_all(fake)
        await trio.sleep(10)
        for era in (dead.greeting.era, alive.greeting.era):
            ask(router, era)
            await settle()
            assert working(fake) == {era: 1}
            answer_all(fake)
        assert eras(fake) == [first, first.other, dead.greeting.era]
        status = router.fleet.supervisors["a"].status()  # it covers both
        assert (status.restarts, status.last_error) == (before.restarts + 1, "exited with status 1")


@every_way
async def test_the_status_counts_both_sessions(settings: dict[str, Any], autojump_clock: MockClock) -> None:
    fake = dual()
    async with running_router({"a": fake}, max_concurrency=2, **settings) as router:
        for era in [*Era] * 4:
            ask(router, era)
            await settle()
        status = router.fleet.supervisors["a"].status()
        assert (status.in_flight, status.queued) == (2, 6)
        for _ in range(8):
            answer_all(fake)
            await settle()
        assert router.fleet.supervisors["a"].status().queued == 0


@every_way
async def test_nothing_is_started_for_a_backend_that_stops(settings: dict[str, Any], autojump_clock: MockClock) -> None:
    fake = dual()
    async with running_router({"a": fake}, start="lazy", idle_timeout=10, **settings) as router:
        await trio.sleep(30)
        supervisor = router.fleet.supervisors["a"]

        async def on_start(number: int) -> None:
            await trio.lowlevel.checkpoint()
            if number == 2:
                supervisor.stop()  # in the step in which the session opens

        fake.on_start = on_start
        for era in Era:
            ask(router, era)
        await settle()
        found = supervisor.ended, fake.open
        answer_all(fake)
        await trio.sleep(1000)
        assert found == (True, 0)


@every_way
async def test_a_subscription_is_not_bridged(settings: dict[str, Any], autojump_clock: MockClock) -> None:
    fake = dual()
    async with running_router({"a": fake}, start="lazy", idle_timeout=10, **settings) as router:
        await trio.sleep(30)
        fake.sessions.clear()
        await serve_both(fake, router, Era.MODERN)
        call = make_call("memo:x", "resources/subscribe", caller=LEGACY_CALLER)
        pending = PendingCall(call, backend="a", own_name="memo:x", timeout=100)
        router.fleet.supervisors["a"].submit(pending)
        await settle()
        assert router.fleet.supervisors["a"].status().warnings == ()
        answer_all(fake)


@every_way
async def test_a_refused_era_leaves_one_session(settings: dict[str, Any], autojump_clock: MockClock) -> None:
    fake = FakeBackend()
    fake.eras, fake.refused = (Era.MODERN, Era.LEGACY), Era.LEGACY
    fake.hold()
    async with running_router({"a": fake}, max_concurrency=2, **settings) as router:
        await ask_while_starting(fake, router, *[Era.LEGACY] * 3)
        assert (fake.open, working(fake)) == (1, {Era.MODERN: 2})
        answer_all(fake)
        await settle()
        ask(router, Era.LEGACY)
        await settle()
        assert (len(fake.sessions), working(fake)) == (2, {Era.MODERN: 2})
        answer_all(fake)


async def test_a_child_starts_in_its_first_clients_era(autojump_clock: MockClock) -> None:
    fake = dual()
    async with running_router({"a": fake}, command="x", start="lazy", idle_timeout=10) as router:
        await trio.sleep(20)
        assert router.fleet.supervisors["a"].state is State.STOPPED
        ask(router, Era.MODERN)
        await settle()
        assert working(fake) == {Era.MODERN: 1}
        answer_all(fake)


async def test_an_unused_child_is_restarted_in_another_era(autojump_clock: MockClock) -> None:
    fake = dual()
    async with running_router({"a": fake}, command="x") as router:
        for _ in range(3):
            ask(router, Era.MODERN)
        await settle()
        assert (eras(fake), working(fake), fake.open) == ([Era.LEGACY, Era.MODERN], {Era.MODERN: 3}, 1)
        answer_all(fake)


async def test_a_child_is_restarted_for_its_first_call(autojump_clock: MockClock) -> None:
    fake = dual()
    fake.hold()
    async with running_router({"a": fake}, command="x") as router:
        await ask_while_starting(fake, router, Era.MODERN, Era.LEGACY)
        assert (eras(fake), working(fake)) == ([Era.LEGACY, Era.MODERN], {Era.MODERN: 2})
        answer_all(fake)


async def test_a_child_in_use_keeps_its_era(autojump_clock: MockClock) -> None:
    fake = dual()
    async with running_router({"a": fake}, command="x") as router:
        ask(router, Era.LEGACY)
        await settle()
        ask(router, Era.MODERN)
        await settle()
        assert working(fake) == {Era.LEGACY: 2}
        (warning,) = router.fleet.supervisors["a"].status().warnings
        assert "'era': 'each'" in warning
        answer_all(fake)
        await trio.sleep(ERA_LINGER - 1)
        ask(router, Era.MODERN)
        await settle()
        assert working(fake) == {Era.LEGACY: 1}
        answer_all(fake)
        await trio.sleep(2)
        ask(router, Era.MODERN)
        await settle()
        assert working(fake) == {Era.MODERN: 1}
        assert router.fleet.supervisors["a"].status().warnings == ()
        answer_all(fake)


@pytest.mark.parametrize("first", list(Era))
@pytest.mark.parametrize("start", ["eager", "lazy"])
async def test_starting_a_child_counts_as_use(first: Era, start: str, autojump_clock: MockClock) -> None:
    """Its state in that process must not be lost to the next client."""
    fake = dual()
    async with running_router({"a": fake}, command="x", start=start, idle_timeout=1000) as router:
        for era in (first, first.other, first):
            ask(router, era)
            await settle()
            assert working(fake) == {first: 1}
            answer_all(fake)
        assert fake.session.names == ["x"] * 3


async def test_a_crash_keeps_the_era(autojump_clock: MockClock) -> None:
    fake = dual()
    async with running_router({"a": fake}, command="x") as router:
        ask(router, Era.MODERN)
        await settle()
        fake.session.crash(BackendExited("a", "exited with status 1"))
        await trio.sleep(10)
        assert eras(fake) == [Era.LEGACY, Era.MODERN, Era.MODERN]


@pytest.mark.parametrize("offered", list(Era))
async def test_a_failed_era_is_not_retried_immediately(offered: Era, autojump_clock: MockClock) -> None:
    """Its calls are bridged: clients of the working era must keep the server."""
    fake = FakeBackend()
    fake.eras = (offered, offered.other)
    async with running_router({"a": fake}, command="x") as router:
        fake.refused = offered.other  # though it says that it offers it
        for _ in range(3):
            for era in (offered.other, offered):
                ask(router, era)
                await settle()
                assert working(fake) == {offered: 1}
                answer_all(fake)
        assert eras(fake) == [offered] * 2
        (warning,) = router.fleet.supervisors["a"].status().warnings
        assert warning.startswith(offered.other)
        await trio.sleep(ERA_LINGER)
        fake.refused = None
        ask(router, offered.other)
        await settle()
        assert working(fake) == {offered.other: 1}
        answer_all(fake)


@pytest.mark.parametrize("era", ["legacy", "modern"])
async def test_a_pinned_era_is_kept(era: str, autojump_clock: MockClock) -> None:
    fake = dual()
    async with running_router({"a": fake}, command="x", era=era) as router:
        for asked in Era:
            ask(router, asked)
            await settle()
            answer_all(fake)
        assert len(fake.sessions) == 1


@pytest.mark.parametrize("session", ["client", "call"])
async def test_a_session_of_one_client_has_its_era(session: str, autojump_clock: MockClock) -> None:
    fake = dual()
    async with running_router({"a": fake}, command="x", session=session) as router:
        for era in Era:
            ask(router, era)
            await settle()
            assert working(fake) == {era: 1}
            answer_all(fake)
