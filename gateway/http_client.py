"""Pooled HTTP client of one backend, with library errors translated into gateway errors.

The only module that uses httpx2, which takes 0.1 s to import: the HTTP transports are imported only if a backend has a
`url`. Invariant: however an exchange ends (response, error, cancellation), its connection returns to the pool or is
closed before `exchange` returns. Redirects to another origin are not followed, since headers and credentials are meant
for the configured origin.
"""

from __future__ import annotations

import functools
import logging
import re
import ssl
import zlib
from contextlib import asynccontextmanager, suppress
from datetime import UTC, datetime
from email.utils import parsedate_to_datetime
from typing import TYPE_CHECKING, ClassVar, Final

import httpx2
import trio

from gateway.errors import BackendError, BackendExited, BackendProtocol, BackendUnavailable
from gateway.masking import SECRETS
from gateway.proxies import CLOSE_WAIT, BadProxy, find_proxy, port_of, via

if TYPE_CHECKING:
    from collections.abc import AsyncGenerator, Callable, Iterator

    from gateway.config import ServerConfig
    from gateway.inflight.pending import PendingCall

SPARE_CONNECTIONS: Final = 2
"""Connections beyond `max_concurrency`: one for the standalone stream, one for everything but calls."""
KEEP_ALIVE: Final = 4.0
"""Seconds until an idle connection is closed: common servers close theirs after 5, which must not race with a
request."""
MAX_REDIRECTS: Final = 5
"""Limit of redirects for one request; more within one origin are a loop."""
MAX_COOKIES: Final = 50
"""Limit of cookies for a backend (RFC 6265, 6.1). Beyond it, or beyond the limit of bytes, all are cleared."""
MAX_COOKIE_BYTES: Final = 16_384
"""Limit of bytes in cookie names and values; servers reject longer headers."""
MAX_ERROR_BYTES: Final = 65_536
"""Limit of bytes read from an error response's body."""
SEE_OTHER: Final = 303
PENDING: Final = "gateway.pending"
"""Key in a request's `extensions` for the pending call that it carries, or None; read by `auth`."""
MAX_TEXT: Final = 200
"""Maximum length of a library's error text in messages."""

PIECE_BYTES: Final = 65_536
"""Bytes decompressed in one step: the reader bounds the size of the body after each piece."""
_NO_CODING: Final = frozenset({"", "identity", "none", "utf-8", "utf8"})
"""Values that mean no content coding; some servers send a charset there."""
_GZIP_WINDOW: Final = zlib.MAX_WBITS | 16
_GZIP_MAGIC: Final = b"\x1f\x8b"
_ZLIB_HEADER: Final = 2

MAX_RETRY_AFTER: Final = 1e9
"""Upper bound in seconds; longer times are certainly mistakes."""
_PROXY_LOGIN: Final = 407
_BUSY: Final = frozenset({429, 503})
_SECONDS: Final = re.compile(r"[0-9]{1,9}(?:\.[0-9]{1,9})?", re.ASCII)

HeaderList = list[tuple[bytes, bytes]]
AnyHeaders = HeaderList | httpx2.Headers

# Its INFO lines show whole URLs and its DEBUG lines whole headers: both may contain keys.
for _name in ("httpx2", "httpcore2"):
    logging.getLogger(_name).setLevel(logging.WARNING)


class HttpRefused(BackendProtocol):
    """The server answered with an HTTP status without an MCP response."""

    code: ClassVar[str] = "backend_http_error"

    def __init__(
        self, backend: str, reason: str, status: int, body: bytes = b"", *, retry_after: float | None = None
    ) -> None:
        super().__init__(backend, reason, retry_after=retry_after)
        self.status = status
        self.body = body


class BodyTooLong(Exception):
    """The response's body exceeds the limit."""


@functools.cache
def _tls(ca_file: str | None, client_cert: str | None, client_key: str | None) -> ssl.SSLContext:
    """Return the TLS context for these files; cached, since loading takes 15 ms.

    Without `ca_file` it uses the system's trust store, or SSL_CERT_FILE and SSL_CERT_DIR. Raises OSError (ssl.SSLError)
    for files that are unreadable or do not match.
    """
    context = httpx2.create_ssl_context() if ca_file is None else ssl.create_default_context(cafile=ca_file)
    if client_cert is not None:
        context.load_cert_chain(client_cert, client_key)
    return context


class HttpClient:
    """The connections to one backend."""

    def __init__(self, client: httpx2.AsyncClient, config: ServerConfig, *, proxy: str = "") -> None:
        self._client = client
        self._backend = config.name
        self.proxy = proxy
        """The environment variable of the proxy in use; empty if there is none."""
        self.url = httpx2.URL(config.url or "")
        """The URL of requests; updated by a permanent redirect within the origin."""
        self.base_headers: HeaderList = [(name.encode(), value.encode()) for name, value in config.headers.items()]
        if not any(name.lower() == b"user-agent" for name, _ in self.base_headers):
            self.base_headers.append((b"user-agent", b"trio-mcp-gateway"))
        # Compression costs time and delays events.
        self.base_headers.append((b"accept-encoding", b"identity"))
        timeout = config.connect_timeout
        # No read timeout: calls end at their deadline, and streams may be silent for hours.
        self._timeout = {"connect": timeout, "write": timeout, "read": None, "pool": None}

    @asynccontextmanager
    async def exchange(
        self,
        method: str,
        headers: AnyHeaders,
        content: bytes | None = None,
        *,
        url: httpx2.URL | None = None,
        pending: PendingCall | None = None,
    ) -> AsyncGenerator[httpx2.Response]:
        """Send a request (to `url` or the backend's own); close the response after the block.

        `pending` is the call that it carries: `auth` may ask that call's client to log in.

        `headers` are the complete headers, `base_headers` included. Leave the block only when the body has ended or by
        cancellation, never by `break` out of the body: its nested generators would be left to the garbage collector.

        Raises:
            BackendUnavailable: the request was not sent.
            BackendExited: the connection broke after the request may have been sent, before or within the response.
            BackendProtocol: a redirect that is not followed, or an invalid HTTP response.
        """
        with _Translated(self._backend, self.proxy):
            response = await self._send(method, headers, content, url, pending)
            try:
                yield response
            finally:
                if not response.is_closed:
                    with trio.move_on_after(CLOSE_WAIT, shield=True):
                        await response.aclose()

    async def _send(
        self,
        method: str,
        headers: AnyHeaders,
        content: bytes | None,
        url: httpx2.URL | None,
        pending: PendingCall | None,
    ) -> httpx2.Response:
        target = url or self.url
        permanent = url is None
        for _ in range(MAX_REDIRECTS + 1):
            extensions = {"timeout": self._timeout, PENDING: pending}
            request = httpx2.Request(method, target, headers=headers, content=content, extensions=extensions)
            if jar := self._client.cookies.jar:  # load balancers pin sessions by cookie
                if len(jar) > MAX_COOKIES or sum(len(one.name + (one.value or "")) for one in jar) > MAX_COOKIE_BYTES:
                    jar.clear()
                self._client.cookies.set_cookie_header(request)
            response = await self._client.send(request, stream=True)
            if response.status_code == _PROXY_LOGIN and self.proxy:
                with trio.move_on_after(CLOSE_WAIT, shield=True):
                    await response.aclose()
                text = f"cannot be reached{via(self.proxy)}: the proxy requires a user name and password (HTTP 407)"
                raise BackendUnavailable(self._backend, text)
            if not response.has_redirect_location:
                if permanent and target is not self.url:
                    self.url = target
                return response
            with trio.move_on_after(CLOSE_WAIT, shield=True):
                await response.aclose()
            status, source = response.status_code, target
            permanent = permanent and status in {301, 308}
            target = source.join(response.headers["location"])
            if not same_origin(source, target):
                where = f"{target.scheme}://{target.netloc.decode('ascii', 'replace').rpartition('@')[2]}"
                text = f"redirects to another origin, {where} (HTTP {status}), which is not followed; check 'url'"
                raise HttpRefused(self._backend, text, status)
            # The method is kept: a POST turned into a GET would lose its body.
            if status == SEE_OTHER or target.userinfo != source.userinfo:
                raise HttpRefused(
                    self._backend, f"answered with a redirect that cannot be followed (HTTP {status})", status
                )
        raise BackendProtocol(self._backend, f"redirects in a loop or more than {MAX_REDIRECTS} times")


def same_origin(one: httpx2.URL, other: httpx2.URL) -> bool:
    """Return whether both URLs have the same scheme, host and port."""
    return (one.scheme, one.host, port_of(one)) == (other.scheme, other.host, port_of(other))


@asynccontextmanager
async def open_http_client(config: ServerConfig, auth: httpx2.Auth | None = None) -> AsyncGenerator[HttpClient]:
    """Open a backend's client; close all its connections on leaving. `auth` signs requests."""
    most = config.max_concurrency + SPARE_CONNECTIONS
    limits = httpx2.Limits(max_connections=most, max_keepalive_connections=most, keepalive_expiry=KEEP_ALIVE)
    try:
        tls = _tls(config.ca_file, config.client_cert, config.client_key)
        # Redirects stay within the origin, so the choice of proxy holds for all requests.
        choice = None if config.unix_socket is not None else find_proxy(httpx2.URL(config.url or ""))
        if choice is None:
            transport = httpx2.AsyncHTTPTransport(uds=config.unix_socket, verify=tls, limits=limits)
        else:
            transport = choice.transport(tls, limits)
        client = httpx2.AsyncClient(auth=auth, transport=transport, follow_redirects=False)
        http = HttpClient(client, config, proxy="" if choice is None else choice.variable)
    except BadProxy as exc:
        text = f"cannot be reached{via(exc.variable)}: {exc.why}"
        raise BackendUnavailable(config.name, text) from None
    except (httpx2.InvalidURL, ValueError, ImportError, OSError) as exc:
        text = f"cannot be reached over HTTP: {_brief(exc)} (check 'url' and the files of its TLS options)"
        raise BackendUnavailable(config.name, text) from exc
    try:
        yield http
    finally:
        with trio.move_on_after(CLOSE_WAIT, shield=True):
            await client.aclose()


class _Translated:
    """Translates the library's errors; a class, since generators double a call's cost."""

    __slots__ = ("_backend", "_proxy")

    def __init__(self, backend: str, proxy: str) -> None:
        self._backend = backend
        self._proxy = proxy

    def __enter__(self) -> None:
        pass

    def __exit__(self, _type: object, problem: BaseException | None, _traceback: object) -> None:
        if isinstance(problem, (httpx2.HTTPError, httpx2.InvalidURL, httpx2.StreamError)):
            raise explain(self._backend, problem, self._proxy) from problem


def explain(backend: str, problem: Exception, proxy: str = "") -> BackendError:
    """Return the gateway error for a library error; `proxy` is the proxy's variable."""
    text = _brief(problem)
    match problem:
        case httpx2.ConnectTimeout():
            text = "connecting took longer than connect_timeout"
            return BackendUnavailable(backend, f"cannot be reached{via(proxy)}: {text}")
        case httpx2.ConnectError() | httpx2.ProxyError() | httpx2.PoolTimeout() | httpx2.UnsupportedProtocol():
            return BackendUnavailable(backend, f"cannot be reached{via(proxy)}: {text}")
        case httpx2.NetworkError() | httpx2.TimeoutException():
            return BackendExited(backend, f"broke the connection{via(proxy)}: {text}")
        case httpx2.RemoteProtocolError() if "disconnected" in text or "closed connection" in text:
            return BackendExited(backend, f"broke the connection{via(proxy)}: {text}")
        case httpx2.DecodingError():
            return BackendProtocol(backend, text)
        case _:
            return BackendProtocol(backend, f"violated HTTP: {text}")


def _brief(problem: BaseException) -> str:
    """Return the error's text, or its cause's if empty, as in wrapped TLS errors."""
    seen: BaseException | None = problem
    while seen is not None:
        if text := str(seen).strip():
            return SECRETS.mask(text)[:MAX_TEXT]
        seen = seen.__cause__ or seen.__context__  # the library raises some of them "from None"
    return type(problem).__name__


def media_type(response: httpx2.Response) -> str:
    """Return the response's media type in lower case, without parameters."""
    return response.headers.get("content-type", "").partition(";")[0].strip().lower()


class Undecodable(httpx2.DecodingError):
    """A body that does not match its Content-Encoding."""


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
                if self.coding != "gzip" or not self._pending.startswith(_GZIP_MAGIC):
                    self._pending = b""  # padding after the data
                    return
                self._inflater = zlib.decompressobj(_GZIP_WINDOW)  # another member (RFC 1952, 2.2)
            piece = self._inflater.decompress(self._pending, PIECE_BYTES)
            self._pending = self._inflater.unused_data if self._inflater.eof else self._inflater.unconsumed_tail
            if piece:
                yield piece


async def read_pieces(response: httpx2.Response, take: Callable[[bytes], None]) -> bool:
    """Pass the body's decoded pieces to `take`; return whether the data was complete.

    `take` may raise BodyTooLong to stop reading.

    Raises:
        BodyTooLong: `take` raised it. The connection is closed.
        Undecodable: the Content-Encoding is unsupported or does not match the body.
    """
    header = response.headers.get("content-encoding")
    decoder = None if header is None else BodyDecoder(header)
    problem: BodyTooLong | Undecodable | None = None
    with trio.CancelScope() as scope:
        # Leave this loop only at its end or by cancellation: see `HttpClient.exchange`.
        async for data in response.aiter_raw():
            if problem is not None:
                continue
            try:
                if decoder is None:
                    take(data)
                    continue
                for piece in decoder.feed(data):
                    take(piece)
            except (BodyTooLong, Undecodable) as exc:
                problem = exc
                scope.cancel(reason="the rest of the body is not needed")
    if problem is not None:
        raise problem
    return decoder is None or decoder.complete


async def read_body(response: httpx2.Response, most: int) -> bytes:
    """Read a body of at most `most` bytes, decoded.

    Raises:
        BodyTooLong: it is longer. The rest is not read, and the connection is closed.
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
        parts.append(part)

    if not await read_pieces(response, take):
        raise Undecodable("answered with a compressed body that ends too early")
    return parts[0] if len(parts) == 1 else b"".join(parts)


def retry_after(response: httpx2.Response) -> float | None:
    """Return the seconds in a Retry-After header (RFC 9110, 10.2.3); None if there is none."""
    value = response.headers.get("retry-after", "").strip() if response.status_code in _BUSY else ""
    if _SECONDS.fullmatch(value):
        return float(value)
    try:
        date = parsedate_to_datetime(value[:MAX_TEXT])
    except (ValueError, OverflowError):
        return None
    if date.tzinfo is None:  # "-0000", which is UTC as well
        date = date.replace(tzinfo=UTC)
    return min(max((date - datetime.now(UTC)).total_seconds(), 0.0), MAX_RETRY_AFTER)


async def skip_body(response: httpx2.Response) -> None:
    """Discard a body, so that its connection can be reused; close after a long one."""
    with suppress(BodyTooLong, Undecodable):
        await read_body(response, MAX_ERROR_BYTES)
