"""The states of a backend, and the one table of what may follow what.

    stopped ──> starting ──> ready ──> backoff ──> starting ...
       ^           │ └──> backoff / failed │
       └── idle ── │ ─────────────── ready │
                   └────────> draining <───┘ ──> stopped

`failed` is giving up on purpose, after quick failures in a row; a person (or, after a while, a call) kicks it. One that
died with a call in flight, and a remote server that cannot be reached, is tried again by itself after `max_delay`.
`stopped` is where a lazy or idle backend waits for its next call, and where every backend ends.
"""

from __future__ import annotations

import enum
from typing import Final


class State(enum.StrEnum):
    """Where a backend stands."""

    STOPPED = "stopped"
    STARTING = "starting"
    READY = "ready"
    BACKOFF = "backoff"
    FAILED = "failed"
    DRAINING = "draining"


TRANSITIONS: Final[dict[State, frozenset[State]]] = {
    State.STOPPED: frozenset({State.STARTING, State.DRAINING}),
    State.STARTING: frozenset({State.READY, State.BACKOFF, State.FAILED, State.DRAINING}),
    State.READY: frozenset({State.BACKOFF, State.FAILED, State.STOPPED, State.DRAINING}),
    State.BACKOFF: frozenset({State.STARTING, State.DRAINING}),
    State.FAILED: frozenset({State.STARTING, State.DRAINING}),
    State.DRAINING: frozenset({State.STOPPED}),
}

LISTED: Final = frozenset({State.STARTING, State.READY, State.BACKOFF})
"""States in which a backend's last-good entries are listed: it is there, or only briefly away."""


class IllegalTransition(AssertionError):
    """A bug: the supervisor tried a step that the table does not have."""


def check(old: State, new: State) -> State:
    """Return the new state if it may follow the old one."""
    if new not in TRANSITIONS[old]:
        text = f"{old} may not be followed by {new}"
        raise IllegalTransition(text)
    return new
