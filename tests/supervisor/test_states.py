"""The state table, written down a second time: a change of it is a decision, not an accident."""

from __future__ import annotations

from itertools import product

import pytest

from gateway.supervisor.states import LISTED, TRANSITIONS, IllegalTransition, State, check

ALLOWED = {
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
def test_what_may_follow_what(old: State, new: State) -> None:
    if (old.value, new.value) in ALLOWED:
        assert check(old, new) is new
    else:
        with pytest.raises(IllegalTransition, match=f"{old} may not be followed by {new}"):
            check(old, new)


def test_the_table_is_whole() -> None:
    assert TRANSITIONS.keys() == set(State)
    assert {state.value for state in LISTED} == {"starting", "ready", "backoff"}
