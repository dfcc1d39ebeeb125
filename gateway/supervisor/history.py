"""What one backend's calls were like: how long they took, how many, and what went wrong last.

Bounded: a ring of the latest times and a ring of the latest errors. Noting a call that went well stores one float and
allocates nothing else; percentiles are computed when somebody asks.
"""

from __future__ import annotations

from array import array
from collections import deque
from typing import TYPE_CHECKING, Final

import msgspec

from gateway.calls import Complete, Failure
from gateway.errors import BackendError, GatewayError
from gateway.telemetry import now_iso

if TYPE_CHECKING:
    from collections.abc import Callable

    from gateway.backends.ticket import Ticket

MAX_TIMES: Final = 512
"""Calls whose time is kept: enough for a p99 that five calls decide, 4 kB a backend."""
MAX_ERRORS: Final = 20
"""Errors that are kept."""
MAX_TEXT: Final = 300
"""Characters of an error's text that are kept; a backend writes it."""
_FAILURES: Final = (Failure, GatewayError)


class Mishap(msgspec.Struct, frozen=True):
    """One call that failed, or one start or session that did: then `call` is null."""

    at: str
    call: str | None
    error: str


class Latency(msgspec.Struct, frozen=True):
    """Times of the latest calls in milliseconds; null where there were none."""

    calls: int
    p50: float | None
    p90: float | None
    p99: float | None
    longest: float | None


class History:
    """One backend's past, over all its sessions."""

    __slots__ = ("_times", "calls", "errors", "failed", "observer")

    def __init__(self) -> None:
        self.calls = 0
        """Calls that have ended, cancelled ones included."""
        self.failed = 0
        """Those of them that ended in an error, the backend's own or the gateway's."""
        self.errors: deque[Mishap] = deque(maxlen=MAX_ERRORS)
        self.observer: Callable[[Ticket, float], None] | None = None
        """Called with each call that has ended, and the seconds that it took. It must not wait."""
        self._times = array("d")

    def ended(self, ticket: Ticket, seconds: float) -> None:
        """Note a call that has ended."""
        times = self._times
        if self.calls < MAX_TIMES:
            times.append(seconds)
        else:
            times[self.calls % MAX_TIMES] = seconds
        self.calls += 1
        outcome = ticket.outcome
        if type(outcome) is not Complete and isinstance(outcome, _FAILURES):
            self.failed += 1
            self._keep(ticket.own_name or ticket.call.method, _text(outcome))
        if self.observer is not None:
            self.observer(ticket, seconds)

    def broke(self, reason: str) -> None:
        """Note that a start or a session has failed."""
        self._keep(None, reason)

    def latency(self) -> Latency:
        """How long the latest calls took."""
        times = sorted(self._times)
        if not times:
            return Latency(0, None, None, None, None)

        def at(share: float) -> float:
            return round(times[min(len(times) - 1, int(share * len(times)))] * 1000, 3)

        return Latency(len(times), at(0.5), at(0.9), at(0.99), at(1.0))

    def _keep(self, call: str | None, text: str) -> None:
        self.errors.append(Mishap(now_iso(), call, text[:MAX_TEXT]))


def _text(outcome: Failure | GatewayError) -> str:
    if isinstance(outcome, Failure):
        return f"error {outcome.code}: {outcome.message}"
    return outcome.reason if isinstance(outcome, BackendError) else str(outcome)
