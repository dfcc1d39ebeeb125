"""A backend over HTTP+SSE, the transport of 2024-11-05 (basic/transports): one stream comes, POSTs go.

The stream is the session: when it ends, the backend is gone. Its first event names the address for POSTs, which must be
of the same origin, since all headers go there too. The session owns a task that reads and one for each request on its
way, besides those of `HttpSession`; answers come on the stream, on which nothing says whose call a server request
belongs to.
"""

from __future__ import annotations

import logging
from contextlib import asynccontextmanager
from functools import partial
from typing import TYPE_CHECKING, Final

import httpx2
import trio

from gateway.backends import handshake, lists
from gateway.backends.http_client import (
    MAX_ERROR_BYTES,
    BodyTooLong,
    HttpRefused,
    media_type,
    open_http_client,
    read_body,
    read_pieces,
    same_origin,
)
from gateway.backends.http_session import HttpSession, carried
from gateway.backends.opening import Attempts
from gateway.backends.request_headers import EVENT_STREAM, JSON_BODY
from gateway.backends.sse_events import Event, EventParser
from gateway.errors import BackendError, BackendExited, BackendProtocol, BackendUnfit
from gateway.lines import Overlong

if TYPE_CHECKING:
    from collections.abc import AsyncGenerator

    from gateway.backends.http_client import HttpClient
    from gateway.backends.session import Listener
    from gateway.backends.ticket import Ticket
    from gateway.config import ServerConfig
    from gateway.eras.requests import Hop

_OK: Final = 200
_REDIRECT: Final = 300
_NO_SESSION: Final = frozenset({404, 410})
"""Statuses of a POST that say that the session is gone, though its stream may still be open."""

log = logging.getLogger("gateway.backend")


class SseSession(HttpSession):
    """A session over one event stream."""

    def __init__(self, config: ServerConfig, http: HttpClient, listener: Listener, hop: Hop) -> None:
        super().__init__(config, http, listener, hop)
        self._endpoint: httpx2.URL | None = None
        self._connected = trio.Event()
        self._stream_scope = trio.CancelScope()
        self._headers = httpx2.Headers([*http.base_headers, JSON_BODY])

    # `gateway.backends.conversation.Exchanges`

    def open(self, request_id: int, method: str, data: bytes, ticket: Ticket | None = None) -> None:
        """Send a request in a POST of its own."""
        del method
        self._nursery.start_soon(self._send, request_id, data, ticket)

    def drop(self, request_id: int, cancelled: bytes | None) -> None:
        """Cancel a request."""
        del request_id
        if cancelled is not None:
            self._posts.post(cancelled)

    async def _send(self, request_id: int, body: bytes, ticket: Ticket | None = None) -> None:
        """POST a request; its answer comes on the stream, and only a refusal ends it here."""
        try:
            await self._deliver(body, ticket)
        except BackendError as problem:
            self.conversation.fail(request_id, problem)
            if isinstance(problem, HttpRefused) and problem.status in _NO_SESSION and self._problem is None:
                self._problem = BackendExited(self.config.name, f"has forgotten the session: {problem.reason}")
                self._stream_scope.cancel(reason="the session is gone")

    async def _deliver(self, data: bytes, ticket: Ticket | None = None) -> None:
        name = self.config.name
        async with self.http.exchange("POST", self._headers, data, url=self._endpoint, ticket=ticket) as response:
            try:
                body = await read_body(response, MAX_ERROR_BYTES)
            except BodyTooLong:
                log.debug("backend %r answered a POST at length", name)
                body = b""
            status = response.status_code
            if status >= _REDIRECT:
                kind = media_type(response) or "no content type"
                raise HttpRefused(name, f"answered a POST with HTTP {status} and {kind}", status, body)

    # The session's life.

    async def start(self, attempts: Attempts) -> None:
        """Shake hands and list. Raises BackendError; the caller bounds the time."""
        config, conversation = self.config, self.conversation
        await self._connected.wait()
        wait = config.connect_timeout
        self.greeting = await handshake.greet(
            conversation, era="legacy", probe_timeout=wait, timeout=wait, attempts=attempts
        )
        await self._posts.flushed()  # a server that has not heard `initialized` may refuse to list
        self.listing = await lists.list_all(conversation, self.greeting, timeout=wait)
        self._nursery.start_soon(self.upkeep.run, self.greeting)

    async def _carry(self) -> None:
        name = self.config.name
        try:
            with self._stream_scope:
                async with self.http.exchange("GET", [*self.http.base_headers, EVENT_STREAM]) as response:
                    await self._read_stream(response)
        except BackendError as problem:
            self._problem = self._problem or problem
        problem = self._problem or BackendExited(name, "closed its event stream")
        self.close(problem)
        raise problem

    async def _read_stream(self, response: httpx2.Response) -> None:
        status, kind = response.status_code, media_type(response)
        if status != _OK or kind != "text/event-stream":
            text = f"answered GET with HTTP {status} and {kind or 'no content type'}, which is no event stream"
            raise HttpRefused(self.config.name, text, status)
        parser = EventParser(self.config.max_line_bytes)

        def take(data: bytes) -> None:
            for event in parser.feed(data):
                self._take(event)

        await read_pieces(response, take)

    def _take(self, event: Event) -> None:
        if isinstance(event.data, Overlong):
            self.conversation.feed_overlong(event.data, self.config.max_line_bytes)
        elif event.event == "endpoint":
            self._connect(event.data)
        elif event.event == "message":
            self.conversation.feed(event.data)

    def _connect(self, data: bytes) -> None:
        """Take the address for POSTs; only the first one counts."""
        if self._endpoint is not None:
            return
        try:
            endpoint = self.http.url.join(data.decode("utf-8-sig").strip())
        except (httpx2.InvalidURL, UnicodeDecodeError):
            endpoint = None
        if endpoint is None or not same_origin(endpoint, self.http.url):
            where = "nowhere" if endpoint is None else f"to {endpoint.scheme}://{endpoint.host}"
            text = f"wants its messages sent {where}, which is not the origin of its 'url'"
            self._problem = BackendProtocol(self.config.name, text)
            self._stream_scope.cancel(reason=text)
            return
        self._endpoint = endpoint
        self._connected.set()


@asynccontextmanager
async def open_sse(
    config: ServerConfig,
    listener: Listener,
    *,
    hop: Hop,
    auth: httpx2.Auth | None = None,
    attempts: Attempts | None = None,
) -> AsyncGenerator[SseSession]:
    """Connect, shake hands, list; on leaving, close the stream. Arguments and errors are those of `open_streamable`."""
    if config.era == "modern":
        raise BackendUnfit(config.name, "has era 'modern', which the SSE transport does not know")
    async with open_http_client(config, auth) as http:
        session = SseSession(config, http, listener, hop)
        attempts = attempts or Attempts(config.era, pinned=config.era != "auto")
        deadline = attempts.deadline(config.connect_timeout)
        async with carried(session, partial(session.start, attempts), deadline):
            yield session
