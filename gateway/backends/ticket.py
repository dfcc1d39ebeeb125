"""A call under way: what the face waits on, and where the backend's session puts what it hears.

One ticket travels from the face through the supervisor's channel to the session. Between two checkpoints trio is a
lock, so all methods but `next` are plain and safe to call from any task. Whoever holds the ticket must `close` it:
a ticket closed before its end is cancelled at the backend.
"""

from __future__ import annotations

from collections import deque
from typing import TYPE_CHECKING, Final

import trio

from gateway.errors import BackendTooSlow

if TYPE_CHECKING:
    from collections.abc import Callable

    from gateway.calls import Call, Notice, Outcome
    from gateway.errors import GatewayError

MAX_NOTICES: Final = 256
"""Notices of one call that may wait for its client; the oldest is dropped, since a newer progress supersedes it."""


class Ticket:
    """Implements `gateway.calls.Outlet` for one call to one backend."""

    __slots__ = (
        "_event",
        "_notices",
        "backend",
        "call",
        "closed",
        "deadline",
        "dropped",
        "on_close",
        "opened_at",
        "outcome",
        "own_name",
    )

    def __init__(self, call: Call, *, backend: str, own_name: str, timeout: float) -> None:
        self.call = call
        self.backend = backend
        self.own_name = own_name
        self.opened_at = trio.current_time()
        self.deadline = self.opened_at + timeout
        self.outcome: Outcome | None = None
        self.closed = False
        self.dropped = 0
        self.on_close: Callable[[Ticket, str], None] | None = None
        """Set by the session that has sent the call: tells the backend that nobody waits any more."""
        self._notices: deque[Notice] | None = None
        self._event: trio.Event | None = None

    @property
    def over(self) -> bool:
        """Whether nobody needs the backend's answer any more."""
        return self.closed or self.outcome is not None

    def notify(self, notice: Notice) -> None:
        """Hand over a notification, in order; dropped after the end, and the oldest is dropped when full."""
        if self.closed or self.outcome is not None:
            return
        if self._notices is None:
            self._notices = deque(maxlen=MAX_NOTICES)
        if len(self._notices) == MAX_NOTICES:
            self.dropped += 1
        self._notices.append(notice)
        self._ring()

    def finish(self, outcome: Outcome) -> None:
        """Hand over the end; only the first counts."""
        if self.closed or self.outcome is not None:
            return
        self.outcome = outcome
        self._ring()

    def _ring(self) -> None:
        if self._event is not None:
            self._event.set()

    async def next(self) -> Notice | Outcome | None:
        """Wait for the next notice or, behind all notices, the outcome; None if the ticket was closed meanwhile.

        The call's deadline is kept here: when it passes, the outcome is `BackendTooSlow` and the backend is told to
        stop. Cancelling the wait leaves the ticket open; `close` it then.
        """
        while True:
            if self._notices:
                return self._notices.popleft()
            if self.outcome is not None:
                return self.outcome
            if self.closed:
                return None
            self._event = trio.Event()
            with trio.move_on_at(self.deadline) as scope:
                await self._event.wait()
            if scope.cancelled_caught:
                waited = self.deadline - self.opened_at
                problem = BackendTooSlow(self.backend, f"did not answer within {waited:g} s (call_timeout)")
                self.abandon(problem, "the gateway's deadline passed")

    def close(self, reason: str = "the client cancelled the request") -> None:
        """Let go of the call; if it has not ended, its backend is told to cancel it. Safe to call twice."""
        if self.closed:
            return
        unfinished = self.outcome is None
        self.closed = True
        if unfinished:
            self._withdraw(reason)
        self._ring()

    def abandon(self, problem: GatewayError, reason: str) -> None:
        """End the call with the gateway's own verdict; the backend is told to cancel it, with `reason`."""
        if self.over:
            return
        self.outcome = problem
        self._withdraw(reason)
        self._ring()

    def _withdraw(self, reason: str) -> None:
        withdraw, self.on_close = self.on_close, None
        if withdraw is not None:
            withdraw(self, reason)
