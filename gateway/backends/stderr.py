"""A child's output besides MCP messages: its stderr, and stray lines on its stdout.

A child may print its own key: secrets are masked in the lines that are shown. Masking costs more than reading a line,
so lines that are not shown are kept unmasked. 2026-07-28 basic/transports/stdio: stderr is free text and not a sign of
an error. Each line is logged under the backend's name: bounded, rate-limited, never blocking; lines above the rate are
dropped and counted. The last lines explain an exit or a failed start (`gateway.backends.causes`). While a server's era
is being detected its output is held back: the reaction of a legacy server to the probe, often pages of it, belongs at
the debug level.
"""

from __future__ import annotations

import logging
import math
import re
from collections import deque
from contextlib import contextmanager
from typing import TYPE_CHECKING, Final

import trio

from gateway.lines import LineSplitter, OversizedLine
from gateway.masking import SECRETS
from gateway.rates import LogRate

if TYPE_CHECKING:
    from collections.abc import Callable, Generator, Iterator

MAX_LINE: Final = 8_192
"""Bytes of the longest line that is logged whole."""
SHOWN: Final = 500
"""Bytes shown of a longer line, or of a line in an error."""
READ_BYTES: Final = 65_536
HOLD_TIME: Final = 2.0
"""Seconds of silence after which held lines are logged: the server may be waiting for its user."""
HELD_LINES: Final = 500
"""Maximum held lines; then they are logged."""
NO_CALL: Final = "belongs to no client: no call is in flight in this session"
"""The response to a request outside of any call. Servers ask for roots at startup, log this, and work."""
SHOWN_LINES: Final = 20
"""Last lines shown by the management API and `doctor`."""
WATCHED_LINES: Final = 500
"""Last lines kept while a client of the management API watches: what is sent it four times a second."""
SEARCHED_LINES: Final = 60
"""Last lines searched for the informative one: a long stack trace may follow an exception."""

MAX_SPREAD: Final = 4 * 1_048_576
"""Bytes kept of an object that is spread over lines, to recognize it."""
ONE_LINE: Final = "on stdout each message must be on one line, so print it without indentation"
SPREAD: Final = f"wrote a JSON message spread over several lines; {ONE_LINE}"

_JSON_LINE: Final = re.compile(rb'\s*(?:["{}\[\],:\-0-9]|true|false|null)')
"""The beginning of a line within an indented object."""
_STRING: Final = re.compile(rb'"(?:[^"\\]|\\.)*"')


class StderrLog:
    """Reads one child's stderr and logs it; `tail` has the last lines."""

    def __init__(
        self,
        backend: str,
        *,
        on_line: Callable[[bytes], None] | None = None,
        clock: Callable[[], float] = trio.current_time,
    ) -> None:
        self._tail: deque[bytes] = deque(maxlen=SEARCHED_LINES)
        self.ended = trio.Event()
        """Set when the stream has been read to its end."""
        self._backend = backend
        self._on_line = on_line
        self._log = logging.getLogger(f"gateway.backend.{backend}")
        self._held: list[tuple[bytes, int]] | None = None
        self._rate = LogRate(clock=clock)

    async def run(self, stream: trio.abc.ReceiveStream) -> None:
        """Log until the stream ends."""
        splitter = LineSplitter(MAX_LINE)
        try:
            while True:
                with trio.move_on_after(HOLD_TIME if self._held else math.inf) as silence:
                    data = await stream.receive_some(READ_BYTES)
                    if not data:
                        break
                    for line in splitter.feed(bytes(data)):
                        self.handle_line(line)
                if silence.cancelled_caught:
                    self.release(logging.INFO)
                    self.hold()
            for line in splitter.feed(b"\n"):  # the last line often has no newline
                self.handle_line(line)
        except trio.BrokenResourceError:
            self._log.debug("reading stderr failed")
        finally:
            self.ended.set()

    def handle_line(self, line: bytes | OversizedLine) -> None:
        """Keep one line, and log it if the rate allows."""
        data = line.head[:MAX_LINE] if isinstance(line, OversizedLine) else line
        if not data.strip():
            return
        kept = data[: 2 * SHOWN]
        self._tail.append(kept)
        if self._on_line is not None:
            self._on_line(kept)
        length = SHOWN if isinstance(line, OversizedLine) else MAX_LINE
        if self._held is None:
            self._write(data, length, logging.INFO)
            return
        self._held.append((data, length))
        if len(self._held) >= HELD_LINES:
            self.release(logging.INFO)

    def hold(self) -> None:
        """Hold lines until `release`."""
        self._held = []

    def release(self, level: int) -> None:
        """Log the held lines at this level; log later ones immediately."""
        held, self._held = self._held or (), None
        for data, length in held:
            self._write(data, length, level)

    def _write(self, data: bytes, length: int, level: int) -> None:
        if not self._log.isEnabledFor(level) or not self._rate.allows():
            return
        if unreported := self._rate.pop_suppressed():
            self._log.warning("%d lines of stderr not logged: too many", unreported)
        text = _masked(data)[:length]
        self._log.log(logging.DEBUG if NO_CALL in text else level, "%s", text, extra={"backend": self._backend})

    @property
    def tail(self) -> list[str]:
        """The beginnings of the last lines, with secrets masked."""
        return [shown(line) for line in self._tail]

    @property
    def suppressed(self) -> int:
        """The number of lines that were not logged."""
        return self._rate.suppressed


def shown(line: bytes) -> str:
    """Return the beginning of a line with secrets masked, for display."""
    return _masked(line)[:SHOWN]


def _masked(line: bytes) -> str:
    return SECRETS.mask(line.decode(errors="replace").rstrip("\r"))


class StderrTail:
    """The last lines that a backend's processes wrote to stderr.

    While a client watches, more of them are kept.
    """

    def __init__(self) -> None:
        self.count = 0
        """The number of lines ever written, which is also the number of the last one."""
        self._lines: deque[bytes] = deque(maxlen=SHOWN_LINES)
        self._watchers = 0

    def append(self, line: bytes) -> None:
        """Add a line."""
        self.count += 1
        self._lines.append(line)

    def __iter__(self) -> Iterator[bytes]:
        """Return the last `SHOWN_LINES`, oldest first."""
        return iter(list(self._lines)[-SHOWN_LINES:])

    def after(self, number: int) -> list[bytes]:
        """Return the lines after this one that are still kept."""
        wanted = self.count - number
        return list(self._lines)[-wanted:] if wanted > 0 else []

    @contextmanager
    def watch(self) -> Generator[None]:
        """Keep more lines while the context is open."""
        self._watchers += 1
        self._lines = deque(self._lines, WATCHED_LINES)
        try:
            yield
        finally:
            self._watchers -= 1
            if not self._watchers:
                self._lines = deque(self._lines, SHOWN_LINES)


class StrayLines:
    """Lines of a child's stdout that are not MCP messages, and objects that they form."""

    def __init__(self) -> None:
        self.count = 0
        self.last = ""
        self.is_open = False
        """Whether an object has begun and not ended."""
        self._parts: list[bytes] = []
        self._size = self._depth = 0

    def note(self, line: bytes) -> None:
        """Count a line."""
        self.count += 1
        self.last = SECRETS.mask(line[:MAX_LINE].decode(errors="replace"))[:SHOWN].strip()

    def join(self, line: bytes) -> bytes | None:
        """Return the object or array over several lines that ends with this one."""
        if not _JSON_LINE.match(line):
            self._reset()
        if not self._parts and line.lstrip()[:1] not in {b"{", b"["}:
            return None
        outside = _STRING.sub(b"", line)
        self._depth += sum(outside.count(sign) for sign in (b"{", b"["))
        self._depth -= sum(outside.count(sign) for sign in (b"}", b"]"))
        self._parts.append(line)
        self._size += len(line)
        self.is_open = self._depth > 0 and self._size <= MAX_SPREAD
        if self.is_open:
            return None
        whole = b"\n".join(self._parts) if self._depth == 0 and len(self._parts) > 1 else None
        self._reset()
        return whole

    def _reset(self) -> None:
        self._parts.clear()
        self._size = self._depth = 0
        self.is_open = False

    def describe(self) -> str:
        """Describe the lines, as the end of a sentence; empty without any."""
        if not self.count:
            return ""
        if self.count == 1:
            return f"it wrote a line to stdout that is not an MCP message: {self.last!r}"
        return f"it wrote {self.count} lines to stdout that are not MCP messages, the last: {self.last!r}"
