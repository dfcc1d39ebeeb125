"""How often one backend may write into the log: a burst at once, and then so many lines a second.

Flooding costs the flooder its lines, which are counted, and nobody else anything. No task and no wait: who has a line
asks whether it may be logged, and says how many were not when one may be again.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

import trio

if TYPE_CHECKING:
    from collections.abc import Callable

LINES_PER_SECOND: Final = 50
"""Sustained rate of logged lines for one backend."""
BURST: Final = 200
"""Lines logged at once after a quiet time: a traceback or a start-up banner passes whole."""


class LogRate:
    """A token bucket that counts what it refuses."""

    def __init__(self, *, clock: Callable[[], float] = trio.current_time) -> None:
        self.suppressed = 0
        """Lines that were not logged, in all."""
        self._clock = clock
        self._tokens = float(BURST)
        self._refilled_at: float | None = None
        self._unreported = 0

    def allows(self) -> bool:
        """Whether one more line may be logged; it counts as logged then, and otherwise as suppressed."""
        now = self._clock()
        if self._refilled_at is not None:
            self._tokens = min(float(BURST), self._tokens + (now - self._refilled_at) * LINES_PER_SECOND)
        self._refilled_at = now
        if self._tokens < 1:
            self.suppressed += 1
            self._unreported += 1
            return False
        self._tokens -= 1
        return True

    def pop_suppressed(self) -> int:
        """How many lines were suppressed since this was asked last."""
        count, self._unreported = self._unreported, 0
        return count
