"""Proxies that the environment names for HTTP, and hosts that are reached without them.

`HTTP_PROXY`, `HTTPS_PROXY`, `ALL_PROXY` and `NO_PROXY` are read as curl reads them, in either case. This machine itself
is always reached directly, since a proxy has a loopback of its own. Errors name the variable and never show its value,
which may hold a password.
"""

from __future__ import annotations

import functools
import importlib
import ipaddress
import os
import re
from typing import TYPE_CHECKING, Any, Final
from urllib.request import getproxies

import httpx2
import msgspec
import trio

if TYPE_CHECKING:
    import ssl

_SCHEMES: Final = {"http": "http", "https": "https", "socks5": "socks5", "socks5h": "socks5h", "socks": "socks5"}
"""Schemes of a proxy's URL, as the HTTP library knows them; GNOME writes `socks`."""
_SCHEME: Final = re.compile(r"[a-z][a-z0-9+.-]{0,15}", re.IGNORECASE)
_HOST: Final = re.compile(rb"[A-Za-z0-9._:-]+")
_MAX_PORT: Final = 65_535
CLOSE_WAIT: Final = 1.0
"""Seconds that closing a connection, or saying goodbye, may take while everything around it is being cancelled."""
_PORTS: Final = {"http": 80, "https": 443}

Address = ipaddress.IPv4Address | ipaddress.IPv6Address


def port_of(url: httpx2.URL) -> int | None:
    """Return the port of a URL, that of its scheme if it names none."""
    return url.port or _PORTS.get(url.scheme)


class BadProxy(Exception):
    """The environment names a proxy that cannot be used."""

    def __init__(self, variable: str, why: str) -> None:
        super().__init__(why)
        self.variable = variable
        self.why = why


class ProxyChoice(msgspec.Struct, frozen=True):
    """The proxy for a URL, and the variable that names it."""

    variable: str
    proxy: httpx2.Proxy

    def transport(self, tls: ssl.SSLContext, limits: httpx2.Limits) -> httpx2.AsyncHTTPTransport:
        """Return what sends requests through the proxy. Raises BadProxy."""
        if not self.proxy.url.scheme.startswith("socks"):
            return httpx2.AsyncHTTPTransport(verify=tls, limits=limits, proxy=self.proxy)
        try:
            socksio = importlib.import_module("socksio")
        except ImportError:
            text = "it is a SOCKS proxy; install the extra 'socks' (pip install 'trio-mcp-gateway[socks]')"
            raise BadProxy(self.variable, text) from None
        return _SocksTransport(socksio.SOCKSError, verify=tls, limits=limits, proxy=self.proxy)


class _SocksTransport(httpx2.AsyncHTTPTransport):
    """Turns what the SOCKS library raises at invalid replies into the HTTP library's error."""

    def __init__(self, error: type[Exception], **options: Any) -> None:
        super().__init__(**options)
        self._errors = (error, AssertionError, LookupError, NotImplementedError, ValueError)

    async def handle_async_request(self, request: httpx2.Request) -> httpx2.Response:
        opened: list[Any] = []

        async def trace(event: str, info: dict[str, Any]) -> None:  # noqa: RUF029 - the library awaits it
            if event.endswith("connect_tcp.complete"):
                opened.append(info["return_value"])

        request.extensions = {**request.extensions, "trace": trace}
        served = False
        try:
            response = await super().handle_async_request(request)
            served = True
        except self._errors as exc:
            raise httpx2.ProxyError(f"it does not speak SOCKS5: {exc}", request=request) from exc
        finally:
            if not served:  # the library leaves connections open whose SOCKS handshake fails
                for stream in opened:
                    with trio.move_on_after(CLOSE_WAIT, shield=True):
                        await stream.aclose()
        return response


@functools.cache
def _system_trust() -> ssl.SSLContext:
    """Return the system's trust, loaded once: that takes 15 ms."""
    return httpx2.create_ssl_context()


class EnvironmentTransport(httpx2.AsyncBaseTransport):
    """Sends each request directly or through the proxy that the environment names for its URL."""

    def __init__(self) -> None:
        self._tls = _system_trust()
        self._transports: dict[str, httpx2.AsyncHTTPTransport] = {}

    async def handle_async_request(self, request: httpx2.Request) -> httpx2.Response:
        """Send a request. Raises httpx2.ProxyError for a proxy that cannot be used, as for one that fails."""
        try:
            choice = find_proxy(request.url)
            key = "" if choice is None else choice.variable
            if key not in self._transports:
                limits = httpx2.Limits()
                direct = choice is None
                made = httpx2.AsyncHTTPTransport(verify=self._tls) if direct else choice.transport(self._tls, limits)
                self._transports[key] = made
        except BadProxy as exc:
            raise httpx2.ProxyError(exc.why, request=request) from None
        return await self._transports[key].handle_async_request(request)

    async def aclose(self) -> None:
        """Close all connections."""
        for transport in self._transports.values():
            await transport.aclose()


def find_proxy(url: httpx2.URL) -> ProxyChoice | None:
    """Return the proxy that the environment names for a URL, None if it is reached directly. Raises BadProxy."""
    proxies = getproxies()
    scheme = url.scheme if proxies.get(url.scheme) else "all"
    value = proxies.get(scheme, "").strip()
    if not value or is_loopback(url) or is_unspecified(url):
        return None
    # `NO_PROXY` names hosts, domains, addresses and networks, perhaps with a port.
    if any(_is_named(url, entry) for entry in re.split(r"[\s,]+", proxies.get("no", "").lower()) if entry):
        return None
    wanted = f"{scheme}_proxy"
    names = [wanted, wanted.upper(), *(name for name in os.environ if name.lower() == wanted)]
    variable = next((name for name in names if os.environ.get(name) == proxies[scheme]), "the system's settings")
    scheme, separator, rest = value.partition("://")
    if not separator:
        scheme, rest = "http", value
    known = _SCHEMES.get(scheme.lower())
    if known is None:
        shown = repr(scheme.lower()) if _SCHEME.fullmatch(scheme) else "it names"
        raise BadProxy(variable, f"the scheme {shown} is not supported; use http, https, socks5 or socks5h")
    try:
        proxy = httpx2.Proxy(f"{known}://{rest}")
    except (httpx2.InvalidURL, ValueError):
        raise BadProxy(variable, "its value is not a valid URL") from None
    if not proxy.url.host:
        raise BadProxy(variable, "its value names no host")
    if (proxy.url.port or 0) > _MAX_PORT or not _HOST.fullmatch(proxy.url.raw_host):
        raise BadProxy(variable, "its value is not a valid URL")
    return ProxyChoice(variable, proxy)


def proxy_variable(url: httpx2.URL) -> str:
    """Return the variable that names the proxy for a URL, usable or not; empty if it is reached directly."""
    try:
        choice = find_proxy(url)
    except BadProxy as exc:
        return exc.variable
    return "" if choice is None else choice.variable


def via(variable: str) -> str:
    """What the errors of a connection say of the proxy that it goes through."""
    return f" through the proxy of {variable}" if variable else ""


def _address(host: str) -> Address | None:
    try:
        address = ipaddress.ip_address(host.partition("%")[0])
    except ValueError:
        return None
    return getattr(address, "ipv4_mapped", None) or address


def is_loopback(url: httpx2.URL) -> bool:
    """Whether a URL is this machine's own, by its spelling."""
    host = url.host.rstrip(".").lower()
    address = _address(host)
    return host == "localhost" or host.endswith(".localhost") or (address is not None and address.is_loopback)


def is_unspecified(url: httpx2.URL) -> bool:
    """Whether a URL names the unspecified address, which connects to this machine."""
    address = _address(url.host)
    return address is not None and address.is_unspecified


def _is_named(url: httpx2.URL, entry: str) -> bool:
    """Whether an entry of `NO_PROXY` names the host of a URL."""
    scheme, separator, rest = entry.partition("://")
    if separator:
        if scheme not in {"all", url.scheme}:
            return False
        entry = rest.rstrip("/")
    network = _network(entry)
    if network is None:
        name, colon, port = entry.rpartition(":")
        if colon and port.isdecimal():
            if int(port[:9]) != port_of(url):
                return False
            entry, network = name, _network(name)
    if network is not None:
        address = _address(url.host)
        return address is not None and address in network
    if entry == "*":
        return True
    domain = entry.removeprefix("*").strip(".")
    hosts = {url.host.rstrip(".").lower(), url.raw_host.decode("ascii", "replace").rstrip(".").lower()}
    if not domain:
        return False
    return any(host.endswith(f".{domain}") or (host == domain and not entry.startswith("*.")) for host in hosts)


def _network(entry: str) -> ipaddress.IPv4Network | ipaddress.IPv6Network | None:
    if entry.startswith("[") and ("]:" in entry or "]" not in entry):
        return None
    try:
        return ipaddress.ip_network(entry.replace("[", "", 1).replace("]", "", 1), strict=False)
    except ValueError:
        return None
