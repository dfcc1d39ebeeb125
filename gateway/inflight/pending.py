"""A pending call: one call to one backend, from acceptance to outcome (see `state`).

The call travels from a frontend through the supervisor's queue to the backend's session. Between two checkpoints trio
is a lock, so all methods but `next` are synchronous and safe to call from any task. The frontend that submitted the
call releases it (`Router.release`); closing a call before its outcome cancels it at the backend.

The client's side is a sink or a task. The sink is called in the step in which the outcome arrives; for anything else
(an event before the outcome, the end of its patience) the sink starts a task, which waits with `next`.
"""

from __future__ import annotations

import math
from collections import deque
from itertools import count
from typing import TYPE_CHECKING, Final, Protocol

import trio

from gateway.budget import SMALL_BYTES
from gateway.calls import Complete, Notification, ServerRequest, StreamClosed, Withdrawn
from gateway.errors import BackendTooSlow, IllegalTransition, Suspect
from gateway.inflight.state import FINAL, TRANSITIONS, CallState
from gateway.jsonrpc import INTERNAL_ERROR, METHOD_NOT_FOUND

if TYPE_CHECKING:
    from collections.abc import Callable

    from gateway.budget import Budget
    from gateway.calls import Call, Event, Outcome
    from gateway.errors import GatewayError
    from gateway.inflight.deadlines import Deadlines

MAX_NOTICES: Final = 1_024
"""Notifications of one call queued for its client. Beyond it the oldest is dropped: newer progress supersedes older.
More than a full pipe holds, so that a client that keeps reading loses none of a burst (with 256, it lost 654 of 1,000
log messages)."""
MAX_NOTICE_BYTES: Final = 4 * 1024 * 1024
"""Bytes of queued notifications; a larger one is queued alone."""
MAX_ASKS: Final = 16
"""Open server requests of one call; further ones are refused."""


_numbers: Final = count(1)


class Counted(Protocol):
    """A principal whose calls are counted."""

    @property
    def ended(self) -> bool:
        """Whether its access has ended, so that it may have no further calls."""
        ...

    def end_call(self) -> None:
        """Count the end of a call."""
        ...


class CallOwner(Protocol):
    """The supervisor that has accepted a call. Its methods must not wait."""

    def call_ended(self, pending: PendingCall) -> None:
        """Note the end of a call; called once."""
        ...

    def take_back(self, pending: PendingCall, outcome: Outcome) -> bool:
        """Queue a call again instead of ending it; return whether it was queued."""
        ...


class CallCarrier(Protocol):
    """The sender of a call: the backend's conversation, or the driver of its task."""

    def withdraw(self, request_id: int, pending: PendingCall, reason: str) -> None:
        """Tell the backend to cancel the request. It must not wait."""
        ...


class ClientSink(Protocol):
    """The client's end of a call. Methods must not wait; exceptions go to `fail`."""

    def finish(self, pending: PendingCall, outcome: Outcome) -> None:
        """Respond with the outcome of a call that has had no events."""
        ...

    def start_task(self, pending: PendingCall) -> None:
        """Start the task that reads the call with `next` from now on."""
        ...

    def fail(self, problem: Exception) -> None:
        """End the client's connection because of a bug in `finish` or `start_task`."""
        ...


class PendingCall:
    """One call to one backend: its state, events, outcome and deadline.

    `number` is unique in this process, for logs and the tree of pending calls; `request_id` is the id at the backend;
    `as_task` says that the call is sent as one that becomes the task `task_id`; `dropped` counts notifications that the
    client was too slow to read.
    """

    __slots__ = (
        "_asks",
        "_buffers",
        "_carrier",
        "_deadlines",
        "_event",
        "_events",
        "_latest",
        "_notice_bytes",
        "_notices",
        "_owner",
        "_patient_until",
        "_publish",
        "_sink",
        "as_task",
        "backend",
        "call",
        "counted",
        "deadline",
        "dropped",
        "ended_at",
        "held",
        "number",
        "opened_at",
        "outcome",
        "own_name",
        "request_id",
        "state",
        "task_id",
        "timeout",
        "was_resent",
    )

    def __init__(
        self,
        call: Call,
        *,
        backend: str,
        own_name: str,
        timeout: float,
        max_time: float | None = None,
        as_task: bool = False,
        deadlines: Deadlines | None = None,
        counted: Counted | None = None,
        publish: Callable[[PendingCall, Outcome], Outcome] | None = None,
        sink: ClientSink | None = None,
        patience: float = math.inf,
        buffers: Budget | None = None,
    ) -> None:
        """Make a queued call.

        Args:
            call: the client's request.
            backend: the name of the backend that owns it.
            own_name: the backend's name of the tool, prompt or resource.
            timeout: seconds until the deadline; a server request restarts them.
            max_time: if given, progress restarts the timeout too, up to this many seconds in all.
            as_task: whether the backend accepts the call only as a task.
            deadlines: watches the deadline; None: `next` does.
            counted: the principal that the call counts for.
            publish: returns the outcome with its URIs as clients know them.
            sink: receives the outcome; None: a task waits with `next`.
            patience: seconds without an outcome after which the sink starts its task.
            buffers: counts what the call keeps in memory; None: nothing does.
        """
        self.number = next(_numbers)
        self.state = CallState.QUEUED
        self.call, self.backend, self.own_name = call, backend, own_name
        self.opened_at = now = trio.current_time()
        self.timeout, self.deadline = timeout, now + timeout
        self.ended_at = math.inf
        self._latest = None if max_time is None else now + max(max_time, timeout)
        self.outcome: Outcome | None = None
        self.counted = counted
        self.as_task = as_task
        self.request_id, self.task_id = 0, ""
        self.was_resent = False
        self._owner: CallOwner | None = None
        self._carrier: CallCarrier | None = None
        self._publish = publish
        self._sink = sink
        self._patient_until = now + patience
        self._events: deque[Event] | None = None
        self._notices = self._notice_bytes = self.dropped = 0
        self._buffers = buffers
        self.held = 0  # bytes in the buffers: large params, queued notifications, a waiting outcome
        self._asks: list[ServerRequest] = []
        self._event: trio.Event | None = None
        self._deadlines = deadlines
        if sink is not None and deadlines is not None:
            deadlines.add(self)

    def _to(self, new: CallState) -> None:
        """Change the state: the only place that does."""
        if new not in TRANSITIONS[self.state]:
            text = f"a call that is {self.state} cannot become {new}"
            raise IllegalTransition(text)
        self.state = new

    @property
    def over(self) -> bool:
        """Whether the call is done or cancelled, so that a response is useless."""
        return self.state in FINAL

    @property
    def owner(self) -> CallOwner | None:
        """The supervisor that has accepted the call, until its end."""
        return self._owner

    @property
    def is_sent(self) -> bool:
        """Whether the backend has the request."""
        return self._carrier is not None

    @property
    def is_untouched(self) -> bool:
        """Whether the backend has sent nothing about the call: it may be repeated."""
        return self._events is None and not self._asks

    @property
    def wakes_at(self) -> float:
        """The time of `wake_expired`: the deadline, or the end of the sink's patience."""
        return self.deadline if self._sink is None else min(self.deadline, self._patient_until)

    def as_suspect(self) -> Suspect:
        """Return the call as a possible cause of its backend's crash."""
        return Suspect(self.number, self.own_name or self.call.method, self.call.caller.origin)

    # The backend's side.

    def queued(self, owner: CallOwner) -> None:
        """Record the supervisor that has accepted the call."""
        self._owner = owner

    def sent(self, carrier: CallCarrier, request_id: int, *, as_task: bool = False, task_id: str = "") -> None:
        """Record the carrier of a request that was sent, perhaps as a task."""
        if self.state is not CallState.SENT:
            self._to(CallState.SENT)
        self._carrier = carrier
        self.request_id = request_id
        self.as_task = as_task
        self.task_id = task_id

    def extend(self, seconds: float | None = None) -> None:
        """Restart the deadline, with the call's own timeout (within `max_time`) or this many seconds."""
        deadline = trio.current_time() + (self.timeout if seconds is None else seconds)
        if self._latest is not None and seconds is None:
            deadline = min(deadline, self._latest)
        self.deadline = max(self.deadline, deadline)

    # Bytes kept in memory.

    def hold(self, count: int) -> bool:
        """Count bytes of the call, freed by `Router` in the end; return whether they fit."""
        if self._buffers is not None and not self._buffers.hold(count):
            return False
        self.held += count
        return True

    def keep(self, outcome: Outcome) -> None:
        """Count a large outcome that waits for a task; its bytes counted while they arrived."""
        if type(outcome) is Complete and outcome.size > SMALL_BYTES:
            self.free(-outcome.size)

    def free(self, count: int) -> None:
        """Stop counting bytes."""
        self.held -= count
        if self._buffers is not None:
            self._buffers.used -= count

    # The client's side: events before the outcome.

    def notify(self, notification: Notification) -> None:
        """Queue a notification; drop late ones, the oldest of too many, and misfits."""
        if self.over:
            return
        size = _size(notification)
        is_held = self.hold(size)
        while (
            self._events
            and self._notices
            and (self._notices >= MAX_NOTICES or self._notice_bytes + size > MAX_NOTICE_BYTES or not is_held)
        ):
            # Server requests are never dropped.
            oldest = next(event for event in self._events if isinstance(event, Notification))
            self._events.remove(oldest)
            self._note_taken(oldest)
            self.dropped += 1
            is_held = is_held or self.hold(size)
        if not is_held:
            self.dropped += 1
            return
        self._notice_bytes += size
        if self._latest is not None and notification.method == "notifications/progress":
            self.extend()
        self._notices += 1
        self._put(notification)

    def _note_taken(self, notification: Notification) -> None:
        """Stop counting a queued notification."""
        size = _size(notification)
        self._notices -= 1
        self._notice_bytes -= size
        self.free(size)

    def ask(self, ask: ServerRequest) -> None:
        """Queue a server request; refuse it after the end, and when too many are open."""
        self._asks = [item for item in self._asks if not item.settled]
        if self.over:
            ask.refuse(INTERNAL_ERROR, "the call that this request belongs to has ended")
        elif len(self._asks) >= MAX_ASKS:
            ask.refuse(INTERNAL_ERROR, f"{MAX_ASKS} requests to the client are open for this call")
        else:
            self._asks.append(ask)
            ask.observe(self._client_answered)
            self.extend()
            if self.state is not CallState.WAITING_FOR_CLIENT:
                self._to(CallState.WAITING_FOR_CLIENT)
            self._put(ask)

    def _client_answered(self) -> None:
        """Leave WAITING_FOR_CLIENT once the last open server request is answered."""
        if self.state is CallState.WAITING_FOR_CLIENT and all(ask.settled for ask in self._asks):
            self._to(CallState.SENT if self._carrier is not None else CallState.QUEUED)

    def withdraw_ask(self, ask: ServerRequest) -> None:
        """Withdraw a server request: the client need not answer it."""
        if not ask.settled and not self.over:
            self._put(Withdrawn(ask))

    def close_stream(self, retry_ms: int) -> None:
        """Ask the client to resume the stream later; queued at most once."""
        if not self.over and not any(isinstance(event, StreamClosed) for event in self._events or ()):
            self._put(StreamClosed(retry_ms))

    def _put(self, event: Event) -> None:
        if self._events is None:
            self._events = deque()
        self._events.append(event)
        self._wake()

    # The end.

    def finish(self, outcome: Outcome) -> None:
        """End the call with the backend's outcome; only the first end counts."""
        if self.state in FINAL:
            return
        if type(outcome) is not Complete and self._owner is not None and self._owner.take_back(self, outcome):
            self._carrier, self.was_resent = None, True
            if self.call.trace is not None:
                self.call.trace.retried(outcome)
            self._to(CallState.QUEUED)
            return
        self._end(CallState.DONE, outcome if self._publish is None else self._publish(self, outcome))

    def abandon(self, problem: GatewayError, reason: str) -> None:
        """End the call with a gateway error; cancel it at the backend, with `reason`."""
        if not self.over:
            self._end(CallState.DONE, problem, reason)

    def close(self, reason: str = "the client cancelled the request") -> None:
        """Cancel the call at its backend, without an outcome; a no-op after its end."""
        if not self.over:
            self._sink, sink = None, self._sink  # a cancelled request gets no response
            if sink is not None and self._deadlines is not None:
                self._deadlines.discard(self)
            self._events = None  # nothing may follow a cancellation
            self._end(CallState.CANCELLED, None, reason)

    def _end(self, state: CallState, outcome: Outcome | None, cancel_reason: str | None = None) -> None:
        """Set the outcome; notify backend (to cancel, with a reason), owner and client."""
        self._to(state)
        self.outcome, self.ended_at = outcome, trio.current_time()
        if self.call.trace is not None:
            self.call.trace.backend_ended(outcome, cancel_reason)
        if cancel_reason is not None:
            for ask in self._asks:
                ask.refuse(INTERNAL_ERROR, cancel_reason)
            if self._carrier is not None:
                self._carrier.withdraw(self.request_id, self, cancel_reason)
        self._asks = []  # each refers to this call, and the garbage collector seldom runs
        owner, self._owner = self._owner, None
        if owner is not None:
            owner.call_ended(self)
        sink = self.detach_sink()
        if sink is None or outcome is None:
            if outcome is not None:
                self.keep(outcome)
            self._wake()
            return
        try:
            sink.finish(self, outcome)
        except Exception as exc:  # noqa: BLE001 - a bug on one client's side must not end the backend's reader
            sink.fail(exc)

    # The client's side: delivery.

    def detach_sink(self) -> ClientSink | None:
        """Leave the call to a task that reads it; return its former sink."""
        sink, self._sink = self._sink, None
        if sink is not None and self._deadlines is not None:
            self._deadlines.discard(self)
        return sink

    def _wake(self) -> None:
        """Wake the client's task, or have the sink start one."""
        sink = self.detach_sink()
        if sink is not None:
            try:
                sink.start_task(self)
            except Exception as exc:  # noqa: BLE001 - as above
                sink.fail(exc)
        elif self._event is not None:
            self._event.set()

    def wake_expired(self) -> None:
        """End the call if its deadline has passed; otherwise wake its client's side."""
        if not self._check_deadline():
            self._wake()

    def _check_deadline(self) -> bool:
        if self.over or trio.current_time() < self.deadline:
            return False
        waited = self.deadline - self.opened_at
        problem = BackendTooSlow(self.backend, f"did not answer within {waited:g} s (call_timeout)")
        self.abandon(problem, "the gateway's deadline passed")
        return True

    async def next(self) -> Event | Outcome | None:
        """Wait for the next event, then the outcome; return None if the call was closed.

        When the deadline passes, the outcome is `BackendTooSlow` and the call is cancelled at the backend. Cancelling
        the wait leaves the call open; `close` it then.
        """
        while True:
            self._check_deadline()  # even while events keep arriving
            if self._events:
                first = self._events.popleft()
                if isinstance(first, Notification):
                    self._note_taken(first)
                return first
            if self.over:
                return self.outcome
            event = self._event = trio.Event()
            deadlines = self._deadlines
            if deadlines is None or not deadlines.is_running:
                with trio.move_on_at(self.deadline):
                    await event.wait()
                continue
            deadlines.add(self)
            try:
                await event.wait()
            finally:
                if self._event is event:  # else another task waits, and still needs the deadline
                    deadlines.discard(self)

    def drop_outcome(self) -> None:
        """Free the encoded outcome: the client may be slow to read it."""
        if type(self.outcome) is Complete and self.held >= self.outcome.size > SMALL_BYTES:
            self.free(self.outcome.size)
        self.outcome = None

    async def wait_outcome(self, refusal: str) -> Outcome | None:
        """Wait for the outcome, or None if the call is closed; drop events.

        Server requests are refused with this text.
        """
        while True:
            item = await self.next()
            if isinstance(item, ServerRequest):
                item.refuse(METHOD_NOT_FOUND, refusal)
            elif not isinstance(item, Notification | Withdrawn | StreamClosed):
                return item


def _size(notification: Notification) -> int:
    return sum(len(memoryview(span)) for span in notification.params.values())
