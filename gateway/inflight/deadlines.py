"""The deadlines of pending calls: one task wakes those that are due.

A cancel scope for each wait cost a tenth of a call. Calls of one backend mostly have the same timeout, so that the next
deadline seldom comes nearer: the task wakes once in a while, and looks at what waits then.
"""

from __future__ import annotations

import math
from typing import Protocol

import trio


class Expiring(Protocol):
    """A call that is due at a time, which may be extended meanwhile."""

    @property
    def wakes_at(self) -> float:
        """When it is due."""
        ...

    def wake_expired(self) -> None:
        """Note that the time has passed, or that from now on only the call itself keeps its deadline."""
        ...


class Deadlines:
    """Calls that wait for a time. Bounded by the pending calls: each is discarded when its wait ends."""

    def __init__(self) -> None:
        self.is_running = False
        """Whether `run` runs; otherwise a task that waits must keep its call's deadline itself."""
        self._calls: set[Expiring] = set()
        self._scope = trio.CancelScope()

    def __len__(self) -> int:
        """Calls that wait for a time."""
        return len(self._calls)

    def add(self, call: Expiring) -> None:
        """Wake this call when its time has passed."""
        self._calls.add(call)
        if call.wakes_at < self._scope.deadline:
            self._scope.deadline = call.wakes_at

    def discard(self, call: Expiring) -> None:
        """Stop waiting for its time."""
        self._calls.discard(call)

    async def run(self, *, task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED) -> None:
        """Keep the deadlines until cancelled; what waits then is woken, and keeps its own from then on."""
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
        # Apart from `run`, in whose variables the last call would stay, with all that it carried.
        for call in [one for one in self._calls if one.wakes_at <= latest]:
            self._calls.discard(call)
            call.wake_expired()
