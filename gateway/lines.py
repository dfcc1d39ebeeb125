"""JSON lines over byte streams: the framing of stdio, for frontend and backends.

`LineSplitter` cuts bytes into lines, without I/O and up to a maximum length; `BufferedWriter` is a buffer in front of a
stream, written by one task, so that a reader that stalls delays only the task that posts new lines.
"""

from __future__ import annotations

import contextlib
import os
from typing import TYPE_CHECKING, Final

import msgspec
import trio

from gateway.budget import SMALL_BYTES
from gateway.jsonrpc import EDGE_BYTES, LARGE_BYTES, LF
from gateway.surrogates import BOM

if TYPE_CHECKING:
    from trio.lowlevel import FdStream

    from gateway.budget import Intake, Share

READ_BYTES: Final = 65_536
"""Bytes of one read: the capacity of a pipe. For 128 KiB or more, glibc would map and unmap memory on each read."""
MAX_PARTS: Final = 4_096
"""Reads of one unfinished line that are kept apart; each is an object of at least 34 bytes, even for one byte."""
_EMPTY: Final = frozenset({b"", b"\r", BOM, BOM + b"\r"})
LONGEST_EMPTY: Final = len(BOM) + 1
DEFAULT_LIMIT_BYTES: Final = 1_048_576
"""Bytes waiting for a slow reader before `wait_writable` blocks."""


class OversizedLine(msgspec.Struct, frozen=True):
    """A skipped line: over the limit, or `unbuffered`. Its ends are kept for its id."""

    head: bytes
    tail: bytes
    size: int
    unbuffered: bool = False
    """Whether it was skipped because all buffers together were full."""


class LineSplitter:
    """Cuts a byte stream into lines, without their ends.

    Empty lines are dropped, even after a byte order mark.

    At most `max_bytes` of an unfinished line are held; a longer one is skipped and returned as `OversizedLine`. So is
    one that `intake` refuses; `release` it at the end of the stream.
    """

    def __init__(self, max_bytes: int, *, max_parts: int = MAX_PARTS, intake: Intake | None = None) -> None:
        self._max = max_bytes
        self._intake = intake
        self._unbuffered = False
        self._max_parts = max_parts
        self._parts: list[bytes] = []
        self._size = 0
        self._front = bytearray()  # joined parts, once they have become many
        self._head: bytes | None = None  # set while an overlong line is being skipped
        self._tail = b""

    def feed(self, data: bytes) -> list[bytes | OversizedLine]:
        """Feed bytes; return the lines that are complete now."""
        if LF not in data:
            self._hold(data)
            return []
        if not self._size and len(data) <= self._max:  # nearly always: nothing is held, and no line is too long
            *whole, last = data.split(b"\n")
            if last:
                self._hold(last)
            return [line for line in whole if len(line) > LONGEST_EMPTY or line not in _EMPTY]
        first, *middle, last = data.split(b"\n")
        self._hold(first)
        lines: list[bytes | OversizedLine] = []
        if self._head is not None:
            lines.append(OversizedLine(self._head, self._tail, self._size, self._unbuffered))
            self._head, self._tail = None, b""
        elif len(line := self._pop_held()) > LONGEST_EMPTY or line not in _EMPTY:
            lines.append(line)
        self._size = 0
        for line in middle:
            if len(line) > self._max:
                lines.append(OversizedLine(line[:EDGE_BYTES], line[-EDGE_BYTES:], len(line)))
            elif len(line) > LONGEST_EMPTY or line not in _EMPTY:
                lines.append(line)
        self._hold(last)
        return lines

    def take_large(self, data: bytes) -> tuple[list[bytes], bytes] | None:
        """Return the parts of a large line that these bytes complete, and the rest.

        The line counts until `release`.
        """
        if self._size < LARGE_BYTES or self._head is not None or self._front or LF not in data:
            return None
        last, _, rest = data.partition(b"\n")
        if self._size + len(last) > self._max:
            return None
        parts, self._parts, self._size = [*self._parts, last], [], 0
        return parts, rest

    @property
    def unfinished(self) -> int:
        """The number of bytes of an unfinished line."""
        return self._size

    def peek(self, most: int) -> bytes:
        """Return the beginning of an unfinished line, at most `limit` bytes."""
        return (self._head or bytes(self._front[:most]) + b"".join(self._parts[:most]))[:most]

    def _hold(self, data: bytes) -> None:
        if not data:
            return
        self._size += len(data)
        if self._head is None and self._size <= self._max and self._fits():
            self._parts.append(data)
            if len(self._parts) >= self._max_parts:
                self._front += b"".join(self._parts)
                self._parts.clear()
            return
        if self._head is None:
            joined = self._pop_held()
            self._head = joined[:EDGE_BYTES]
            self._tail = joined[-EDGE_BYTES:]
        self._head += data[: EDGE_BYTES - len(self._head)]
        self._tail = (self._tail + data[-EDGE_BYTES:])[-EDGE_BYTES:]

    def _fits(self) -> bool:
        fits = self._intake is None or self._size <= SMALL_BYTES or self._intake.fits(self._size)
        self._unbuffered = not fits
        return fits

    def release(self) -> None:
        """Drop an unfinished line: the stream has ended."""
        self._pop_held()
        self._size = 0

    def _pop_held(self) -> bytes:
        if self._intake is not None:
            self._intake.release()
        parts = self._parts
        held = parts[0] if len(parts) == 1 else b"".join(parts)
        parts.clear()
        if self._front:
            held, self._front = bytes(self._front) + held, bytearray()
        return held


async def read_some(stream: FdStream) -> bytes:
    """Read at most `READ_BYTES` from a pipe; b"" at its end.

    `receive_some` tries to read before it waits, which after a message is mostly useless and costs a step of the loop.

    Raises:
        trio.ClosedResourceError: the stream was closed here.
        trio.BrokenResourceError: it cannot be read.
    """
    while True:
        if (fd := stream.fileno()) == -1:
            text = "the stream was closed"
            raise trio.ClosedResourceError(text)
        await trio.lowlevel.wait_readable(fd)
        try:
            # Read again: if it was closed since the wake-up, its number may be in use elsewhere, and `fileno` is -1.
            return os.read(stream.fileno(), READ_BYTES)
        except BlockingIOError:  # spurious wake-up, which the kernel permits
            continue
        except OSError as exc:
            raise trio.BrokenResourceError from exc


class BufferedWriter:
    """A buffer in front of a pipe that one task, `run`, empties.

    Bytes are written whole and in the order of `post`, which never waits: callers await `wait_writable` first, and the
    buffer exceeds `limit` only by posts without it. After the reader has gone, `broken` is true, every wait returns,
    and bytes are dropped; the owner of the stream finds the cause. Cancelling `run` in the middle of a write leaves
    part of a line in the pipe, so it is cancelled only with the stream.
    """

    def __init__(self, stream: FdStream, *, limit: int = DEFAULT_LIMIT_BYTES, share: Share | None = None) -> None:
        """Make a buffer; `share` counts its bytes, too, and is released by its owner."""
        self._stream = stream
        self._limit = limit
        self._share = share
        self._parts: list[bytes] = []
        self._size = 0
        self._sending = False
        self._posted = trio.lowlevel.ParkingLot()  # where `run` waits
        self._writable = trio.lowlevel.ParkingLot()
        self.broken = False
        self.written = 0
        """The number of bytes written to the pipe."""

    @property
    def size(self) -> int:
        """The number of buffered bytes."""
        return self._size

    @property
    def is_writable(self) -> bool:
        """Whether there is room, so that `wait_writable` returns immediately (even after the reader has gone)."""
        return self._size < self._limit or self.broken

    def post(self, data: bytes, *, direct: bool = True) -> None:
        """Add whole lines.

        Args:
            data: bytes that end in a newline.
            direct: write immediately if nothing is buffered and the pipe has room, which saves a task switch; else all
                posts of one step of the loop are written together.
        """
        if self.broken:
            return
        if direct and not self._parts and not self._sending:
            try:
                # The descriptor is read each time: it is -1 once the stream is closed, and its number may be reused.
                written = os.write(self._stream.fileno(), data)
            except BlockingIOError:
                written = 0
            except OSError:
                self.broken = True
                self._posted.unpark_all()
                return
            self.written += written
            if written == len(data):
                return
            data = data[written:]
        self._parts.append(data)
        self._size += len(data)
        if self._posted:
            self._posted.unpark_all()
        if self._share is not None:
            self._share.add(len(data))

    async def wait_writable(self) -> None:
        """Wait for room, or until the reader has gone; no checkpoint if there is room."""
        while not self.is_writable:
            await self._writable.park()

    async def drained(self) -> None:
        """Wait until all is written or the reader has gone; no checkpoint if so already."""
        while (self._size or self._sending) and not self.broken:
            await self._writable.park()

    async def run(self) -> None:
        """Write posted data until the reader has gone; the caller closes the stream."""
        while not self.broken:
            if not self._parts:
                await self._posted.park()
                continue
            data = b"".join(self._parts)
            self._parts.clear()
            self._sending = True
            rest = memoryview(data)
            try:
                while rest:
                    with contextlib.suppress(BlockingIOError):
                        written = os.write(self._stream.fileno(), rest)
                        self.written += written
                        rest = rest[written:]
                    if rest:
                        await trio.lowlevel.wait_writable(self._stream.fileno())
            except (OSError, trio.ClosedResourceError):
                self.broken = True
            finally:
                self._sending = False
                self._size -= len(data)
                if self._share is not None:
                    self._share.remove(len(data))
                self._writable.unpark_all()
        self._writable.unpark_all()
        await trio.lowlevel.checkpoint()
