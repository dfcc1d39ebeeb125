"""HTTP/1.1 requests from bytes, without I/O (RFC 9112), bounded and framed around llhttp.

llhttp judges the syntax. `receive` adds bytes. `next_event` returns a `RequestHead`, then the pieces of its body, then
`END_OF_MESSAGE`; None if it needs more bytes. `take_body` returns a body that arrived with its head. A request that
breaks the protocol raises `ProtocolError`; nothing follows it.

llhttp can neither pause nor stop at the end of a request, so it is given one head at a time, and of a chunked body no
more than up to the next empty line: a request ends where such a part ends. A body of known length is counted here. Data
after a request waits in the buffer, whose size the caller bounds by not calling `receive`.
"""

from __future__ import annotations

from typing import Final, NamedTuple

import httptools

EMPTY_LINE: Final = b"\r\n\r\n"
END_OF_MESSAGE: Final = b""
CHUNKED_HEAD: Final = b"POST / HTTP/1.1\r\ntransfer-encoding: chunked\r\n\r\n"
"""Advances a parser to the start of a chunked body."""
FRAMING_ALLOWANCE: Final = 16
"""Bytes of chunk sizes and extensions per byte of a body; beyond that, a separate limit applies."""


class ProtocolError(Exception):
    """The request breaks the protocol; `status` is that of the response."""

    def __init__(self, status: int) -> None:
        super().__init__(f"the request is refused with status {status}")
        self.status = status


class RequestHead(NamedTuple):
    """One request line and its header fields, whose names are in lower case."""

    method: str
    target: bytes
    version: str
    headers: list[tuple[bytes, bytes]]
    length: int | None
    """Bytes of the body; None for a chunked one."""
    keeps_alive: bool
    """False if this request is the last one of its connection."""
    expects_continue: bool


class RequestParser:
    """The requests of one connection, one after another."""

    def __init__(self, max_head: int) -> None:
        """Refuse more than `max_head` bytes of head, or of framing in a body."""
        self._max_head = max_head
        self._buffer = bytearray()
        self._searched = 0
        self._head: RequestHead | None = None
        self._left = 0
        self._chunks: _ChunkedBody | None = None
        # A client sends the same head repeatedly: it is parsed once.
        self._last_data: bytes = b""
        self._last_head: RequestHead | None = None
        self._llhttp: httptools.HttpRequestParser
        self._target = b""
        self._headers: list[tuple[bytes, bytes]] = []

    @property
    def buffered(self) -> int:
        """The number of buffered bytes."""
        return len(self._buffer)

    def receive(self, data: bytes) -> None:
        """Buffer received bytes."""
        self._buffer += data

    def next_event(self) -> RequestHead | bytes | None:
        """Return the next part of a request; see the module."""
        if self._head is None:
            return self._next_head()
        if self._chunks is not None:
            piece = self._chunks.decode(self._buffer)
            ended = self._chunks.ended
        else:
            piece = bytes(memoryview(self._buffer)[: self._left])
            del self._buffer[: len(piece)]
            self._left -= len(piece)
            ended = not self._left
        if piece:
            return piece
        if not ended:
            return None
        self._head = self._chunks = None
        return END_OF_MESSAGE

    def take_body(self) -> bytes | None:
        """Return a complete body after its head, and end the request; else None."""
        if self._chunks is not None or len(self._buffer) < self._left:
            return None
        body = bytes(memoryview(self._buffer)[: self._left])
        del self._buffer[: self._left]
        self._left, self._head = 0, None
        return body

    def _next_head(self) -> RequestHead | None:
        buffer = self._buffer
        if buffer and buffer[0] <= 0x20:  # TLS, or an empty line, which llhttp would skip
            raise ProtocolError(400)
        end = buffer.find(EMPTY_LINE, self._searched) + len(EMPTY_LINE)
        if end < len(EMPTY_LINE):
            self._searched = max(0, len(buffer) - len(EMPTY_LINE) + 1)
        if max(end, self._searched) > self._max_head:
            raise ProtocolError(431)
        if end < len(EMPTY_LINE):
            if buffer.count(b"\n") > buffer.count(b"\r\n"):  # its end would never be found
                raise ProtocolError(400)
            return None
        data = bytes(memoryview(buffer)[:end])
        del buffer[:end]
        self._searched = 0
        if data != self._last_data:
            self._last_data, self._last_head = data, None
            self._headers = []
            self._llhttp = httptools.HttpRequestParser(self)
            try:
                self._llhttp.feed_data(data)
            except httptools.HttpParserUpgrade:  # not granted: an ordinary request
                pass
            except httptools.HttpParserError as error:
                refusal = error.__context__
                raise refusal if isinstance(refusal, ProtocolError) else ProtocolError(400) from error
            head = self._last_head
            # llhttp also accepts RTSP, HTTP/0.9 and more than one space.
            if head is None or not data.startswith(
                b"%b HTTP/%b\r\n" % (head.target, head.version.encode()), len(head.method) + 1
            ):
                self._last_head = None
        head = self._head = self._last_head
        if head is None:
            raise ProtocolError(400)
        if head.length is None:
            self._chunks = _ChunkedBody(self._max_head)
        else:
            self._left = head.length
        return head

    # called by llhttp

    def on_url(self, target: bytes) -> None:
        """Take the request target."""
        self._target = target

    def on_header(self, name: bytes, value: bytes) -> None:
        """Take one header field."""
        self._headers.append((name.lower(), value.rstrip(b" \t")))

    def on_headers_complete(self) -> None:
        """Check the rules that llhttp leaves to its caller. Raises ProtocolError."""
        fields = dict(self._headers)
        method, version = self._llhttp.get_method().decode("ascii"), self._llhttp.get_http_version()
        is_current = version == "1.1"
        hosts = len(self._values(b"host")) if len(fields) < len(self._headers) else int(b"host" in fields)
        if hosts > 1 or not (hosts if is_current else version == "1.0"):
            raise ProtocolError(400)
        length: int | None = int(fields.get(b"content-length", 0))
        if b"transfer-encoding" in fields:
            if self._values(b"transfer-encoding") != [b"chunked"]:
                raise ProtocolError(501)
            if not is_current:
                raise ProtocolError(400)
            length = None
        keeps_alive = is_current and method != "CONNECT" and self._llhttp.should_keep_alive()
        expectations = b",".join(self._values(b"expect")).split(b",") if b"expect" in fields else ()
        expects_continue = is_current and b"100-continue" in map(bytes.strip, expectations)
        self._last_head = RequestHead(
            method, self._target, version, self._headers, length, keeps_alive, expects_continue
        )

    def _values(self, name: bytes) -> list[bytes]:
        """Return the values of all fields of this name, in lower case."""
        return [value.lower() for each, value in self._headers if each == name]


class _ChunkedBody:
    """The chunks of one body and its trailers, which are checked and dropped."""

    def __init__(self, max_framing: int) -> None:
        self.ended = False
        self._max_framing = max_framing
        self._framing = 0
        self._pieces: list[bytes] = []
        self._fault: ProtocolError | None = None
        self._last = b""
        self._llhttp = httptools.HttpRequestParser(self)
        self._llhttp.feed_data(CHUNKED_HEAD)

    def decode(self, buffer: bytearray) -> bytes:
        """Take from `buffer` up to the end of the body, and return its data."""
        while buffer and not self.ended and self._fault is None:
            across = (self._last + buffer[: len(EMPTY_LINE) - 1]).find(EMPTY_LINE)  # begins in the previous part
            found = buffer.find(EMPTY_LINE) if across < 0 else across - len(self._last)
            part = bytes(memoryview(buffer)[: len(buffer) if across < 0 and found < 0 else found + len(EMPTY_LINE)])
            del buffer[: len(part)]
            self._last = (self._last + part)[1 - len(EMPTY_LINE) :]
            try:
                self._llhttp.feed_data(part)
            except httptools.HttpParserError:
                self._fault = ProtocolError(400)
            size = sum(map(len, self._pieces))
            self._framing = max(0, self._framing + len(part) - size * (1 + FRAMING_ALLOWANCE))
            if self._framing > self._max_framing:
                self._fault = ProtocolError(431)
            if self._pieces:
                break
        if self._fault is not None and not self._pieces:
            raise self._fault
        data = b"".join(self._pieces)
        self._pieces.clear()
        return data

    # called by llhttp

    def on_body(self, data: bytes) -> None:
        """Take the data of a chunk, or a part of it."""
        self._pieces.append(data)

    def on_message_complete(self) -> None:
        """Note the end."""
        self.ended = True
