"""HTTP proxies configured in the environment, and hosts that bypass them.

`HTTP_PROXY`, `HTTPS_PROXY`, `ALL_PROXY` and `NO_PROXY` are read as curl reads them, in upper or lower case. Loopback
addresses are always reached directly, since a proxy has its own loopback. Errors name the variable but never its value,
which may contain a password.
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
"""Seconds that closing a connection may take during cancellation."""
_PORTS: Final = {"http": 80, "https": 443}

Address = ipaddress.IPv4Address | ipaddress.IPv6Address


def port_of(url: httpx2.URL) -> int | None:
    """Return the port of a URL, or its scheme's default."""
    return url.port or _PORTS.get(url.scheme)


class BadProxy(Exception):
    """The environment names a proxy that cannot be used."""

    def __init__(self, variable: str, why: str) -> None:
        super().__init__(why)
        self.variable = variable
        self.why = why


class ProxyChoice(msgspec.Struct, frozen=True):
    """The proxy for a URL and its environment variable."""

    variable: str
    proxy: httpx2.Proxy

    def transport(self, tls: ssl.SSLContext, limits: httpx2.Limits) -> httpx2.AsyncHTTPTransport:
        """Return a transport through the proxy. Raises BadProxy."""
        if not self.proxy.url.scheme.startswith("socks"):
            return httpx2.AsyncHTTPTransport(verify=tls, limits=limits, proxy=self.proxy)
        try:
            socksio = importlib.import_module("socksio")
        except ImportError:
            text = "SOCKS proxies require the extra 'socks' (pip install 'trio-mcp-gateway[socks]')"
            raise BadProxy(self.variable, text) from None
        return _SocksTransport(socksio.SOCKSError, verify=tls, limits=limits, proxy=self.proxy)


class _SocksTransport(httpx2.AsyncHTTPTransport):
    """Translates the SOCKS library's protocol errors into the HTTP library's error."""

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
            if not served:  # the library leaves connections open after a failed SOCKS handshake
                for stream in opened:
                    with trio.move_on_after(CLOSE_WAIT, shield=True):
                        await stream.aclose()
        return response


@functools.cache
def _system_trust() -> ssl.SSLContext:
    """Return the system's trust store; cached, since loading takes 15 ms."""
    return httpx2.create_ssl_context()


class EnvironmentTransport(httpx2.AsyncBaseTransport):
    """Sends each request directly or through the environment's proxy for its URL."""

    def __init__(self) -> None:
        self._tls = _system_trust()
        self._transports: dict[str, httpx2.AsyncHTTPTransport] = {}

    async def handle_async_request(self, request: httpx2.Request) -> httpx2.Response:
        """Send a request. Raises httpx2.ProxyError for an unusable or failing proxy."""
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
    """Return the environment's proxy for a URL, None for a direct connection. Raises BadProxy."""
    proxies = getproxies()
    scheme = url.scheme if proxies.get(url.scheme) else "all"
    value = proxies.get(scheme, "").strip()
    if not value or is_loopback(url) or is_unspecified(url):
        return None
    # `NO_PROXY` lists hosts, domains, addresses and networks, optionally with a port.
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
    """Return the variable that sets a URL's proxy, usable or not; empty without one."""
    try:
        choice = find_proxy(url)
    except BadProxy as exc:
        return exc.variable
    return "" if choice is None else choice.variable


def via(variable: str) -> str:
    """Return the phrase that names a connection's proxy in errors."""
    return f" through the proxy of {variable}" if variable else ""


def _address(host: str) -> Address | None:
    try:
        address = ipaddress.ip_address(host.partition("%")[0])
    except ValueError:
        return None
    return getattr(address, "ipv4_mapped", None) or address


def is_loopback(url: httpx2.URL) -> bool:
    """Return whether a URL's host is spelled as a loopback address."""
    host = url.host.rstrip(".").lower()
    address = _address(host)
    return host == "localhost" or host.endswith(".localhost") or (address is not None and address.is_loopback)


def is_unspecified(url: httpx2.URL) -> bool:
    """Return whether a URL's host is the unspecified address, which connects to this machine."""
    address = _address(url.host)
    return address is not None and address.is_unspecified


def _is_named(url: httpx2.URL, entry: str) -> bool:
    """Return whether an entry of `NO_PROXY` matches the host of a URL."""
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
