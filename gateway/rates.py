"""Token buckets: a burst, then a rate. They limit calls, notifications and log lines.

No task and no wait: the caller takes a token; whatever exceeds the rate is refused, or suppressed and counted.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Final

import trio

from gateway.config.limits import RateLimit

if TYPE_CHECKING:
    from collections.abc import Callable

LINES_PER_SECOND: Final = 50
"""Sustained rate of logged lines for one backend."""
BURST: Final = 200
"""Lines logged at once after a quiet time: a traceback or a start-up banner passes whole."""
BACKEND_LINES: Final = RateLimit(LINES_PER_SECOND, BURST)


class TokenBucket:
    """A bucket with `burst` tokens, refilled with `per_second`. It has no clock."""

    def __init__(self, limit: RateLimit) -> None:
        self._limit = limit
        self._tokens = float(limit.burst)
        self._refilled_at = -math.inf

    def delay_until_available(self, now: float) -> float:
        """Take a token and return 0, or return the seconds until one is available."""
        limit = self._limit
        elapsed = max(0.0, now - self._refilled_at)  # a clock that steps back adds nothing
        self._tokens = min(float(limit.burst), self._tokens + elapsed * limit.per_second)
        self._refilled_at = now
        if self._tokens >= 1.0:
            self._tokens -= 1.0
            return 0.0
        return (1.0 - self._tokens) / limit.per_second


class LogRate:
    """A token bucket for log lines that counts those it suppresses."""

    def __init__(self, limit: RateLimit = BACKEND_LINES, *, clock: Callable[[], float] = trio.current_time) -> None:
        self.suppressed = 0
        """Lines that were not logged, in all."""
        self._clock = clock
        self._bucket = TokenBucket(limit)
        self._unreported = 0

    def allows(self) -> bool:
        """Return whether one more line may be logged; a refused line counts as suppressed."""
        if not self._bucket.delay_until_available(self._clock()):
            return True
        self.suppressed += 1
        self._unreported += 1
        return False

    def pop_suppressed(self) -> int:
        """Return how many lines were suppressed since the last call of this method."""
        count, self._unreported = self._unreported, 0
        return count
