"""Who may talk to the HTTP face at all: Host and Origin (2025-11-25 and 2026-07-28, transports, "Security").

A web page that a user visits can make the browser send requests to loopback; the Host check stops DNS rebinding, the
Origin check everything else that a page can do. Header values are few, so verdicts are remembered, within a bound.
"""

from __future__ import annotations

from functools import lru_cache
from typing import TYPE_CHECKING, Final
from urllib.parse import urlsplit

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable

LOOPBACK: Final = frozenset({"127.0.0.1", "localhost", "::1"})
WILDCARDS: Final = frozenset({"0.0.0.0", "::", ""})  # ruff: ignore[hardcoded-bind-all-interfaces] - to recognise them, not to bind
ANY_PAGE: Final = (b"access-control-allow-origin", b"*")
EXPOSED: Final = (b"access-control-expose-headers", b"Mcp-Session-Id, WWW-Authenticate, Retry-After")
VARY: Final = (b"vary", b"Origin")
REMEMBERED: Final = 256
"""Header values whose verdict is kept."""


def is_loopback(host: str) -> bool:
    """Whether an address to listen on is reached from this machine alone; a name other than localhost may be any."""
    if host in LOOPBACK:
        return True
    import ipaddress  # 3 ms that usual starts do not pay

    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False


class HostPolicy:
    """Says which Host and Origin values are ours."""

    def __init__(self, bound_host: str) -> None:
        self._any_host = bound_host in WILDCARDS
        self._own = self._hosts = LOOPBACK | {bound_host.lower()}
        self._pages: frozenset[bytes] = frozenset()
        self._forget()

    def permit(self, origins: Iterable[str], hosts: Iterable[str]) -> None:
        """From now on take these origins (`*`: all) and host names too, in lower case, and only these."""
        self._pages = frozenset(origin.encode("latin-1") for origin in origins)
        self._hosts = self._own | frozenset(host.strip("[]") for host in hosts)
        self._forget()

    def _forget(self) -> None:
        self.host_is_ours: Callable[[bytes], bool] = lru_cache(REMEMBERED)(self._host_is_ours)
        self.origin_is_ours: Callable[[bytes], bool] = lru_cache(REMEMBERED)(self._origin_is_ours)

    def refusal(self, headers: dict[bytes, bytes]) -> str | None:
        """Why a request with these headers is refused, or None."""
        if not self.host_is_ours(headers.get(b"host", b"")):
            return "the Host header names another host than this gateway"
        origin = headers.get(b"origin")
        if origin is not None and not self.origin_is_ours(origin):
            return "the Origin header names a web page that may not use this gateway"
        return None

    def cors_headers(self, origin: bytes) -> tuple[tuple[bytes, bytes], ...]:
        """What lets a page from this origin read answers (Fetch, "HTTP responses"); nothing for one not permitted."""
        if b"*" in self._pages:
            return (ANY_PAGE, EXPOSED)
        if origin not in self._pages:
            return ()
        return ((b"access-control-allow-origin", origin), EXPOSED, VARY)

    def _host_is_ours(self, value: bytes) -> bool:
        if self._any_host:
            return True
        return _host_of("//" + value.decode("latin-1")) in self._hosts

    def _origin_is_ours(self, value: bytes) -> bool:
        if value in self._pages or b"*" in self._pages:
            return True
        text = value.decode("latin-1")
        return text.startswith(("http://", "https://")) and _host_of(text) in self._hosts


def _host_of(url: str) -> str | None:
    """The host of a URL in lower case; None where there is no valid one."""
    try:
        parts = urlsplit(url)
        _ = parts.port  # raises for a port that is no number
    except ValueError:
        return None
    if parts.path or parts.query or parts.fragment or "@" in parts.netloc:
        return None
    return parts.hostname
