"""HTTP/1.1 responses from bytes, without I/O (RFC 9112).

llhttp judges the syntax; this module limits and frames. `receive` adds bytes and `receive_eof` the end of the
connection; then `is_answered` says whether the head is complete, `pop_pieces` returns the parts of the body since the
last `receive`, and `is_complete` says whether they were the last. A response that breaks the protocol raises
`InvalidResponse`.
"""

from __future__ import annotations

from typing import Final

import httptools

MAX_FRAMING: Final = 102_400
"""Bytes of heads, chunk sizes, extensions and trailers beyond `FRAMING_ALLOWANCE`."""
FRAMING_ALLOWANCE: Final = 16
"""Bytes of chunk sizes and extensions per byte of a body; an event is often a chunk of its own."""
MAX_FIELDS: Final = 1_000
"""Header fields of a response; beyond a hundred, they are an error or an attack."""
_VERSIONS: Final = frozenset({"1.1", "1.0"})
_FIRST_FINAL: Final = 200
_SWITCHING: Final = 101
_BODILESS: Final = frozenset({204, 304})


class InvalidResponse(Exception):
    """The response breaks the protocol."""


class ResponseParser:
    """The responses of one connection, each to a GET, POST or DELETE.

    Interim responses are dropped.
    """

    def __init__(self) -> None:
        self._llhttp = httptools.HttpResponseParser(self)
        self.expect()

    def expect(self) -> None:
        """Prepare for the response to the next request."""
        self.status_code = 0
        self.headers: dict[str, str] = {}
        """The fields; names are in lower case, and fields of the same name are joined by commas."""
        self.cookies: list[str] = []
        """The values of `Set-Cookie`."""
        self.is_answered = False
        """Whether the head is complete."""
        self.is_complete = False
        self.keeps_alive = False
        """Whether the connection can carry another request after this response."""
        self._framing = 0
        self._fields = 0
        self._pieces: list[bytes] = []
        self._ends_with_connection = False

    def receive(self, data: bytes) -> None:
        """Parse received bytes. Raises InvalidResponse."""
        try:
            self._llhttp.feed_data(data)
        except (httptools.HttpParserError, httptools.HttpParserUpgrade) as error:
            self.keeps_alive = False
            if not self.is_complete:
                cause = error.__context__
                raise InvalidResponse(str(cause if isinstance(cause, InvalidResponse) else error)) from error
        body = sum(map(len, self._pieces))
        self._framing = max(0, self._framing + len(data) - body * (1 + FRAMING_ALLOWANCE))
        if self._framing > MAX_FRAMING and not self.is_complete:
            raise InvalidResponse(f"more than {MAX_FRAMING} bytes of header fields or framing")

    def receive_eof(self) -> None:
        """Note the end of the connection, which ends some bodies."""
        self.keeps_alive = False
        self.is_complete = self.is_complete or self._ends_with_connection

    def pop_pieces(self) -> list[bytes]:
        """Return the parts of the body that have arrived since the last time."""
        pieces, self._pieces = self._pieces, []
        return pieces

    # called by llhttp

    def on_message_begin(self) -> None:
        """Note a response to no request, even if only its first byte has arrived."""
        self.keeps_alive = self.keeps_alive and not self.is_complete

    def on_header(self, name: bytes, value: bytes) -> None:
        """Take one header field, or drop a trailer."""
        if self.is_answered:
            self.keeps_alive = self.keeps_alive and not self.is_complete  # a response to no request
            return
        self._fields += 1
        if self._fields > MAX_FIELDS:
            raise InvalidResponse(f"more than {MAX_FIELDS} header fields")
        key = name.decode("ascii").lower()
        try:
            text = value.decode().rstrip(" \t")
        except UnicodeDecodeError:
            text = value.decode("latin-1").rstrip(" \t")
        if key == "set-cookie":
            self.cookies.append(text)
        elif key in self.headers:
            self.headers[key] += f", {text}"
        else:
            self.headers[key] = text

    def on_headers_complete(self) -> None:
        """Check the rules that llhttp leaves to its caller. Raises InvalidResponse."""
        if self.is_answered:
            self.keeps_alive = False  # a response to no request
            return
        llhttp, headers = self._llhttp, self.headers
        status = self.status_code = llhttp.get_status_code()
        version = llhttp.get_http_version()
        if version not in _VERSIONS:
            raise InvalidResponse("not HTTP/1.1")
        coding = headers.get("transfer-encoding")
        is_framed = coding is not None or "content-length" in headers
        if status < _FIRST_FINAL:
            if status == _SWITCHING or is_framed:
                raise InvalidResponse(f"an interim response with status {status} that was not asked for")
            self.headers, self.cookies = {}, []
            return
        if coding is not None and coding.lower() != "chunked":
            raise InvalidResponse("a Transfer-Encoding other than chunked")
        self.is_answered = True
        self.keeps_alive = version == "1.1" and llhttp.should_keep_alive()
        if status in _BODILESS:  # llhttp would wait for the body that the header fields announce
            self.is_complete = True
            self.keeps_alive = self.keeps_alive and not is_framed
        else:
            self._ends_with_connection = not is_framed

    def on_body(self, data: bytes) -> None:
        """Take a part of the body."""
        if self.is_complete:
            self.keeps_alive = False
        else:
            self._pieces.append(data)

    def on_message_complete(self) -> None:
        """Note the end."""
        self.is_complete = self.is_answered
