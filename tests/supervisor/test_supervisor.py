"""One backend's supervisor on a virtual clock: exact start times, bounded waits in every state."""

from __future__ import annotations

from functools import partial
from typing import TYPE_CHECKING, Any

import msgspec
import pytest
import trio
from trio.testing import MockClock

from gateway.calls import Era, Failure
from gateway.catalog.listing import Item, Listing
from gateway.config.lifecycle import RestartPolicy
from gateway.eras.methods import Kind
from gateway.errors import BackendExited, BackendProtocol, BackendTooSlow, BackendUnavailable, BackendUnfit, Busy
from gateway.supervisor.health import RELIST_DELAY_LIMIT, RELIST_INTERVAL
from gateway.supervisor.lifecycle import State
from tests.support.fakes import RESULT, FakeBackend, make_listing, settle
from tests.support.supervision import SUPERVISOR_POLICY, Rig, outcome, running_supervisor

if TYPE_CHECKING:
    from gateway.calls import Outcome
    from gateway.inflight.pending import PendingCall

CRASH = BackendExited("b", "exited with status 3")


# -- starting and restarting -------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("jitter", "starts"),
    [
        (0.0, [0, 1, 3, 7, 15]),  # 1, 2, 4, 8 seconds apart
        (0.5, [0, 0.75, 2.25, 5.25, 11.25]),
        (1.0, [0, 0.5, 1.5, 3.5, 7.5]),
    ],
)
async def test_starts_back_off_until_marked_failed(
    jitter: float, starts: list[float], autojump_clock: MockClock
) -> None:
    backend = FakeBackend()
    backend.fail(*range(1, 100))
    began = trio.current_time()
    async with running_supervisor(backend, jitter=jitter) as rig:
        await trio.sleep(10_000)
        assert [start - began for start in backend.starts] == pytest.approx(starts)
        assert rig.state is State.FAILED
        assert rig.supervisor.last_error == "exited with status 1"
        assert rig.supervisor.restarts == 4
    assert rig.watcher.states == [*["starting", "backoff"] * 4, "starting", "failed", "draining", "stopped"]


async def test_the_longest_delay_is_capped(autojump_clock: MockClock) -> None:
    backend = FakeBackend()
    backend.fail(*range(1, 100))
    policy = RestartPolicy(initial_delay=1, max_delay=3, jitter=0, max_quick_failures=7)
    began = trio.current_time()
    async with running_supervisor(backend, restart=policy):
        await trio.sleep(1000)
        assert [start - began for start in backend.starts] == pytest.approx([0, 1, 3, 6, 9, 12, 15])


async def test_an_unreachable_remote_server_is_retried(autojump_clock: MockClock) -> None:
    backend = FakeBackend(make_listing("x"))
    backend.fail(*range(1, 8), problem=BackendUnavailable("b", "cannot be reached"))
    began = trio.current_time()
    async with running_supervisor(backend, url="http://127.0.0.1:1/mcp", last_good=make_listing("x")) as rig:
        await trio.sleep(20)
        assert rig.state is State.FAILED
        with pytest.raises(BackendUnavailable):
            rig.call()
        await trio.sleep(100)
        assert rig.state is State.READY
    # five quick tries, then one every `max_delay` seconds until it is there
    assert [start - began for start in backend.starts] == pytest.approx([0, 1, 3, 7, 15, 23, 31, 39])
    again = ["starting", "failed"]
    assert rig.watcher.states[8:] == [*again, *again, *again, "starting", "ready", "draining", "stopped"]


async def test_configuration_errors_are_not_retried(autojump_clock: MockClock) -> None:
    backend = FakeBackend()
    backend.fail(1, problem=BackendUnfit("b", "does not speak the legacy era (era: legacy)"))
    async with running_supervisor(backend) as rig:
        await trio.sleep(10_000)
        assert (rig.state, len(backend.starts)) == (State.FAILED, 1)
        assert rig.supervisor.last_error == "does not speak the legacy era (era: legacy)"
        rig.supervisor.wake()
        await trio.sleep(1)
        assert rig.state is State.READY


async def test_a_healthy_run_forgives(autojump_clock: MockClock) -> None:
    backend = FakeBackend()
    began = trio.current_time()
    async with running_supervisor(backend) as rig:
        # one second after the 1st, two after the 2nd, and after a healthy run again one, then two
        for healthy, delay in ((0, 1), (0, 2), (30, 1), (29.9, 2)):
            await trio.sleep(healthy)
            backend.session.crash(CRASH)
            await trio.sleep(delay)
            await settle()
        assert [start - began for start in backend.starts] == pytest.approx([0, 1, 3, 34, 65.9])
        assert rig.state is State.READY


async def test_a_healthy_run_resets_the_count(autojump_clock: MockClock) -> None:
    backend = FakeBackend()
    backend.fail(*range(1, 5), *range(6, 9))
    async with running_supervisor(backend) as rig:
        await trio.sleep(15 + 40)  # the fifth start went well, and was healthy for long enough
        backend.session.crash(CRASH)
        await trio.sleep(1000)
        assert len(backend.starts) == 9
        assert rig.state is State.READY


@pytest.mark.parametrize(
    ("outcome_of_call", "is_given_up"),
    [
        (None, True),  # no call at all
        (RESULT, False),
        (Failure(-32602, "no such tool", None, Era.LEGACY), False),
        (BackendProtocol("b", "answered with a result that is not an object"), True),
        (CRASH, True),  # the call was not answered: it may be what the server dies of
    ],
)
async def test_sessions_that_served_calls_never_end_the_restarts(
    outcome_of_call: Outcome | None, is_given_up: bool, autojump_clock: MockClock
) -> None:
    backend = FakeBackend()
    async with running_supervisor(backend) as rig:
        for _ in range(2 * SUPERVISOR_POLICY.max_quick_failures):
            if rig.state is State.FAILED:
                break
            if outcome_of_call is not None:
                rig.call()
                await settle()
                if outcome_of_call is not CRASH:
                    backend.session.answer(1, outcome_of_call)
            backend.session.crash(CRASH)
            await trio.sleep(SUPERVISOR_POLICY.max_delay)
        assert rig.state is (State.FAILED if is_given_up else State.READY)


@pytest.mark.parametrize(
    ("problem", "said"),
    [
        (CRASH, "exited with status 3"),
        (FileNotFoundError(2, "No such file"), "failed: [Errno 2] No such file"),
        (trio.TooSlowError(), "was not ready within 30 s (connect_timeout)"),
    ],
)
async def test_the_restart_reason_is_logged(problem: Exception, said: str, autojump_clock: MockClock) -> None:
    backend = FakeBackend()
    backend.fail(1, problem=problem)
    async with running_supervisor(backend) as rig:
        assert rig.state is State.BACKOFF
        assert rig.supervisor.status().last_error == said
        await trio.sleep(1)
        await settle()
        assert rig.state is State.READY


async def test_a_bug_reaches_the_root(autojump_clock: MockClock) -> None:
    backend = FakeBackend()
    rig = Rig(backend)
    with trio.fail_after(100), pytest.RaisesGroup(KeyError, flatten_subgroups=True):
        async with trio.open_nursery() as nursery:
            nursery.start_soon(rig.run)
            await settle()
            pending = rig.call()
            await settle()
            backend.session.crash(KeyError("a bug"))
            await trio.sleep(50)
    assert len(backend.starts) == 1
    assert rig.state is State.STOPPED
    assert pending.over


async def test_waking_cuts_a_backoff_short(autojump_clock: MockClock) -> None:
    backend = FakeBackend()
    backend.fail(1, 2, 3)
    began = trio.current_time()
    async with running_supervisor(backend) as rig:
        await trio.sleep(1 + 2 + 0.5)  # in the middle of the third wait, of four seconds
        assert rig.state is State.BACKOFF
        rig.supervisor.wake()
        await settle()
        assert rig.state is State.READY
        assert [start - began for start in backend.starts] == pytest.approx([0, 1, 3, 3.5])


async def test_waking_a_failed_backend_resets_its_failures(autojump_clock: MockClock) -> None:
    backend = FakeBackend()
    backend.fail(*range(1, 100))
    async with running_supervisor(backend) as rig:
        await trio.sleep(1000)
        began = trio.current_time()
        rig.supervisor.wake()
        await trio.sleep(1000)
        assert rig.state is State.FAILED
        assert [start - began for start in backend.starts[5:]] == pytest.approx([0, 1, 3, 7, 15])


@pytest.mark.parametrize("state", [State.STARTING, State.READY])
async def test_an_early_wake_shortens_no_later_wait(state: State, autojump_clock: MockClock) -> None:
    backend = FakeBackend()

    async def slow_start(number: int) -> None:
        if state is State.STARTING and number == 1:
            await trio.sleep(5)
            raise CRASH

    backend.on_start = slow_start
    began = trio.current_time()
    async with running_supervisor(backend) as rig:
        assert rig.state is state
        rig.supervisor.wake()
        await trio.sleep(5)
        if state is State.READY:
            backend.session.crash(CRASH)
        await trio.sleep(5)
        assert [start - began for start in backend.starts] == pytest.approx([0, 6])


# -- calls -------------------------------------------------------------------------------------------------------------


async def test_calls_go_through_in_their_order(autojump_clock: MockClock) -> None:
    backend = FakeBackend()
    async with running_supervisor(backend) as rig:
        pending_calls = [rig.call(name) for name in "abc"]
        await settle()
        assert backend.session.batches == [["a"], ["b", "c"]] or backend.session.names == ["a", "b", "c"]
        backend.session.answer(3)
        assert [await outcome(pending) for pending in pending_calls] == [RESULT] * 3


async def test_concurrent_calls_stay_within_the_limit(autojump_clock: MockClock) -> None:
    backend = FakeBackend()
    async with running_supervisor(backend, max_concurrency=2) as rig:
        pending_calls = [rig.call(name) for name in "abcde"]
        await settle()
        assert backend.session.names == ["a", "b"]
        assert (rig.supervisor.in_flight, rig.supervisor.queued) == (2, 3)
        backend.session.answer()
        await settle()
        assert backend.session.names == ["a", "b", "c"]
        pending_calls[1].close()  # a withdrawn call makes room as well
        await settle()
        assert backend.session.names == ["a", "b", "c", "d"]
        backend.session.answer(2)
        await settle()
        backend.session.answer()
        assert [pending.outcome for pending in pending_calls] == [RESULT, None, RESULT, RESULT, RESULT]


async def test_a_full_queue_is_busy(autojump_clock: MockClock) -> None:
    backend = FakeBackend()
    async with running_supervisor(backend, max_concurrency=1, queue_size=2) as rig:
        rig.call("a")
        await settle()
        pending_calls = [rig.call("b"), rig.call("c")]
        with pytest.raises(Busy, match="backend 'b' is busy: 1 calls in flight and 2 queued"):
            rig.call("d")
        for expected in (["a", "b"], ["a", "b", "c"]):
            backend.session.answer()
            await settle()
            assert backend.session.names == expected
        backend.session.answer()
        assert pending_calls[1].outcome is RESULT


async def test_a_call_that_is_over_is_not_sent(autojump_clock: MockClock) -> None:
    backend = FakeBackend()
    async with running_supervisor(backend, max_concurrency=1) as rig:
        rig.call("a")
        gone, kept = rig.call("b"), rig.call("c")
        await settle()
        gone.close()
        backend.session.answer()
        await settle()
        assert backend.session.names == ["a", "c"]
        assert not kept.over
        assert backend.session.withdrawn == []


async def test_a_transport_without_room_holds_calls_back(autojump_clock: MockClock) -> None:
    backend = FakeBackend()
    async with running_supervisor(backend) as rig:
        rig.call("a")
        backend.session.has_room = trio.Event()
        rig.call("b")
        rig.call("c")
        await settle()
        assert (backend.session.names, rig.supervisor.queued) == (["a"], 2)
        backend.session.has_room.set()
        await settle()
        assert backend.session.batches == [["a"], ["b", "c"]]


async def test_a_free_backend_is_called_without_a_task(autojump_clock: MockClock) -> None:
    backend = FakeBackend()
    async with running_supervisor(backend, max_concurrency=2) as rig:
        rig.call("a")
        rig.call("b")
        assert backend.session.names == ["a", "b"]
        rig.call("c")
        assert (backend.session.names, rig.supervisor.queued) == (["a", "b"], 1)


async def test_calls_are_sent_in_their_order_both_ways(autojump_clock: MockClock) -> None:
    backend = FakeBackend()
    async with running_supervisor(backend, max_concurrency=2) as rig:
        for name in "abc":
            rig.call(name)
        backend.session.answer(2)  # both slots are free, but c is queued
        rig.call("d")
        assert backend.session.names == ["a", "b"]
        await settle()
        assert backend.session.names == ["a", "b", "c", "d"]


async def test_a_call_during_a_crash_awaits_the_restart(autojump_clock: MockClock) -> None:
    backend = FakeBackend()
    async with running_supervisor(backend, retry=False) as rig:
        backend.session.close(CRASH)  # the session's tasks have not run yet
        pending = rig.call("a")
        await settle()
        assert (backend.session.names, rig.supervisor.queued) == ([], 1)
        backend.session.crash(CRASH)
        await trio.sleep(2)
        assert [session.names for session in backend.sessions] == [[], ["a"]]
        backend.session.answer()
        assert await outcome(pending) == RESULT


async def test_a_call_during_an_idle_close_restarts(autojump_clock: MockClock) -> None:
    backend = FakeBackend()
    async with running_supervisor(backend, idle_timeout=5.0) as rig:
        pending_calls: list[PendingCall] = []

        async def call_meanwhile() -> None:
            await trio.lowlevel.checkpoint()
            if not pending_calls:
                pending_calls.append(rig.call("a"))

        backend.on_close = call_meanwhile
        await trio.sleep(6)
        assert [session.names for session in backend.sessions] == [[], ["a"]]
        backend.session.answer()
        assert await outcome(pending_calls[0]) == RESULT


async def test_a_crash_fails_running_calls_and_keeps_queued(autojump_clock: MockClock) -> None:
    backend = FakeBackend()
    async with running_supervisor(backend, max_concurrency=2) as rig:
        pending_calls = [rig.call(name) for name in "abc"]
        await settle()
        began = trio.current_time()
        backend.session.crash(CRASH)
        assert [await outcome(pending) for pending in pending_calls[:2]] == [CRASH, CRASH]
        assert trio.current_time() == began
        await settle()
        assert rig.state is State.BACKOFF
        await trio.sleep(1)
        await settle()
        assert backend.session.names == ["c"]
        backend.session.answer()
        assert await outcome(pending_calls[2]) is RESULT


async def test_running_calls_fail_before_the_child_is_reaped(autojump_clock: MockClock) -> None:
    backend = FakeBackend()
    backend.on_close = partial(trio.sleep, 7)  # the stop sequence
    async with running_supervisor(backend) as rig:
        pending = rig.call()
        await settle()
        began = trio.current_time()
        backend.session.crash(CRASH)
        assert await outcome(pending) is CRASH
        assert trio.current_time() == began
        backend.on_close = None


@pytest.mark.parametrize("when", [0.0, 0.5, 2.5])
async def test_a_call_during_backoff_hastens_the_start(when: float, autojump_clock: MockClock) -> None:
    backend = FakeBackend()
    backend.fail(1, 2, 3)
    began = trio.current_time()
    async with running_supervisor(backend) as rig:
        await trio.sleep(1 + 2 + when)  # the third wait lasts four seconds; its first second is never cut
        await settle()
        assert rig.state is State.BACKOFF
        pending = rig.call()
        await trio.sleep(1)
        await settle()
        assert backend.session.names == ["x"]
        backend.session.answer()
        assert await outcome(pending) is RESULT
        assert backend.starts[3] - began == pytest.approx(max(4, 3 + when))


async def test_retrying_clients_do_not_exhaust_the_tries(autojump_clock: MockClock) -> None:
    backend = FakeBackend()
    backend.fail(*range(1, 100))
    began = trio.current_time()
    async with running_supervisor(backend) as rig:
        while rig.state is not State.FAILED:
            try:
                rig.call(timeout=0.1).close()
            except BackendUnavailable:
                break
            await trio.sleep(0.1)
        assert [start - began for start in backend.starts] == pytest.approx([0, 1, 2, 3, 4], abs=0.5)


async def test_a_calls_own_deadline_holds_while_it_waits(autojump_clock: MockClock) -> None:
    backend = FakeBackend()
    backend.stall()
    async with running_supervisor(backend) as rig:
        began = trio.current_time()
        pending = rig.call(timeout=3)
        assert isinstance(await outcome(pending), BackendTooSlow)
        assert trio.current_time() - began == pytest.approx(3)


async def test_failed_backends_answer_immediately(autojump_clock: MockClock) -> None:
    backend = FakeBackend()
    backend.fail(*range(1, 100))
    async with running_supervisor(backend, restart=RestartPolicy(max_quick_failures=1, max_delay=60)) as rig:
        await settle()
        for _ in range(3):
            with pytest.raises(BackendUnavailable, match=r"is not available \(failed\): exited with status 1"):
                rig.call()
        await trio.sleep(59)
        assert len(backend.starts) == 1
        await trio.sleep(1)
        with pytest.raises(BackendUnavailable):  # still at once, but now it is tried again
            rig.call()
        await settle()
        assert len(backend.starts) == 2


async def test_marking_failed_answers_the_queue(autojump_clock: MockClock) -> None:
    backend = FakeBackend()
    backend.fail(*range(1, 100))
    async with running_supervisor(backend) as rig:
        pending = rig.call(timeout=1000)
        problem = await outcome(pending)
        assert isinstance(problem, BackendUnavailable)
        assert "(failed): exited with status 1" in str(problem)
        assert rig.state is State.FAILED


# -- lists -------------------------------------------------------------------------------------------------------------


async def test_a_flood_of_changes_is_read_per_interval(autojump_clock: MockClock) -> None:
    backend = FakeBackend()
    async with running_supervisor(backend) as rig:
        began = trio.current_time()
        for _ in range(100):
            backend.session.change()
            await trio.sleep(RELIST_INTERVAL / 50)
        await trio.sleep(10)
        times = [time - began for feature, time in backend.session.relisted if feature == "tools"]
        assert times == pytest.approx([0, RELIST_INTERVAL, 2 * RELIST_INTERVAL])
        assert rig.state is State.READY


async def test_a_relist_replaces_only_what_changed(autojump_clock: MockClock) -> None:
    backend = FakeBackend(make_listing("x", instructions="do"))
    async with running_supervisor(backend) as rig:
        fresh = (Item("p", b'{"name":"p"}'),)
        backend.session.on_relist = lambda _feature: {Kind.PROMPTS: fresh}
        before, changes = rig.supervisor.listing, rig.watcher.changes
        backend.session.change("prompts")
        await settle()
        now = rig.supervisor.listing
        assert before is not None
        assert now is not None
        assert now.items == {**before.items, Kind.PROMPTS: fresh}
        assert (now.instructions, now.capabilities.keys()) == ("do", {"tools", "prompts"})
        assert rig.watcher.changes == changes + 1


@pytest.mark.parametrize("problem", [BackendTooSlow("b", "slow"), BackendProtocol("b", "odd")])
async def test_a_list_that_cannot_be_read_stays(problem: Exception, autojump_clock: MockClock) -> None:
    backend = FakeBackend()
    async with running_supervisor(backend) as rig:

        def fail(_feature: str) -> Any:
            raise problem

        backend.session.on_relist = fail
        before = rig.supervisor.listing
        backend.session.change()
        await trio.sleep(5)
        assert rig.supervisor.listing is before
        assert rig.state is State.READY
        assert len(backend.starts) == 1


def broken(again: bool, *names: str) -> Listing:
    """A listing whose tools were not read to their end."""
    listing = make_listing(*names)
    return msgspec.structs.replace(listing, problems={Kind.TOOLS: ("broken",)}, unread={Kind.TOOLS: again})


async def test_a_failed_list_is_reread_with_backoff(autojump_clock: MockClock) -> None:
    backend = FakeBackend(broken(True))
    async with running_supervisor(backend) as rig:
        began = trio.current_time()
        backend.session.on_relist = lambda _feature: broken(True)
        await trio.sleep(1000)
        delays = [time - began for _, time in backend.session.relisted]
        assert delays[:4] == pytest.approx([5, 15.25, 35.5, 75.75])
        assert delays[-1] - delays[-2] == pytest.approx(RELIST_DELAY_LIMIT + RELIST_INTERVAL)
        assert rig.supervisor.status().warnings == ("broken",)
        backend.session.on_relist = lambda _feature: make_listing("x")
        await trio.sleep(RELIST_DELAY_LIMIT + 1)
        assert (rig.supervisor.status().warnings, rig.supervisor.status().tools) == ((), 1)
        backend.session.relisted.clear()
        await trio.sleep(10_000)
        assert backend.session.relisted == []
        assert len(backend.starts) == 1


async def test_a_permanently_failed_list_is_not_reread(autojump_clock: MockClock) -> None:
    backend = FakeBackend(broken(False))
    async with running_supervisor(backend) as rig:
        await trio.sleep(10_000)
        assert backend.session.relisted == []
        assert rig.supervisor.status().warnings == ("broken",)


@pytest.mark.parametrize(
    ("again", "served", "warnings"),
    [(True, ["x", "y"], ("broken", "keeping the 2 tools listed before")), (False, [], ("broken",))],
)
async def test_a_list_failing_at_restart_keeps_its_predecessor(
    again: bool, served: list[str], warnings: tuple[str, ...], autojump_clock: MockClock
) -> None:
    backend = FakeBackend(make_listing("x", "y"))
    async with running_supervisor(backend) as rig:
        backend.listing = broken(again)
        backend.session.crash(CRASH)
        await trio.sleep(2)
        assert rig.state is State.READY
        assert rig.supervisor.listing is not None
        assert [item.own for item in rig.supervisor.listing.items[Kind.TOOLS]] == served
        assert rig.supervisor.status().warnings == warnings


async def test_last_good_entries_outlive_the_session(autojump_clock: MockClock) -> None:
    backend = FakeBackend(make_listing("x"))
    async with running_supervisor(backend) as rig:
        assert not rig.supervisor.status().stale
        backend.session.crash(CRASH)
        await settle()
        status = rig.supervisor.status()
        assert (status.state, status.tools, status.stale, status.pid) == (State.BACKOFF, 1, True, None)
        assert rig.supervisor.listing is not None


# -- stopping ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("state", ["before", "starting", "ready", "closing", "backoff", "failed"])
async def test_it_stops_in_every_state(state: str, autojump_clock: MockClock) -> None:
    backend = FakeBackend()
    if state == "starting":
        backend.stall()
    elif state in {"backoff", "failed"}:
        backend.fail(*range(1, 100))
    rig = Rig(backend, restart=RestartPolicy(max_quick_failures=1) if state == "failed" else SUPERVISOR_POLICY)
    if state == "closing":
        backend.on_close = partial(trio.sleep, 3)
    if state == "before":
        rig.supervisor.stop()
    with trio.fail_after(10):
        async with trio.open_nursery() as nursery:
            nursery.start_soon(rig.run)
            await settle()
            if state == "closing":
                backend.session.crash(CRASH)
                await settle()
            elif state != "before":
                assert rig.state == state
            pending = None if state in {"before", "failed"} else rig.call()
            rig.supervisor.stop()
            rig.supervisor.stop()
            with trio.fail_after(5):
                await rig.ended.wait()
    assert rig.watcher.states[-2:] == ["draining", "stopped"]
    assert backend.open == 0
    assert len(backend.starts) == (0 if state == "before" else 1)
    assert pending is None or pending.over
    with pytest.raises(BackendUnavailable):
        rig.call()


async def test_a_drain_lets_calls_finish(autojump_clock: MockClock) -> None:
    backend = FakeBackend()
    async with running_supervisor(backend, max_concurrency=1) as rig:
        pending_calls = [rig.call("a"), rig.call("b")]
        await settle()
        rig.supervisor.stop(drain_grace=10)
        await settle()
        assert rig.state is State.DRAINING
        with pytest.raises(BackendUnavailable, match="draining"):
            rig.call()
        await trio.sleep(4)
        backend.session.answer()
        await settle()
        assert not rig.ended.is_set()
        backend.session.answer()
        await settle()
        assert rig.ended.is_set()  # at once, not at the end of the grace
        assert [pending.outcome for pending in pending_calls] == [RESULT, RESULT]


async def test_a_drain_ends_after_its_grace(autojump_clock: MockClock) -> None:
    backend = FakeBackend()
    async with running_supervisor(backend, max_concurrency=1) as rig:
        pending_calls = [rig.call("a"), rig.call("b")]
        await settle()
        began = trio.current_time()
        rig.supervisor.stop(drain_grace=10)
        await rig.ended.wait()
        assert trio.current_time() - began == pytest.approx(10)
        assert isinstance(await outcome(pending_calls[0]), BackendExited)
        assert isinstance(await outcome(pending_calls[1]), BackendUnavailable)


# -- lazy and idle -----------------------------------------------------------------------------------------------------


async def test_a_known_lazy_backend_starts_with_a_call(autojump_clock: MockClock) -> None:
    backend = FakeBackend()
    async with running_supervisor(backend, start="lazy", last_good=make_listing("x")) as rig:
        await trio.sleep(100)
        assert (backend.starts, rig.state) == ([], State.STOPPED)
        assert rig.supervisor.settled.is_set()  # no list request waits for it
        pending = rig.call()
        await settle()
        backend.session.answer()
        assert await outcome(pending) is RESULT


async def test_an_unknown_lazy_backend_starts_immediately(autojump_clock: MockClock) -> None:
    backend = FakeBackend()
    async with running_supervisor(backend, start="lazy"):
        assert len(backend.starts) == 1


async def test_an_idle_backend_stops_and_restarts_with_calls(autojump_clock: MockClock) -> None:
    backend = FakeBackend()
    async with running_supervisor(backend, idle_timeout=60) as rig:
        for _ in range(3):
            await trio.sleep(50)
            rig.call()
            await settle()
            backend.session.answer()
        assert rig.state is State.READY
        rig.call()
        await settle()
        await trio.sleep(200)
        assert rig.state is State.READY  # a call is in flight
        backend.session.answer()
        await trio.sleep(59)
        assert rig.state is State.READY
        await trio.sleep(2)
        assert (rig.state, backend.open) == (State.STOPPED, 0)
        assert rig.supervisor.listing is not None
        await trio.sleep(1000)
        assert len(backend.starts) == 1
        pending = rig.call()
        await settle()
        backend.session.answer()
        assert await outcome(pending) is RESULT
        assert rig.supervisor.last_error is None


async def test_cancelled_calls_make_room_in_a_full_queue(autojump_clock: MockClock) -> None:
    backend = FakeBackend(make_listing("x"))
    async with running_supervisor(backend, max_concurrency=1, queue_size=3) as rig:
        rig.call("working")
        await settle()
        queued = [rig.call(f"queued-{number}") for number in range(3)]
        with pytest.raises(Busy):
            rig.call("one too many")
        queued[1].close()
        rig.call("last")
        with pytest.raises(Busy):
            rig.call("one too many")
        session = backend.session
        for _ in range(4):
            session.answer()
            await settle()
        assert session.names == ["working", "queued-0", "queued-2", "last"]
        assert rig.supervisor.queued == 0


async def test_an_ended_session_holds_no_lists(autojump_clock: MockClock) -> None:
    backend = FakeBackend(make_listing("x"))
    async with running_supervisor(backend) as rig:
        ended, before = backend.session, rig.supervisor.listing
        ended.crash(CRASH)
        await settle()
        assert rig.state is State.BACKOFF
        assert ended.listing == Listing()
        assert rig.supervisor.listing is before  # its names stay known
