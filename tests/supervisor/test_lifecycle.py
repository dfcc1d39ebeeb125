"""The state table and the delays between restarts."""

from __future__ import annotations

from itertools import product

import msgspec
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from gateway.config import NEVER_RESTART
from gateway.config.lifecycle import RestartPolicy
from gateway.supervisor.lifecycle import LISTED, TRANSITIONS, Backoff, IllegalTransition, State, check

ALLOWED = {  # the table a second time: a change of it is a decision, not an accident
    ("stopped", "starting"),
    ("stopped", "draining"),
    ("starting", "ready"),
    ("starting", "backoff"),
    ("starting", "failed"),
    ("starting", "draining"),
    ("ready", "backoff"),
    ("ready", "failed"),
    ("ready", "stopped"),
    ("ready", "draining"),
    ("backoff", "starting"),
    ("backoff", "draining"),
    ("failed", "starting"),
    ("failed", "draining"),
    ("draining", "stopped"),
}


@pytest.mark.parametrize(("old", "new"), list(product(State, State)), ids=str)
def test_transitions_follow_the_table(old: State, new: State) -> None:
    if (old.value, new.value) in ALLOWED:
        assert check(old, new) is new
    else:
        with pytest.raises(IllegalTransition, match=f"{old} may not be followed by {new}"):
            check(old, new)


def test_the_table_is_whole() -> None:
    assert TRANSITIONS.keys() == set(State)
    assert {state.value for state in LISTED} == {"starting", "ready", "backoff"}


def delays(policy: RestartPolicy, healthy: list[float], *, random: float = 0.0) -> list[float | None]:
    backoff = Backoff(policy, lambda: random)
    return [backoff.failed(seconds) for seconds in healthy]


POLICY = RestartPolicy(initial_delay=0.5, max_delay=3.0, jitter=0.2, max_quick_failures=6, healthy_after=30.0)


def test_delays_double_to_a_cap_then_end() -> None:
    assert delays(POLICY, [0] * 7) == [0.5, 1.0, 2.0, 3.0, 3.0, None, None]


def test_jitter_only_shortens() -> None:
    assert delays(POLICY, [0] * 4, random=0.5) == pytest.approx([0.45, 0.9, 1.8, 2.7])
    assert delays(POLICY, [0] * 4, random=1.0) == pytest.approx([0.4, 0.8, 1.6, 2.4])


def test_a_healthy_run_forgives() -> None:
    assert delays(POLICY, [0, 0, 29.9, 30, 0, 0]) == [0.5, 1.0, 2.0, 0.5, 1.0, 2.0]


def test_a_new_request_resets_the_tries() -> None:
    backoff = Backoff(POLICY, lambda: 0.0)
    assert [backoff.failed(0) for _ in range(6)][-1] is None
    backoff.reset()
    assert [backoff.failed(0) for _ in range(6)] == [0.5, 1.0, 2.0, 3.0, 3.0, None]


@pytest.mark.parametrize("most", [1, 2, 5])
def test_a_session_that_served_calls_resets_failures(most: int) -> None:
    policy = msgspec.structs.replace(POLICY, max_quick_failures=most)
    backoff = Backoff(policy, lambda: 0.0)
    for _ in range(3):
        assert [backoff.failed(0, has_served=True) for _ in range(3)] == [0.5] * 3
        quick = [backoff.failed(0) for _ in range(most - 1)]
        assert None not in quick
    assert [backoff.failed(0) for _ in range(most)][-1] is None


def test_never_restart_also_applies_after_calls() -> None:
    assert Backoff(NEVER_RESTART, lambda: 0.0).failed(1e6, has_served=True) is None


def test_one_failure_can_be_the_last() -> None:
    assert delays(RestartPolicy(max_quick_failures=1), [0]) == [None]


@settings(deadline=None)
@given(st.floats(0.001, 1e9), st.floats(0.001, 1e9), st.floats(0, 1), st.floats(0, 1), st.integers(1, 3000))
def test_no_delay_is_negative_or_beyond_the_cap(
    initial: float, cap: float, jitter: float, random: float, failures: int
) -> None:
    policy = RestartPolicy(initial_delay=initial, max_delay=cap, jitter=jitter, max_quick_failures=10**6)
    for delay in delays(policy, [0] * failures, random=random):
        assert delay is not None
        assert 0 <= delay <= cap
