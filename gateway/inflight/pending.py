"""A call under way: what the face waits on, and where the backend's session puts what it hears.

One ticket travels from the face through the supervisor's channel to the session. Between two checkpoints trio is a
lock, so all methods but `next` are plain and safe to call from any task. Whoever holds the ticket must `close` it:
a ticket closed before its end is cancelled at the backend.
"""

from __future__ import annotations

from collections import deque
from itertools import count
from typing import TYPE_CHECKING, Final, Protocol

import trio

from gateway.calls import Notification, StreamClosed, Withdrawn
from gateway.errors import BackendTooSlow, Suspect
from gateway.jsonrpc import INTERNAL_ERROR

if TYPE_CHECKING:
    from collections.abc import Callable

    from gateway.calls import Call, Event, Outcome, ServerRequest
    from gateway.errors import GatewayError
    from gateway.inflight.deadlines import Deadlines

MAX_NOTICES: Final = 1_024
"""Notices of one call that may wait for its client; the oldest is dropped, since a newer progress supersedes it. More
than a full pipe brings at once: a client that reads all the time must not lose any of a burst (of 1,000 log messages it
lost 654 when this was 256)."""
MAX_NOTICE_BYTES: Final = 4 * 1024 * 1024
"""Bytes of them that may wait; one that is larger waits alone."""
MAX_ASKS: Final = 16
"""Requests to the client that one call may have open at once; one more is refused."""


_numbers: Final = count(1)


class Counted(Protocol):
    """Somebody whose calls are counted."""

    @property
    def ended(self) -> bool:
        """Whether it may have no calls any more."""
        ...

    def end_call(self) -> None:
        """Count a call as over."""
        ...


class PendingCall:
    """One call to one backend: the events on its way, its outcome and its deadline."""

    __slots__ = (
        "_asks",
        "_event",
        "_events",
        "_notice_bytes",
        "_notices",
        "as_task",
        "backend",
        "call",
        "closed",
        "counted",
        "deadline",
        "deadlines",
        "dropped",
        "latest",
        "number",
        "on_close",
        "on_end",
        "on_ring",
        "opened_at",
        "outcome",
        "own_name",
        "publish",
        "retry",
        "task_id",
        "timeout",
    )

    def __init__(self, call: Call, *, backend: str, own_name: str, timeout: float) -> None:
        self.number = next(_numbers)
        """What tells this call from all others of this run, in logs and where people look at what is under way."""
        self.call = call
        self.backend = backend
        self.own_name = own_name
        self.opened_at = trio.current_time()
        self.timeout = timeout
        self.deadline = self.opened_at + timeout
        self.latest: float | None = None
        """Where the call may last so long but no longer, and progress starts its time anew (`max_call_time`)."""
        self.deadlines: Deadlines | None = None
        """Set by the router: who rings when the deadline has passed."""
        self.outcome: Outcome | None = None
        self.closed = False
        self.counted: Counted | None = None
        """Set by the router where the calls of its caller are counted: to be told once that it is over."""
        self.dropped = 0
        self.on_close: Callable[[PendingCall, str], None] | None = None
        """Set by the session that has sent the call: tells the backend that nobody waits any more."""
        self.on_end: Callable[[PendingCall], None] | None = None
        """Set by the owner of the backend: called once when the call has ended, by whatever."""
        self.retry: Callable[[PendingCall, Outcome], bool] | None = None
        """Set where the call may be sent once more: takes it over, if the outcome is such, and says whether it did."""
        self.on_ring: Callable[[], None] | None = None
        """Set by `watch`."""
        self.publish: Callable[[PendingCall, Outcome], Outcome] | None = None
        """Set by the router where the outcome may hold URIs that its client knows under other names."""
        self.as_task = False
        """Whether the backend does this only as a task, which `gateway.backends.session.tasks` then drives."""
        self.task_id = ""
        """The task that the backend has made of it."""
        self._events: deque[Event] | None = None
        self._notices = self._notice_bytes = 0
        self._asks: list[ServerRequest] = []
        self._event: trio.Event | None = None

    @property
    def over(self) -> bool:
        """Whether nobody needs the backend's answer any more."""
        return self.closed or self.outcome is not None

    def as_suspect(self) -> Suspect:
        """The call as one that its backend may have died of."""
        return Suspect(self.number, self.own_name or self.call.method, self.call.caller.origin)

    def notify(self, notice: Notification) -> None:
        """Hand over a notification, in order; dropped after the end, and the oldest is dropped when full."""
        if self.over:
            return
        size = _size(notice)
        while (
            self._events
            and self._notices
            and (self._notices >= MAX_NOTICES or self._notice_bytes + size > MAX_NOTICE_BYTES)
        ):
            # Requests to the client are never dropped.
            oldest = next(event for event in self._events if isinstance(event, Notification))
            self._events.remove(oldest)
            self._notices -= 1
            self._notice_bytes -= _size(oldest)
            self.dropped += 1
        self._notice_bytes += size
        if self.latest is not None and notice.method == "notifications/progress":
            self.extend()
        self._notices += 1
        self._put(notice)

    def ask(self, ask: ServerRequest) -> None:
        """Hand over a request to the client; refused after the end, and when too many are open."""
        self._asks = [one for one in self._asks if not one.settled]
        if self.over:
            ask.refuse(INTERNAL_ERROR, "the call that this belongs to has ended")
        elif len(self._asks) >= MAX_ASKS:
            ask.refuse(INTERNAL_ERROR, f"{MAX_ASKS} requests to the client are open for this call")
        else:
            self._asks.append(ask)
            self.extend()
            self._put(ask)

    def withdraw_ask(self, ask: ServerRequest) -> None:
        """Tell whoever shows the request that no answer is needed."""
        if not ask.settled and not self.over:
            self._put(Withdrawn(ask))

    def close_stream(self, retry_ms: int) -> None:
        """Tell the client to come back later for the rest; one that has not been told yet is told once."""
        if not self.over and not any(isinstance(event, StreamClosed) for event in self._events or ()):
            self._put(StreamClosed(retry_ms))

    def extend(self) -> None:
        """Start the deadline anew: somebody is being asked, and people take their time, or there is progress."""
        deadline = trio.current_time() + self.timeout
        if self.latest is not None:
            deadline = min(deadline, self.latest)
        self.deadline = max(self.deadline, deadline)

    def limit(self, timeout: float, longest: float | None) -> None:
        """Set another time for the call, and the longest that it may take however often that starts anew."""
        self.timeout = timeout
        self.deadline = self.opened_at + timeout
        if longest is not None:
            self.latest = self.opened_at + max(longest, timeout)

    @property
    def is_waiting_for_client(self) -> bool:
        """Whether the backend has asked the client something that is not answered."""
        return any(not ask.settled for ask in self._asks)

    @property
    def is_untouched(self) -> bool:
        """Whether nothing of the call has been heard: to send it once more is to send it for the first time."""
        return self._events is None and not self._asks

    def _put(self, event: Event) -> None:
        if self._events is None:
            self._events = deque()
        self._events.append(event)
        self.wake()

    def finish(self, outcome: Outcome) -> None:
        """Hand over the end; only the first counts."""
        if self.over:
            return
        if self.retry is not None and self.retry(self, outcome):
            return
        self.outcome = outcome if self.publish is None else self.publish(self, outcome)
        self._end()

    def _end(self) -> None:
        on_end, self.on_end = self.on_end, None
        if on_end is not None:
            on_end(self)
        self.wake()

    def wake(self) -> None:
        """Have whoever waits look: there is an event, the outcome or the end, or the deadline has passed."""
        if self.on_ring is not None:
            self.on_ring()
        if self._event is not None:
            self._event.set()

    def watch(self, ring: Callable[[], None]) -> bool:
        """Have `ring` called when `next` would have something; it must not wait. False if nobody keeps deadlines."""
        if self.deadlines is None or not self.deadlines.is_kept:
            return False
        self.on_ring = ring
        self.deadlines.add(self)
        if self._events or self.over:
            ring()
        return True

    def unwatch(self) -> None:
        """Undo `watch`."""
        self.on_ring = None
        if self.deadlines is not None:
            self.deadlines.discard(self)

    @property
    def settled(self) -> Outcome | None:
        """The outcome, if there is no event before it."""
        return None if self._events else self.outcome

    async def next(self) -> Event | Outcome | None:
        """Wait for the next event or, behind all events, the outcome; None if the ticket was closed meanwhile.

        The call's deadline is kept here: when it passes, the outcome is `BackendTooSlow` and the backend is told to
        stop. Cancelling the wait leaves the ticket open; `close` it then.
        """
        while True:
            if not self.over and trio.current_time() >= self.deadline:  # also while events keep coming
                waited = self.deadline - self.opened_at
                problem = BackendTooSlow(self.backend, f"did not answer within {waited:g} s (call_timeout)")
                self.abandon(problem, "the gateway's deadline passed")
            if self._events:
                first = self._events.popleft()
                if isinstance(first, Notification):
                    self._notices -= 1
                    self._notice_bytes -= _size(first)
                return first
            if self.outcome is not None:
                return self.outcome
            if self.closed:
                return None
            event = self._event = trio.Event()
            if self.deadlines is None or not self.deadlines.is_kept:
                with trio.move_on_at(self.deadline):
                    await event.wait()
                continue
            self.deadlines.add(self)
            try:
                await event.wait()
            finally:
                if self._event is event:  # else another task has begun to wait meanwhile, whose deadline holds on
                    self.deadlines.discard(self)

    def close(self, reason: str = "the client cancelled the request") -> None:
        """Let go of the call; if it has not ended, its backend is told to cancel it. Safe to call twice."""
        if self.closed:
            return
        unfinished = self.outcome is None
        self.closed = True
        if unfinished:
            self._events = None  # nothing may follow a cancel
            self._withdraw(reason)
        self._end()

    def abandon(self, problem: GatewayError, reason: str) -> None:
        """End the call with the gateway's own verdict; the backend is told to cancel it, with `reason`."""
        if self.over:
            return
        self.outcome = problem
        self._withdraw(reason)
        self._end()

    def _withdraw(self, reason: str) -> None:
        withdraw, self.on_close = self.on_close, None
        for ask in self._asks:
            ask.refuse(INTERNAL_ERROR, reason)
        if withdraw is not None:
            withdraw(self, reason)


def _size(notice: Notification) -> int:
    return sum(len(memoryview(span)) for span in notice.params.values())
