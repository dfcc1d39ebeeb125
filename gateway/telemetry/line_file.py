"""Appending of whole lines to a file of mode 0600, which is reopened after rotation.

`put` never waits: lines are queued, and if the disk is too slow the oldest are dropped and counted. One task, `run`,
owns the file and writes batches in a worker thread, so that a hanging disk blocks nothing else.
"""

from __future__ import annotations

import errno
import logging
import os
import stat
from collections import deque
from functools import partial
from typing import TYPE_CHECKING, Final

import trio

if TYPE_CHECKING:
    from collections.abc import Callable

MAX_LINES: Final = 20_000
"""Limit of queued lines: some seconds at the maximum call rate of a gateway."""
MAX_BYTES: Final = 32 * 1024 * 1024
"""Limit of queued bytes."""
GATHER: Final = 0.1
"""Seconds to collect lines before a write: a switch to the worker thread costs more than a call."""
WRITE_BOUND: Final = 2.0
"""Seconds for one write; shutdown waits for the disk at most twice as long."""
RETRY_AFTER: Final = 5.0
"""Seconds before retrying a failed write; lines are queued meanwhile."""

log = logging.getLogger("gateway.audit")
in_thread = partial(trio.to_thread.run_sync, abandon_on_cancel=True)


class LineFile:
    """One file of lines."""

    def __init__(
        self,
        path: str,
        *,
        note_lost: Callable[[int], bytes],
        max_lines: int = MAX_LINES,
        max_bytes: int = MAX_BYTES,
        write_timeout: float = WRITE_BOUND,
        retry_after: float = RETRY_AFTER,
    ) -> None:
        """Create it; `note_lost` returns the line that reports the number of dropped lines."""
        self.path = path
        self._max_lines, self._max_bytes = max_lines, max_bytes
        self._write_timeout, self._retry_after = write_timeout, retry_after
        self.dropped = 0
        """Total number of dropped lines."""
        self._note_lost = note_lost
        self._lines: deque[bytes] = deque()
        self._bytes = self._lost = 0
        self._some = trio.Event()
        self._some.set()  # to report immediately that a file cannot be opened
        self._fd: int | None = None
        self._reopen = False
        self._thread = trio.CapacityLimiter(1)  # a separate limit: a hanging disk must not use up all threads

    def put(self, line: bytes) -> None:
        """Queue one line, given without its newline, without waiting."""
        self._lines.append(line)
        self._bytes += len(line)
        while len(self._lines) > self._max_lines or self._bytes > self._max_bytes:
            self._bytes -= len(self._lines.popleft())
            self.dropped += 1
            self._lost += 1
        self._some.set()

    def reopen(self) -> None:
        """Reopen the file by name, after it has been rotated."""
        self._reopen = True
        self._some.set()

    async def run(self) -> None:
        """Own the file until cancelled, then write the remaining lines within the write timeout."""
        is_failing = False
        try:
            while True:
                await self._some.wait()
                await trio.sleep(GATHER)
                self._some = trio.Event()
                try:
                    await self._write()
                except OSError as exc:
                    if not is_failing:  # a disk may be full all night
                        log.error("cannot write to the audit file %s, will retry: %s", self.path, exc)
                    is_failing = True
                    await trio.sleep(self._retry_after)
                    self._some.set()
                else:
                    if is_failing:
                        log.warning("the audit file %s can be written again", self.path)
                    is_failing = False
        finally:
            try:
                with trio.move_on_after(self._write_timeout, shield=True):
                    await self._write(last=True)
            except OSError as exc:
                log.error("the last lines were not written to the audit file %s: %s", self.path, exc)

    async def _write(self, *, last: bool = False) -> None:
        """Write the queued lines, even if cancelled; keep unwritten ones. Raises OSError."""
        if not self._thread.available_tokens:
            raise OSError(errno.ETIMEDOUT, "the previous lines have not been written yet")
        lines, lost = list(self._lines), self._lost
        self._lines.clear()
        self._bytes = self._lost = 0
        reopen, self._reopen = self._reopen, False
        batch = b"".join(line + b"\n" for line in ([self._note_lost(lost)] if lost else []) + lines)
        try:
            with trio.move_on_after(self._write_timeout, shield=True) as scope:
                await in_thread(self._append, batch, reopen, last, limiter=self._thread)
        except OSError:
            self._lines.extendleft(reversed(lines))
            self._bytes += sum(map(len, lines))
            self._lost += lost
            raise
        if scope.cancelled_caught:  # the result is unknown; the thread keeps the file
            self._fd = None
            text = f"writing {len(lines)} lines took longer than {self._write_timeout:g} s"
            raise OSError(errno.ETIMEDOUT, text)

    def _append(self, batch: bytes, reopen: bool, last: bool) -> None:
        if reopen and self._fd is not None:
            os.close(self._fd)
            self._fd = None
        if self._fd is None:
            self._fd = open_private(self.path)
        size, written = os.fstat(self._fd).st_size, 0
        try:
            while written < len(batch):
                written += os.write(self._fd, batch[written:])
        except OSError:  # the disk is full: all of it is written again later
            if os.fstat(self._fd).st_size == size + written:  # no other program has added to it
                os.ftruncate(self._fd, size)
            raise
        if last:
            os.close(self._fd)
            self._fd = None


def open_private(path: str) -> int:
    """Open a file for appending, private to its owner even if it existed. Raises OSError.

    Refuses pipes, devices and links: opening them may block forever, and their mode is not ours to change.
    """
    flags = os.O_WRONLY | os.O_APPEND | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW | os.O_NONBLOCK
    fd = os.open(path, flags, 0o600)
    try:
        if not stat.S_ISREG(os.fstat(fd).st_mode):
            raise OSError(errno.EINVAL, "not a regular file")
        os.fchmod(fd, 0o600)
    except OSError:
        os.close(fd)
        raise
    return fd
