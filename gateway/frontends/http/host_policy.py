"""The Host and Origin checks of the HTTP frontend (2025-11-25 and 2026-07-28, transports, "Security").

A web page that a user visits can make the browser send requests to loopback; the Host check stops DNS rebinding, the
Origin check everything else that a page can do. Header values are few, so verdicts are cached, within a bound.
"""

from __future__ import annotations

from functools import lru_cache
from typing import TYPE_CHECKING, Final

from gateway.access.refusal import Refusal
from gateway.config.hosts import canonical_host, parse_authority, parse_origin

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable

    from gateway.config.hosts import Origin

LOOPBACK: Final = frozenset({"127.0.0.1", "localhost", "::1"})
WILDCARDS: Final = frozenset({"0.0.0.0", "::", ""})  # ruff: ignore[hardcoded-bind-all-interfaces] - to recognise them, not to bind
ANY_PAGE: Final = (b"access-control-allow-origin", b"*")
EXPOSED: Final = (b"access-control-expose-headers", b"Mcp-Session-Id, WWW-Authenticate, Retry-After")
VARY: Final = (b"vary", b"Origin")
MAX_SHOWN: Final = 100
"""Characters of a header's value quoted in an error."""
REMEMBERED: Final = 256
"""Header values whose verdict is cached."""


def is_loopback(host: str) -> bool:
    """Return whether a listen address is reachable from this machine only.

    A name other than localhost may be any address.
    """
    if host in LOOPBACK:
        return True
    import ipaddress  # 3 ms, saved in most starts

    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False


class HostPolicy:
    """Decides which Host and Origin values are allowed."""

    def __init__(self, bound_host: str) -> None:
        host = canonical_host(bound_host)
        self._any_host = host in WILDCARDS
        self._own = self._hosts = LOOPBACK | {host}
        self._any_page = False
        self._pages: frozenset[Origin | None] = frozenset()
        self._forget()

    def permit(self, origins: Iterable[str], hosts: Iterable[str]) -> None:
        """Replace the allowed origins (`*`: all) and the host names beside the gateway's own."""
        given = frozenset(origins)
        self._any_page = "*" in given
        self._pages = frozenset(map(parse_origin, given)) - {None}
        self._hosts = self._own | frozenset(map(canonical_host, hosts))
        self._forget()

    def _forget(self) -> None:
        self.host_is_ours: Callable[[bytes], bool] = lru_cache(REMEMBERED)(self._host_is_ours)
        self.origin_is_ours: Callable[[bytes], bool] = lru_cache(REMEMBERED)(self._origin_is_ours)

    def refusal(self, headers: dict[bytes, bytes]) -> Refusal | None:
        """Return the reason to refuse a request with these headers, or None."""
        host = headers.get(b"host", b"")
        if not self.host_is_ours(host):
            return Refusal(
                403,
                "unknown_host",
                f"the Host {_shown(host)} is not a name of this gateway (access.allow_hosts);"
                " add it there if clients are to reach the gateway under it",
            )
        origin = headers.get(b"origin")
        if origin is not None and not self.origin_is_ours(origin):
            return Refusal(
                403,
                "unknown_origin",
                f"the Origin {_shown(origin)} is not allowed to use this gateway (access.allow_origins);"
                " add it there if it is yours",
            )
        return None

    def cors_headers(self, origin: bytes) -> tuple[tuple[bytes, bytes], ...]:
        """Return the headers that let a page from this origin read responses (Fetch, "HTTP responses")."""
        if self._any_page:
            return (ANY_PAGE, EXPOSED)
        if parse_origin(origin.decode("latin-1")) not in self._pages:
            return ()
        return ((b"access-control-allow-origin", origin), EXPOSED, VARY)

    def _host_is_ours(self, value: bytes) -> bool:
        if self._any_host:
            return True
        authority = parse_authority(value.decode("latin-1"))
        return authority is not None and authority.host in self._hosts

    def _origin_is_ours(self, value: bytes) -> bool:
        if self._any_page:
            return True
        origin = parse_origin(value.decode("latin-1"))
        return origin is not None and (origin in self._pages or origin.host in self._hosts)


def _shown(value: bytes) -> str:
    return repr(value.decode("latin-1")[:MAX_SHOWN])
