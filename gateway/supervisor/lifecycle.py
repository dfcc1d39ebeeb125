"""The lifecycle of a backend: states, delays between restarts, status. No clock, no tasks.

    stopped ──> starting ──> ready ──> backoff ──> starting ...
       ^           │ └──> backoff / failed │
       └── idle ── │ ─────────────── ready │
                   └────────> draining <───┘ ──> stopped

`failed` follows too many consecutive quick failures; an operator (or, after a while, a call) starts the backend again.
A backend that died with a call in flight, and a remote server that cannot be reached, are retried after `max_delay`
anyway. `stopped` is the state of a lazy or idle backend before its next call, and the final state of every backend.
"""

from __future__ import annotations

import enum
import math
from typing import TYPE_CHECKING, Any, Final, Protocol, TypeVar

import msgspec

from gateway.calls import Era
from gateway.config import NEVER_RESTART
from gateway.eras.methods import Kind
from gateway.errors import IllegalTransition

if TYPE_CHECKING:
    from collections.abc import Callable

    from gateway.backends.session.interface import Session
    from gateway.backends.session.session_state import DesiredState
    from gateway.config import RestartPolicy
    from gateway.inflight.pending import PendingCall

S_contra = TypeVar("S_contra", contravariant=True)
"""The supervisor that an event is about."""

ERA_LINGER: Final = 300.0
"""Seconds after the last call of its era for which a child process is not restarted in the other era: what it keeps in
memory would be lost to a client that only pauses between two calls."""


class State(enum.StrEnum):
    """The state of a backend."""

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
"""States in which a backend's last-good entries are listed: it is available, or only briefly away."""


def check(old: State, new: State) -> State:
    """Return the new state if it may follow the old one; raise IllegalTransition otherwise."""
    if new not in TRANSITIONS[old]:
        text = f"{old} may not be followed by {new}"
        raise IllegalTransition(text)
    return new


class Backoff:
    """Counts quick failures of one backend and computes the delay before the next start."""

    def __init__(self, policy: RestartPolicy, random: Callable[[], float]) -> None:
        self.failures = 0
        self._policy = policy
        self._random = random

    def failed(self, healthy_for: float, *, has_served: bool = False) -> float | None:
        """Count a failure; return the delay before the next start, None to stop restarting.

        `healthy_for` is the time in `ready`, in seconds.

        A session that has served calls was healthy, however short: its end is not a quick failure, and restarts stop
        only if the policy allows none at all.

        The delay is `initial_delay` doubled for each consecutive failure, at most `max_delay`, then shortened by a
        random share of up to `jitter`, so that backends which fail together do not restart together.
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
        """Reset the count: an operator asked for another start."""
        self.failures = 0


class EraPreference:
    """The era of a backend's next session, if the server offers both."""

    def __init__(self, preferred: Era | None = None) -> None:
        self.preferred: Era | None = preferred
        """The era of the clients that the next session is for; None before the first call."""
        self.other: Era | None = None
        """The other era that the server offers; None without a session."""
        self._used_at = dict.fromkeys(Era, -math.inf)
        self._changed_at = -math.inf
        self._is_bridging = self._is_changing = self._is_open = False

    def opened(self, other: Era | None) -> None:
        """Note that a session was opened, and the other era that the server offers."""
        has_failed = self._is_changing and other is not None and other is self.preferred
        if other is not None and (has_failed or self.preferred is None):
            self.preferred = other.other  # not an era that failed, or that a second session serves
        self.other, self._is_bridging, self._is_changing, self._is_open = other, has_failed, False, True

    def change(self, era: Era) -> None:
        """Note that the session ends so that the next one has this era.

        If that fails, the change is not tried again for `ERA_LINGER`.
        """
        self.preferred = era
        self._changed_at, self._is_changing = self._used_at[era], True
        self.closed()

    def closed(self) -> None:
        """Note that there is no session."""
        self.other, self._is_open = None, False

    def note_call(self, pending: PendingCall, *, is_busy: bool) -> bool:
        """Note a call; return whether the session should change to its era.

        It should if the call is of the other era, and the session's own era seems to have no clients.
        """
        era = pending.call.caller.era
        self._used_at[era] = pending.opened_at  # also for a call that waits for its session
        if era is self.other:
            self._is_bridging = True
            last_at = max(self._used_at[era.other], self._changed_at)
            return not is_busy and pending.opened_at >= last_at + ERA_LINGER
        if not self._is_open and not is_busy:
            self.preferred = era
        return False

    @property
    def warning(self) -> str | None:
        """A warning that clients are bridged although the server speaks their era, if so."""
        if not self._is_bridging or self.other is None:
            return None
        return f"{self.other} clients use its session of the other era; 'era': 'each' starts it once for either"


class Status(msgspec.Struct, frozen=True, kw_only=True):
    """The status of one backend, as in the entries of `GET /health`."""

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
    """Whether the list is the last-good one of a backend that is away."""
    breaker: str | None = None
    """The state of the circuit breaker: closed, open or half-open; null without one."""
    warnings: tuple[str, ...] = ()
    """Problems of its lists (one failed, entries were left out), and of the tools that the config names."""
    asked: tuple[str, ...] = ()
    """The methods of its requests to clients, in its present session."""

    @classmethod
    def of(cls, one: Any, session: Session | None) -> Status:
        """Return the status of this supervisor's backend, with its present session."""
        return cls(
            state=one.state,
            since=one.since,
            restarts=one.restarts,
            last_error=one.last_error,
            tools=0 if one.listing is None else one.listing.count(Kind.TOOLS),
            in_flight=one.in_flight,
            sessions=one.sessions,
            queued=one.queued,
            pid=None if session is None else session.pid,
            era=None if session is None else session.greeting.era,
            stale=one.state is not State.READY and one.offered and one.listing is not None,
            warnings=one.warnings,
            asked=() if session is None else session.asked,
            breaker=None if one.gate.breaker is None else one.gate.breaker.state,
        )


class SupervisorEvents(Protocol[S_contra]):
    """A supervisor's reports to its owner: the fleet, or a `PerClientSupervisors`.

    Methods must not wait.
    """

    def backend_changed(self, supervisor: S_contra, feature: str | None = None) -> None:
        """Note a change of a backend's state or lists.

        `feature`: the backend has announced a change of these lists.
        """

    def resource_updated(
        self, supervisor: S_contra, uri: str, params: dict[str, msgspec.Raw], key: str | None = None
    ) -> None:
        """Pass on a resource update; with a key, only to the client of that session."""

    def for_client(self, key: str, method: str, params: dict[str, msgspec.Raw]) -> None:
        """Pass a notification to one client only."""

    def desired_state(self, backend: str, key: str | None = None) -> DesiredState:
        """Return the desired state of a backend's session; with a key, of that client's."""
        ...
