"""A child's stderr, line by line into the log under the backend's name: bounded, rate-limited, never blocking.

A child may print its own key: secrets are masked here, once, before a line is kept or logged.
2026-07-28 basic/transports/stdio: stderr is free text and no sign of an error. Flooding costs the flooder its lines,
which are counted, and nobody else anything.
"""

from __future__ import annotations

import logging
from typing import TYPE_CHECKING, Final

import trio

from gateway.backends.log_rate import LogRate
from gateway.lines import LineSplitter, Overlong
from gateway.masking import SECRETS

if TYPE_CHECKING:
    from collections.abc import Callable

MAX_LINE: Final = 8_192
"""Longest line that is logged whole."""
SHOWN: Final = 500
"""How much of a longer line, or of the last words in an error, is shown."""
READ_BYTES: Final = 65_536


class StderrLog:
    """Reads one child's stderr and logs it; remembers the last line for error messages."""

    def __init__(self, backend: str, *, clock: Callable[[], float] = trio.current_time) -> None:
        self.last_line = ""
        self._backend = backend
        self._log = logging.getLogger(f"gateway.backend.{backend}")
        self._rate = LogRate(clock=clock)

    async def run(self, stream: trio.abc.ReceiveStream) -> None:
        """Log until the stream ends; then return."""
        splitter = LineSplitter(MAX_LINE)
        try:
            while data := await stream.receive_some(READ_BYTES):
                for line in splitter.feed(bytes(data)):
                    self.take(line)
            for line in splitter.feed(b"\n"):  # last words often have no newline
                self.take(line)
        except trio.BrokenResourceError:
            self._log.debug("reading stderr failed")

    def take(self, line: bytes | Overlong) -> None:
        """Log one line, if the rate allows."""
        data = line.head if isinstance(line, Overlong) else line
        text = SECRETS.mask(data.decode(errors="replace").rstrip("\r"))
        if isinstance(line, Overlong):
            text = text[:SHOWN]
        if not text.strip():
            return
        self.last_line = text[:SHOWN]
        if not self._rate.allows():
            return
        if unreported := self._rate.take_unreported():
            self._log.warning("%d lines of stderr not logged: too many", unreported)
        self._log.info("%s", text, extra={"backend": self._backend})

    @property
    def suppressed(self) -> int:
        """Lines that were not logged, in all."""
        return self._rate.suppressed
