"""One request over streamable HTTP: its POST, and its response as JSON or events.

Runs in a task of its own in its session's nursery. The request is ended exactly once: by its response or by an error. A
stream that breaks is resumed if the server gave event ids (2025-11-25 basic/transports, "Resumability and
Redelivery"); a request that never reached a session is sent once more.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final, Protocol

import msgspec
import trio

from gateway import jsonrpc
from gateway.backends.http.recovery import Standing, Verdict, read_refusal
from gateway.backends.http.sse_events import EventParser
from gateway.budget import Intake
from gateway.calls import Era, Failure
from gateway.eras.errors import HEADER_MISMATCH, with_retry_hint
from gateway.errors import BackendError, BackendExited, BackendProtocol, BackendUnavailable, BuffersFull
from gateway.http_client.body import media_type, read_body, read_pieces, retry_after
from gateway.http_client.errors import BodyTooLong, HttpRefused
from gateway.jsonrpc import LARGE_BYTES
from gateway.lines import OversizedLine
from gateway.proxies import via

if TYPE_CHECKING:
    from gateway.backends.http.recovery import Recovery, Refusal, Timing
    from gateway.backends.session.conversation import Conversation
    from gateway.budget import Budget
    from gateway.config import ServerConfig
    from gateway.http_client.body import Response
    from gateway.http_client.client import HttpClient
    from gateway.http_client.pool import HeaderList
    from gateway.inflight.pending import PendingCall

LINGER: Final = 0.5
"""Seconds that a stream may stay open after its response; one that ends in time frees its connection for reuse."""
MAX_RESUMES: Final = 5
"""Consecutive attempts to resume a stream that do not even connect."""
_OK: Final = 200


class SessionContext(Protocol):
    """The services that an exchange needs of its session."""

    config: ServerConfig
    http: HttpClient
    conversation: Conversation
    recovery: Recovery
    timing: Timing
    buffers: Budget

    def headers(self, method: str, pending: PendingCall | None) -> HeaderList:
        """Return the headers of a POST."""
        ...

    def stream_headers(self, last_id: bytes) -> HeaderList:
        """Return the headers of a GET."""
        ...

    def assigned(self, session_id: str) -> None:
        """Keep the session id of the response to `initialize`."""
        ...

    async def send_cancelled(self, notification: bytes) -> None:
        """Send the cancellation of a request whose stream is already closed."""
        ...

    async def refresh_tools(self) -> None:
        """Read the list of tools again, for the headers of their parameters."""
        ...


class HttpRequest:
    """One request and its response."""

    __slots__ = ("_answered", "_body", "_cancelled", "_link", "_method", "_pending", "_scope", "request_id")

    def __init__(
        self, link: SessionContext, request_id: int, method: str, body: bytes, pending: PendingCall | None
    ) -> None:
        self.request_id = request_id
        self._scope = trio.CancelScope()
        self._cancelled: bytes | None = None
        self._link = link
        self._method = method
        self._body = body
        self._pending = pending
        self._answered = False

    def cancel(self, notification: bytes | None) -> None:
        """Close the request's stream, then send `notification`, unless closing is the cancellation (modern era).

        In this order, since the connection is then free for the next request. A legacy server must not treat the
        closed stream as a cancellation, so nothing is lost.
        """
        self._cancelled = notification
        self._scope.cancel(reason="the request was withdrawn")

    async def run(self) -> None:
        """Send the request and read until its response has arrived."""
        conversation = self._link.conversation
        try:
            with self._scope:
                if await self._attempt(first=True):
                    if self._pending is not None and self._pending.call.trace is not None:
                        self._pending.call.trace.note("retried")
                    await self._attempt(first=False)
        except BackendError as problem:
            conversation.finish(self.request_id, problem)
            if isinstance(problem, (BackendExited, BackendUnavailable)):
                self._link.recovery.doubt()
        if self._scope.cancelled_caught and self._cancelled is not None:
            await self._link.send_cancelled(self._cancelled)

    async def _attempt(self, *, first: bool) -> bool:
        """Send one POST; return whether to send another."""
        link, recovery = self._link, self._link.recovery
        if recovery.standing is not Standing.VALID:
            await recovery.admitted(self._method, is_call=self._pending is not None)
        generation, era = recovery.generation, link.conversation.hop.era
        parser: EventParser | None = None
        intake = Intake(link.buffers, evict=True)
        try:
            headers = link.headers(self._method, self._pending)
            async with link.http.exchange("POST", headers, self._body, pending=self._pending) as response:
                if response.status_code != _OK:
                    again = await self._refused(response, generation, era, first=first)
                elif media_type(response) == "text/event-stream":
                    self._note_session(response, era)
                    parser = EventParser(link.config.max_line_bytes, intake)
                    await self._read_events(response, parser)
                    again = False
                else:
                    await self._read_json(response, era, intake)
                    return False
        except BackendExited:
            if parser is None:
                raise
            again = False
        finally:
            intake.release()
        if parser is not None and not self._answered:
            try:
                await self._resume(parser, era)
            finally:
                intake.release()  # the parsers of the resumed streams count there too
        elif again and era is Era.MODERN:
            await link.refresh_tools()
        return again

    def _note_session(self, response: Response, era: Era) -> None:
        if self._method == "initialize" and era is Era.LEGACY:
            self._link.assigned(response.headers.get("mcp-session-id", ""))

    async def _read_json(self, response: Response, era: Era, intake: Intake) -> None:
        link = self._link
        if media_type(response) != "application/json":
            raise self._no_answer(response)
        try:
            data = await read_body(response, link.config.max_line_bytes, intake)
        except BodyTooLong as exc:
            raise (BuffersFull(link.config.name) if exc.unbuffered else self._too_long()) from None
        self._note_session(response, era)
        conversation = link.conversation
        if len(data) < LARGE_BYTES:
            conversation.feed(data, self._pending)
        else:
            async with link.buffers.conversion:
                await conversation.feed_large(data, self._pending)
        if not conversation.waits_for(self.request_id):
            return
        # The message was not the response, unless it is an error without an id.
        try:
            message = jsonrpc.decode(data)
        except jsonrpc.Malformed:
            message = None
        if message is not None and message.method is msgspec.UNSET and message.error is not jsonrpc.ABSENT:
            conversation.finish(self.request_id, conversation.outcome_of(message))
            return
        text = f"answered {self._method} without a response to it"
        if jsonrpc.is_batch(data):
            hop = conversation.hop
            text += ": with a JSON array"
            text += f", which protocol version {hop.version} does not have" if hop.era is Era.MODERN else ""
        misfit = BackendProtocol(link.config.name, text)
        misfit.status = _OK
        conversation.finish(self.request_id, misfit)

    async def _read_events(self, response: Response, parser: EventParser) -> None:
        link, conversation = self._link, self._link.conversation

        def handle_data(data: bytes) -> None:
            if self._answered:
                return  # to the end of the stream, so that the connection can be reused; LINGER bounds it
            for event in parser.feed(data):
                if isinstance(event.data, OversizedLine):
                    conversation.finish(
                        self.request_id,
                        BuffersFull(link.config.name) if event.data.unbuffered else self._too_long(event.data.size),
                    )
                elif event.event == "message":
                    conversation.feed(event.data, self._pending)
                if not conversation.waits_for(self.request_id):
                    self._answered = True
                    self._scope.deadline = min(self._scope.deadline, trio.current_time() + LINGER)
                    break

        await read_pieces(response, handle_data)

    async def _resume(self, parser: EventParser, era: Era) -> None:
        """Resume a stream that ended before the response."""
        link, failures = self._link, 0
        while not self._answered:
            if not parser.last_id or era is Era.MODERN or failures >= MAX_RESUMES:
                raise BackendExited(link.config.name, f"ended the stream of {self._method} before it had answered")
            pause = link.timing.resume_pause if parser.retry is None else parser.retry
            if self._pending is not None and not failures:
                self._pending.close_stream(int(pause * 1000))  # the client's stream is closed and resumed as well
            await trio.sleep(max(pause, link.timing.least_resume_pause))
            parser = parser.successor()
            refused = 0
            try:
                async with link.http.exchange("GET", link.stream_headers(parser.last_id)) as response:
                    if response.status_code == _OK and media_type(response) == "text/event-stream":
                        failures = 0
                        await self._read_events(response, parser)
                    else:
                        refused = response.status_code
            except (BackendExited, BackendUnavailable):
                failures += 1
            if refused:
                text = f"ended the stream of {self._method} before it had answered, and does not resume it"
                raise BackendExited(link.config.name, f"{text} (HTTP {refused})")

    async def _refused(self, response: Response, generation: int, era: Era, *, first: bool) -> bool:
        """Handle any status but 200; return whether to retry. `era` is the request's."""
        link = self._link
        refusal = await read_refusal(response, self.request_id)
        modern = era is Era.MODERN
        if refusal.verdict is Verdict.REFUSED and not modern and self._method != "initialize":
            key = self._method if self._pending is None else self._pending.own_name
            if not first:
                link.recovery.refused_again(key)
            elif link.recovery.refused(generation, key, is_call=self._pending is not None):
                return True
        if self._pending is not None and refusal.verdict is not Verdict.UNRELATED:
            link.recovery.suspect()
        if refusal.message is None:
            raise self._no_answer(response, refusal)
        outcome = link.conversation.outcome_of(refusal.message)
        if isinstance(outcome, Failure):
            if first and modern and self._pending is not None and outcome.code == HEADER_MISMATCH:
                return True
            outcome = with_retry_hint(outcome, retry_after(response))
        link.conversation.finish(self.request_id, outcome)
        return False

    def _too_long(self, size: int | None = None) -> BackendProtocol:
        limit = self._link.config.max_line_bytes
        sent = f"more than {limit} bytes" if size is None else f"{size} bytes; the limit is {limit}"
        return BackendProtocol(self._link.config.name, f"answered {self._method} with {sent} (max_line_bytes)")

    def _no_answer(self, response: Response, refusal: Refusal | None = None) -> HttpRefused:
        status, kind = response.status_code, media_type(response)
        match status:
            case _ if refusal is not None and refusal.undecodable is not None:
                text = f"answered {self._method} with HTTP {status}: it {refusal.undecodable}"
            case 401:
                text = "requires authorization (HTTP 401): put an 'Authorization' entry into 'headers'"
            case 403:
                text = f"refuses {self._method} (HTTP 403): its 'headers' do not allow it"
            case 202:
                text = f"accepted {self._method} without answering it (HTTP 202)"
            case _:
                text = f"answered {self._method} with HTTP {status} and {kind or 'no content type'}, not MCP"
                text += via(self._link.http.proxy)
        pause = retry_after(response)
        text += "" if pause is None else f"; it asks to retry in {pause:g} s"
        body = b"" if refusal is None else refusal.body
        return HttpRefused(self._link.config.name, text, status, body, retry_after=pause)
