"""Statistics of one backend's calls: durations, counts and the latest errors.

Bounded: a ring of the latest durations and a ring of the latest errors. Recording a successful call stores one float
and allocates nothing else; percentiles are computed on request.
"""

from __future__ import annotations

from array import array
from bisect import bisect_left
from collections import deque
from typing import TYPE_CHECKING, Final

import msgspec

from gateway.backends.stderr import StderrTail
from gateway.calls import Complete, Failure
from gateway.errors import BackendError, GatewayError
from gateway.masking import SECRETS
from gateway.telemetry import now_iso

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable

    from gateway.inflight.pending import PendingCall

MAX_TIMES: Final = 512
"""Durations kept: enough that five calls decide the p99; 4 kB a backend."""
MAX_ERRORS: Final = 20
"""Errors kept."""
MAX_TEXT: Final = 300
"""Characters kept of an error's text, which a backend writes, and of the name or URI that a client called."""
BOUNDS: Final = (
    0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0, 300.0,
)  # fmt: skip
"""Upper bounds in seconds of all buckets but the last, which has none: from a call to a quick local server to one that
takes the whole default `call_timeout`."""


class ErrorRecord(msgspec.Struct, frozen=True):
    """A failed call, start or session; for the latter two, `call` is null."""

    at: str
    call: str | None
    error: str
    code: str | None = None
    """The code of the gateway's error; null for an error of the backend's own."""


class StateChange(msgspec.Struct, frozen=True):
    """A state and the time at which a backend entered it."""

    at: str
    state: str
    reason: str | None = None
    """Why it is not available."""


class Latency(msgspec.Struct, frozen=True):
    """Durations of the latest calls in milliseconds; null without calls."""

    calls: int
    p50: float | None
    p90: float | None
    p99: float | None
    longest: float | None


class CallStats:
    """One backend's statistics, over all its sessions."""

    __slots__ = (
        "_times",
        "_tools",
        "buckets",
        "calls",
        "cancelled",
        "errors",
        "failed",
        "input_required",
        "observer",
        "refused",
        "seconds",
        "stderr",
    )

    def __init__(self) -> None:
        self.stderr = StderrTail()
        """The last lines that its child processes wrote to stderr; `stderr.shown` masks them."""
        self.calls = 0
        """Ended calls, including cancelled ones."""
        self.failed = 0
        """Ended calls with an error, the backend's own or the gateway's."""
        self.refused = 0
        """Failed calls whose error was the backend's own."""
        self.cancelled = 0
        """Cancelled calls."""
        self.input_required = 0
        """Calls that ended with *input required*."""
        self.buckets = [0] * (len(BOUNDS) + 1)
        """The number of calls in each bucket of `BOUNDS`."""
        self.seconds = 0.0
        """The sum of all durations, in seconds."""
        self.errors: deque[ErrorRecord] = deque(maxlen=MAX_ERRORS)
        self.observer: Callable[[PendingCall, float], None] | None = None
        """Called with each ended call and its duration in seconds. It must not wait."""
        self._times = array("d")
        self._tools: list[str] = []
        """The tool of each of these durations under its own name; empty for other calls."""

    def ended(self, pending: PendingCall, seconds: float) -> None:
        """Record the end of a call."""
        times = self._times
        tool = pending.own_name if pending.call.method == "tools/call" else ""
        if self.calls < MAX_TIMES:
            times.append(seconds)
            self._tools.append(tool)
        else:
            times[self.calls % MAX_TIMES] = seconds
            self._tools[self.calls % MAX_TIMES] = tool
        self.calls += 1
        self.seconds += seconds
        self.buckets[bisect_left(BOUNDS, seconds)] += 1
        outcome = pending.outcome
        if type(outcome) is Complete:  # nearly always
            pass
        elif isinstance(outcome, Failure):
            self.failed += 1
            self.refused += 1
            self._keep(pending.own_name or pending.call.method, f"error {outcome.code}: {outcome.message}", None)
        elif isinstance(outcome, GatewayError):
            self.failed += 1
            reason = outcome.reason if isinstance(outcome, BackendError) else str(outcome)
            self._keep(pending.own_name or pending.call.method, reason, outcome.code)
        elif outcome is None:
            self.cancelled += 1
        else:
            self.input_required += 1
        if self.observer is not None:
            self.observer(pending, seconds)

    def outcomes(self) -> tuple[tuple[str, int], ...]:
        """Return the number of calls by outcome, in the words of the audit."""
        others = self.failed + self.cancelled + self.input_required
        return (
            ("answered", self.calls - others),
            ("error", self.refused),
            ("failed", self.failed - self.refused),
            ("cancelled", self.cancelled),
            ("input_required", self.input_required),
        )

    def broke(self, reason: str, code: str) -> None:
        """Record the failure of a start or a session."""
        self._keep(None, reason, code)

    def latency(self) -> Latency:
        """Compute the percentiles of the latest calls."""
        return _percentiles(self._times)

    def latency_by_tool(self) -> dict[str, Latency]:
        """Compute the same for each tool, by its own name."""
        found: dict[str, list[float]] = {}
        for tool, seconds in zip(self._tools, self._times, strict=True):
            if tool:
                found.setdefault(tool, []).append(seconds)
        return {tool: _percentiles(times) for tool, times in found.items()}

    def _keep(self, call: str | None, text: str, code: str | None) -> None:
        named = None if call is None else SECRETS.mask_briefly(call, MAX_TEXT)  # a client's URI
        self.errors.append(ErrorRecord(now_iso(), named, SECRETS.mask_briefly(text, MAX_TEXT), code))


def _percentiles(durations: Iterable[float]) -> Latency:
    times = sorted(durations)
    if not times:
        return Latency(0, None, None, None, None)

    def at(share: float) -> float:
        return round(times[min(len(times) - 1, int(share * len(times)))] * 1000, 3)

    return Latency(len(times), at(0.5), at(0.9), at(0.99), at(1.0))
