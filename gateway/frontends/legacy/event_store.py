"""Sent events of one legacy session's streams, kept for reconnecting clients (2025-11-25 basic/transports).

Pure bookkeeping. An event's id is `<session tag>-<stream>-<number>`: it identifies its stream, and an id of another
session is recognised as foreign. Invariant: kept events are bounded for each stream, each session and all sessions
together; the oldest are dropped first, and an ended stream keeps its end or nothing.
"""

from __future__ import annotations

import secrets
from collections import deque
from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from gateway.budget import Budget

MAX_STREAM_EVENTS: Final = 256
"""Events kept of one stream: as many as a call may have waiting for its client."""
MAX_STREAM_BYTES: Final = 1_048_576
"""Bytes kept of one stream. A larger event is never kept; its own delivery does not need it."""
MAX_SESSION_STREAMS: Final = 64
"""Ended streams kept by one session; open ones are bounded by `max_client_requests`."""
MAX_SESSION_BYTES: Final = 4_194_304
"""Bytes kept by one session over all its streams."""
MAX_BYTES: Final = 67_108_864
"""Bytes kept by all sessions together, or a quarter of `max_buffered_bytes`, if that is less: a thousand sessions with
breaking streams must not fill the memory. Events are dropped, too, when all buffers together are full."""
RESUME_WITHIN: Final = 60.0
"""Seconds that a broken or ended stream is kept for its client: several attempts of clients that retry every few
seconds. Then it is dropped; a call that is still in flight runs to its end, without a reader."""
STANDALONE: Final = 0
"""The stream of a GET without `Last-Event-ID`; each session has one, which never ends."""
TAG_BYTES: Final = 6
MAX_DIGITS: Final = 18
"""Digits of a number in an event id: clients may send anything, and large numbers cost time to read."""


class Log:
    """The kept events of one stream: number and message, oldest first.

    The number rises by one with each event id.
    """

    __slots__ = ("ended_at", "events", "last", "number", "sent", "size")

    def __init__(self, number: int) -> None:
        self.number = number
        self.last = 0
        """The number of the last event."""
        self.sent = 0
        """The number of the last event written to a connection, if its carrier records that."""
        self.size = 0
        self.events: deque[tuple[int, bytes]] = deque()
        self.ended_at: float | None = None

    def after(self, number: int) -> list[tuple[int, bytes]]:
        """Return the kept events after this one."""
        return [event for event in self.events if event[0] > number]


class EventStore:
    """The streams of one session."""

    def __init__(self, budget: Budget, buffers: Budget) -> None:
        """Make a store; all stores share `budget`, all that waits in memory `buffers`."""
        self._budget = budget
        self._buffers = buffers
        self._tag = ""
        self._logs: dict[int, Log] = {}
        self._ended: dict[int, Log] = {}  # of these the ended ones, oldest first
        self._last = STANDALONE
        self._size = 0

    @property
    def size(self) -> int:
        """The bytes kept."""
        return self._size

    def __len__(self) -> int:
        return len(self._logs)

    def open(self) -> Log:
        """Open the stream of a call."""
        self._last += 1
        return self._add_log(self._last)

    def standalone(self) -> Log:
        """The session's own stream."""
        return self._logs.get(STANDALONE) or self._add_log(STANDALONE)

    def _add_log(self, number: int) -> Log:
        self._tag = self._tag or secrets.token_urlsafe(TAG_BYTES).replace("-", "_")
        log = self._logs[number] = Log(number)
        return log

    def id(self, log: Log, number: int) -> bytes:
        """Return the id of an event."""
        return f"{self._tag}-{log.number}-{number}".encode()

    def mark(self, log: Log) -> bytes:
        """Return the id of an event without a message, which primes or closes a stream."""
        log.last += 1
        return self.id(log, log.last)

    def add(self, log: Log, message: bytes) -> bytes:
        """Keep a message, unless the log was dropped; return the id to send it under."""
        log.last += 1
        if self._logs.get(log.number) is log:
            log.events.append((log.last, message))
            self._count(log, len(message))
            while log.events and (len(log.events) > MAX_STREAM_EVENTS or log.size > MAX_STREAM_BYTES):
                self._drop_oldest(log)
            # Drop ended streams first, whole and the oldest first, then the oldest events of this one.
            while len(self._ended) > MAX_SESSION_STREAMS or self._is_full():
                oldest = self._oldest_ended()
                if oldest is None or oldest is log:
                    break
                self.drop(oldest)
            while self._is_full() and log.events:
                self._drop_oldest(log)
        return self.id(log, log.last)

    def end(self, log: Log, message: bytes, instead: bytes, *, now: float) -> bytes:
        """Keep a stream's last message, or `instead` if it is too large; return its id."""
        self.expire(now)
        if self._logs.get(log.number) is log:
            log.ended_at = now
            self._ended[log.number] = log
        event_id = self.add(log, message if len(message) <= MAX_STREAM_BYTES else instead)
        if not log.events:
            self.drop(log)
        return event_id

    def find(self, event_id: str, *, now: float) -> tuple[Log, int] | None:
        """Return the stream and number of this id; None if foreign or not kept."""
        self.expire(now)
        tag, *rest = event_id.split("-")
        if tag != self._tag or len(rest) != 2 or not all(map(_is_number, rest)):
            return None
        stream, number = map(int, rest)
        log = self._logs.get(stream)
        return None if log is None or number > log.last else (log, number)

    def drop(self, log: Log) -> None:
        """Forget a stream."""
        if self._logs.get(log.number) is log:
            del self._logs[log.number]
            self._ended.pop(log.number, None)
            self._count(log, -log.size)
            log.events.clear()

    def expire(self, now: float) -> None:
        """Drop the streams that ended too long ago."""
        while (oldest := self._oldest_ended()) is not None:
            if oldest.ended_at is None or now - oldest.ended_at < RESUME_WITHIN:
                return
            self.drop(oldest)

    def clear(self) -> None:
        """Forget everything."""
        for log in list(self._logs.values()):
            self.drop(log)

    def _oldest_ended(self) -> Log | None:
        return next(iter(self._ended.values()), None)

    def _count(self, log: Log, size: int) -> None:
        log.size += size
        self._size += size
        self._budget.used += size
        self._buffers.used += size

    def _drop_oldest(self, log: Log) -> None:
        _, message = log.events.popleft()
        self._count(log, -len(message))

    def _is_full(self) -> bool:
        return (
            self._size > MAX_SESSION_BYTES
            or self._budget.used > self._budget.most
            or self._buffers.used > self._buffers.most
        )


def _is_number(text: str) -> bool:
    return text.isascii() and text.isdigit() and len(text) <= MAX_DIGITS
