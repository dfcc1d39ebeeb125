"""Rate limits, circuit breakers, pings, tool timeouts, resent calls, and call statistics."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import msgspec
import pytest
import trio
from trio.testing import MockClock

from gateway import jsonrpc
from gateway.calls import Complete, Era, Failure, Notification
from gateway.catalog.listing import Item, Listing
from gateway.config.lifecycle import NEVER_RESTART, RestartPolicy
from gateway.config.limits import CircuitBreaker, CrashLimit, RateLimit
from gateway.eras.methods import Kind
from gateway.errors import BackendExited, BackendProtocol, BackendTooSlow, BackendUnavailable, Busy
from gateway.supervisor.history import MAX_ERRORS, MAX_TIMES, CallStats
from gateway.supervisor.lifecycle import State
from gateway.supervisor.limits import MAX_ORIGINS, Strikes
from gateway.supervisor.queue import may_repeat
from tests.support.fakes import LEGACY_CALLER, FakeBackend, make_listing, make_pending, settle
from tests.support.supervision import outcome, running_supervisor

if TYPE_CHECKING:
    from gateway.inflight.pending import PendingCall

QUICK = RestartPolicy(initial_delay=1, max_delay=1, jitter=0, max_quick_failures=3, healthy_after=1000)
CRASH = BackendExited("b", "exited with status 3")


# -- strikes ---

ALICE, MALLORY = (msgspec.structs.replace(LEGACY_CALLER, session=name, principal=name) for name in ("alice", "mallory"))
PERSISTENT = RestartPolicy(initial_delay=1, max_delay=1, jitter=0, max_quick_failures=100)


@pytest.mark.parametrize(
    ("limit", "crashes", "now", "wait"),
    [
        (CrashLimit(3, 600), [0, 1], 2, 0),
        (CrashLimit(3, 600), [0, 1, 2], 2, 598),
        (CrashLimit(3, 600), [0, 1, 2], 600, 0),
        (CrashLimit(3, 600), [0, 1, 2, 3], 600, 1),
        (CrashLimit(1, 10), [5], 14, 1),
        (CrashLimit(2, 10), [0, 11], 11, 0),
    ],
)
def test_strikes_count_within_a_time(limit: CrashLimit, crashes: list[float], now: float, wait: float) -> None:
    strikes = Strikes(limit)
    for at in crashes:
        strikes.add("mallory", at)
    assert strikes.wait("mallory", now) == wait
    assert strikes.wait("alice", now) == 0


@pytest.mark.parametrize(
    ("crashes", "is_refused"),
    [
        ("???", True),
        ("!!!", True),
        ("??=?", False),
        ("??=???", True),
        ("!!=!", True),
        ("!?=!", False),
        ("!?=!!", True),
        ("???=", False),
    ],
)
def test_an_answer_clears_uncertain_crashes(crashes: str, is_refused: bool) -> None:
    strikes = Strikes(CrashLimit(3, 600))
    for at, what in enumerate(crashes):
        if what == "=":
            strikes.answered("alice")
            strikes.answered("another client")
        else:
            strikes.add("alice", at, is_sure=what == "!")
    assert bool(strikes.wait("alice", 10)) is is_refused


def test_the_bounded_strike_table_forgets_the_oldest() -> None:
    strikes = Strikes(CrashLimit(1, 100))
    for number in range(MAX_ORIGINS + 10):
        strikes.add(f"client {number}", number / 1000)
    assert len(strikes) == MAX_ORIGINS
    assert strikes.wait("client 9", 5) == 0
    assert strikes.wait("client 10", 5) > 0
    strikes.add("later", 500)
    assert len(strikes) == 1


def died_of(*pending_calls: PendingCall) -> BackendExited:
    return BackendExited("b", "exited with status 3", [one.as_suspect() for one in pending_calls])


async def crash(rig: Any, *callers: Any) -> None:
    """Crash with a call of each caller in flight, then wait for the start."""
    pending_calls = [rig.call(caller=caller) for caller in callers]
    await settle()
    rig.backend.session.crash(died_of(*reversed(pending_calls)))
    await trio.sleep(0.5)
    rig.supervisor.wake()
    await settle()
    assert rig.state is State.READY


async def test_only_the_crashing_client_is_refused(autojump_clock: MockClock) -> None:
    async with running_supervisor(FakeBackend(), restart=PERSISTENT) as rig:
        for _ in range(3):
            await crash(rig, ALICE, MALLORY)  # mallory's is sent last
        with pytest.raises(Busy, match=r"crash limit exceeded.*\(crash_limit\); retry in \d+ s") as caught:
            rig.call(caller=MALLORY)
        assert caught.value.retry_after == pytest.approx(598.5, abs=2)
        pending = rig.call(caller=ALICE)
        await settle()
        rig.backend.session.answer()
        assert isinstance(await outcome(pending), Complete)
        await trio.sleep(600)
        rig.call(caller=MALLORY).close()


async def test_no_client_gets_another_one_refused(autojump_clock: MockClock) -> None:
    async with running_supervisor(FakeBackend(), restart=PERSISTENT) as rig:
        for _ in range(6):
            await crash(rig, MALLORY, ALICE)  # alice's is sent last, but mallory's has its effect later
            pending = rig.call(caller=ALICE)
            await settle()
            rig.backend.session.answer()
            assert isinstance(await outcome(pending), Complete)


async def test_refused_calls_do_not_start_a_backend_sooner(autojump_clock: MockClock) -> None:
    slow = RestartPolicy(initial_delay=100, max_delay=200, jitter=0, max_quick_failures=100)
    async with running_supervisor(FakeBackend(), restart=slow, crash_limit=CrashLimit(1, 1000)) as rig:
        pending = rig.call(caller=MALLORY)
        await settle()
        rig.backend.session.crash(died_of(pending))
        await settle()
        for _ in range(3):
            with pytest.raises(Busy):
                rig.call(caller=MALLORY)
        assert not rig.supervisor.wanted


async def test_a_refused_clients_queued_calls_are_refused(autojump_clock: MockClock) -> None:
    async with running_supervisor(
        FakeBackend(), restart=PERSISTENT, max_concurrency=1, crash_limit=CrashLimit(1, 600)
    ) as rig:
        first, bad, good = rig.call(caller=MALLORY), rig.call(caller=MALLORY), rig.call(caller=ALICE)
        await settle()
        rig.backend.session.crash(died_of(first))
        await settle()
        assert isinstance(bad.outcome, Busy)
        assert good.outcome is None
        assert rig.supervisor.queued == 1
        await trio.sleep(2)
        rig.backend.session.answer()
        assert isinstance(good.outcome, Complete)


@pytest.mark.parametrize(
    ("fields", "problem"),
    [
        ({"crash_limit": None}, died_of),
        ({}, lambda *_: BackendExited("b", "exited")),
        ({}, lambda *_: BackendExited("b", "broke the connection: reset")),
        ({}, lambda *_: BackendProtocol("b", "speaks nonsense")),
    ],
)
async def test_other_failures_add_no_strike(fields: Any, problem: Any, autojump_clock: MockClock) -> None:
    async with running_supervisor(FakeBackend(), restart=PERSISTENT, **fields) as rig:
        for _ in range(5):
            pending = rig.call(caller=MALLORY)
            await settle()
            rig.backend.session.crash(problem(pending))
            await trio.sleep(2)
        rig.call(caller=MALLORY).close()


@pytest.mark.parametrize(
    ("restart", "with_call", "comes_back"),
    [(QUICK, True, True), (QUICK, False, False), (NEVER_RESTART, True, False)],
)
async def test_a_backend_failed_by_calls_recovers_by_itself(
    restart: RestartPolicy, with_call: bool, comes_back: bool, autojump_clock: MockClock
) -> None:
    async with running_supervisor(FakeBackend(), restart=restart, crash_limit=None) as rig:
        for _ in range(restart.max_quick_failures):
            pending = rig.call()
            await settle()
            rig.backend.session.crash(died_of(pending) if with_call else CRASH)
            await settle()
            assert rig.state in {State.BACKOFF, State.FAILED}
            if rig.state is State.BACKOFF:
                await trio.sleep(restart.max_delay + 0.1)
        assert rig.state is State.FAILED
        await trio.sleep(restart.max_delay + 0.1)
        assert (rig.state is State.READY) is comes_back


# -- rates -------------------------------------------------------------------------------------------------------------


async def test_a_call_too_many_is_refused_as_busy(autojump_clock: MockClock) -> None:
    async with running_supervisor(FakeBackend(), rate_limit=RateLimit(2, 2)) as rig:
        rig.call()
        rig.call()
        with pytest.raises(Busy, match=r"rate_limit.*0\.50 s"):
            rig.call()
        await trio.sleep(0.5)
        rig.call()


# -- circuit breakers --------------------------------------------------------------------------------------------------

SLOW = BackendTooSlow("b", "did not answer")
BREAKER = {"circuit_breaker": CircuitBreaker(2, 10)}


async def test_a_breaker_opens_tries_one_call_and_closes(autojump_clock: MockClock) -> None:
    backend = FakeBackend()
    async with running_supervisor(backend, **BREAKER) as rig:
        for state in ("closed", "open"):
            pending = rig.call(timeout=1)
            assert isinstance(await outcome(pending), BackendTooSlow)
            assert rig.supervisor.status().breaker == state
        with pytest.raises(BackendUnavailable, match="circuit_breaker"):
            rig.call()
        await trio.sleep(10)
        probe = rig.call()
        assert rig.supervisor.status().breaker == "half-open"
        with pytest.raises(BackendUnavailable, match="circuit_breaker"):
            rig.call()  # one is enough to see
        await settle()
        backend.session.answer()
        assert probe.outcome is not None
        assert rig.supervisor.status().breaker == "closed"
        rig.call()


async def test_a_failed_trial_reopens_the_breaker(autojump_clock: MockClock) -> None:
    async with running_supervisor(FakeBackend(), **BREAKER) as rig:
        for _ in range(2):
            await outcome(rig.call(timeout=1))
        await trio.sleep(10)
        await outcome(rig.call(timeout=1))
        assert rig.supervisor.status().breaker == "open"
        await trio.sleep(9)
        with pytest.raises(BackendUnavailable):
            rig.call()


async def test_a_cancelled_trial_decides_nothing(autojump_clock: MockClock) -> None:
    async with running_supervisor(FakeBackend(), **BREAKER) as rig:
        for _ in range(2):
            await outcome(rig.call(timeout=1))
        await trio.sleep(10)
        rig.call().close()
        rig.call()  # the next one may try


@pytest.mark.parametrize("answer", [Complete(b'{"isError":true}', Era.LEGACY), Failure(-32000, "no", None, Era.LEGACY)])
async def test_backend_answers_are_not_failures(answer: Any, autojump_clock: MockClock) -> None:
    backend = FakeBackend()
    async with running_supervisor(backend, **BREAKER) as rig:
        for _ in range(5):
            await outcome(rig.call(timeout=1))  # a time-out ...
            rig.supervisor.gate.breaker._failures = 1
            rig.supervisor.gate.breaker.state = "closed"
            rig.call()
            await settle()
            backend.session.answer(outcome=answer)  # ... and an answer, which forgives it
            assert rig.supervisor.gate.breaker._failures == 0


async def test_no_limits_cost_nothing(autojump_clock: MockClock) -> None:
    async with running_supervisor(FakeBackend()) as rig:
        assert not rig.supervisor.gate.limits
        assert rig.supervisor.status().breaker is None


# -- pings -------------------------------------------------------------------------------------------------------------


async def test_idle_backends_are_pinged_and_silent_ones_restarted(autojump_clock: MockClock) -> None:
    backend = FakeBackend()
    async with running_supervisor(backend, ping_interval=5.0, connect_timeout=2.0, restart=QUICK) as rig:
        first, began = backend.session, trio.current_time()
        await trio.sleep(12)
        assert first.upkeep.asked == [began + 5, began + 10]
        first.upkeep.is_silent = True
        await trio.sleep(7)
        assert rig.supervisor.last_error == "did not answer a ping within 2 s"
        assert backend.session is not first
        assert rig.state is State.READY


async def test_a_busy_backend_is_not_asked(autojump_clock: MockClock) -> None:
    backend = FakeBackend()
    async with running_supervisor(backend, ping_interval=5.0) as rig:
        rig.call()
        backend.session.upkeep.is_silent = True
        await trio.sleep(60)
        assert (backend.session.upkeep.asked, rig.state) == ([], State.READY)


# -- times -------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("tool", "seconds"), [("build_all", 600), ("look", 2), ("other", 30)])
async def test_a_tool_has_its_own_time(tool: str, seconds: float, autojump_clock: MockClock) -> None:
    tools = {"build_*": 600.0, "look": 2.0, "l*": 3.0}
    async with running_supervisor(FakeBackend(), call_timeout=30, tool_timeouts=tools) as rig:
        began = trio.current_time()
        pending = rig.call(tool)
        assert isinstance(await pending.next(), BackendTooSlow)
        assert trio.current_time() - began == pytest.approx(seconds)


async def test_the_time_of_a_tool_is_for_tools(autojump_clock: MockClock) -> None:
    async with running_supervisor(FakeBackend(), call_timeout=30, tool_timeouts={"*": 600.0}) as rig:
        pending = rig.call("x", method="prompts/get")
        assert pending.deadline == pending.opened_at + 30


@pytest.mark.parametrize(("longest", "ends"), [(None, 10), (25.0, 25), (1000.0, 48), (5.0, 10)])
async def test_progress_extends_the_timeout_to_a_maximum(
    longest: float | None, ends: float, autojump_clock: MockClock
) -> None:
    backend = FakeBackend()
    async with running_supervisor(backend, max_call_time=longest) as rig:
        began = trio.current_time()
        pending = rig.call(timeout=10, token=1)

        async def report() -> None:
            for _ in range(5):  # the last one after 38 s
                pending.notify(Notification("notifications/message", {}))  # says nothing about progress
                await trio.sleep(8 if trio.current_time() > began else 6)
                pending.notify(Notification("notifications/progress", {"progress": jsonrpc.raw(1)}))

        async with trio.open_nursery() as nursery:
            nursery.start_soon(report)
            while isinstance(item := await pending.next(), Notification):
                pass
            assert isinstance(item, BackendTooSlow)
            assert trio.current_time() - began == pytest.approx(ends)
            nursery.cancel_scope.cancel()


# -- once more ---------------------------------------------------------------------------------------------------------


def tools(**hints: Any) -> Listing:
    return Listing(items={Kind.TOOLS: (Item("x", jsonrpc.encode({"name": "x", "annotations": hints})),)})


@pytest.mark.parametrize(
    ("tool", "may"),
    [
        (b'{"name":"x"}', False),
        (b'{"name":"x","annotations":null}', False),
        (b'{"name":"x","annotations":{"readOnlyHint":true}}', True),
        (b'{"name":"x","annotations":{"idempotentHint":true,"readOnlyHint":false}}', True),
        (b'{"name":"x","annotations":{"readOnlyHint":"true"}}', False),
        (b'{"name":"x","annotations":{"destructiveHint":true}}', False),
        (b'{"name":"x","annotations":[]}', False),
    ],
)
def test_which_tools_may_be_repeated(tool: bytes, may: bool) -> None:
    assert may_repeat(tool) is may


async def test_a_call_lost_to_a_crash_is_resent(autojump_clock: MockClock) -> None:
    backend = FakeBackend(tools(readOnlyHint=True))
    async with running_supervisor(backend, retry=True, restart=QUICK) as rig:
        pending = rig.call()
        await settle()
        first = backend.session
        first.crash(CRASH)
        await trio.sleep(2)
        assert backend.session is not first
        assert (backend.session.names, pending.outcome) == (["x"], None)
        backend.session.answer()
        assert isinstance(await outcome(pending), Complete)


async def test_a_lost_call_is_resent_only_once(autojump_clock: MockClock) -> None:
    backend = FakeBackend(tools(idempotentHint=True))
    async with running_supervisor(backend, retry=True, restart=QUICK) as rig:
        pending = rig.call()
        for _ in range(2):
            await trio.sleep(2)
            backend.session.crash(CRASH)
        assert await outcome(pending) is CRASH


@pytest.mark.parametrize(
    ("listing", "fields", "received"),
    [
        (tools(readOnlyHint=True), {"retry": False}, False),
        (tools(), {"retry": True}, False),
        (make_listing("x"), {"retry": True}, False),
        (tools(readOnlyHint=True), {"retry": True}, True),
    ],
    ids=["not asked for", "not marked", "no annotations", "something was received"],
)
async def test_unsafe_calls_are_not_resent(
    listing: Any, fields: Any, received: bool, autojump_clock: MockClock
) -> None:
    backend = FakeBackend(listing)
    async with running_supervisor(backend, restart=QUICK, **fields) as rig:
        pending = rig.call()
        await settle()
        if received:
            pending.notify(Notification("notifications/progress", {}))
            await pending.next()
        backend.session.crash(CRASH)
        assert await outcome(pending) is CRASH


async def test_other_errors_are_answers(autojump_clock: MockClock) -> None:
    backend = FakeBackend(tools(readOnlyHint=True))
    problem = BackendProtocol("b", "answered nonsense")
    async with running_supervisor(backend, retry=True) as rig:
        pending = rig.call()
        await settle()
        backend.session.answer(outcome=problem)
        assert await outcome(pending) is problem


async def test_calls_awaiting_a_resend_fail_with_the_backend(autojump_clock: MockClock) -> None:
    backend = FakeBackend(tools(readOnlyHint=True))
    policy = RestartPolicy(max_quick_failures=1, jitter=0)
    async with running_supervisor(backend, retry=True, restart=policy) as rig:
        pending = rig.call()
        await settle()
        backend.session.crash(CRASH)
        found = await outcome(pending)
        assert isinstance(found, BackendUnavailable)
        assert "exited with status 3" in found.reason


async def test_a_stop_answers_it_too(autojump_clock: MockClock) -> None:
    backend = FakeBackend(tools(readOnlyHint=True))
    async with running_supervisor(backend, retry=True, restart=QUICK) as rig:
        pending = rig.call()
        await settle()
        backend.session.crash(CRASH)
        await settle()
        rig.supervisor.stop()
        assert isinstance(await outcome(pending), BackendUnavailable)


# -- what is remembered ------------------------------------------------------------------------------------------------


def ended(history: CallStats, seconds: float, found: Any) -> None:
    pending = make_pending()
    pending.finish(found)
    history.ended(pending, seconds)


async def test_percentiles_of_the_latest_calls(autojump_clock: MockClock) -> None:
    await trio.lowlevel.checkpoint()
    history = CallStats()
    assert history.latency().p50 is None
    for number in range(MAX_TIMES + 100):
        ended(history, number / 1000, Complete(b"{}", Era.LEGACY))
    found = history.latency()
    assert (history.calls, found.calls) == (MAX_TIMES + 100, MAX_TIMES)
    assert (found.p50, found.p90, found.p99, found.longest) == (356.0, 560.0, 606.0, 611.0)


async def test_kept_errors_are_bounded_in_number_and_length(autojump_clock: MockClock) -> None:
    await trio.lowlevel.checkpoint()
    history = CallStats()
    for number in range(MAX_ERRORS + 5):
        ended(history, 0, Failure(-32000, f"{number} " + "x" * 1000, None, Era.LEGACY))
    history.broke("exited with status 3", "backend_exited")
    assert len(history.errors) == MAX_ERRORS
    assert history.failed == MAX_ERRORS + 5
    assert (history.errors[-1].call, history.errors[-1].error) == (None, "exited with status 3")
    assert history.errors[-2].call == "x"
    assert history.errors[-2].error.startswith(f"error -32000: {MAX_ERRORS + 4} ")
    assert len(history.errors[-2].error) == 300 + len("...")
