"""HTTP requests of an OAuth flow, with a check of each server-supplied URL.

URLs must be HTTPS, or loopback if the backend is on loopback, and not in a private network unless the backend is there
too or the config names the issuer (2026-07-28 basic/authorization, "Server-Side Request Forgery"). Requests use a
separate connection without the backend's headers and cookies; bodies and waits are bounded; redirects are not followed
automatically.
"""

from __future__ import annotations

import ipaddress
import socket
from contextlib import asynccontextmanager
from typing import TYPE_CHECKING, Final

import httpx2
import trio

from gateway.errors import BackendUnavailable
from gateway.http_client.body import read_body
from gateway.http_client.client import same_origin
from gateway.http_client.errors import BodyTooLong, Undecodable
from gateway.http_client.library import LIBRARY_ERRORS, LibraryResponse, explain
from gateway.oauth_client.answers import describe
from gateway.proxies import CLOSE_WAIT, EnvironmentTransport, is_loopback, proxy_variable
from gateway.surrogates import without_bom

if TYPE_CHECKING:
    from collections.abc import AsyncGenerator

    from gateway.config import ServerConfig

REQUEST_TIMEOUT: Final = 15.0
"""Seconds for one request including its response."""
RESOLVE_WAIT: Final = 5.0
"""Seconds for resolving a host."""
MAX_BODY: Final = 1024 * 1024
"""Bytes of one response; metadata has a few thousand."""
_DROPPED: Final = frozenset({"content-encoding", "content-length", "transfer-encoding"})
_SERVER_ERROR: Final = 500


class OAuthHttp:
    """Sends a flow's requests after checking their URLs."""

    def __init__(self, client: httpx2.AsyncClient, config: ServerConfig, *, timeout: float = REQUEST_TIMEOUT) -> None:
        self._client = client
        self._timeout = timeout
        self._name = config.name
        self._backend = httpx2.URL(config.url or "")
        issuer = config.oauth.issuer if config.oauth is not None else None
        self._trusted = [self._backend, *([httpx2.URL(issuer)] if issuer else [])]

    async def send(self, request: httpx2.Request) -> httpx2.Response:
        """Send one request and read the response.

        Raises:
            BackendUnavailable: the URL is forbidden, cannot be reached, or fails with a status of 500 or above.
        """
        url = request.url
        await self.check(url)
        request.headers["accept-encoding"] = "identity"  # compression would hide how large a body grows
        request.headers["user-agent"] = "trio-mcp-gateway"
        request.headers.setdefault("accept", "application/json")
        where = f"{url.scheme}://{url.netloc.decode('ascii', 'replace')}"
        try:
            with trio.fail_after(self._timeout):
                response = await self._client.send(request, stream=True)
                try:
                    body = await read_body(LibraryResponse(response), MAX_BODY)
                finally:
                    with trio.move_on_after(CLOSE_WAIT, shield=True):
                        await response.aclose()
        except trio.TooSlowError:
            text = f"needs a login, and {where} did not answer within {self._timeout:g} s"
            raise BackendUnavailable(self._name, text) from None
        except BodyTooLong:
            text = f"needs a login, and {where} answered with more than {MAX_BODY} bytes"
            raise BackendUnavailable(self._name, text) from None
        except (Undecodable, *LIBRARY_ERRORS) as exc:
            text = f"needs a login, and {where} {explain(self._name, exc, proxy_variable(url)).reason}"
            raise BackendUnavailable(self._name, text) from exc
        headers = [(name, value) for name, value in response.headers.multi_items() if name not in _DROPPED]
        answer = httpx2.Response(response.status_code, headers=headers, content=without_bom(body), request=request)
        answer.next_request = response.next_request
        if answer.status_code >= _SERVER_ERROR and request.method == "POST":
            # Not a rejection: a refresh token remains valid if the server is down.
            verdict = describe(answer.status_code, answer.headers.get("content-type", ""), answer.content)
            raise BackendUnavailable(self._name, f"needs a login, and {where}{url.path} answered {verdict}")
        return answer

    async def check(self, url: httpx2.URL) -> None:
        """Refuse a URL that must not be requested. Raises BackendUnavailable."""
        self.check_page(url)
        if any(same_origin(url, known) for known in self._trusted) or await _is_private(self._backend):
            return
        if await _is_private(url):
            raise self._refusal(url, "is in a private network, and 'url' is not (oauth.issuer may name it)")

    def check_page(self, url: httpx2.URL) -> None:
        """Refuse a URL that must not be opened in a browser. Raises BackendUnavailable."""
        if url.userinfo:
            raise self._refusal(url, "contains a user name or password")
        if is_loopback(url):
            if not is_loopback(self._backend):
                raise self._refusal(url, "is on this machine, and 'url' is not")
        elif url.scheme != "https":
            raise self._refusal(url, "is not https")

    def _refusal(self, url: httpx2.URL, text: str) -> BackendUnavailable:
        return BackendUnavailable(self._name, f"needs a login at {url.scheme}://{url.host}, which {text}")


async def _is_private(url: httpx2.URL) -> bool:
    """Return whether the host has a private address; False for an unknown host."""
    try:
        with trio.fail_after(RESOLVE_WAIT):
            found = await trio.socket.getaddrinfo(url.host, url.port or 443, type=socket.SOCK_STREAM)
    except (OSError, UnicodeError, trio.TooSlowError):
        return False
    return any(not ipaddress.ip_address(str(entry[4][0]).partition("%")[0]).is_global for entry in found)


@asynccontextmanager
async def open_oauth_http(config: ServerConfig) -> AsyncGenerator[OAuthHttp]:
    """Open the connections of one flow; close them on leaving."""
    client = httpx2.AsyncClient(transport=EnvironmentTransport())
    try:
        yield OAuthHttp(client, config)
    finally:
        with trio.move_on_after(CLOSE_WAIT, shield=True):
            await client.aclose()
