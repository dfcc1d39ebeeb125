"""Live stderr of one backend over SSE.

Several times a second, an event has the lines that have arrived since the last one, and the number of lines left out.
Bounded whatever a backend writes: `WATCHED_LINES` in each event, events at a fixed rate, a few streams at once.
"""

from __future__ import annotations

from contextlib import ExitStack, contextmanager
from typing import TYPE_CHECKING, Final

import trio

from gateway import jsonrpc
from gateway.admin.events import KEEP_ALIVE, KEEP_ALIVE_FRAME, serve_stream
from gateway.backends.stderr import SHOWN_LINES, shown
from gateway.errors import Busy, UnknownServer

if TYPE_CHECKING:
    from collections.abc import Callable, Generator

    from gateway.backends.stderr import StderrTail
    from gateway.frontends.http.exchange import Exchange

MAX_STREAMS: Final = 16
"""Concurrent streams; further ones are refused. Each keeps 4 MB of lines at most."""
TAIL_INTERVAL: Final = 0.25
"""Seconds between two events."""


class StderrStreams:
    """Counts the open streams."""

    def __init__(self) -> None:
        self._open = 0

    @contextmanager
    def open(self) -> Generator[None]:
        """Count a stream while the context is open. Raises Busy."""
        if self._open >= MAX_STREAMS:
            text = f"too many readers of stderr ({MAX_STREAMS})"
            raise Busy(text)
        self._open += 1
        try:
            yield
        finally:
            self._open -= 1


class StderrReader:
    """One client's position in the stderr of a backend.

    The backend may be replaced by another of its name, whose stderr follows.
    """

    def __init__(self, find: Callable[[], StderrTail | None], watched: ExitStack) -> None:
        """Create it; `find` returns the present tail, or None if the server is disabled."""
        self._find = find
        self._watched = watched
        self._tail: StderrTail | None = None
        self._seen = 0

    def read(self) -> bytes:
        """Return an event with the lines since the last one; empty without any."""
        tail = self._find()
        if tail is not self._tail:
            self._watched.close()
            self._tail = tail
            if tail is not None:
                self._watched.enter_context(tail.watch())
                self._seen = max(0, tail.count - SHOWN_LINES)
        if tail is None or tail.count == self._seen:
            return b""
        lines = tail.after(self._seen)
        dropped = tail.count - self._seen - len(lines)
        self._seen = tail.count
        data = jsonrpc.encode({"lines": [shown(line) for line in lines], "dropped": dropped})
        return b"event: stderr\r\ndata: " + data + b"\r\n\r\n"

    async def next_frame(self) -> bytes:
        """Wait for lines, at most `KEEP_ALIVE`; return no bytes when the server has been removed."""
        deadline = trio.current_time() + KEEP_ALIVE
        while trio.current_time() < deadline:
            await trio.sleep(TAIL_INTERVAL)
            try:
                if frame := self.read():
                    return frame
            except UnknownServer:
                return b""
        return KEEP_ALIVE_FRAME


async def serve_stderr(
    exchange: Exchange,
    streams: StderrStreams,
    find: Callable[[], StderrTail | None],
    closing: trio.Event,
    may_read: Callable[[], bool],
) -> None:
    """Stream the stderr of a server, beginning with the last lines, until the client disconnects.

    Raises Busy and UnknownServer before anything is sent.
    """
    find()
    with streams.open(), ExitStack() as watched:
        await serve_stream(exchange, StderrReader(find, watched).next_frame, closing, may_read)
