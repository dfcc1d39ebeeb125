"""The calls that wait for one backend: a bounded channel, and the calls to retry.

A full queue drops its cancelled calls before it refuses one. The supervisor's own task holds both ends (`with queue`)
and takes batches out; callers only put calls in, and never wait.

A call is retried because the backend died before it sent anything about it, and only for tools whose annotations say
that a second call has no further effect (`retry` in the config). Retries are bounded by what a session may work on at
once: only the calls of a session that has died are kept, until the next start is due.
"""

from __future__ import annotations

from contextlib import ExitStack
from typing import TYPE_CHECKING, Self

import msgspec
import trio

from gateway.catalog.kinds import Kind
from gateway.errors import BackendExited, BackendUnavailable, Busy

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator

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


class RetryQueue:
    """The calls of one backend that wait to be sent once more."""

    def __init__(self) -> None:
        self.kept: list[PendingCall] = []

    def add(self, ticket: PendingCall, outcome: Outcome, listing: Listing | None) -> bool:
        """Keep a call with this outcome, if it may be sent once more; returns whether it is kept."""
        if not isinstance(outcome, BackendExited) or ticket.call.method != "tools/call" or listing is None:
            return False
        if not ticket.is_untouched or ticket.task_id:
            return False
        tools = listing.items.get(Kind.TOOLS, ())
        if not any(tool.own == ticket.own_name and may_repeat(tool.raw) for tool in tools):
            return False
        ticket.retry = None  # once
        self.kept.append(ticket)
        return True

    def pop_all(self) -> list[PendingCall]:
        """All of them; they are kept no longer."""
        kept, self.kept = self.kept, []
        return [ticket for ticket in kept if not ticket.over]


class CallQueue:
    """One backend's queue; a context manager that closes both ends of its channel."""

    def __init__(self, size: int) -> None:
        self.repeats = RetryQueue()
        # Counted here, since a call that the channel has just handed to the pump is in no count of the channel's.
        self._waiting = 0
        self._send, self._receive = trio.open_memory_channel["PendingCall"](size)
        self._ends = ExitStack()

    def __enter__(self) -> Self:
        self._ends.enter_context(self._send)
        self._ends.enter_context(self._receive)
        return self

    def __exit__(self, *_exc: object) -> None:
        self._ends.close()

    def __len__(self) -> int:
        """Calls that wait."""
        return self._waiting

    def put_nowait(self, ticket: PendingCall) -> None:
        """Put a call in; in a full queue, cancelled ones make room.

        Raises:
            trio.WouldBlock: the queue is full of calls that are wanted.
        """
        try:
            self._send.send_nowait(ticket)
        except trio.WouldBlock:
            self.tidy()
            self._send.send_nowait(ticket)
        self._waiting += 1

    def tidy(self) -> int:
        """Take out the calls that were cancelled meanwhile; returns how many are left, in their order."""
        queued = [self._receive.receive_nowait() for _ in range(self._send.statistics().current_buffer_used)]
        wanted = [one for one in queued if not one.over]
        self._waiting -= len(queued) - len(wanted)
        for one in wanted:
            self._send.send_nowait(one)
        return len(wanted)

    async def next_batch(self, in_flight: int, most: int) -> list[PendingCall]:
        """Wait for a call, and take as many more as are there and fit below `most`; those cancelled are left out."""
        batch = [await self._receive.receive()]
        while len(batch) + in_flight < most:
            try:
                batch.append(self._receive.receive_nowait())
            except trio.WouldBlock:
                break
        self._waiting -= len(batch)
        return [ticket for ticket in batch if not ticket.over]

    def repeat(self) -> Iterable[tuple[PendingCall, bool]]:
        """Put the calls that are to be sent once more back in; each with whether there was room for it."""
        for ticket in self.repeats.pop_all():
            try:
                self.put_nowait(ticket)
            except trio.WouldBlock:
                yield ticket, False
            else:
                yield ticket, True

    def pop_all(self) -> Iterator[PendingCall]:
        """Take out everything that waits and is still wanted."""
        yield from self.repeats.pop_all()
        while True:
            try:
                ticket = self._receive.receive_nowait()
            except (trio.WouldBlock, trio.EndOfChannel):
                return
            self._waiting -= 1
            if not ticket.over:
                yield ticket

    def recheck(self, check: Callable[[PendingCall], None]) -> None:
        """End every call that waits and may not pass any more; `check` raises Busy for it."""
        queued = [self._receive.receive_nowait() for _ in range(self._send.statistics().current_buffer_used)]
        for ticket in (*self.repeats.kept, *queued):
            try:
                check(ticket)
            except Busy as exc:
                ticket.finish(exc)
        for ticket in queued:
            self._send.send_nowait(ticket)
        self.tidy()

    def finish_all(self, outcome: Outcome) -> None:
        """End everything that waits with this outcome."""
        for ticket in self.pop_all():
            ticket.finish(outcome)

    def hand_over(self, take: Callable[[PendingCall], None]) -> None:
        """Give everything that waits to `Supervisor.submit` of another backend; what it refuses ends so."""
        for ticket in self.pop_all():
            try:
                take(ticket)
            except (BackendUnavailable, Busy) as exc:
                ticket.finish(exc)
