"""Requests to an authorization server: its metadata, its keys and token introspection.

Each request is bounded in time and size, goes to an address from the config or the server's own metadata, and follows
no redirect. Each uses its own connection: requests are rare, since answers are cached. Client input is sent only as the
`token` of an introspection request.
"""

from __future__ import annotations

import json
import logging
from base64 import b64encode
from typing import TYPE_CHECKING, Any, ClassVar, Final
from urllib.parse import quote, urlencode, urlsplit

import trio

from gateway.config.oauth import is_same_issuer
from gateway.errors import GatewayError

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable

    from gateway.config.access import Introspection, ResourceServer

    Fetch = Callable[..., Awaitable[tuple[int, bytes]]]

REQUEST_WAIT: Final = 10.0
"""Seconds for one request including its response: a client waits for it."""
MAX_BODY: Final = 262_144
"""Bytes of one response; a key set has a few thousand."""
WELL_KNOWN: Final = ("/.well-known/oauth-authorization-server{path}", "/.well-known/openid-configuration{path}")
"""Well-known metadata paths for an issuer with this path (RFC 8414, 3.1 and 5); the third is OpenID's."""

log = logging.getLogger("gateway.access")


class AuthorityDown(GatewayError):
    """The authorization server is unavailable, so the token cannot be judged."""

    code: ClassVar[str] = "authority_unavailable"


async def fetch(
    method: str, url: str, *, headers: dict[str, str] | None = None, body: bytes = b""
) -> tuple[int, bytes]:
    """Send one request and return its status and body. Raises AuthorityDown."""
    import httpx2

    from gateway.http_client.body import read_body
    from gateway.http_client.errors import BodyTooLong, Undecodable
    from gateway.http_client.library import LibraryResponse
    from gateway.proxies import CLOSE_WAIT, EnvironmentTransport, proxy_variable, via

    where = "{0.scheme}://{0.netloc}".format(urlsplit(url))
    client = httpx2.AsyncClient(transport=EnvironmentTransport())
    try:
        with trio.fail_after(REQUEST_WAIT):
            given = {"accept": "application/json", "accept-encoding": "identity", **(headers or {})}
            request = client.build_request(method, url, headers=given, content=body or None)
            response = await client.send(request, stream=True)
            try:
                return response.status_code, await read_body(LibraryResponse(response), MAX_BODY)
            finally:
                with trio.move_on_after(CLOSE_WAIT, shield=True):
                    await response.aclose()
    except trio.TooSlowError:
        text = f"{where} did not answer within {REQUEST_WAIT:g} s"
        raise AuthorityDown(text) from None
    except (httpx2.HTTPError, httpx2.InvalidURL, httpx2.StreamError, BodyTooLong, Undecodable, OSError) as exc:
        proxy = proxy_variable(httpx2.URL(where)) if isinstance(exc, httpx2.TransportError) else ""
        text = f"{where} cannot be reached{via(proxy)}: {type(exc).__name__}"
        raise AuthorityDown(text) from exc
    finally:
        with trio.move_on_after(CLOSE_WAIT, shield=True):
            await client.aclose()


class Authority:
    """One authorization server."""

    def __init__(self, settings: ResourceServer, send: Fetch = fetch) -> None:
        self._settings = settings
        self._send = send

    async def keys(self) -> list[dict[str, Any]]:
        """Return the server's keys (RFC 7517). Raises AuthorityDown."""
        url = self._settings.jwks_url or await self._find_jwks_url()
        keys = self._read(url, *await self._send("GET", url)).get("keys")
        if not isinstance(keys, list):
            text = f"the keys of {self._settings.issuer} are not a key set"
            raise AuthorityDown(text)
        return [key for key in keys if isinstance(key, dict)]  # pyright: ignore[reportUnknownVariableType] - JSON

    async def introspect(self, asked: Introspection, token: str) -> dict[str, Any]:
        """Return the introspection response for a token (RFC 7662). Raises AuthorityDown."""
        headers = {"content-type": "application/x-www-form-urlencoded"}
        if asked.client_id is not None and asked.client_secret is not None:
            pair = f"{quote(asked.client_id, safe='')}:{quote(asked.client_secret, safe='')}"  # RFC 6749, 2.3.1
            headers["authorization"] = "Basic " + b64encode(pair.encode()).decode("ascii")
        body = urlencode({"token": token, "token_type_hint": "access_token"}).encode()
        status, answer = await self._send("POST", asked.url, headers=headers, body=body)
        return self._read(asked.url, status, answer)

    async def _find_jwks_url(self) -> str:
        """Return the URL of the server's keys, from its metadata."""
        issuer = self._settings.issuer
        parts = urlsplit(issuer)
        path = parts.path.rstrip("/")
        places = [form.format(path=path) for form in WELL_KNOWN]
        if path:
            places.append(f"{path}/.well-known/openid-configuration")
        for place in places:
            url = f"{parts.scheme}://{parts.netloc}{place}"
            status, answer = await self._send("GET", url)
            if status != 200:
                continue
            metadata = self._read(url, status, answer)
            keys_url = metadata.get("jwks_uri")
            # Metadata for another issuer must not be trusted (RFC 8414, 3.3).
            if not is_same_issuer(metadata.get("issuer"), issuer) or not isinstance(keys_url, str):
                continue
            # Over https, or on loopback if the issuer is there too.
            is_local = parts.scheme == "http" and urlsplit(keys_url).hostname == parts.hostname
            if keys_url.startswith("https://") or is_local:
                return keys_url
        text = f"{issuer} has no metadata with its name and keys; set 'jwks_url'"
        raise AuthorityDown(text)

    def _read(self, url: str, status: int, answer: bytes) -> dict[str, Any]:
        where = url.partition("?")[0]
        if status != 200:
            text = f"{where} answered HTTP {status}"
            raise AuthorityDown(text)
        try:
            members = json.loads(answer)
        except (ValueError, RecursionError):
            members = None
        if not isinstance(members, dict):
            text = f"{where} did not answer with a JSON object"
            raise AuthorityDown(text)
        return members  # pyright: ignore[reportUnknownVariableType] - JSON
