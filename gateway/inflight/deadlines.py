"""The deadlines of pending calls: one task wakes the waiters of those that have expired.

A cancel scope for each wait cost a tenth of a call. Calls of one backend mostly have the same time, so that the next
deadline seldom comes nearer: the task wakes once in a while, and looks at what waits then.
"""

from __future__ import annotations

import math
from typing import Protocol

import trio


class Expiring(Protocol):
    """A call with a deadline, which may be extended while somebody waits."""

    deadline: float

    def wake(self) -> None:
        """Have whoever waits for the call look at it."""
        ...


class Deadlines:
    """Tickets that somebody waits for. Bounded by them: who waits no more takes its ticket out."""

    def __init__(self) -> None:
        self.is_kept = False
        """Whether `run` runs: else whoever waits must see to its deadline itself."""
        self._tickets: set[Expiring] = set()
        self._scope = trio.CancelScope()

    def __len__(self) -> int:
        """Tickets that are waited for."""
        return len(self._tickets)

    def add(self, ticket: Expiring) -> None:
        """Ring this ticket when its deadline has passed, which may be put off meanwhile."""
        self._tickets.add(ticket)
        if ticket.deadline < self._scope.deadline:
            self._scope.deadline = ticket.deadline

    def discard(self, ticket: Expiring) -> None:
        """Ring it no more."""
        self._tickets.discard(ticket)

    async def run(self, *, task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED) -> None:
        """Keep the deadlines until cancelled; who waits then is rung, and has to keep its own from then on."""
        self.is_kept = True
        task_status.started()
        try:
            while True:
                earliest = min((ticket.deadline for ticket in self._tickets), default=math.inf)
                with trio.CancelScope(deadline=earliest) as self._scope:
                    await trio.sleep_forever()
                self._wake_expired(trio.current_time())
        finally:
            self.is_kept = False
            self._wake_expired(math.inf)

    def _wake_expired(self, latest: float) -> None:
        # Apart from `run`, in whose variables the last ticket would stay, with all that its call carried.
        for ticket in [one for one in self._tickets if one.deadline <= latest]:
            self._tickets.discard(ticket)
            ticket.wake()
