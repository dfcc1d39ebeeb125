"""One HTTP request and its response as the app sees them: ASGI, or taskless.

Invariant: the response head leaves together with the first body message (an empty one with `more_body` flushes it),
a message is one write, and nothing empty is sent. The request body waits in a queue of `max_app_queue_size` chunks;
when it is full the connection stops parsing. An exchange starts no tasks; its connection owns it and ends it.

A server may be given `handle_nowait(exchange) -> bool` beside its ASGI app. The task that reads a connection calls it
for each HTTP/1.1 request whose body has arrived and has at most `MAX_WHOLE_BODY` bytes; all others (larger, chunked,
`Expect`, HTTP/2, on a connection of the reserve in `connection_limit`) go to the app directly. It must not wait. It
reads `scope` and `body`, and returns False to have the app run in a task, or True to answer itself, now or later from
any task of the same loop, with one of:

- `respond_nowait(status, headers, body)`: a whole response, whose length is added. It returns False when the client has
  disconnected. The connection buffers the unsent rest, reads no further request before it is sent, and is aborted when
  the client reads nothing for `Limits.send` s, or to keep the server's `Budget`. A response of HTTP/2 is sent by the
  app's task.
- `start(app)`: an ASGI app, run in a task of the connection, for what may wait (a stream, for instance).

Until then `on_disconnect` is called once if the client hangs up or the connection ends; it must neither wait nor
answer. The connection keeps reading meanwhile, but calls `handle_nowait` for the next request only once this response
has been sent. An exception from `handle_nowait` is logged and answered with 500.
"""

from __future__ import annotations

import contextlib
import re
import time
from collections import deque
from enum import Enum
from functools import lru_cache
from http import HTTPStatus
from itertools import groupby
from typing import TYPE_CHECKING, Any, Protocol, TypeAlias, cast
from urllib.parse import unquote

import trio
from hypercorn.logging import Logger
from hypercorn.utils import UnexpectedMessageError, suppress_body

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Iterable, Sequence

    from hypercorn.config import Config

    Message: TypeAlias = dict[str, Any]
    Receive: TypeAlias = Callable[[], Awaitable[Message]]
    Send: TypeAlias = Callable[[Message], Awaitable[None]]
    App: TypeAlias = Callable[[Message, Receive, Send], Awaitable[None]]
    NowaitHandler: TypeAlias = "Callable[[Exchange], bool]"

    from gateway.budget import Budget
    from gateway.httpd.connection_limit import Limits
    from gateway.httpd.request_parser import RequestHead

MAX_WHOLE_BODY = 2**16
"""Bytes of a request body that `handle_nowait` may get; a larger one goes to the app piece by piece."""

KNOWN_HEADERS = 1024
"""Cached rendered header lines; most responses of an app repeat the same few. The least recently used are dropped."""

MAX_KNOWN_TARGET = 256
"""Bytes of a request target that is cached; clients may send long ones, a different one each time."""

COPIED = 2**16
"""Bytes up to which joining parts costs less than another send."""

ABSOLUTE = re.compile(rb"https?://([^/]*)", re.IGNORECASE)
"""A request target in absolute form, as a client sends it to a proxy."""

HEADER_LINE = re.compile(rb"[-!#$%&'*+.^_`|~0-9A-Za-z]+: (?:[^\x00-\x08\x0a-\x1f\x7f]*)\r\n")
"""A field line of RFC 9110, 5."""

FRAMING = frozenset({b"connection", b"content-length", b"transfer-encoding"})
CONTINUE = b"HTTP/1.1 100 Continue\r\n\r\n"
LAST_CHUNK = b"0\r\n\r\n"
STATUS_LINES = {status.value: f"HTTP/1.1 {status.value} {status.phrase}\r\n".encode() for status in HTTPStatus}


class ClientGone(ConnectionError):
    """The client disconnected or stopped reading for too long; nothing more can be sent.

    ASGI requires an OSError here, so that an app that streams without listening for `http.disconnect` ends too.
    """


class ResponseState(Enum):
    """The progress of the response; it only moves forward."""

    AWAITED = 1
    HELD = 2
    """The app has given the head, which waits for the first body message."""
    STREAMING = 3
    """The head has been sent (or is about to be): an error response is no longer possible."""
    DONE = 4


@lru_cache(KNOWN_HEADERS)
def header_line(name: bytes, value: bytes) -> tuple[bytes, bytes, bytes]:
    """Return the line to send, the lower-case name and the value.

    Raises:
        ValueError: name or value is not legal.
    """
    name, value = name.strip(), value.strip()
    line, lower = b"%b: %b\r\n" % (name, value), name.lower()
    if not HEADER_LINE.fullmatch(line) or (lower == b"content-length" and not value.isdigit()):
        raise ValueError(f"header {name!r} is not legal: {value!r}")
    return line, lower, value


@lru_cache(KNOWN_HEADERS)
def split_target(target: bytes) -> tuple[str, bytes, bytes, bytes | None]:
    """Return a request target's path, raw path, query and, in absolute form, authority."""
    path, _, query = target.partition(b"?")
    absolute = ABSOLUTE.match(path)
    if absolute is not None:
        path = path[absolute.end() :] or b"/"
    return unquote(path.decode("ascii")), path, query, None if absolute is None else absolute[1]


@lru_cache(KNOWN_HEADERS)
def whole_head(status: int, headers: tuple[tuple[bytes, bytes], ...]) -> bytes | None:
    """Return a whole response's head up to its length.

    None if it depends on more than status and headers.

    Raises:
        ValueError: a header is not legal.
    """
    lines = [header_line(*map(bytes, header)) for header in headers]
    if status not in STATUS_LINES or status < 200 or status in {204, 304}:
        return None
    if not FRAMING.isdisjoint(lower for _, lower, _ in lines):
        return None
    return STATUS_LINES[status] + b"".join(line for line, _, _ in lines) + b"content-length: "


class Service:
    """What all connections of a server share: config, limits, unsent bytes, logs."""

    def __init__(self, config: Config, limits: Limits, unsent: Budget) -> None:
        self.config, self.limits, self.unsent = config, limits, unsent
        log = config.log
        self.logs_access = log.access_logger is not None or type(log).access is not Logger.access
        self.root_path = config.root_path
        self._second = -1
        self._lines = b""

    def common_lines(self) -> bytes:
        """Return the header lines that the config adds to every response (date, server, alt-svc)."""
        second = int(time.time())
        if second != self._second:
            self._second = second
            self._lines = b"".join(b"%b: %b\r\n" % header for header in self.config.response_headers("h11"))
        return self._lines

    async def note_end(self, exchange: Exchange) -> None:
        """Write the access log's line; only for `logs_access`, to save the call."""
        access = cast("Callable[..., Awaitable[None]]", self.config.log.access)
        response = exchange.response if exchange.state is ResponseState.DONE else None
        await access(exchange.scope, response, time.monotonic() - exchange.began)


class ExchangeOwner(Protocol):
    """The services that an exchange needs of its connection."""

    config: Config
    service: Service
    scheme: str
    client: tuple[str, int] | None
    server: tuple[str, int] | None
    keeps_alive: bool

    def resume(self) -> None:
        """Parse more of the body: the app has read a chunk."""
        ...

    def start(self, exchange: Exchange, app: App) -> None:
        """Run an app in a task of the connection."""
        ...

    def finish_nowait(self, exchange: Exchange, pieces: Sequence[bytes | memoryview]) -> bool:
        """Send the last message without waiting; return False if the client has disconnected."""
        ...

    async def write(self, *pieces: bytes | memoryview) -> None:
        """Send one message. Raises ClientGone."""
        ...

    def finished(self, exchange: Exchange) -> None:
        """Serve the next request, or close: this response is complete."""
        ...


class Exchange:
    """One request to the app, and its response."""

    def __init__(self, connection: ExchangeOwner, head: RequestHead) -> None:
        self._connection = connection
        self.version = head.version
        self.began = time.monotonic()
        split = split_target if len(head.target) <= MAX_KNOWN_TARGET else split_target.__wrapped__
        path, raw_path, query, authority = split(head.target)
        headers = list(head.headers)  # an app may change it, and the parser keeps the head
        if authority is not None:  # takes precedence over the Host header (RFC 9112, 3.2.2)
            headers = [item for item in headers if item[0] != b"host"]
            headers.append((b"host", authority))
        self.scope: dict[str, Any] = {
            "type": "http",
            "http_version": head.version,
            "asgi": {"spec_version": "2.1", "version": "3.0"},
            "method": head.method,
            "scheme": connection.scheme,
            "path": path,
            "raw_path": raw_path,
            "query_string": query,
            "root_path": connection.service.root_path,
            "headers": headers,
            "client": connection.client,
            "server": connection.server,
            "state": {},
            "extensions": {},
        }
        self.state = ResponseState.AWAITED
        self.started = False
        """Whether the app runs; before that the body is collected in `body`."""
        self.body = b""
        self.on_disconnect: Callable[[], None] | None = None
        """See the module."""
        self._awaits_continue = head.expects_continue
        # the request side
        self._chunks: deque[bytes] = deque()
        self.complete = False
        """Whether the request has arrived completely (the app need not have read it)."""
        self.gone = False
        """Whether the client disconnected or the response is complete: `receive` returns `http.disconnect`."""
        self._end_told = False
        self._news: trio.Event | None = None
        # the response side
        self._status = 0
        self._head: list[bytes] = []
        self._chunked = False
        self._left: int | None = None
        """Remaining bytes of the declared content-length; None without one."""
        self._no_body = False
        self.close_after = False
        """Whether the response itself demands that the connection ends with it."""
        self.response: dict[str, Any] | None = None

    # --- the request side: filled by the connection's reader, emptied by the app

    @property
    def full(self) -> bool:
        """Whether the app must read before more of the body is parsed."""
        return len(self._chunks) >= self._connection.config.max_app_queue_size

    def put(self, data: bytes) -> None:
        """Queue one piece of the request's body; an empty one is its end."""
        self._awaits_continue = False
        if not data:
            self.complete = True
        elif self.started:
            self._chunks.append(data)
        else:
            self.body += data
        if self._news is not None:
            self._wake()

    def put_disconnect(self) -> None:
        """Make `receive` end in `http.disconnect` from now on; safe to repeat."""
        self.gone = True
        if self._news is not None:
            self._wake()
        if self.on_disconnect is not None and self.state is not ResponseState.DONE:
            notify, self.on_disconnect = self.on_disconnect, None
            notify()

    def start(self, app: App) -> None:
        """Have an ASGI app answer, in a task; see the module."""
        self.started = True
        if self.body:
            self._chunks.append(self.body)
        self._connection.start(self, app)

    def _wake(self) -> None:
        news, self._news = self._news, None
        if news is not None:
            news.set()

    async def receive(self) -> dict[str, Any]:
        """Receive as in ASGI: the body, then `http.disconnect`. Cancelling loses nothing."""
        while True:
            if self._chunks:
                data = self._chunks.popleft()
                if not self.complete:
                    self._connection.resume()
                more = bool(self._chunks) or not self.complete
                self._end_told = not more
                return {"type": "http.request", "body": data, "more_body": more}  # noqa: ASYNC910 - a reschedule costs 4 us
            if self.complete and not self._end_told:
                self._end_told = True
                return {"type": "http.request", "body": b"", "more_body": False}  # noqa: ASYNC910 - the same
            if self.gone:
                await trio.lowlevel.checkpoint()  # an app that ignores it must not block the loop
                return {"type": "http.disconnect"}
            if self._awaits_continue and self.state in {ResponseState.AWAITED, ResponseState.HELD}:
                self._awaits_continue = False
                with contextlib.suppress(ClientGone):  # the next round notifies the app
                    await self._connection.write(CONTINUE)
                continue
            if self._news is None:
                self._news = trio.Event()
            await self._news.wait()

    # --- the response side

    async def send(self, message: dict[str, Any]) -> None:  # noqa: ASYNC910 - holding a head back waits for nothing
        """Send as in ASGI; see `Connection.write` for its bound.

        A body may also be a tuple of its parts.

        Raises ClientGone, UnexpectedMessageError for a message out of order, ValueError for
        headers that are not legal and for a body that breaks its content-length. Cancelled while a part of the message
        is on the wire: the connection is aborted.
        """
        kind = message["type"]
        if self.gone and self.state is not ResponseState.DONE:
            await trio.lowlevel.checkpoint()
            raise ClientGone("the client has gone")
        if kind == "http.response.body" and self.state in {ResponseState.HELD, ResponseState.STREAMING}:
            more = message.get("more_body", False)
            await self._connection.write(*self._render(message.get("body", b""), more))
            if more:
                await trio.lowlevel.checkpoint()  # a write that fits does not yield: an endless stream must
                return
            self._connection.finished(self)
            if self._connection.service.logs_access:
                await self._connection.service.note_end(self)
        elif kind == "http.response.start" and self.state is ResponseState.AWAITED:
            self._hold_head(int(message["status"]), message.get("headers", ()))
            self.response = message
        else:
            raise UnexpectedMessageError(self.state, kind)

    def respond_nowait(self, status: int, headers: Iterable[tuple[bytes, bytes]], body: bytes) -> bool:
        """Send a whole response; return False if the client has disconnected. See the module.

        Raises UnexpectedMessageError if there is a response already, ValueError for headers that are not legal and for
        a body that breaks its content-length; nothing is sent then, and another response may be.
        """
        if self.state is not ResponseState.AWAITED:
            raise UnexpectedMessageError(self.state, "http.response.start")
        if self.gone:
            return False
        connection, headers = self._connection, tuple(headers)
        self.response = {"status": status, "headers": headers}
        head = whole_head(status, headers)
        if head is not None and connection.keeps_alive and self.version == "1.1" and self.scope["method"] != "HEAD":
            self.state, self.on_disconnect = ResponseState.DONE, None
            head = b"%b%d\r\n%b\r\n" % (head, len(body), connection.service.common_lines())
            return connection.finish_nowait(self, [head + body] if len(body) <= COPIED else [head, body])
        if all(name.lower() != b"content-length" for name, _ in headers):
            headers = (*headers, (b"content-length", str(len(body)).encode()))
        try:
            self._hold_head(status, headers)
            pieces = self._render(body, more=False)
        except ValueError:
            self.state, self._left, self._chunked = ResponseState.AWAITED, None, False
            raise
        self.on_disconnect = None  # objects that it refers to need not live until the response is sent
        return connection.finish_nowait(self, pieces)

    def _hold_head(self, status: int, headers: Iterable[tuple[bytes, bytes]]) -> None:
        if not 200 <= status <= 999:
            raise ValueError(f"{status} is not a final status")
        length: bytes | None = None
        chunked = False
        lines = [STATUS_LINES.get(status) or b"HTTP/1.1 %d \r\n" % status]
        for header in headers:
            line, lower, value = header_line(*map(bytes, header))
            if lower == b"content-length":
                if length is not None and length != value:
                    raise ValueError("conflicting Content-Length headers")
                if length is None:
                    length = value
                continue
            if lower == b"transfer-encoding":
                chunked = True
                continue
            if lower == b"connection" and b"close" in value.lower():
                self.close_after = True
            lines.append(line)
        self._status, self._head = status, lines
        # How the end of the body is marked: RFC 9112, section 6.
        self._no_body = suppress_body(self.scope["method"], status)
        if length is not None and not chunked:
            lines.append(header_line(b"content-length", length)[0])
            self._left = int(length)
        elif self._no_body and status in {204, 304}:
            pass
        elif self.version >= "1.1":
            self._chunked = True
            lines.append(b"transfer-encoding: chunked\r\n")
        else:
            self.close_after = True
        self.state = ResponseState.HELD

    @property
    def ends_by_close(self) -> bool:
        """Whether only the end of the connection marks the end of the body."""
        return self._left is None and not self._chunked and not self._no_body

    def _render(self, body: bytes | tuple[bytes | memoryview, ...], more: bool) -> list[bytes | memoryview]:
        """Return the next message, the first with the head; advance the response."""
        # First, since it may refuse: then nothing of this response has been sent.
        parts = self._framed(body if isinstance(body, tuple) else (body,), more)
        if self.state is ResponseState.HELD:
            if not more and not self.complete:
                self.close_after = True  # the rest of the request is not awaited
            head = [*self._head, self._connection.service.common_lines()]
            if self.close_after or not self._connection.keeps_alive:
                self.close_after = True
                head = [line for line in head if line[:11].lower() != b"connection:"]
                head.append(b"connection: close\r\n")
            parts = [*head, b"\r\n", *parts]
        self.state = ResponseState.STREAMING if more else ResponseState.DONE
        return joined(parts)

    def _framed(self, body: Sequence[bytes | memoryview], more: bool) -> Sequence[bytes | memoryview]:
        if self._no_body:
            return []
        size = sum(map(len, body))
        if self._chunked:
            if not size:
                return [] if more else [LAST_CHUNK]
            return [b"%x\r\n" % size, *body, b"\r\n" if more else b"\r\n" + LAST_CHUNK]
        if self._left is not None:
            if size > self._left:
                raise ValueError("Too much data for declared Content-Length")
            self._left -= size
            if self._left and not more:
                raise ValueError("Too little data for declared Content-Length")
        return body if size else []


def joined(parts: Sequence[bytes | memoryview]) -> list[bytes | memoryview]:
    """Join the parts of a message, except large ones, which are not copied."""
    if len(parts) < 2:
        return [*parts]
    if len(max(parts, key=len)) <= COPIED:
        return [b"".join(parts)]
    pieces: list[bytes | memoryview] = []
    for is_large, group in groupby(parts, lambda part: len(part) > COPIED):
        found = list(group)
        pieces += found if is_large else [b"".join(found)]
    return pieces


def refusal(status: int, common: bytes) -> bytes:
    """Return a whole response without a body that ends the connection."""
    line = STATUS_LINES.get(status) or b"HTTP/1.1 %d \r\n" % status
    return b"%bcontent-length: 0\r\nconnection: close\r\n%b\r\n" % (line, common)
