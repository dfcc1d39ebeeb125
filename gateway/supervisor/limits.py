"""Limits of one backend: rate, circuit breaker, strikes for crashes. None has a clock.

`CallLimits` holds them for one backend, across all its sessions, and refuses calls: above the rate as busy, behind an
open circuit breaker as unavailable. `admit` is called once for each submitted call and `ended` once at its end; both
cost nothing if the config sets no limits.
"""

from __future__ import annotations

import enum
import logging
import math
from collections import deque
from fnmatch import fnmatchcase
from typing import TYPE_CHECKING, Final

from gateway.calls import Complete, Failure, InputRequired
from gateway.errors import BackendError, BackendUnavailable, Busy
from gateway.rates import TokenBucket

if TYPE_CHECKING:
    from gateway.calls import Outcome
    from gateway.config import CircuitBreaker, CrashLimit, ServerConfig
    from gateway.errors import BackendExited
    from gateway.inflight.pending import PendingCall

log = logging.getLogger("gateway.supervisor")

MAX_NAMED: Final = 5
"""Calls named in the log when a backend dies with many in flight."""
MAX_ORIGINS: Final = 1_024
"""Clients of one backend whose crashes are counted; each crash costs a start, so the table fills slowly."""


class BreakerState(enum.StrEnum):
    """The state of the circuit: all calls pass, none, or one as a trial."""

    CLOSED = "closed"
    OPEN = "open"
    HALF_OPEN = "half-open"


class Breaker:
    """A circuit that opens after consecutive failures, and later admits one trial call.

    Only failures of the backend count: a call that its client cancelled proves nothing.
    """

    def __init__(self, policy: CircuitBreaker) -> None:
        self.state = BreakerState.CLOSED
        self._policy = policy
        self._failures = 0
        self._opened_at = -math.inf
        self._trying: PendingCall | None = None

    def admit(self, pending: PendingCall, now: float) -> float:
        """Admit a call: return 0, or the seconds until one may be tried."""
        if self.state is BreakerState.CLOSED:
            return 0.0
        left = self._opened_at + self._policy.open_for - now
        if self._trying is not None:
            return max(left, 1.0)
        if left > 0:
            return left
        self.state = BreakerState.HALF_OPEN
        self._trying = pending
        return 0.0

    def ended(self, pending: PendingCall, outcome: Outcome | None, now: float) -> None:
        """Record the outcome of a call; None if it was cancelled."""
        tried = pending is self._trying
        if tried:
            self._trying = None
        if self.state is not BreakerState.CLOSED and not tried:
            return  # sent before the circuit opened: only the trial call decides
        if isinstance(outcome, Complete | InputRequired | Failure):
            self._failures = 0
            self.state = BreakerState.CLOSED
        elif isinstance(outcome, BackendError):
            self._failures += 1
            if tried or self._failures >= self._policy.failures:
                self.state = BreakerState.OPEN
                self._opened_at = now


class Strikes:
    """Counts the crashes of one backend by the client whose call caused them."""

    def __init__(self, limit: CrashLimit) -> None:
        self._limit = limit
        self._at: dict[str, deque[tuple[float, bool]]] = {}  # the client with the latest crash last

    def __len__(self) -> int:
        """The number of clients with a recorded crash."""
        return len(self._at)

    def add(self, origin: str, now: float, *, is_sure: bool = True) -> None:
        """Count a crash to a client; `is_sure`: no other client had calls in flight."""
        for other in [one for one, crashes in self._at.items() if crashes[-1][0] + self._limit.within <= now]:
            del self._at[other]
        crashes = self._at.pop(origin, None) or deque(maxlen=self._limit.crashes)
        crashes.append((now, is_sure))
        self._at[origin] = crashes
        if len(self._at) > MAX_ORIGINS:
            del self._at[next(iter(self._at))]

    def answered(self, origin: str) -> None:
        """Forget uncertain crashes: a client that gets answers may just have been the busiest.

        Otherwise a client whose calls crash the backend after a while could cause another one to be refused.
        """
        crashes = self._at.get(origin)
        if crashes is None or all(is_sure for _, is_sure in crashes):
            return
        sure = [crash for crash in crashes if crash[1]]
        if sure:
            self._at[origin] = deque(sure, maxlen=self._limit.crashes)
        else:
            del self._at[origin]

    def wait(self, origin: str, now: float) -> float:
        """Return 0 if a client may send calls, else the seconds until it may."""
        crashes = self._at.get(origin)
        if crashes is None or len(crashes) < self._limit.crashes:
            return 0.0
        return max(0.0, crashes[0][0] + self._limit.within - now)


class CallLimits:
    """The limits of one backend."""

    def __init__(self, config: ServerConfig) -> None:
        self.breaker = None if config.circuit_breaker is None else Breaker(config.circuit_breaker)
        self._bucket = None if config.rate_limit is None else TokenBucket(config.rate_limit)
        self.strikes = None if config.crash_limit is None else Strikes(config.crash_limit)
        self._crash: BackendExited | None = None
        self._config = config
        self._name = config.name
        self.limits = self.breaker is not None or self._bucket is not None
        """Whether any limit is configured."""

    def timeout(self, method: str, own_name: str) -> float:
        """Return the timeout of a call: its tool's own, else the server's."""
        config = self._config
        if config.tool_timeouts and method == "tools/call":
            for glob, seconds in config.tool_timeouts.items():
                if fnmatchcase(own_name, glob):
                    return seconds
        return config.call_timeout

    def blame(self, crash: BackendExited, now: float) -> None:
        """Count a crash, once, to the client of the last call sent, if any."""
        if not crash.suspects or crash is self._crash:
            return
        self._crash = crash
        named = ", ".join(f"{one.name} of {one.origin} (call {one.call})" for one in crash.suspects[:MAX_NAMED])
        more = f" and {len(crash.suspects) - MAX_NAMED} more" if len(crash.suspects) > MAX_NAMED else ""
        extra = {"event": "backend_crash", "backend": self._name, "calls": [one.call for one in crash.suspects]}
        log.warning("backend %r died with calls in flight, last first: %s%s", self._name, named, more, extra=extra)
        if self.strikes is not None:
            origin = crash.suspects[0].origin
            self.strikes.add(origin, now, is_sure=all(one.origin == origin for one in crash.suspects))

    def check_strikes(self, pending: PendingCall, now: float) -> None:
        """Admit a call unless calls of its client keep crashing the backend. Raises Busy."""
        if self.strikes and (wait := self.strikes.wait(pending.call.caller.origin, now)):
            text = f"crash limit exceeded for backend {self._name!r} (crash_limit); retry in {math.ceil(wait)} s"
            raise Busy(text, retry_after=wait)

    def admit(self, pending: PendingCall, now: float) -> None:
        """Admit a call.

        Raises:
            BackendUnavailable: the circuit breaker is open.
            Busy: the rate limit is exceeded.
        """
        if self.breaker is not None and (wait := self.breaker.admit(pending, now)):
            raise BackendUnavailable(
                self._name, f"keeps failing: circuit open (circuit_breaker); retry in {wait:.1f} s"
            )
        if self._bucket is not None and (wait := self._bucket.delay_until_available(now)):
            if self.breaker is not None:
                self.breaker.ended(pending, None, now)  # the trial call was not sent
            text = f"rate limit exceeded for backend {self._name!r} (rate_limit); retry in {wait:.2f} s"
            raise Busy(text)

    def ended(self, pending: PendingCall, outcome: Outcome | None, now: float) -> None:
        """Record the outcome of an admitted call, or None if it was refused after all."""
        if self.breaker is not None:
            self.breaker.ended(pending, outcome, now)
