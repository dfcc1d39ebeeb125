"""Lines appended to a file that others read: mode 0600, whole lines, opened anew when it has been moved away.

`put` never waits: lines queue, bounded, and the oldest are dropped and counted when the disk does not keep up. One
task, `run`, owns the file and writes batches in a worker thread, so that a disk that hangs holds up nobody.
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
"""Lines that may wait for the disk: some seconds of the most calls that one gateway serves."""
MAX_BYTES: Final = 32 * 1024 * 1024
"""Bytes of them."""
GATHER: Final = 0.1
"""Seconds that lines are gathered before they are written: a trip to the worker thread costs more than a call."""
WRITE_BOUND: Final = 2.0
"""Seconds that one write may take; the end of the gateway waits for the disk no longer than twice that."""
RETRY_AFTER: Final = 5.0
"""Seconds until a file that could not be written is tried again; meanwhile lines queue."""

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
        """Make one; `note_lost` gives the line that says how many were dropped before it."""
        self.path = path
        self._max_lines, self._max_bytes = max_lines, max_bytes
        self._write_timeout, self._retry_after = write_timeout, retry_after
        self.dropped = 0
        """Lines that were dropped, in all."""
        self._note_lost = note_lost
        self._lines: deque[bytes] = deque()
        self._bytes = self._lost = 0
        self._some = trio.Event()
        self._some.set()  # so that a file which cannot be opened is told of at once
        self._fd: int | None = None
        self._reopen = False
        self._thread = trio.CapacityLimiter(1)  # its own: a disk that hangs must not take all threads there are

    def put(self, line: bytes) -> None:
        """Queue one line, without its newline; at once."""
        self._lines.append(line)
        self._bytes += len(line)
        while len(self._lines) > self._max_lines or self._bytes > self._max_bytes:
            self._bytes -= len(self._lines.popleft())
            self.dropped += 1
            self._lost += 1
        self._some.set()

    def reopen(self) -> None:
        """Go on in a file of the same name: somebody has moved the present one away."""
        self._reopen = True
        self._some.set()

    async def run(self) -> None:
        """Own the file until cancelled; then write what is left, as far as the write timeout allows."""
        try:
            while True:
                await self._some.wait()
                await trio.sleep(GATHER)
                self._some = trio.Event()
                try:
                    await self._write()
                except OSError as exc:
                    log.error("calls cannot be noted in %s, they are tried again: %s", self.path, exc)
                    await trio.sleep(self._retry_after)
                    self._some.set()
        finally:
            try:
                with trio.move_on_after(self._write_timeout, shield=True):
                    await self._write(last=True)
            except OSError as exc:
                log.error("the last calls were not noted in %s: %s", self.path, exc)

    async def _write(self, *, last: bool = False) -> None:
        """Write what is queued, also when cancelled. Raises OSError; what was certainly not written is queued still."""
        if not self._thread.available_tokens:
            raise OSError(errno.ETIMEDOUT, "the disk has not taken the lines before these yet")
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
        if scope.cancelled_caught:  # whether it is written is unknown; the thread has the file, which is left to it
            self._fd = None
            text = f"the disk takes longer than {self._write_timeout:g} s for {len(lines)} lines"
            raise OSError(errno.ETIMEDOUT, text)

    def _append(self, batch: bytes, reopen: bool, last: bool) -> None:
        if reopen and self._fd is not None:
            os.close(self._fd)
            self._fd = None
        if self._fd is None:
            self._fd = open_private(self.path)
        while batch:
            batch = batch[os.write(self._fd, batch) :]
        if last:
            os.close(self._fd)
            self._fd = None


def open_private(path: str) -> int:
    """A file to append to that only its owner can read, also one that was there before. Raises OSError.

    A pipe, a device or a link is refused: opening may wait for ever there, and its mode is not ours to change.
    """
    flags = os.O_WRONLY | os.O_APPEND | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW | os.O_NONBLOCK
    fd = os.open(path, flags, 0o600)
    try:
        if not stat.S_ISREG(os.fstat(fd).st_mode):
            raise OSError(errno.EINVAL, "it is no file")
        os.fchmod(fd, 0o600)
    except OSError:
        os.close(fd)
        raise
    return fd
