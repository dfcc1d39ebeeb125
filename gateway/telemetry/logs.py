"""Logs: to stderr, through a bounded queue and one thread, so that a reader of stderr that stalls stalls nobody else.

Invariant: nothing in here ever waits for stderr or writes to stdout. `open_logging` owns the thread; on leaving it
gives the thread a bounded time to write what is queued and then lets it go.
"""

from __future__ import annotations

import logging
import os
import select
import sys
import threading
from collections import deque
from contextlib import contextmanager
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Final

from gateway.telemetry.formats import Console, JsonLines

if TYPE_CHECKING:
    from collections.abc import Generator

    from gateway.telemetry.formats import Format

MAX_QUEUED: Final = 10_000
"""Log lines that may wait for stderr; the oldest are dropped, and counted in the next line that gets out."""
BATCH_LINES: Final = 100
"""Lines that one write has."""
FLUSH_TIMEOUT: Final = 0.5
"""Seconds that the end of the program waits for a stalled reader of stderr."""
LEVELS: Final = ("debug", "info", "warning", "error")


def now_iso() -> str:
    """The present in UTC, ISO 8601, to the millisecond."""
    return datetime.now(UTC).isoformat(timespec="milliseconds").replace("+00:00", "Z")


class _StderrWriter(logging.Handler):
    """Formats records where they are made, and leaves the writing to its thread."""

    def __init__(self, fd: int, max_queued: int, flush_timeout: float) -> None:
        super().__init__()
        self.dropped = 0
        """Lines that were dropped, in all."""
        self._fd = fd
        self._flush_timeout = flush_timeout
        self._lines: deque[bytes] = deque(maxlen=max_queued)
        self._dropped = 0
        self._ready = threading.Event()
        self._closing = False
        self._thread = threading.Thread(target=self._write, name="log writer", daemon=True)
        self._thread.start()

    def emit(self, record: logging.LogRecord) -> None:
        """Queue one record."""
        try:
            line = self.format(record).encode(errors="backslashreplace")
        except (ValueError, TypeError, KeyError):
            self.handleError(record)
            return
        if len(self._lines) == self._lines.maxlen:
            self._dropped += 1
            self.dropped += 1
        self._lines.append(line + b"\n")
        self._ready.set()

    def _write(self) -> None:
        while not (self._closing and not self._lines):
            self._ready.wait()
            self._ready.clear()
            while self._lines:
                lines: list[bytes] = []
                if self._dropped:
                    text = f"{self._dropped} log lines dropped: stderr was not read"
                    notification = logging.makeLogRecord({"name": "gateway.log", "levelname": "WARNING", "msg": text})
                    lines.append(self.format(notification).encode() + b"\n")
                    self._dropped = 0
                while self._lines and len(lines) < BATCH_LINES:
                    lines.append(self._lines.popleft())
                batch = b"".join(lines)
                while batch:
                    try:
                        batch = batch[os.write(self._fd, batch) :]
                    except BlockingIOError:  # a terminal's stderr is its stdin, which the stdio frontend unblocks
                        select.select([], [self._fd], [], self._flush_timeout)
                    except OSError:
                        return  # stderr has no reader; nothing may fail for that

    def close(self) -> None:
        """Write what is queued, for at most the flush timeout."""
        self._closing = True
        self._ready.set()
        self._thread.join(self._flush_timeout)
        super().close()


def dropped_lines() -> int:
    """Log lines that this process has dropped so far because nobody read its stderr."""
    handlers = logging.getLogger().handlers
    return sum(handler.dropped for handler in handlers if isinstance(handler, _StderrWriter))


@contextmanager
def open_logging(
    level: str, form: Format = "console", *, max_queued: int = MAX_QUEUED, flush_timeout: float = FLUSH_TIMEOUT
) -> Generator[None]:
    """Send the gateway's logs to stderr while the context is open, one line each in this form."""
    handler = _StderrWriter(sys.stderr.fileno(), max_queued, flush_timeout)
    handler.setFormatter(JsonLines() if form == "json" else Console())
    root = logging.getLogger()
    before = root.level
    root.addHandler(handler)
    root.setLevel(level.upper())
    logging.captureWarnings(capture=True)
    try:
        yield
    finally:
        logging.captureWarnings(capture=False)
        root.removeHandler(handler)
        root.setLevel(before)
        handler.close()
