"""Responses as their readers see them, and bodies: decoded by their Content-Encoding, within a bound."""

from __future__ import annotations

import re
import zlib
from contextlib import suppress
from datetime import UTC, datetime
from email.utils import parsedate_to_datetime
from typing import TYPE_CHECKING, Final, Protocol

import trio

from gateway.http_client.errors import MAX_TEXT, BodyTooLong, Undecodable
from gateway.jsonrpc import LARGE_BYTES

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping, Sequence

    from gateway.budget import Intake

MAX_ERROR_BYTES: Final = 65_536
"""Limit of bytes read from an error response's body."""
PIECE_BYTES: Final = 65_536
"""Bytes decompressed in one step: the reader bounds the size of the body after each piece."""
_NO_CODING: Final = frozenset({"", "identity", "none", "utf-8", "utf8"})
"""Values that mean no content coding; some servers send a charset there."""
_GZIP_WINDOW: Final = zlib.MAX_WBITS | 16
_GZIP_MAGIC: Final = b"\x1f\x8b"
_ZLIB_HEADER: Final = 2

MAX_RETRY_AFTER: Final = 1e9
"""Upper bound in seconds; longer times are certainly mistakes."""
_BUSY: Final = frozenset({429, 503})
_SECONDS: Final = re.compile(r"[0-9]{1,9}(?:\.[0-9]{1,9})?", re.ASCII)


class ResponseHead(Protocol):
    """The status and the headers of a response."""

    @property
    def status_code(self) -> int:
        """The status."""
        ...

    @property
    def headers(self) -> Mapping[str, str]:
        """The header fields: names in lower case, fields of one name joined by commas."""
        ...


class Response(ResponseHead, Protocol):
    """A response whose body is still to be read."""

    @property
    def cookies(self) -> Sequence[str]:
        """The values of `Set-Cookie`."""
        ...

    async def read_raw(self, take: Callable[[bytes], None]) -> None:
        """Call `take` with each piece of the body as it was sent.

        If `take` raises BodyTooLong or Undecodable, the rest is not read, and the connection is closed.
        """
        ...

    async def aclose(self) -> None:
        """Return the connection to its pool; close it after an incomplete body."""
        ...


def media_type(response: ResponseHead) -> str:
    """Return the response's media type in lower case, without parameters."""
    return response.headers.get("content-type", "").partition(";")[0].strip().lower()


class BodyDecoder:
    """Decodes one body by its Content-Encoding (RFC 9110, 8.4), in pieces of at most `PIECE_BYTES`.

    The gateway requests no compression, but some servers and proxies compress anyway. Only gzip and deflate are
    decoded; a body of any other coding raises `Undecodable` with its first bytes, so that an empty one passes.
    """

    def __init__(self, header: str) -> None:
        self.coding: str | None
        """`gzip` or `deflate`; empty without a coding, None if unsupported."""
        match [coding for part in header.split(",") if (coding := part.strip().lower()) not in _NO_CODING]:
            case []:
                self.coding = ""
            case ["gzip" | "x-gzip"]:
                self.coding = "gzip"
            case ["deflate"]:
                self.coding = "deflate"
            case _:
                self.coding = None
        self._header = header
        self._pending = b""
        self._inflater = None

    @property
    def complete(self) -> bool:
        """True if the body may end here."""
        return not self._pending and (self._inflater is None or self._inflater.eof)

    def feed(self, data: bytes) -> Iterator[bytes]:
        """Decode more of the body. Raises Undecodable."""
        if self.coding is None:
            text = f"answered with Content-Encoding {self._header[:MAX_TEXT]!r}"
            raise Undecodable(f"{text}; the gateway decodes gzip and deflate only")
        if not self.coding:
            yield data
            return
        self._pending += data
        try:
            yield from self._inflate()
        except zlib.error as exc:
            raise Undecodable(
                f"answered with a body that is not {self.coding} as its Content-Encoding says: {exc}"
            ) from None

    def _inflate(self) -> Iterator[bytes]:
        piece = b""
        while self._pending or len(piece) == PIECE_BYTES:  # a full piece may have left output inside
            if self._inflater is None:
                window = _GZIP_WINDOW
                if self.coding == "deflate":  # RFC 9110 demands a zlib header, which many do not send
                    if len(self._pending) < _ZLIB_HEADER:
                        return
                    first, second = self._pending[:_ZLIB_HEADER]
                    has_header = first & 0x0F == zlib.DEFLATED and (first << 8 | second) % 31 == 0
                    window = zlib.MAX_WBITS if has_header else -zlib.MAX_WBITS
                self._inflater = zlib.decompressobj(window)
            elif self._inflater.eof:
                if self.coding == "gzip" and self._pending == _GZIP_MAGIC[:1]:
                    return  # the next byte tells
                if self.coding != "gzip" or not self._pending.startswith(_GZIP_MAGIC):
                    self._pending = b""  # padding after the data
                    return
                self._inflater = zlib.decompressobj(_GZIP_WINDOW)  # another member (RFC 1952, 2.2)
            piece = self._inflater.decompress(self._pending, PIECE_BYTES)
            self._pending = self._inflater.unused_data if self._inflater.eof else self._inflater.unconsumed_tail
            if piece:
                yield piece


async def read_pieces(response: Response, take: Callable[[bytes], None]) -> bool:
    """Pass the body's decoded pieces to `take`; return whether the data was complete.

    `take` may raise BodyTooLong to stop reading.

    Raises:
        BodyTooLong: `take` raised it. The connection is closed.
        Undecodable: the Content-Encoding is unsupported or does not match the body.
    """
    header = response.headers.get("content-encoding")
    if header is None:
        await response.read_raw(take)
        return True
    decoder = BodyDecoder(header)

    def decode(data: bytes) -> None:
        for piece in decoder.feed(data):
            take(piece)

    await response.read_raw(decode)
    return decoder.complete


async def read_body(response: Response, most: int, intake: Intake | None = None) -> bytes:
    """Read a body of at most `most` bytes, decoded.

    Raises:
        BodyTooLong: it is longer, or `intake` refuses it. The rest is not read, and the connection is closed.
        Undecodable: it cannot be decoded.
    """
    parts: list[bytes] = []
    size = 0
    declared = response.headers.get("content-length", "")
    if declared.isdigit() and len(declared) < MAX_TEXT and int(declared) > most:
        raise BodyTooLong

    def take(part: bytes) -> None:
        nonlocal size
        size += len(part)
        if size > most:
            raise BodyTooLong
        if intake is not None and not intake.fits(size):
            raise BodyTooLong(unbuffered=True)
        parts.append(part)

    try:
        complete = await read_pieces(response, take)
    except BaseException:
        parts.clear()  # no longer counted; the traceback would keep them until a garbage collection
        raise
    if not complete:
        raise Undecodable("answered with a compressed body that ends too early")
    if size >= LARGE_BYTES:
        return await trio.to_thread.run_sync(b"".join, parts)  # without the interpreter's lock
    return parts[0] if len(parts) == 1 else b"".join(parts)


def retry_after(response: ResponseHead) -> float | None:
    """Return the seconds in a Retry-After header (RFC 9110, 10.2.3); None if there is none."""
    value = response.headers.get("retry-after", "").strip() if response.status_code in _BUSY else ""
    if _SECONDS.fullmatch(value):
        return float(value)
    date = _read_date(value)
    if date is None:
        return None
    now = _read_date(response.headers.get("date", "")) or datetime.now(UTC)  # by the same clock, if possible
    return min(max((date - now).total_seconds(), 0.0), MAX_RETRY_AFTER)


def _read_date(value: str) -> datetime | None:
    try:
        date = parsedate_to_datetime(value[:MAX_TEXT])
    except (ValueError, OverflowError):
        return None
    return date.replace(tzinfo=UTC) if date.tzinfo is None else date  # "-0000", which is UTC as well


async def skip_body(response: Response) -> None:
    """Discard a body, so that its connection can be reused; close after a long one."""
    with suppress(BodyTooLong, Undecodable):
        await read_body(response, MAX_ERROR_BYTES)
