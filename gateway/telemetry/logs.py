"""Logging to stderr through a bounded queue and one thread, undelayed by its reader.

Invariant: nothing here waits for stderr or writes to stdout. `open_logging` owns the thread; on leaving, the thread
gets a bounded time to write the queued lines and is then abandoned.
"""

from __future__ import annotations

import errno
import logging
import os
import select
import sys
import threading
from collections import deque
from contextlib import contextmanager
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Final

from gateway.telemetry.formats import Console, JsonLines

if TYPE_CHECKING:
    from collections.abc import Generator

    from gateway.telemetry.formats import Format

MAX_QUEUED: Final = 10_000
"""Limit of queued log lines; the oldest are dropped, and counted in the next written line."""
BATCH_LINES: Final = 100
"""Lines in one write."""
FLUSH_TIMEOUT: Final = 0.5
"""Seconds that the exit waits for a stalled reader of stderr."""
MAX_FILE_BYTES: Final = 1024 * 1024
"""Size at which a log file is renamed to `.old`: some ten thousand lines, twice."""
FULL: Final = frozenset({errno.ENOSPC, errno.EDQUOT, errno.EFBIG})
"""Errors of a full disk, which may have space again."""
LEVELS: Final = ("debug", "info", "warning", "error")


def now_iso() -> str:
    """Return the current time in UTC, ISO 8601, to the millisecond."""
    return datetime.now(UTC).isoformat(timespec="milliseconds").replace("+00:00", "Z")


class _StderrWriter(logging.Handler):
    """Formats records in the calling thread, and writes them in its own."""

    def __init__(self, fd: int, max_queued: int, flush_timeout: float, file: str | None, max_bytes: int) -> None:
        super().__init__()
        self.dropped = 0
        """Total number of dropped lines."""
        self._fd = fd
        self._file = file
        self._max_bytes = max_bytes
        self._flush_timeout = flush_timeout
        self._lines: deque[bytes] = deque(maxlen=max_queued)
        self._dropped = 0
        self._was_full = False
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
                    why = "the disk was full" if self._was_full else "stderr was not read"
                    text = f"{self._dropped} log lines dropped: {why}"
                    notification = logging.makeLogRecord({"name": "gateway.log", "levelname": "WARNING", "msg": text})
                    lines.append(self.format(notification).encode() + b"\n")
                    self._dropped, self._was_full = 0, False
                while self._lines and len(lines) < BATCH_LINES:
                    lines.append(self._lines.popleft())
                if self._file is not None:
                    self._rotate(self._file)
                batch = b"".join(lines)
                while batch:
                    try:
                        batch = batch[os.write(self._fd, batch) :]
                    except BlockingIOError:  # a terminal's stderr is its stdin, which the stdio frontend unblocks
                        select.select([], [self._fd], [], self._flush_timeout)
                    except OSError as exc:
                        if exc.errno not in FULL:
                            return  # stderr has no reader, which must not cause a failure
                        self._was_full = True
                        self._dropped += len(lines)
                        self.dropped += len(lines)
                        break

    def _rotate(self, file: str) -> None:
        """Rename the file if it is too large, and continue in another one.

        So do stdout and stderr: tracebacks of the interpreter go there too, since it writes to the same descriptor.
        """
        try:
            if os.fstat(self._fd).st_size < self._max_bytes:
                return
            try:
                Path(file).replace(f"{file}.old")
                other = os.open(file, os.O_WRONLY | os.O_APPEND | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
            except OSError:
                os.ftruncate(self._fd, 0)  # the bound holds even so
                return
            for fd in (1, self._fd):
                os.dup2(other, fd)
            os.close(other)
        except OSError:
            pass  # not a file

    def close(self) -> None:
        """Write the queued lines, for at most the flush timeout."""
        self._closing = True
        self._ready.set()
        self._thread.join(self._flush_timeout)
        super().close()


def dropped_lines() -> int:
    """Return the number of log lines dropped so far because stderr was not read."""
    handlers = logging.getLogger().handlers
    return sum(handler.dropped for handler in handlers if isinstance(handler, _StderrWriter))


@contextmanager
def open_logging(
    level: str,
    form: Format = "console",
    *,
    max_queued: int = MAX_QUEUED,
    flush_timeout: float = FLUSH_TIMEOUT,
    file: str | None = None,
    max_file_bytes: int = MAX_FILE_BYTES,
) -> Generator[None]:
    """Send the gateway's logs to stderr while the context is open.

    Args:
        level: the lowest level that is logged.
        form: the format of the lines.
        max_queued: lines that may wait to be written.
        flush_timeout: seconds that leaving the context waits for a stalled reader.
        file: the path of the file that stdout and stderr are; at `max_file_bytes` it is renamed to `.old`.
        max_file_bytes: size of that file, exceeded by at most one write.
    """
    handler = _StderrWriter(sys.stderr.fileno(), max_queued, flush_timeout, file, max_file_bytes)
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
