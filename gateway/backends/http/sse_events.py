"""Parser of server-sent events (HTML Living Standard, 9.2.6 "Interpreting an event stream"), without I/O.

It returns only what MCP needs: data stays bytes, events without data are dropped, comments are skipped. Invariant: it
holds no more than about `max_bytes` of an event; a longer one is skipped to its end and returned as `OversizedLine`,
with only the two ends of its data, from which a message's id can be read.
"""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, Final

import msgspec

from gateway.jsonrpc import EDGE_BYTES
from gateway.lines import OversizedLine
from gateway.surrogates import BOM

if TYPE_CHECKING:
    from gateway.budget import Intake

MAX_ID_BYTES: Final = 4_096
"""Bytes of an event id, which is sent back in a header; a longer one would be refused there and is ignored."""
MAX_RETRY: Final = 300.0
"""Seconds; the maximum pause that a server can request before reconnecting."""
LONGEST_FIELD_NAME: Final = 16
"""Bytes of a line beside its data."""
_HEADER_VALUE: Final = re.compile(rb"(?! )[^\x00-\x1f\x7f]*(?<! )")
"""An event id that a header can carry: no control characters, no space at either end."""


class Event(msgspec.Struct, frozen=True):
    """One event with data."""

    data: bytes | OversizedLine
    event: str = "message"


class EventParser:
    """Cuts one response body into events.

    `last_id` is the `Last-Event-ID` to resume after the returned events; `retry` is the pause in seconds that the
    server requests before reconnecting, None without one.
    """

    def __init__(self, max_bytes: int, intake: Intake | None = None) -> None:
        """Make a parser; events that `intake` refuses are skipped. Its caller releases it."""
        self.last_id = b""
        self.retry: float | None = None
        self._max = max_bytes
        self._intake = intake
        self._line = _Held(max_bytes + LONGEST_FIELD_NAME)
        self._data = _Held(max_bytes)
        self._has_data = False
        self._event = b""
        self._id: bytes | None = None
        self._after_cr = False
        self._at_start = True

    def successor(self) -> EventParser:
        """Return a parser for the next body, with this one's `last_id` and `retry`."""
        parser = EventParser(self._max, self._intake)
        parser.last_id, parser.retry = self.last_id, self.retry
        return parser

    def feed(self, data: bytes) -> list[Event]:
        """Feed bytes; return the events that are complete now."""
        if self._after_cr and data:
            data = data.removeprefix(b"\n")
            self._after_cr = False
        if b"\r" in data:
            self._after_cr = data.endswith(b"\r")
            data = data.replace(b"\r\n", b"\n").replace(b"\r", b"\n")
        *ends, rest = data.split(b"\n")
        events: list[Event] = []
        for part in ends:
            if self._line.size:
                self._line.add(part)
                line = self._line.pop_all()
            else:
                line = (
                    part
                    if len(part) <= self._line.most
                    else OversizedLine(part[:EDGE_BYTES], part[-EDGE_BYTES:], len(part))
                )
            if line:
                self._field(line)
                continue
            if self._id is not None:  # an empty line ends the event
                self.last_id, self._id = self._id, None
            name, self._event = self._event, b""
            self._has_data = False
            if event_data := self._data.pop_all():
                events.append(Event(event_data, name.decode(errors="replace") or "message"))
        if rest:
            self._line.add(rest)
        if self._intake is not None:
            held = self._line.held + self._data.held
            if not held:
                self._intake.release()
            elif not self._intake.fits(held):
                self._line.skip()
                self._data.skip()
                self._intake.release()
        return events

    def _field(self, line: bytes | OversizedLine) -> None:
        if self._at_start:
            self._at_start = False
            if isinstance(line, bytes):
                line = line.removeprefix(BOM)
            else:
                line = OversizedLine(line.head.removeprefix(BOM), line.tail, line.size, line.unbuffered)
        if isinstance(line, OversizedLine):
            if line.head.startswith(b"data:"):
                self._has_data = True
                head = line.head[5:].removeprefix(b" ")
                self._data.add_oversized(OversizedLine(head, line.tail, line.size, line.unbuffered))
            return
        if line.startswith(b"data: "):  # by far the most frequent
            self._add_data(line[6:])
            return
        name, _, value = line.partition(b":")
        value = value.removeprefix(b" ")
        match name:
            case b"data":
                self._add_data(value)
            case b"event":
                self._event = value
            case b"id" if len(value) <= MAX_ID_BYTES and _HEADER_VALUE.fullmatch(value):
                self._id = value
            case b"retry" if value.isdigit():
                self.retry = min(int(value[:9]) / 1000, MAX_RETRY)
            case _:
                pass  # a comment, or an unknown field

    def _add_data(self, value: bytes) -> None:
        if self._has_data:
            self._data.add(b"\n")
        self._has_data = True
        self._data.add(value)


class _Held:
    """Incomplete data, up to `most` bytes; of more, the two ends."""

    def __init__(self, most: int) -> None:
        self.most = most
        self.size = 0
        self._only = b""  # the usual case: one piece, returned without a copy
        self._joined: bytearray | None = None
        self._head: bytes | None = None
        self._tail = b""
        self._unbuffered = False

    @property
    def held(self) -> int:
        """The bytes in memory, apart from the two ends of skipped data."""
        return self.size if self._head is None else 0

    def skip(self) -> None:
        """Keep only the two ends of the present data, since the buffers are full."""
        if self.size and self._head is None:
            self._unbuffered = True
            self._keep_ends(b"", b"")

    def add(self, data: bytes) -> None:
        """Add a part."""
        self.size += len(data)
        if self._head is not None or self.size > self.most:
            self._keep_ends(data[:EDGE_BYTES], data[-EDGE_BYTES:])
        elif self._joined is not None:
            self._joined += data
        elif self._only:
            self._joined = bytearray(self._only)
            self._joined += data
        else:
            self._only = data

    def add_oversized(self, part: OversizedLine) -> None:
        """Add the rest of a part that exceeded the limit by itself."""
        self.size += part.size
        self._unbuffered = self._unbuffered or part.unbuffered
        self._keep_ends(part.head, part.tail)

    def _keep_ends(self, head: bytes, tail: bytes) -> None:
        if self._head is None:
            held = self._pop_held()
            self._head, self._tail = held[:EDGE_BYTES], held[-EDGE_BYTES:]
        self._head += head[: EDGE_BYTES - len(self._head)]
        self._tail = (self._tail + tail)[-EDGE_BYTES:]

    def _pop_held(self) -> bytes:
        data = self._only if self._joined is None else bytes(self._joined)
        self._only, self._joined = b"", None
        return data

    def pop_all(self) -> bytes | OversizedLine:
        """Return the data and clear the buffer."""
        size, self.size = self.size, 0
        if self._head is None:
            return self._pop_held()
        oversized = OversizedLine(self._head, self._tail, size, self._unbuffered)
        self._head, self._tail, self._unbuffered = None, b"", False
        return oversized
