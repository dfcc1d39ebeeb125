"""HTTP client of one backend: its cookies, its redirects within the origin, its signed requests.

It takes 0.1 s to import, because of httpx2: the HTTP transports are imported only if a backend has a `url`. Invariant:
however an exchange ends (response, error, cancellation), its connection returns to the pool or is closed before
`exchange` returns. Redirects to another origin are not followed, since headers and credentials are meant for the
configured origin.
"""

from __future__ import annotations

import base64
import functools
import ssl
from contextlib import asynccontextmanager
from typing import TYPE_CHECKING, Final, Protocol

import httpx2

from gateway.errors import BackendProtocol, BackendUnavailable
from gateway.http_client.errors import HttpRefused, Undecodable, brief
from gateway.http_client.library import LIBRARY_ERRORS, LibraryTransport, explain
from gateway.http_client.pool import KEEP_ALIVE, ConnectionPool
from gateway.proxies import BadProxy, find_proxy, port_of, via

if TYPE_CHECKING:
    from collections.abc import AsyncGenerator, Awaitable, Callable

    from gateway.config import ServerConfig
    from gateway.http_client.body import Response
    from gateway.http_client.pool import HeaderList
    from gateway.inflight.pending import PendingCall

SPARE_CONNECTIONS: Final = 2
"""Connections beyond `max_concurrency`: one for the standalone stream, one for everything but calls."""
MAX_REDIRECTS: Final = 5
"""Limit of redirects for one request; more within one origin are a loop."""
MAX_COOKIES: Final = 50
"""Limit of cookies for a backend (RFC 6265, 6.1). Beyond it, or beyond the limit of bytes, all are cleared."""
MAX_COOKIE_BYTES: Final = 16_384
"""Limit of bytes in cookie names and values; servers reject longer headers."""
_REDIRECTS: Final = frozenset({301, 302, 303, 307, 308})
_PERMANENT: Final = frozenset({301, 308})
_SEE_OTHER: Final = 303
_PROXY_LOGIN: Final = 407


class Transport(Protocol):
    """The connections to one server."""

    async def run(self) -> None:
        """Close idle connections in time; may return if others do."""
        ...

    async def send(self, method: str, url: httpx2.URL, headers: HeaderList, content: bytes | None) -> Response:
        """Send a request and return its response, which the caller must close."""
        ...

    async def aclose(self) -> None:
        """Close all connections."""
        ...


class Signer(Protocol):
    """Signs requests, and repeats one with another token if the server asks for it."""

    async def send(self, send: Callable[[str], Awaitable[Response]], pending: PendingCall | None) -> Response:
        """Call `send` with a bearer token, perhaps repeatedly; return the final response.

        The token may be empty. The other responses are closed. `pending` is the call that the request carries: its
        client may be asked to log in. Raises BackendError.
        """
        ...


@functools.cache
def _tls(ca_file: str | None, client_cert: str | None, client_key: str | None) -> ssl.SSLContext:
    """Return the TLS context for these files; cached, since loading takes 15 ms.

    Without `ca_file` it uses the system's trust store, or SSL_CERT_FILE and SSL_CERT_DIR. Raises OSError (ssl.SSLError)
    for files that are unreadable or do not match.
    """
    context = httpx2.create_ssl_context() if ca_file is None else ssl.create_default_context(cafile=ca_file)
    if client_cert is not None:
        context.load_cert_chain(client_cert, client_key)
    context.set_alpn_protocols(["http/1.1"])
    return context


class HttpClient:
    """The requests to one backend."""

    def __init__(
        self, transport: Transport, config: ServerConfig, *, signer: Signer | None = None, proxy: str = ""
    ) -> None:
        self._transport = transport
        self._signer = signer
        self._backend = config.name
        self._cookies = httpx2.Cookies()
        self.proxy = proxy
        """The environment variable of the proxy in use; empty if there is none."""
        self.url = httpx2.URL(config.url or "")
        """The URL of requests; updated by a permanent redirect within the origin."""
        fields = dict(config.headers)
        if self.url.userinfo and signer is None:
            fields = {name: value for name, value in fields.items() if name.lower() != "authorization"}
            login = f"{self.url.username}:{self.url.password}".encode()
            fields["authorization"] = f"Basic {base64.b64encode(login).decode()}"
        self.base_headers: HeaderList = [(name.encode(), value.encode()) for name, value in fields.items()]
        if not any(name.lower() == b"user-agent" for name, _ in self.base_headers):
            self.base_headers.append((b"user-agent", b"trio-mcp-gateway"))
        # Compression costs time and delays events.
        self.base_headers.append((b"accept-encoding", b"identity"))

    async def run(self) -> None:
        """Close idle connections in time, until cancelled."""
        await self._transport.run()

    @asynccontextmanager
    async def exchange(
        self,
        method: str,
        headers: HeaderList,
        content: bytes | None = None,
        *,
        url: httpx2.URL | None = None,
        pending: PendingCall | None = None,
    ) -> AsyncGenerator[Response]:
        """Send a request (to `url` or the backend's own); close the response after the block.

        `url` must have the backend's origin: credentials and cookies are sent there too.

        `pending` is the call that it carries: its client may be asked to log in. `headers` are the complete headers,
        `base_headers` included.

        Raises:
            BackendUnavailable: the request was not sent.
            BackendExited: the connection broke after the request may have been sent, before or within the response.
            BackendProtocol: a redirect that is not followed, or an invalid HTTP response.
        """
        try:
            response = await self._send(method, headers, content, url, pending)
            try:
                yield response
            finally:
                await response.aclose()
        except (Undecodable, *LIBRARY_ERRORS) as problem:
            raise explain(self._backend, problem, self.proxy) from problem

    async def _send(
        self,
        method: str,
        headers: HeaderList,
        content: bytes | None,
        url: httpx2.URL | None,
        pending: PendingCall | None,
    ) -> Response:
        target = url or self.url
        permanent = url is None
        for _ in range(MAX_REDIRECTS + 1):
            if self._signer is None:
                response = await self._transmit(method, target, headers, content)
            else:
                transmit = functools.partial(self._transmit, method, target, headers, content)
                response = await self._signer.send(transmit, pending)
            status = response.status_code
            if status == _PROXY_LOGIN and self.proxy:
                await response.aclose()
                text = f"cannot be reached{via(self.proxy)}: the proxy requires a user name and password (HTTP 407)"
                raise BackendUnavailable(self._backend, text)
            location = response.headers.get("location") if status in _REDIRECTS else None
            if location is None:
                if permanent and target is not self.url:
                    self.url = target
                return response
            await response.aclose()
            source = target
            permanent = permanent and status in _PERMANENT
            target = source.join(location)
            if not same_origin(source, target):
                where = f"{target.scheme}://{target.netloc.decode('ascii', 'replace').rpartition('@')[2]}"
                text = f"redirects to another origin, {where} (HTTP {status}), which is not followed; check 'url'"
                raise HttpRefused(self._backend, text, status)
            # The method is kept: a POST turned into a GET would lose its body.
            if status == _SEE_OTHER or target.userinfo != source.userinfo:
                text = f"answered with a redirect that cannot be followed (HTTP {status})"
                raise HttpRefused(self._backend, text, status)
        raise BackendProtocol(self._backend, f"redirects in a loop or more than {MAX_REDIRECTS} times")

    async def _transmit(
        self, method: str, url: httpx2.URL, headers: HeaderList, content: bytes | None, token: str = ""
    ) -> Response:
        """Send one request, signed with a bearer token and with the cookies for its URL."""
        if token:
            headers = [*headers, (b"authorization", b"Bearer %b" % token.encode())]
        if jar := self._cookies.jar:  # load balancers pin sessions by cookie
            if len(jar) > MAX_COOKIES or sum(len(one.name + (one.value or "")) for one in jar) > MAX_COOKIE_BYTES:
                jar.clear()
            request = httpx2.Request(method, url, headers=headers)
            self._cookies.set_cookie_header(request)
            if cookie := request.headers.get("cookie"):
                headers = [*(field for field in headers if field[0].lower() != b"cookie"), (b"cookie", cookie.encode())]
        response = await self._transport.send(method, url, headers, content)
        if fields := [("set-cookie", cookie) for cookie in response.cookies if cookie.isascii()]:
            sent = httpx2.Request(method, url)
            self._cookies.extract_cookies(httpx2.Response(response.status_code, headers=fields, request=sent))
        return response


def same_origin(one: httpx2.URL, other: httpx2.URL) -> bool:
    """Return whether both URLs have the same scheme, host and port."""
    return (one.scheme, one.host, port_of(one)) == (other.scheme, other.host, port_of(other))


@asynccontextmanager
async def open_http_client(config: ServerConfig, signer: Signer | None = None) -> AsyncGenerator[HttpClient]:
    """Open a backend's client; on leaving, all its connections are closed. `signer` signs every request."""
    most = config.max_concurrency + SPARE_CONNECTIONS
    transport: Transport
    try:
        url = httpx2.URL(config.url or "")
        tls = _tls(config.ca_file, config.client_cert, config.client_key)
        # Redirects stay within the origin, so the choice of proxy holds for all requests.
        choice = None if config.unix_socket is not None else find_proxy(url)
        if choice is None:
            transport = ConnectionPool(config, url, tls, most)
        else:
            limits = httpx2.Limits(max_connections=most, max_keepalive_connections=most, keepalive_expiry=KEEP_ALIVE)
            transport = LibraryTransport(choice.transport(tls, limits), config.connect_timeout)
        http = HttpClient(transport, config, signer=signer, proxy="" if choice is None else choice.variable)
    except BadProxy as exc:
        text = f"cannot be reached{via(exc.variable)}: {exc.why}"
        raise BackendUnavailable(config.name, text) from None
    except (httpx2.InvalidURL, ValueError, ImportError, OSError) as exc:
        text = f"cannot be reached over HTTP: {brief(exc)} (check 'url' and the files of its TLS options)"
        raise BackendUnavailable(config.name, text) from exc
    try:
        yield http
    finally:
        await transport.aclose()
