"""One HTTP exchange: request in, one JSON document or a stream of SSE events out.

All HTTP of a frontend goes through here, so that an exchange stays a value with few operations that could cross a
process boundary. A client that has disconnected raises `ClientGone`; nothing is buffered for it.
"""

from __future__ import annotations

import math
import re
from contextlib import nullcontext
from functools import lru_cache, partial
from typing import TYPE_CHECKING, Any, Final, Protocol

from gateway import jsonrpc
from gateway.access.refusal import Refusal
from gateway.budget import Intake
from gateway.calls import ANYBODY, at_endpoint
from gateway.errors import Busy, Revoked
from gateway.large import joined

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Iterable, MutableMapping
    from contextlib import AbstractContextManager

    from gateway.access.principals import Principal
    from gateway.budget import Budget
    from gateway.calls import Identity, NameChoice
    from gateway.jsonrpc import Body, Id

    Scope = MutableMapping[str, Any]
    Receive = Callable[[], Awaitable[MutableMapping[str, Any]]]
    Send = Callable[[MutableMapping[str, Any]], Awaitable[None]]

JSON: Final = (b"content-type", b"application/json")
EVENT_STREAM: Final = (b"content-type", b"text/event-stream")
SSE_HEADERS: Final = (
    EVENT_STREAM,
    (b"cache-control", b"no-cache"),
    (b"x-accel-buffering", b"no"),  # proxies must not buffer events (basic/transports/streamable-http)
)
INVALID_TOKEN: Final = (b"www-authenticate", b'Bearer error="invalid_token"')
LOCAL: Final = frozenset({None, "127.0.0.1", "::1", "::ffff:127.0.0.1"})
"""Peers on this machine; a Unix socket has no address."""
MAX_ADDRESS: Final = 64
"""Maximum characters of a client address from a proxy; IPv6 with a zone fits."""
KEEP_ALIVE: Final = b": keep-alive\r\n\r\n"
RETRY_SOON: Final = (b"retry-after", b"1")
"""Of a refusal because all buffers together are full."""
UNCOMPRESSED: Final = (b"accept-encoding", b"identity")
"""Tells a client whose compressed body was refused to send it uncompressed (RFC 9110, 12.5.3)."""
MAX_COPIED: Final = 65_536
"""Maximum bytes of a message whose event is sent in one piece; larger ones are not copied."""
REMEMBERED: Final = 256
"""Accept headers whose interpretation is cached."""
MAX_SHOWN: Final = 100
"""Characters of a header's value quoted in an error."""
_NO_WEIGHT = re.compile(rb"0(?:\.0*)?")


class ClientGone(Exception):
    """The client has closed the connection."""


class Request(Protocol):
    """A whole request that can be answered without a task. Implemented by `gateway.httpd.exchange.Exchange`."""

    on_disconnect: Callable[[], None] | None
    """Called once if the client disconnects before there is a response. It must not wait."""
    body: bytes

    @property
    def scope(self) -> Scope:
        """The ASGI scope."""
        ...

    async def receive(self) -> MutableMapping[str, Any]:
        """ASGI's `receive`."""
        ...

    async def send(self, message: Any) -> None:
        """ASGI's `send`."""
        ...

    def respond_nowait(self, status: int, headers: Iterable[tuple[bytes, bytes]], body: bytes) -> bool:
        """Send a whole response without waiting; return False if the client has disconnected."""
        ...

    def start(self, app: Any) -> None:
        """Have an ASGI app answer, in a task of the connection."""
        ...


class Exchange:
    """One request and its response."""

    __slots__ = (
        "_begun",
        "_complete",
        "_receive",
        "_request",
        "_send",
        "_streaming",
        "accepts_json",
        "accepts_stream",
        "always",
        "headers",
        "names",
        "principal",
        "scope",
        "valid_until",
        "view",
    )

    def __init__(
        self, scope: Scope, receive: Receive, send: Send, view: str | None = None, request: Request | None = None
    ) -> None:
        """Make an exchange; with a `request`, it can be answered without a task."""
        self.scope = scope
        self._request = request
        pairs = scope["headers"]
        self.headers: dict[bytes, bytes] = dict(pairs)
        accept = self.headers.get(b"accept")
        if accept is not None and len(self.headers) != len(pairs):  # it may be split over several lines
            accept = b",".join(value for name, value in pairs if name == b"accept")
        self.accepts_json, self.accepts_stream = accepted(accept)
        self._receive = receive
        self._send = send
        self._begun = False
        self._streaming = False
        self._complete = False
        self.always: tuple[tuple[bytes, bytes], ...] = ()
        """Headers of every response."""
        self.principal: Principal | None = None
        """The authenticated principal, if the gateway requires authentication."""
        self.valid_until = math.inf
        """On the loop's clock: the time at which the authentication expires."""

        self.view = view
        """The view whose endpoint was used, None for the gateway's own."""
        self.names: NameChoice | None = None
        """The names chosen in the address."""

    @property
    def identity(self) -> Identity:
        """The request's principal and endpoint; equal ones are nearly always one object."""
        if self.principal is not None:
            return self.principal.identity_at(self.view, self.names)
        return ANYBODY if self.view is self.names is None else at_endpoint(ANYBODY, self.view, self.names)

    @property
    def address(self) -> str | None:
        """The client's network address; None over a Unix socket."""
        peer = self.scope.get("client")
        return (str(peer[0]) or None) if peer else None

    @property
    def counted_address(self) -> str | None:
        """The address that limits count a request by.

        Behind a reverse proxy on this machine that is the address that the proxy adds. If the proxy adds none, a client
        may forge one, which only gives it a share apart from that of the proxy's other clients.
        """
        address = self.address
        if address in LOCAL:
            given = self.headers.get(b"x-forwarded-for", b"").decode("latin-1")
            return given.rpartition(",")[2].strip()[:MAX_ADDRESS] or address
        return address

    def while_valid(self) -> AbstractContextManager[object]:
        """A block that ends when the client's key or token is revoked or expires."""
        return nullcontext() if self.principal is None else self.principal.track_stream(self.valid_until)

    @property
    def begun(self) -> bool:
        """Whether a response has been started."""
        return self._begun

    @property
    def method(self) -> str:
        """The HTTP method."""
        return self.scope["method"]

    async def read_body(self, most: int, intake: Intake | None = None) -> bytes | None:
        """Read the whole body; return None if it is larger than `most` bytes.

        Raises:
            ClientGone: the client disconnected before its body was complete.
            Busy: `intake` refuses the body, since all buffers together are full.
        """
        length = self.headers.get(b"content-length", b"")
        if length.isdigit() and int(length) > most:
            return None
        parts: list[bytes] = []
        size = 0
        while True:
            message = await self._receive()
            if message["type"] == "http.disconnect":
                raise ClientGone
            part: bytes = message.get("body", b"")
            size += len(part)
            if size > most:
                return None
            if intake is not None and not intake.fits(size):
                text = "too many bytes are buffered (max_buffered_bytes); try again"
                raise Busy(text)
            parts.append(part)
            if not message.get("more_body", False):
                return parts[0] if len(parts) == 1 else b"".join(parts)

    # Without a task; only for an exchange made with a request.

    def on_disconnect(self, notify: Callable[[], None] | None) -> None:
        """Have `notify` called if the client disconnects, until a task serves the exchange."""
        if self._request is not None:
            self._request.on_disconnect = notify

    def respond_nowait(self, status: int, body: Body, headers: tuple[tuple[bytes, bytes], ...] = (JSON,)) -> None:
        """Send a whole response without waiting; a no-op if the client has disconnected.

        A body in parts is sent by a task.
        """
        if not isinstance(body, bytes):
            self.start_task(partial(self._document, status, body, *headers))
        elif self._request is not None:
            self._request.respond_nowait(status, headers, body)

    def start_task(self, serve: Callable[[], Awaitable[None]]) -> None:
        """Have a task of the connection serve the rest of the exchange."""

        async def app(_scope: Scope, _receive: Receive, _send: Send) -> None:
            try:
                await serve()
            except* ClientGone:
                pass

        if self._request is not None:
            self._request.on_disconnect = None
            self._request.start(app)

    # In a task.

    async def hung_up(self) -> None:
        """Wait until the client has disconnected. The body must have been read."""
        while (await self._receive())["type"] != "http.disconnect":
            pass

    async def message(self, message: bytes, *headers: tuple[bytes, bytes]) -> None:
        """Answer 200 with one message: as an event if the client accepts no JSON."""
        if self.accepts_json or not self.accepts_stream:
            await self.json(200, message, *headers)
            return
        await self._open_stream(*headers)
        await self.event(message)
        await self.end_stream()

    async def json(self, status: int, body: Body, *headers: tuple[bytes, bytes]) -> None:
        """Answer with one JSON document."""
        await self._document(status, body, JSON, *headers, *self.always)

    async def refuse(
        self,
        status: int,
        text: str,
        *headers: tuple[bytes, bytes],
        code: int = jsonrpc.INVALID_REQUEST,
        request_id: Id | None = None,
    ) -> None:
        """Answer with a JSON-RPC error."""
        await self.json(status, jsonrpc.error_response(request_id, code, text), *headers)

    async def text(self, body: bytes, media_type: bytes, *headers: tuple[bytes, bytes]) -> None:
        """Answer with one document that is not JSON."""
        await self._document(200, body, (b"content-type", media_type), *headers)

    async def empty(self, status: int, *headers: tuple[bytes, bytes]) -> None:
        """Answer without a body."""
        await self._document(status, b"", *headers, *self.always)

    async def _document(self, status: int, body: Body, *headers: tuple[bytes, bytes]) -> None:
        """Send a whole response; `end_stream` can abort it until the client has read it.

        The parts of a body are sent as one message, so that all of them count as unsent at once.
        """
        if self._request is None and not isinstance(body, bytes):  # another server takes only bytes
            body = await joined(body)
        length = len(body) if isinstance(body, bytes) else sum(map(len, body))
        await self._start(status, (b"content-length", str(length).encode()), *headers)
        await self._emit({"type": "http.response.body", "body": body})
        self._complete = True

    async def event(self, message: Body, event_id: bytes = b"") -> None:
        """Send one message as an SSE event; the first one opens the stream.

        It has an id if the stream can be resumed.
        """
        head = b"event: message\r\nid: " + event_id + b"\r\ndata: " if event_id else b"event: message\r\ndata: "
        if self._request is None and not isinstance(message, bytes):  # another server takes only bytes
            message = await joined(message)
        if not isinstance(message, bytes):
            await self.frames((head, *message, b"\r\n\r\n"))
            return
        if len(message) <= MAX_COPIED:
            await self.frames(head + message + b"\r\n\r\n")
            return
        for part in (head, message, b"\r\n\r\n"):
            await self.frames(part)

    async def mark(self, event_id: bytes, *, retry: int | None = None) -> None:
        """Send an event without data, whose id the client can resume after.

        `retry` is the client's minimum wait before that, in milliseconds.
        """
        wait = b"" if retry is None else b"retry: %d\r\n" % retry
        await self.frames(b"id: " + event_id + b"\r\n" + wait + b"data: \r\n\r\n")

    async def keep_alive(self) -> None:
        """Send an SSE comment, to keep intermediaries and clients from timing out."""
        await self.frames(KEEP_ALIVE)

    async def frames(self, data: Body) -> None:
        """Send SSE events that are already framed, or parts of one."""
        if not self._streaming:
            await self._open_stream()
        await self._emit({"type": "http.response.body", "body": data, "more_body": True})

    async def end_stream(self) -> None:
        """End the response, as an empty stream if nothing was sent; no-op once complete.

        Raises:
            ClientGone: a document was cut off, and only closing its connection can tell the client.
        """
        if self._complete:
            return
        if not self._begun:
            await self._open_stream()
        if not self._streaming:
            raise ClientGone
        self._complete = True
        await self._emit({"type": "http.response.body", "body": b""})

    async def _open_stream(self, *headers: tuple[bytes, bytes]) -> None:
        self._streaming = True
        await self._start(200, *SSE_HEADERS, *headers, *self.always)

    async def _start(self, status: int, *headers: tuple[bytes, bytes]) -> None:
        self._begun = True
        await self._emit({"type": "http.response.start", "status": status, "headers": list(headers)})

    async def _emit(self, message: MutableMapping[str, Any]) -> None:
        try:
            await self._send(message)
        except OSError:
            raise ClientGone from None


@lru_cache(REMEMBERED)
def accepted(accept: bytes | None) -> tuple[bool, bool]:
    """Return whether an Accept header allows JSON, and event streams; without one both are allowed."""
    return _accepts(accept or b"*", b"application/json"), _accepts(accept or b"*", b"text/event-stream")


def _accepts(accept: bytes, media_type: bytes) -> bool:
    """Return whether an Accept header allows a media type (RFC 9110, 12.5.1).

    The most specific range decides.
    """
    found: dict[bytes, bool] = {}
    for element in accept.lower().split(b","):
        media_range, *parameters = (part.strip() for part in element.split(b";"))
        if media_range:
            media_range = b"*/*" if media_range == b"*" else media_range  # as Java's own client writes it
            weight = next((part[2:].strip() for part in parameters if part.startswith(b"q=")), b"1")
            found[media_range] = found.get(media_range, False) or _NO_WEIGHT.fullmatch(weight) is None
    ranges = (media_type, media_type.partition(b"/")[0] + b"/*", b"*/*")
    return next((found[one] for one in ranges if one in found), not found)


def compressed(exchange: Exchange) -> str | None:
    """Return the compression of a request's body (RFC 9110, 8.4); None without one."""
    value = exchange.headers.get(b"content-encoding", b"").decode("latin-1")
    names = [name for name in map(str.strip, value.split(",")) if name and name.lower() != "identity"]
    return ", ".join(names)[:MAX_SHOWN] or None


def explain_compressed(encoding: str) -> str:
    """Return the reason for refusing a compressed body."""
    return f"the Content-Encoding {encoding!r} is not supported; send the body uncompressed"


async def read_json(exchange: Exchange, most: int, buffers: Budget) -> bytes | None:
    """Read the JSON body of a POST; refuse an invalid one and return None.

    `buffers` counts it while it arrives. Raises ClientGone.
    """
    encoding = compressed(exchange)
    if encoding is not None:
        text = explain_compressed(encoding)
        await exchange.refuse(415, text, UNCOMPRESSED)
        return None
    if not exchange.headers.get(b"content-type", b"").lower().startswith(b"application/json"):
        text = "the Content-Type must be application/json"
        await exchange.refuse(415, text)
        return None
    intake = Intake(buffers, evict=False)
    try:
        body = await exchange.read_body(most, intake)
    except Busy as exc:
        await exchange.refuse(503, str(exc), RETRY_SOON, code=jsonrpc.INTERNAL_ERROR)
        return None
    finally:
        intake.release()
    if body is None:
        text = f"the body is larger than {most} bytes (gateway.max_body_bytes)"
        await exchange.refuse(413, text)
    elif exchange.principal is not None and exchange.principal.ended:  # while the body was arriving
        await exchange.json(401, Refusal(401, Revoked.code, str(Revoked())).encode(), INVALID_TOKEN)
        return None
    return body


class NullExchange(Exchange):
    """A null exchange for a disconnected client that may return: sends nothing."""

    __slots__ = ()

    def __init__(self) -> None:
        super().__init__({"headers": [], "method": "GET"}, self._report_disconnect, self._discard)

    async def _report_disconnect(self) -> MutableMapping[str, Any]:
        return {"type": "http.disconnect"}

    async def _discard(self, message: MutableMapping[str, Any]) -> None:
        del message
