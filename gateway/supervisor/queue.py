"""The calls that wait for one backend: a bounded queue, which only the supervisor's own task empties.

A full queue drops its cancelled calls before it refuses one. A call that was sent returns to the queue, in its old
order and whether or not there is room, when its session died before it took the call, or when the backend died before
it sent anything about the call and the tool's annotations say that a second call has no further effect (`retry` in the
config). Those are bounded by what a session may work on at once.
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
    """Whether a tool says of itself that a second call does no more than the first (server/tools, annotations)."""
    try:
        hints = msgspec.json.decode(tool, type=_Tool).annotations
    except (ValueError, RecursionError):
        return False
    return hints is not None and (hints.readOnlyHint is True or hints.idempotentHint is True)


def may_resend(pending: PendingCall, outcome: Outcome, listing: Listing | None) -> bool:
    """Whether a call that would end with this outcome may be sent once more."""
    if not isinstance(outcome, BackendExited) or pending.call.method != "tools/call" or listing is None:
        return False
    if pending.was_resent or not pending.is_untouched or pending.task_id:
        return False
    named = [tool for tool in listing.items.get(Kind.TOOLS, ()) if tool.own == pending.own_name]
    return bool(named) and all(may_repeat(tool.raw) for tool in named)  # in both eras, where it differs


class CallQueue:
    """The queue of one backend, first in first out."""

    def __init__(self, size: int) -> None:
        self._size = size
        self._calls: deque[PendingCall] = deque()
        self._arrived = trio.Event()

    def __len__(self) -> int:
        """Calls that wait, cancelled ones included."""
        return len(self._calls)

    def put(self, pending: PendingCall) -> None:
        """Add a call; in a full queue, cancelled ones make room.

        Raises:
            trio.WouldBlock: the queue is full of calls that are wanted.
        """
        if len(self._calls) >= self._size and self.tidy() >= self._size:
            raise trio.WouldBlock
        self._calls.append(pending)
        self._arrived.set()

    def put_back(self, *calls: PendingCall) -> None:
        """Return calls that were taken out, to where they were."""
        self._calls = deque(sorted([*calls, *self._calls], key=lambda pending: pending.number))
        self._arrived.set()

    def tidy(self) -> int:
        """Drop the calls that were cancelled meanwhile; return how many are left."""
        self._calls = deque(pending for pending in self._calls if not pending.over)
        return len(self._calls)

    async def wait(self) -> None:
        """Wait until there is a call."""
        while not self._calls:
            self._arrived = trio.Event()
            await self._arrived.wait()

    def take(self, limit: float) -> list[PendingCall]:
        """Take out at most so many calls; cancelled ones are dropped."""
        batch: list[PendingCall] = []
        while self._calls and len(batch) < limit:
            pending = self._calls.popleft()
            if not pending.over:
                batch.append(pending)
        return batch

    def recheck(self, check: Callable[[PendingCall], None]) -> None:
        """End every call that may not pass any longer; `check` raises Busy for it."""
        for pending in tuple(self._calls):
            try:
                check(pending)
            except Busy as exc:
                pending.finish(exc)
        self.tidy()

    def finish_all(self, outcome: Outcome) -> None:
        """End everything that waits with this outcome."""
        for pending in self.take(math.inf):
            pending.finish(outcome)

    def hand_over(self, submit: Callable[[PendingCall], None]) -> None:
        """Give everything that waits to `Supervisor.submit` of another backend; what it refuses ends so."""
        for pending in self.take(math.inf):
            try:
                submit(pending)
            except (BackendUnavailable, Busy) as exc:
                pending.finish(exc)
