"""Access control of the management API. The HTTP frontend checks Host and Origin first.

Everything requires the admin token, with two exceptions, both only on loopback and only without a config section
`access`: reads by clients not behind a proxy and, with `open`, changes too, which the required JSON content type keeps
web pages from sending. A gateway with `access` is meant to serve others, and a request forwarded by a reverse proxy
with `proxy_pass` alone is indistinguishable from a local client's.
"""

from __future__ import annotations

import hmac
from typing import TYPE_CHECKING, Final, Literal

from gateway.config.hosts import parse_authority
from gateway.errors import ConfigError
from gateway.frontends.http.host_policy import LOOPBACK, is_loopback

if TYPE_CHECKING:
    from collections.abc import Mapping

    from gateway.store import Store

Mode = Literal["token", "open", "off"]
ENVIRONMENT: Final = "MCP_GATEWAY_ADMIN_TOKEN"
MIN_TOKEN: Final = 16
"""Minimum length of a configured token; a guessable one protects nothing."""
FORWARDED: Final = frozenset({
    b"cf-connecting-ip", b"forwarded", b"true-client-ip", b"via", b"x-client-ip", b"x-forwarded-for",
    b"x-forwarded-host", b"x-forwarded-port", b"x-forwarded-proto", b"x-forwarded-server", b"x-real-ip",
})  # fmt: skip
"""Headers added by reverse proxies."""
HINT: Final = (
    "send it as 'Authorization: Bearer TOKEN'; it is the value of --admin-token or MCP_GATEWAY_ADMIN_TOKEN, or else of"
    " the file 'admin-token' in the gateway's state directory"
)


class AdminAccess:
    """Decides whether a request may read or change."""

    def __init__(self, mode: Mode, *, host: str, token: str | None = None) -> None:
        """Create it for a gateway that listens on `host`; None rejects every token.

        Raises:
            ConfigError: `open` anywhere but on loopback.
        """
        self.mode = mode
        self.on_loopback = host in LOOPBACK
        self._token = None if token is None else token.encode()
        if mode == "open" and not self.on_loopback:
            raise ConfigError([f"--admin open is for loopback only, not for --host {host}; use --admin token"])

    def has_token(self, headers: Mapping[bytes, bytes]) -> bool:
        """Return whether the request carries the token."""
        scheme, _, given = headers.get(b"authorization", b"").partition(b" ")
        if self._token is None or scheme.lower() != b"bearer":
            return False
        return hmac.compare_digest(given.strip(), self._token)

    def may_read(self, headers: Mapping[bytes, bytes], *, guarded: bool) -> bool:
        """Return whether the request may read; `guarded` says whether `access` is configured."""
        return (self.on_loopback and self._is_local(headers, guarded)) or self.has_token(headers)

    def may_change(self, headers: Mapping[bytes, bytes], *, guarded: bool) -> bool:
        """Return whether the request may make changes."""
        return (self.mode == "open" and self._is_local(headers, guarded)) or self.has_token(headers)

    @staticmethod
    def _is_local(headers: Mapping[bytes, bytes], guarded: bool) -> bool:
        """Return whether `access` is not configured and neither headers nor host indicate a proxy."""
        if guarded or not FORWARDED.isdisjoint(headers):
            return False
        host = headers.get(b"host", b"").decode("latin-1")
        authority = parse_authority(host)
        return not host or (authority is not None and is_loopback(authority.host))


def find_token(given: str | None, environ: Mapping[str, str], store: Store | None) -> str | None:
    """Return the admin token: given, from the environment, or from the state directory.

    Raises:
        ConfigError: the given token is too short.
        OSError: the state directory cannot be used.
    """
    token = given or environ.get(ENVIRONMENT) or None
    if token is not None:
        if len(token) < MIN_TOKEN or not token.isascii() or not token.isprintable() or " " in token:
            text = f"the admin token must be at least {MIN_TOKEN} visible ASCII characters; make one with"
            raise ConfigError([f"{text} `openssl rand -hex 32`"])
        return token
    return None if store is None else store.admin_token()
