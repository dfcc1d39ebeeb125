"""Requests through the HTTP library, which knows proxies; its errors as the gateway's own.

`httpx2` logs whole URLs at INFO and whole headers at DEBUG: both may contain keys.
"""

from __future__ import annotations

import logging
from typing import TYPE_CHECKING

import httpx2
import trio

from gateway.errors import BackendError, BackendExited, BackendProtocol, BackendUnavailable
from gateway.http_client.errors import BodyTooLong, Undecodable, brief
from gateway.proxies import CLOSE_WAIT, via

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from gateway.http_client.pool import HeaderList

for _name in ("httpx2", "httpcore2"):
    logging.getLogger(_name).setLevel(logging.WARNING)


class LibraryResponse:
    """Implements `gateway.http_client.body.Response`; errors are the library's."""

    def __init__(self, response: httpx2.Response) -> None:
        self.status_code = response.status_code
        self.headers = response.headers
        self._response = response

    @property
    def cookies(self) -> Sequence[str]:
        """The values of `Set-Cookie`."""
        return self.headers.get_list("set-cookie")

    async def read_raw(self, take: Callable[[bytes], None]) -> None:
        """Call `take` with each piece of the body."""
        problem: BodyTooLong | Undecodable | None = None
        with trio.CancelScope() as scope:
            # Leave this loop only at its end or by cancellation: a `break` would leave the library's nested generators
            # to the garbage collector.
            async for data in self._response.aiter_raw():
                if problem is None:
                    try:
                        take(data)
                    except (BodyTooLong, Undecodable) as exc:
                        problem = exc
                        scope.cancel(reason="the rest of the body is not needed")
        if problem is not None:
            raise problem

    async def aclose(self) -> None:
        """Close the response."""
        if not self._response.is_closed:
            with trio.move_on_after(CLOSE_WAIT, shield=True):
                await self._response.aclose()


class LibraryTransport:
    """Implements `gateway.http_client.client.Transport` with one of the library's transports."""

    def __init__(self, transport: httpx2.AsyncHTTPTransport, timeout: float) -> None:
        self._transport = transport
        # No read timeout: calls end at their deadline, and streams may be silent for hours.
        self._timeout = {"connect": timeout, "write": timeout, "read": None, "pool": None}

    async def run(self) -> None:
        """Do nothing: idle connections are closed when another is needed."""

    async def send(self, method: str, url: httpx2.URL, headers: HeaderList, content: bytes | None) -> LibraryResponse:
        """Send a request; the caller must close its response. Raises the library's errors."""
        extensions = {"timeout": self._timeout}
        request = httpx2.Request(method, url, headers=headers, content=content, extensions=extensions)
        return LibraryResponse(await self._transport.handle_async_request(request))

    async def aclose(self) -> None:
        """Close all connections."""
        with trio.move_on_after(CLOSE_WAIT, shield=True):
            await self._transport.aclose()


LIBRARY_ERRORS = (httpx2.HTTPError, httpx2.InvalidURL, httpx2.StreamError)


def explain(backend: str, problem: Exception, proxy: str = "") -> BackendError:
    """Return the gateway error for an error of the library or of a body.

    `proxy` is the environment variable of the proxy in use.
    """
    text = brief(problem)
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
        case Undecodable():
            return BackendProtocol(backend, text)
        case _:
            return BackendProtocol(backend, f"violated HTTP: {text}")
