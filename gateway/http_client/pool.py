"""HTTP/1.1 connections to one server: plain, over TLS or over a Unix socket.

Each request has a connection to itself until its response has been read to the end; a request that ends otherwise
closes the connection. Invariant: a request is sent again only if the server closed the connection before all of it was
sent, so that no handler can have run.
"""

from __future__ import annotations

import re
import socket
import sys
from typing import TYPE_CHECKING, Final

import trio

from gateway.budget import Budget, Share
from gateway.clock import elapsed_time
from gateway.errors import BackendExited, BackendProtocol, BackendUnavailable
from gateway.http_client.errors import brief
from gateway.http_client.response_parser import InvalidResponse, ResponseParser
from gateway.httpd.wire import TLSWire, Wire
from gateway.proxies import port_of

if TYPE_CHECKING:
    import ssl
    from collections.abc import Callable

    import httpx2

    from gateway.config import ServerConfig

KEEP_ALIVE: Final = 4.0
"""Seconds until an idle connection is closed: common servers close theirs after 5, which must not race with a
request."""
MAX_KEEP_ALIVE: Final = 60.0
"""Limit of what a server's `Keep-Alive` can make of it: middleboxes forget idle connections without a sign."""
KEEPALIVE_IDLE: Final = 30
"""Seconds until the kernel probes the peer of a silent connection, which may wait for hours on a stream."""
KEEPALIVE_INTERVAL: Final = 10
_FIRST_ERROR: Final = 400
_TIMEOUT: Final = re.compile(r"(?:^|[\s,])timeout=(\d{1,9})", re.ASCII | re.IGNORECASE)


HeaderList = list[tuple[bytes, bytes]]


class _NotSent(Exception):
    """The server closed the connection before all of the request was sent."""


class _Connection:
    """One connection."""

    __slots__ = ("_is_broken", "expires_asleep_at", "expires_at", "parser", "wire")

    def __init__(self, wire: Wire) -> None:
        self.wire = wire
        self.parser = ResponseParser()
        self.expires_at = 0.0
        self.expires_asleep_at = 0.0
        """The same by a clock that runs while the machine sleeps: its peer is not asleep."""
        self._is_broken = False

    async def send(self, request: bytes) -> None:
        """Send a request and receive the head of its response.

        Raises:
            _NotSent, ConnectionError, InvalidResponse, TooSlowError: see `Wire.flush`.
        """
        self.parser.expect()
        try:
            self.wire.send_nowait(request)
        except OSError:
            self._is_broken = True  # but the server may have answered before it closed the connection
        if self.wire.unsent:
            await self._send_rest()
        else:
            await self._receive_head()

    async def _send_rest(self) -> None:
        """Send the rest of a large request, and receive: it may be refused early."""
        problem: Exception | None = None
        async with trio.open_nursery() as nursery:

            async def flush() -> None:
                nonlocal problem
                try:
                    await self.wire.flush()
                except trio.TooSlowError as error:
                    problem = error
                    nursery.cancel_scope.cancel()
                except (OSError, trio.ClosedResourceError):
                    self._is_broken = True

            nursery.start_soon(flush)
            try:
                await self._receive_head()
            except (_NotSent, ConnectionError, InvalidResponse) as error:
                problem = error
            if problem is not None or self.parser.status_code >= _FIRST_ERROR:
                nursery.cancel_scope.cancel()
        if isinstance(problem, _NotSent) and not (self._is_broken or self.wire.unsent):  # since the end was received
            raise ConnectionError("the server closed it without a complete response")
        if problem is not None:
            raise problem
        if self.wire.unsent:
            self.parser.keeps_alive = False

    async def _receive_head(self) -> None:
        is_silent = True
        while not self.parser.is_answered:
            data = await self.wire.receive()
            if not data and is_silent and (self._is_broken or self.wire.unsent):
                raise _NotSent
            if not data:
                raise ConnectionError("the server closed it without a complete response")
            is_silent = False
            self.parser.receive(data)


class DirectResponse:
    """Implements `gateway.http_client.body.Response`."""

    __slots__ = ("_connection", "_pool", "cookies", "headers", "status_code")

    def __init__(self, pool: ConnectionPool, connection: _Connection) -> None:
        parser = connection.parser
        self.status_code = parser.status_code
        self.headers = parser.headers
        self.cookies = parser.cookies
        self._pool = pool
        self._connection: _Connection | None = connection

    async def read_raw(self, take: Callable[[bytes], None]) -> None:
        """Call `take` with each piece of the body.

        Raises:
            BackendExited: the connection broke.
            BackendProtocol: the response is invalid.
        """
        connection = self._connection
        if connection is None:
            raise trio.ClosedResourceError
        parser = connection.parser
        while True:
            for piece in parser.pop_pieces():
                take(piece)
            if parser.is_complete:
                return
            data = await connection.wire.receive()
            if data:
                try:
                    parser.receive(data)
                except InvalidResponse as problem:
                    raise self._pool.violation(problem) from problem
            else:
                parser.receive_eof()
                if not parser.is_complete:
                    raise self._pool.broken("the server closed it within the response")

    async def aclose(self) -> None:
        """Return the connection to the pool; close it after an incomplete response."""
        connection, self._connection = self._connection, None
        if connection is not None:
            self._pool.release(connection, self.headers.get("keep-alive"))


def _detect_loss(sock: trio.socket.SocketType, timeout: float) -> None:
    """Have the kernel end a connection whose peer, network or own address is gone.

    That is when data has not been acknowledged for `timeout` seconds, or probes of a silent connection.
    """
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
    if sys.platform == "linux":
        sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_KEEPIDLE, KEEPALIVE_IDLE)
        sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_KEEPINTVL, KEEPALIVE_INTERVAL)
        sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_USER_TIMEOUT, max(1, int(timeout * 1000)))


class ConnectionPool:
    """Implements `gateway.http_client.client.Transport` without a proxy."""

    def __init__(self, config: ServerConfig, url: httpx2.URL, tls: ssl.SSLContext, most: int) -> None:
        """Make a pool of `most` connections; further requests wait for one of them."""
        self._backend = config.name
        self._timeout = config.connect_timeout
        self._unix_socket = config.unix_socket
        self._host = url.raw_host.decode("ascii")
        self._port = port_of(url)
        self._tls = tls if url.scheme == "https" else None
        has_host = any(name.lower() == "host" for name in config.headers)
        self._host_field = b"" if has_host else b"host: %b\r\n" % url.netloc.rpartition(b"@")[2]
        self._slots = trio.Semaphore(most, max_value=most)
        self._idle: list[_Connection] = []  # the one used last is at the end
        self._has_idle = trio.Event()
        self._is_closed = False
        self._unsent = Budget(sys.maxsize)  # no more than the requests in flight, which others bound

    async def run(self) -> None:
        """Close idle connections in time, until cancelled."""
        while True:
            await self._has_idle.wait()
            while self._idle:
                await trio.sleep_until(min(connection.expires_at for connection in self._idle))
                now = trio.current_time()
                for connection in self._idle:
                    if connection.expires_at <= now:
                        connection.wire.close()
                self._idle = [connection for connection in self._idle if connection.expires_at > now]
            self._has_idle = trio.Event()

    async def send(self, method: str, url: httpx2.URL, headers: HeaderList, content: bytes | None) -> DirectResponse:
        """Send a request and return its response, which the caller must close.

        Raises:
            BackendUnavailable: the request was not sent.
            BackendExited: the connection broke after the request may have been sent.
            BackendProtocol: the response is invalid.
        """
        request = self._encode(method, url, headers, content)
        try:
            self._slots.acquire_nowait()
        except trio.WouldBlock:
            await self._slots.acquire()
        connection: _Connection | None = None
        is_answered = False
        try:
            while True:
                idle = self._pop_idle()
                connection = _Connection(await self._connect()) if idle is None else idle
                try:
                    await connection.send(request)
                except _NotSent:
                    connection.wire.close()
                    if idle is None:
                        raise self.broken("the server closed it before the request was sent") from None
                    continue
                is_answered = True
                return DirectResponse(self, connection)
        except ConnectionError as problem:
            raise self.broken(str(problem)) from None
        except trio.TooSlowError:
            raise self.broken(f"the server accepted no data for {self._timeout:g} s") from None
        except InvalidResponse as problem:
            raise self.violation(problem) from problem
        finally:
            if not is_answered:
                self._slots.release()
                if connection is not None:
                    connection.wire.close()

    def broken(self, text: str) -> BackendExited:
        """Return the error for a connection that broke."""
        return BackendExited(self._backend, f"broke the connection: {text}")

    def violation(self, problem: InvalidResponse) -> BackendProtocol:
        """Return the error for an invalid response."""
        return BackendProtocol(self._backend, f"violated HTTP: {brief(problem)}")

    def _encode(self, method: str, url: httpx2.URL, headers: HeaderList, content: bytes | None) -> bytes:
        fields = b"".join([b"%b: %b\r\n" % field for field in headers])
        if fields.count(b"\n") != len(headers) or fields.count(b"\r") != len(headers) or b"\0" in fields:
            raise BackendProtocol(self._backend, "cannot be sent a header field with control characters")
        start = b"%b %b HTTP/1.1\r\n%b" % (method.encode("ascii"), url.raw_path, self._host_field)
        if content is None:
            return b"%b%b\r\n" % (start, fields)
        return b"%b%bcontent-length: %d\r\n\r\n%b" % (start, fields, len(content), content)

    def _pop_idle(self) -> _Connection | None:
        now, elapsed = trio.current_time(), elapsed_time()
        while self._idle:
            connection = self._idle.pop()
            is_fresh = connection.expires_at > now and connection.expires_asleep_at > elapsed
            if is_fresh and not connection.wire.has_input:
                return connection
            connection.wire.close()
        return None

    async def _connect(self) -> Wire:
        """Open a connection. Raises BackendUnavailable."""
        stream: trio.SocketStream | None = None
        wire: Wire | None = None
        why = "connecting took longer than connect_timeout"
        try:
            with trio.move_on_after(self._timeout):
                if self._unix_socket is not None:
                    stream = await trio.open_unix_socket(self._unix_socket)
                else:
                    stream = await trio.open_tcp_stream(self._host, self._port or 0)
                    _detect_loss(stream.socket, self._timeout)
                share = Share(self._unsent, lambda: None)
                if self._tls is None:
                    wire = Wire(stream, share, send_timeout=self._timeout)
                else:
                    secured = trio.SSLStream(stream, self._tls, server_hostname=self._host, https_compatible=True)
                    await secured.do_handshake()
                    wire = TLSWire(secured, share, send_timeout=self._timeout)
        except (OSError, trio.BrokenResourceError) as problem:
            why = brief(problem)
        finally:
            if wire is None and stream is not None:
                stream.socket.close()
        if wire is None:
            raise BackendUnavailable(self._backend, f"cannot be reached: {why}")
        return wire

    def release(self, connection: _Connection, keep_alive: str | None) -> None:
        """Take a connection back; `keep_alive` is the response's header field."""
        self._slots.release()
        parser = connection.parser
        if not (parser.is_complete and parser.keeps_alive) or self._is_closed:
            connection.wire.close()
            return
        found = None if keep_alive is None else _TIMEOUT.search(keep_alive)
        seconds = KEEP_ALIVE if found is None else min(int(found[1]) - 1.0, MAX_KEEP_ALIVE)
        connection.expires_at = trio.current_time() + seconds
        connection.expires_asleep_at = elapsed_time() + seconds
        self._idle.append(connection)
        self._has_idle.set()

    async def aclose(self) -> None:
        """Close all idle connections, and those in use once their requests have ended."""
        self._is_closed = True
        while self._idle:
            self._idle.pop().wire.close()
