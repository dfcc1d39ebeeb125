"""The life of a backend: its states, the delays between its restarts, and its status. Pure: no clock, no tasks.

    stopped ──> starting ──> ready ──> backoff ──> starting ...
       ^           │ └──> backoff / failed │
       └── idle ── │ ─────────────── ready │
                   └────────> draining <───┘ ──> stopped

`failed` follows too many quick failures in a row; an operator (or, after a while, a call) starts the backend again.
One that died with a call in flight, or a remote server that cannot be reached, is retried after `max_delay` anyway.
`stopped` is where a lazy or idle backend waits for its next call, and where every backend ends.
"""

from __future__ import annotations

import enum
from typing import TYPE_CHECKING, Final

import msgspec

from gateway.config import NEVER_RESTART
from gateway.errors import IllegalTransition

if TYPE_CHECKING:
    from collections.abc import Callable

    from gateway.config import RestartPolicy


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


def check(old: State, new: State) -> State:
    """Return the new state if it may follow the old one."""
    if new not in TRANSITIONS[old]:
        text = f"{old} may not be followed by {new}"
        raise IllegalTransition(text)
    return new


class Backoff:
    """Counts quick failures of one backend and says how long to wait."""

    def __init__(self, policy: RestartPolicy, random: Callable[[], float]) -> None:
        self.failures = 0
        self._policy = policy
        self._random = random

    def failed(self, healthy_for: float, *, has_served: bool = False) -> float | None:
        """Note a failure after `healthy_for` seconds of being ready; returns the delay, or None to give up.

        A session that has served calls was healthy, however short: its end is no quick failure. It ends the restarts
        only where the policy allows none at all.

        The delay is `initial_delay` doubled for each failure in a row, at most `max_delay`, and then shortened by a
        random share of up to `jitter`, so that backends which fell together do not rise together.
        """
        policy = self._policy
        if has_served and policy != NEVER_RESTART:
            self.failures = 0
        else:
            if healthy_for >= policy.healthy_after:
                self.failures = 0
            self.failures += 1
            if self.failures >= policy.max_quick_failures:
                return None
        doubled = policy.initial_delay * 2.0 ** min(max(self.failures - 1, 0), 60)
        return min(doubled, policy.max_delay) * (1 - policy.jitter * self._random())

    def reset(self) -> None:
        """Start counting anew: somebody asked for another try."""
        self.failures = 0


class Status(msgspec.Struct, frozen=True, kw_only=True):
    """One backend as people see it; the form of `GET /health`'s entries."""

    state: State
    since: str
    restarts: int
    last_error: str | None
    tools: int
    in_flight: int
    sessions: int
    """Sessions that belong to single clients or calls."""
    queued: int
    pid: int | None
    era: str | None
    stale: bool
    """Whether what is listed is the last-good state of a backend that is away."""
    breaker: str | None = None
    """The circuit breaker: closed, open or half-open; null where there is none."""
    warnings: tuple[str, ...] = ()
    """What is wrong with its lists (one failed, entries were left out), and with what the config says of its tools."""
