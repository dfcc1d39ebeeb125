"""A backend over HTTP+SSE, the transport of 2024-11-05 (basic/transports): one event stream, and POSTs.

The stream is the session: when it ends, the backend is gone. Its first event names the address for POSTs, which must be
of the same origin, since all headers are sent there too. The session owns a task for each stream and one for each
request in flight, besides those of `HttpSession`; responses arrive on the stream, where server requests do not name
their call. When the server refuses POSTs because it does not know the session, a new stream replaces the old one, which
is read until its outstanding responses have arrived.
"""

from __future__ import annotations

import logging
from typing import TYPE_CHECKING, Final

import httpx2
import trio

from gateway.backends.http.recovery import Refusal, Standing, Verdict, read_refusal
from gateway.backends.http.request_headers import EVENT_STREAM, JSON_BODY
from gateway.backends.http.session import HttpSession
from gateway.backends.http.sse_events import EventParser
from gateway.backends.session import handshake, lists
from gateway.backends.session.handshake import Attempts
from gateway.budget import Intake
from gateway.calls import Failure
from gateway.eras.errors import with_retry_hint
from gateway.errors import BackendError, BackendExited, BackendProtocol, BackendTooSlow
from gateway.http_client.body import media_type, read_pieces, retry_after, skip_body
from gateway.http_client.client import same_origin
from gateway.http_client.errors import HttpRefused
from gateway.lines import OversizedLine
from gateway.proxies import via

if TYPE_CHECKING:
    from gateway.backends.http.recovery import Timing
    from gateway.backends.session.contracts import SessionObserver
    from gateway.budget import Budget
    from gateway.config import ServerConfig
    from gateway.eras.requests import Hop
    from gateway.http_client.body import Response
    from gateway.http_client.client import HttpClient
    from gateway.inflight.pending import PendingCall

_OK: Final = 200
_REDIRECT: Final = 300

log = logging.getLogger("gateway.backend")


class _Stream:
    """One event stream, and the address for POSTs that it names."""

    def __init__(self) -> None:
        self.endpoint: httpx2.URL | None = None
        self.connected = trio.Event()
        """Set when the address is known, or when the stream has ended."""
        self.scope = trio.CancelScope()
        self.problem: BackendError | None = None
        """The reason of its end."""
        self.unanswered: set[int] = set()
        """Once replaced by another stream: the requests whose responses are still expected on this one."""


class SseSession(HttpSession):
    """A session over one event stream at a time."""

    def __init__(
        self,
        config: ServerConfig,
        http: HttpClient,
        listener: SessionObserver,
        hop: Hop,
        timing: Timing,
        buffers: Budget,
    ) -> None:
        super().__init__(config, http, listener, hop, timing, buffers)
        self._stream = _Stream()
        self._replaced = _Stream()
        self._is_renewing = False
        self._waiting: set[int] = set()
        self._headers = [*http.base_headers, JSON_BODY]

    # `gateway.backends.session.contracts.Exchanges`

    def open(self, request_id: int, method: str, data: bytes, pending: PendingCall | None = None) -> None:
        """Send a request in a POST of its own."""
        self._start_request(self._send, request_id, method, data, pending)

    def drop(self, request_id: int, cancelled: bytes | None) -> None:
        """Cancel a request."""
        if cancelled is not None:
            self._posts.post(cancelled)
        if request_id in self._replaced.unanswered:
            self._settle(request_id)

    async def _send(self, request_id: int, method: str, body: bytes, pending: PendingCall | None) -> None:
        """POST a request; only a refusal ends it here: its response is streamed."""
        try:
            if await self._attempt(request_id, method, body, pending, first=True):
                if pending is not None and pending.call.trace is not None:
                    pending.call.trace.note("retried")
                await self._attempt(request_id, method, body, pending, first=False)
        except BackendError as problem:
            self.conversation.finish(request_id, problem)

    async def _attempt(
        self, request_id: int, method: str, body: bytes, pending: PendingCall | None, *, first: bool
    ) -> bool:
        """Send one POST; return whether to send another."""
        recovery, is_call = self.recovery, pending is not None
        if recovery.standing is not Standing.VALID:
            self._waiting.add(request_id)
            try:
                await recovery.admitted(method, is_call=is_call)
            finally:
                self._waiting.discard(request_id)
            if not self.conversation.waits_for(request_id):
                return False
        generation, stream = recovery.generation, self._stream
        headers = self._headers
        if pending is not None and pending.call.trace is not None:
            headers = [*headers, *pending.call.trace.headers]
        async with self.http.exchange("POST", headers, body, url=stream.endpoint, pending=pending) as response:
            if response.status_code < _REDIRECT:
                await skip_body(response)
                return False
            refusal = await read_refusal(response, request_id)
        if not self.conversation.waits_for(request_id):
            return False
        if refusal.verdict is Verdict.REFUSED and method != "initialize":
            key = method if pending is None else pending.own_name
            if not first:
                recovery.refused_again(key)
            elif recovery.refused(generation, key, is_call=is_call):
                self._settle(request_id)
                return True
        if is_call and refusal.verdict is not Verdict.UNRELATED:
            recovery.suspect()
        if refusal.message is None:
            raise self._refused(response, refusal)
        outcome = self.conversation.outcome_of(refusal.message)
        if isinstance(outcome, Failure):
            outcome = with_retry_hint(outcome, retry_after(response))
        self.conversation.finish(request_id, outcome)
        return False

    def _refused(self, response: Response, refusal: Refusal) -> HttpRefused:
        status, kind = response.status_code, media_type(response)
        text = f"answered a POST with HTTP {status} and {kind or 'no content type'}{via(self.http.proxy)}"
        if refusal.undecodable is not None:
            text = f"answered a POST with HTTP {status}: it {refusal.undecodable}"
        pause = retry_after(response)
        text += "" if pause is None else f"; it asks to retry in {pause:g} s"
        return HttpRefused(self.config.name, text, status, refusal.body, retry_after=pause)

    async def _deliver(self, data: bytes) -> None:
        async with self.http.exchange("POST", self._headers, data, url=self._stream.endpoint) as response:
            if response.status_code < _REDIRECT:
                await skip_body(response)
                return
            refusal = await read_refusal(response, None)
        if refusal.verdict is not Verdict.UNRELATED:
            self.recovery.suspect()
        raise self._refused(response, refusal)

    # The session's life.

    async def start(self, attempts: Attempts) -> None:
        """Shake hands and list. Raises BackendError; the caller bounds the time."""
        wait = self.config.connect_timeout
        self._nursery.start_soon(self._run_stream, self._stream)
        await self._send_initialize(wait, attempts)
        self.listing = await lists.list_all(self.conversation, self.greeting, timeout=wait)
        self._nursery.start_soon(self.upkeep.run, self.greeting)

    async def _send_initialize(self, wait: float, attempts: Attempts) -> None:
        await self._stream.connected.wait()
        if self._stream.problem is not None:
            raise self._stream.problem
        self._adopt(await handshake.initialize(self.conversation, attempts, timeout=wait))
        await self._posts.flushed()  # a server that has not received `initialized` may refuse to list

    @property
    def has_id(self) -> bool:
        """Whether requests carry a session id: the stream's address identifies the session."""
        return True

    async def renew(self) -> None:
        """Open another stream; read the old one until its outstanding responses have arrived."""
        name, wait = self.config.name, self.config.connect_timeout
        log.warning(
            "backend %r has forgotten the session; opening another stream",
            name,
            extra={"event": "session_lost", "backend": name},
        )
        self._replaced.scope.cancel(reason="a second stream has been replaced")
        old = self._replaced = self._stream
        old.unanswered = self.conversation.pending() - self._waiting
        self._stream = _Stream()
        self._nursery.start_soon(self._run_stream, self._stream)
        self._is_renewing = True
        self._settle()
        try:
            with trio.fail_after(wait):
                await self._send_initialize(wait, Attempts("legacy", version=self.greeting.asked))
                if self._stream.problem is not None:
                    raise self._stream.problem
        except (BackendError, trio.TooSlowError) as problem:
            self._stream.scope.cancel(reason="no session was opened")
            self._stream, self._replaced = old, _Stream()
            if old.problem is not None:
                raise BackendExited(name, old.problem.reason) from None
            if isinstance(problem, BackendError):
                raise
            raise BackendTooSlow(name, f"did not answer within {wait:g} s") from None
        finally:
            self._is_renewing = False
        self._settle()
        self.upkeep.forget()
        self.missed()

    def _settle(self, request_id: int | None = None) -> None:
        """Note the end of a request on the replaced stream; close that with the last."""
        stream = self._replaced
        stream.unanswered = {
            each for each in stream.unanswered if each != request_id and self.conversation.waits_for(each)
        }
        if stream.problem is not None:
            self._fail_unanswered(stream)
        elif not stream.unanswered and not self._is_renewing:
            stream.scope.cancel(reason="no response outstanding")

    def _fail_unanswered(self, stream: _Stream) -> None:
        unanswered, stream.unanswered = stream.unanswered, set()
        for request_id in unanswered:
            self.conversation.finish(request_id, BackendExited(self.config.name, "closed the event stream of its call"))

    async def _run_stream(self, stream: _Stream) -> None:
        try:
            with stream.scope:
                async with self.http.exchange("GET", [*self.http.base_headers, EVENT_STREAM]) as response:
                    await self._read_stream(stream, response)
        except BackendError as problem:
            stream.problem = stream.problem or problem
        stream.problem = stream.problem or BackendExited(self.config.name, "closed its event stream")
        stream.connected.set()
        if stream is self._stream and self.recovery.standing is not Standing.LOST:
            self.close(stream.problem)
            raise stream.problem
        if stream is self._replaced:
            self._fail_unanswered(stream)

    async def _read_stream(self, stream: _Stream, response: Response) -> None:
        status, kind = response.status_code, media_type(response)
        if status != _OK or kind != "text/event-stream":
            text = f"answered GET with HTTP {status} and {kind or 'no content type'}, not an event stream"
            text += via(self.http.proxy)
            raise HttpRefused(self.config.name, text, status)
        intake = Intake(self.buffers, evict=True)
        parser = EventParser(self.config.max_line_bytes, intake)

        def handle_data(data: bytes) -> None:
            for event in parser.feed(data):
                if isinstance(event.data, OversizedLine):
                    self.conversation.feed_overlong(event.data, self.config.max_line_bytes)
                elif event.event == "endpoint" and stream.endpoint is None:
                    self._connect(stream, event.data)
                elif event.event == "message":
                    self.conversation.feed(event.data)
            if stream is self._replaced:
                self._settle()

        try:
            await read_pieces(response, handle_data)
        finally:
            intake.release()

    def _connect(self, stream: _Stream, data: bytes) -> None:
        """Read the address for POSTs from the first event."""
        try:
            endpoint = self.http.url.join(data.decode("utf-8-sig").strip())
        except (httpx2.InvalidURL, UnicodeDecodeError):
            endpoint = None
        if endpoint is None or not same_origin(endpoint, self.http.url):
            where = "nowhere" if endpoint is None else f"to {endpoint.scheme}://{endpoint.host}"
            text = f"requests its messages to be sent {where}, which is not the origin of its 'url'"
            stream.problem = BackendProtocol(self.config.name, text)
            stream.scope.cancel(reason=text)
            return
        stream.endpoint = endpoint
        stream.connected.set()
