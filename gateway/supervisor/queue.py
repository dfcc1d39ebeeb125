"""The bounded queue of one backend's waiting calls; only its supervisor's task empties it.

A full queue drops its cancelled calls before it refuses a new one. A call that was sent returns to the queue, in its
old order and even if the queue is full, when its session died before accepting it, or when the backend died before
sending anything about it and the tool's annotations say that a second call has no further effect (`retry` in the
config). Those are bounded by the calls that a session may have in flight.
"""

from __future__ import annotations

import math
from collections import deque
from typing import TYPE_CHECKING

import msgspec
import trio

from gateway.eras.methods import Kind
from gateway.errors import BackendExited, BackendUnavailable, Busy

if TYPE_CHECKING:
    from collections.abc import Callable

    from gateway.calls import Outcome
    from gateway.catalog.listing import Listing
    from gateway.inflight.pending import PendingCall


class _Hints(msgspec.Struct):
    readOnlyHint: object = False  # ruff: ignore[mixed-case-variable-in-class-scope] - the wire's name
    idempotentHint: object = False  # ruff: ignore[mixed-case-variable-in-class-scope] - the wire's name


class _Tool(msgspec.Struct):
    annotations: _Hints | None = None


def may_repeat(tool: bytes) -> bool:
    """Return whether a tool declares that a second call has no further effect (server/tools, annotations)."""
    try:
        hints = msgspec.json.decode(tool, type=_Tool).annotations
    except (ValueError, RecursionError):
        return False
    return hints is not None and (hints.readOnlyHint is True or hints.idempotentHint is True)


def may_resend(pending: PendingCall, outcome: Outcome, listing: Listing | None) -> bool:
    """Return whether a call that would end with this outcome may be sent once more."""
    if not isinstance(outcome, BackendExited) or pending.call.method != "tools/call" or listing is None:
        return False
    if pending.was_resent or not pending.is_untouched or pending.task_id:
        return False
    named = [tool for tool in listing.items.get(Kind.TOOLS, ()) if tool.own == pending.own_name]
    return bool(named) and all(may_repeat(tool.raw) for tool in named)  # in both eras, whose definitions differ


class CallQueue:
    """The queue of one backend, first in, first out."""

    def __init__(self, size: int) -> None:
        self._size = size
        self._calls: deque[PendingCall] = deque()
        self._arrived = trio.Event()

    def __len__(self) -> int:
        """Return the number of queued calls, including cancelled ones."""
        return len(self._calls)

    def put(self, pending: PendingCall) -> None:
        """Add a call; a full queue drops cancelled ones first.

        Raises:
            trio.WouldBlock: the queue is full of pending calls.
        """
        if len(self._calls) >= self._size and self.tidy() >= self._size:
            raise trio.WouldBlock
        self._calls.append(pending)
        self._arrived.set()
        if pending.call.trace is not None:
            pending.call.trace.note("queued", backend=pending.backend)

    def put_back(self, *calls: PendingCall) -> None:
        """Return calls to their places in the queue."""
        self._calls = deque(sorted([*calls, *self._calls], key=lambda pending: pending.number))
        self._arrived.set()

    def note_started(self) -> None:
        """Note for the calls that wait that their backend has started."""
        for pending in self._calls:
            if pending.call.trace is not None and not pending.over:
                pending.call.trace.note("backend started", backend=pending.backend)

    def tidy(self) -> int:
        """Drop cancelled calls; return the number of the others."""
        self._calls = deque(pending for pending in self._calls if not pending.over)
        return len(self._calls)

    async def wait(self) -> None:
        """Wait until the queue has a call."""
        while not self._calls:
            self._arrived = trio.Event()
            await self._arrived.wait()

    def take(self, limit: float) -> list[PendingCall]:
        """Dequeue at most `limit` calls; drop cancelled ones."""
        batch: list[PendingCall] = []
        while self._calls and len(batch) < limit:
            pending = self._calls.popleft()
            if not pending.over:
                batch.append(pending)
        return batch

    def recheck(self, check: Callable[[PendingCall], None]) -> None:
        """End every call that is no longer admitted; `check` raises Busy for it."""
        for pending in tuple(self._calls):
            try:
                check(pending)
            except Busy as exc:
                pending.finish(exc)
        self.tidy()

    def finish_all(self, outcome: Outcome) -> None:
        """End every queued call with this outcome."""
        for pending in self.take(math.inf):
            pending.finish(outcome)

    def hand_over(self, submit: Callable[[PendingCall], None]) -> None:
        """Submit every queued call to another backend with `submit`; end the calls that it refuses."""
        for pending in self.take(math.inf):
            try:
                submit(pending)
            except (BackendUnavailable, Busy) as exc:
                pending.finish(exc)
