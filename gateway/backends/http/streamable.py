"""A backend over streamable HTTP, in both eras (2026-07-28 and 2025-11-25 basic/transports).

The session owns a task for each request (`HttpRequest`), one for the legacy GET stream, and the recovery task, besides
those of `HttpSession`. The recovery task opens a new session when the server has lost the old one, which calls notice
only by the delay, and checks after a failed connection whether the server is still reachable; if not, the session ends.
"""

from __future__ import annotations

import logging
from typing import TYPE_CHECKING, Final

import trio

from gateway.backends.http.exchange import HttpRequest
from gateway.backends.http.recovery import Verdict, read_refusal
from gateway.backends.http.request_headers import RequestHeaders
from gateway.backends.http.session import HttpSession
from gateway.backends.http.standalone_stream import StandaloneStream
from gateway.backends.session import handshake, lists
from gateway.backends.session.handshake import Attempts
from gateway.calls import Era
from gateway.errors import BackendError, BackendTooSlow
from gateway.http_client.body import skip_body
from gateway.http_client.errors import HttpRefused

if TYPE_CHECKING:
    from gateway.backends.http.recovery import Timing
    from gateway.backends.session.contracts import SessionObserver
    from gateway.backends.session.handshake import ServerIntroduction
    from gateway.budget import Budget
    from gateway.catalog.listing import Listing
    from gateway.config import ServerConfig
    from gateway.eras.requests import Hop
    from gateway.http_client.client import HttpClient
    from gateway.http_client.pool import HeaderList
    from gateway.inflight.pending import PendingCall

MAX_PENDING_CANCELS: Final = 1_000
"""Concurrent cancellations; a server that accepts none of them is sent no further ones."""

_BAD_REQUEST: Final = 400

log = logging.getLogger("gateway.backend")


class StreamableSession(HttpSession):
    """A session over streamable HTTP; also implements `exchange.SessionContext`."""

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
        self._get_stream = StandaloneStream(self, self)
        self._exchanges: dict[int, HttpRequest] = {}
        self._pending_cancels = 0
        self._headers = RequestHeaders(config.name, http.base_headers)

    async def relist(self, feature: str) -> Listing:
        """Read the lists of one feature again."""
        return self._learn(await super().relist(feature))

    def _learn(self, listing: Listing) -> Listing:
        return self._headers.learn(listing) if self.conversation.hop.era is Era.MODERN else listing

    # `gateway.backends.session.contracts.Exchanges`

    def open(self, request_id: int, method: str, data: bytes, pending: PendingCall | None = None) -> None:
        """Send a request in an exchange of its own."""
        if method == "initialize":
            self._headers.forget()  # a refused one may have brought a session id
        exchange = self._exchanges[request_id] = HttpRequest(self, request_id, method, data, pending)

        async def run() -> None:
            try:
                await exchange.run()
            finally:
                del self._exchanges[request_id]

        self._start_request(run)

    def drop(self, request_id: int, cancelled: bytes | None) -> None:
        """Cancel a request: close its stream, which in the modern era is the cancellation."""
        exchange = self._exchanges.get(request_id)
        if exchange is not None:
            exchange.cancel(cancelled if self.conversation.hop.era is Era.LEGACY else None)

    async def send_cancelled(self, notification: bytes) -> None:
        """Notify a legacy server of a cancellation, bypassing the queue."""
        if self._pending_cancels >= MAX_PENDING_CANCELS:
            log.warning(
                "backend %r: cancellation dropped, %d are already pending", self.config.name, self._pending_cancels
            )
            return
        self._pending_cancels += 1
        try:
            await self._posts.deliver(notification)
        finally:
            self._pending_cancels -= 1

    # `gateway.backends.http.exchange.SessionContext`

    def headers(self, method: str, pending: PendingCall | None) -> HeaderList:
        """Return the headers of a request's POST."""
        headers = self._headers.post(self.conversation.hop, method, pending)
        if pending is None or pending.call.trace is None:
            return headers
        return [*headers, *pending.call.trace.headers]

    def stream_headers(self, last_id: bytes) -> HeaderList:
        """Return the headers of a legacy GET."""
        return self._headers.get(last_id)

    def assigned(self, session_id: str) -> None:
        """Keep the session id that the server gave."""
        self._headers.assign(session_id)

    async def refresh_tools(self) -> None:
        """Read the tools again for their annotations; have the supervisor do so too."""
        await self.relist("tools")
        self._listener.list_changed("tools")

    def _post(self, data: bytes) -> None:
        """Send a notification or a response. Clients send neither in the modern era over HTTP."""
        if self.conversation.hop.era is Era.LEGACY:
            super()._post(data)
        else:
            log.debug("backend %r sent a request, which modern servers must not do", self.config.name)

    async def _deliver(self, data: bytes) -> None:
        async with self.http.exchange("POST", self._headers.legacy, data) as response:
            status = response.status_code
            if status < _BAD_REQUEST:
                await skip_body(response)
                return
            refusal = await read_refusal(response, None)
            if refusal.verdict is not Verdict.UNRELATED:
                self.recovery.suspect()
            raise HttpRefused(self.config.name, f"answered HTTP {status}", status)

    # The session's life.

    async def start(self, attempts: Attempts) -> None:
        """Shake hands and list. Raises BackendError; the caller bounds the time."""
        config = self.config
        self._adopt(
            await handshake.introduce(
                self.conversation, attempts, probe_timeout=config.probe_timeout, timeout=config.connect_timeout
            )
        )
        if self.greeting.era is Era.LEGACY:
            await self._posts.flushed()  # a server that has not received `initialized` may refuse to list
            if self.has_id:
                self._nursery.start_soon(self._get_stream.run)
        self.listing = self._learn(
            await lists.list_all(self.conversation, self.greeting, timeout=config.connect_timeout)
        )
        self._nursery.start_soon(self.upkeep.run, self.greeting)

    def _adopt(self, greeting: ServerIntroduction) -> None:
        # In the step in which `introduce` returned: `initialized`, already in the queue, is sent with these headers.
        super()._adopt(greeting)
        self._headers.negotiated(greeting.version if greeting.era is Era.LEGACY else "")

    @property
    def has_id(self) -> bool:
        """Whether the server has given a session id."""
        return bool(self._headers.session_id)

    async def renew(self) -> None:
        """Start another session (2025-11-25 basic/transports, "Session Management", 4)."""
        log.warning(
            "backend %r has forgotten the session; starting another",
            self.config.name,
            extra={"event": "session_lost", "backend": self.config.name},
        )
        lost = self._headers.forget()
        wait = self.config.connect_timeout
        try:
            with trio.fail_after(wait):
                attempts = Attempts("legacy", version=self.greeting.asked)
                self._adopt(await handshake.initialize(self.conversation, attempts, timeout=wait))
                await self._posts.flushed()
        except (BackendError, trio.TooSlowError) as problem:
            self._headers.restore(lost)
            if isinstance(problem, BackendError):
                raise
            raise BackendTooSlow(self.config.name, f"did not answer within {wait:g} s") from None
        if self._get_stream.is_running:
            self._get_stream.reopen()
        elif self.has_id:
            self._nursery.start_soon(self._get_stream.run)
        self.upkeep.forget()
        self.missed()

    async def aclose(self) -> None:
        """End the session at the server; bounded, and errors are ignored."""
        if not self.has_id:
            return
        with trio.CancelScope(shield=True, deadline=trio.current_time() + self.timing.goodbye_timeout):
            try:
                async with self.http.exchange("DELETE", self._headers.delete()) as response:
                    await skip_body(response)
            except BackendError as problem:
                log.debug("ending the session: %s", problem)
