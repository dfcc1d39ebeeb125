"""The standalone GET stream of a legacy session, for server messages outside of any request.

2025-11-25 basic/transports, "Listening for Messages from the Server". It is kept open for the lifetime of the session:
resumed with `Last-Event-ID` if the server gives ids, after the pause that the server requests, at least after a
backoff. A server without such a stream (405) is not asked again.
"""

from __future__ import annotations

import logging
from typing import TYPE_CHECKING, Final, Protocol

import trio

from gateway.backends.http.recovery import Verdict, judge
from gateway.backends.http.sse_events import EventParser
from gateway.budget import Intake
from gateway.errors import BackendExited, BackendProtocol, BackendUnavailable
from gateway.http_client.body import media_type, read_pieces
from gateway.lines import OversizedLine

if TYPE_CHECKING:
    from gateway.backends.http.exchange import SessionContext

LONGEST_PAUSE: Final = 30.0
"""Maximum seconds between two attempts at a server that keeps failing."""
HEALTHY_AFTER: Final = 5.0
"""Seconds after which the end of a stream does not count as a failure."""
_OK: Final = 200
_NOT_SERVED: Final = frozenset({405, 406, 415, 501})
_NO_STREAM: Final = _NOT_SERVED | {400, 404, 410, 422}
"""Statuses of servers without such a stream; 405 is the correct one."""

log = logging.getLogger("gateway.backend")


class StreamOwner(Protocol):
    """The receiver of notice that messages may have been missed."""

    def missed(self) -> None:
        """Handle a gap: the stream was down and could not be resumed."""
        ...


class StandaloneStream:
    """Keeps one session's stream open."""

    def __init__(self, link: SessionContext, owner: StreamOwner) -> None:
        self._link = link
        self._owner = owner
        self._scope = trio.CancelScope()
        self._was_open = False
        self.is_running = False

    def reopen(self) -> None:
        """Close the stream and open one in the new session."""
        self._scope.cancel(reason="the session has been replaced")

    async def run(self) -> None:
        """Keep the stream open until cancelled; return if the server has none."""
        link = self._link
        pause = first_pause = link.timing.stream_pause
        intake = Intake(link.buffers, evict=True)
        parser = EventParser(link.config.max_line_bytes, intake)
        self.is_running = True
        try:
            while True:
                await link.recovery.admitted("GET", is_call=False)
                generation, opened_at = link.recovery.generation, trio.current_time()
                is_served = True
                with trio.CancelScope() as self._scope:
                    is_served = await self._read_stream(parser)
                intake.release()
                if not is_served:
                    return
                lived = trio.current_time() - opened_at
                pause = first_pause if lived >= HEALTHY_AFTER or self._scope.cancelled_caught else pause
                if not self._scope.cancelled_caught:
                    await trio.sleep(pause if parser.retry is None else max(parser.retry, pause / 2))
                    pause = min(pause * 2, LONGEST_PAUSE)
                same = generation == link.recovery.generation
                parser = parser.successor() if same else EventParser(link.config.max_line_bytes, intake)
        finally:
            intake.release()
            self.is_running = False

    async def _read_stream(self, parser: EventParser) -> bool:
        """Open the stream and read it to its end; return whether there is one."""
        link, name = self._link, self._link.config.name
        resumed = bool(parser.last_id)

        def handle_data(data: bytes) -> None:
            for event in parser.feed(data):
                if isinstance(event.data, OversizedLine):
                    log.warning("backend %r sent an event of %d bytes, skipped", name, event.data.size)
                elif event.event == "message":
                    link.conversation.feed(event.data)

        try:
            async with link.http.exchange("GET", link.stream_headers(parser.last_id)) as response:
                status = response.status_code
                if status != _OK:
                    log.debug("backend %r answered GET with HTTP %d", name, status)
                    verdict = judge(status, None, "", answered=False)
                    if self._was_open and verdict is not Verdict.UNRELATED and status not in _NOT_SERVED:
                        link.recovery.suspect()
                        return True
                    return status not in _NO_STREAM
                if media_type(response) != "text/event-stream":
                    log.debug("backend %r answers GET with %s: no stream", name, media_type(response))
                    return False
                if self._was_open and not resumed:
                    self._owner.missed()
                self._was_open = True
                await read_pieces(response, handle_data)
                log.debug("backend %r closed its stream", name)
        except (BackendExited, BackendUnavailable) as problem:
            log.debug("%s", problem)
            link.recovery.doubt()
        except BackendProtocol as problem:
            log.warning("%s: no standalone stream", problem, extra={"backend": name})
            return False
        return True
