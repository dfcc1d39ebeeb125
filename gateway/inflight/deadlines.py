"""The deadlines of pending calls: one task wakes the calls that are due.

A cancel scope for each wait would cost a tenth of a call. Most calls of a backend have the same timeout, so the
earliest deadline seldom moves closer: the task wakes rarely, and then looks at all waiting calls.
"""

from __future__ import annotations

import math
from typing import Protocol

import trio


class Expiring(Protocol):
    """A call with a time to wake it, which may be extended."""

    @property
    def wakes_at(self) -> float:
        """The time at which the call is due."""
        ...

    def wake_expired(self) -> None:
        """Handle the end of the time, or of `Deadlines.run`.

        After the latter, the call watches its own deadline.
        """
        ...


class Deadlines:
    """Waiting calls with a deadline; each is discarded when its wait ends."""

    def __init__(self) -> None:
        self.is_running = False
        """Whether `run` is running; otherwise a waiting task watches its call's deadline itself."""
        self._calls: set[Expiring] = set()
        self._scope = trio.CancelScope()

    def __len__(self) -> int:
        """Return the number of waiting calls."""
        return len(self._calls)

    def add(self, call: Expiring) -> None:
        """Wake this call when it is due."""
        self._calls.add(call)
        if call.wakes_at < self._scope.deadline:
            self._scope.deadline = call.wakes_at

    def discard(self, call: Expiring) -> None:
        """Stop watching this call."""
        self._calls.discard(call)

    async def run(self, *, task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED) -> None:
        """Watch the deadlines until cancelled; then wake all calls, which watch their own."""
        self.is_running = True
        task_status.started()
        try:
            while True:
                earliest = min((call.wakes_at for call in self._calls), default=math.inf)
                with trio.CancelScope(deadline=earliest) as self._scope:
                    await trio.sleep_forever()
                self._wake_expired(trio.current_time())
        finally:
            self.is_running = False
            self._wake_expired(math.inf)

    def _wake_expired(self, latest: float) -> None:
        # Not part of `run`, whose frame would keep the last call, and its payload, alive.
        for call in [call for call in self._calls if call.wakes_at <= latest]:
            self._calls.discard(call)
            call.wake_expired()
