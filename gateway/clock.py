"""The loop's clock, which leaves out the time while the process was stopped.

After SIGCONT, or when a paused container or virtual machine continues, every deadline within that time would expire in
the loop's first turn: calls and pings would fail although their answers are about to be read.
"""

from __future__ import annotations

import math
import time
from typing import TYPE_CHECKING, Final

import trio

if TYPE_CHECKING:
    from collections.abc import Callable

MAX_LAG: Final = 1.0
"""Seconds by which a busy loop may be late; one that is later was stopped."""
GRACE: Final = 5.0
"""Seconds left of the earliest deadline after a stop, if as many were left: peers were stopped too.

Only once for each deadline: where every wait ends late, it would never expire.
"""


class AwakeClock(trio.abc.Clock):
    """A monotonic clock for one `trio.run`."""

    def __init__(self, monotonic: Callable[[], float] = time.perf_counter) -> None:
        self._monotonic = monotonic
        self._stopped = 0.0
        self._seen_at = monotonic()
        self._wakes_at = math.inf  # set while the loop waits for I/O
        self._deadline = math.inf  # the earliest one then
        self._graced = -math.inf  # the latest deadline that had its grace

    def start_clock(self) -> None:
        """Do nothing: the clock always runs."""

    def current_time(self) -> float:
        """Return the time.

        The loop calls this first after each wait for I/O.
        """
        now = self._monotonic()
        wakes_at, self._wakes_at = self._wakes_at, math.inf
        if now - wakes_at > MAX_LAG:
            grace = GRACE if self._deadline > self._graced else -MAX_LAG
            self._graced = max(self._graced, self._deadline)
            self._stopped += now - max(self._seen_at, wakes_at - grace)
        self._seen_at = now
        return now - self._stopped

    def deadline_to_sleep_time(self, deadline: float) -> float:
        """Return the seconds until the earliest deadline.

        The loop calls this before each wait for I/O.
        """
        now = self._monotonic()
        if now - self._seen_at > MAX_LAG:  # stopped within a step
            self._stopped += now - self._seen_at
        self._seen_at = now
        self._deadline = deadline
        self._wakes_at = deadline + self._stopped
        return self._wakes_at - now


def elapsed_time() -> float:
    """Return seconds since an arbitrary time, including sleep of the machine."""
    clock: int | None = getattr(time, "CLOCK_BOOTTIME", None)  # Linux
    return time.monotonic() if clock is None else time.clock_gettime(clock)
