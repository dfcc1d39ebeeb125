"""Hosts in `Host` and `Origin` headers (RFC 3986, 3.2; RFC 9110, 7.2; RFC 6454, 6.2).

One parser for all decisions based on a host: the host policy, the management API and the configuration. It is stricter
than the grammar, without excluding any reachable name or address: a name contains letters, digits, '.', '-', '_' and
'~', so percent-encoding, user information, zone identifiers and future address formats are rejected. Pure.
"""

from __future__ import annotations

import re
from typing import Final, NamedTuple

_AUTHORITY: Final = re.compile(
    r"(?:\[(?P<literal>[0-9A-Fa-f:.]{2,45})\]|(?P<name>[A-Za-z0-9._~-]{1,255}))(?::(?P<port>[0-9]{0,5}))?", re.ASCII
)
_NUMERIC: Final = re.compile(r"[0-9]+|0[xX][0-9A-Fa-f]*", re.ASCII)
"""A numeric last label: resolvers and browsers read such a host as an IPv4 address."""
MAX_PORT: Final = 65_535
DEFAULT_PORTS: Final = {"http": 80, "https": 443}


class Authority(NamedTuple):
    """A normalized host (lower case, IPv6 compressed and without brackets), and the given port."""

    host: str
    port: int | None = None


class Origin(NamedTuple):
    """The origin of a web page, with its effective port."""

    scheme: str
    host: str
    port: int


def parse_authority(text: str) -> Authority | None:
    """Parse `HOST` or `HOST:PORT`; return None for anything else."""
    found = _AUTHORITY.fullmatch(text)
    if found is None:
        return None
    if found["name"] is not None:
        host = _parse_name(found["name"])
    else:
        from ipaddress import AddressValueError, IPv6Address  # 3 ms that a usual start saves

        try:
            host = str(IPv6Address(found["literal"]))
        except AddressValueError:
            return None
    port = int(found["port"]) if found["port"] else None
    if host is None or (port is not None and port > MAX_PORT):
        return None
    return Authority(host, port)


def parse_origin(text: str) -> Origin | None:
    """Parse the origin of an http(s) page; None for others, such as `null`."""
    scheme, separator, rest = text.partition("://")
    scheme = scheme.lower()
    authority = parse_authority(rest) if separator and scheme in DEFAULT_PORTS and not rest.endswith(":") else None
    if authority is None:
        return None
    return Origin(scheme, authority.host, DEFAULT_PORTS[scheme] if authority.port is None else authority.port)


def canonical_host(text: str) -> str:
    """Return the normalized form of a host without port; lower-case only if invalid."""
    authority = parse_authority(f"[{text}]" if ":" in text and not text.startswith("[") else text)
    return text.lower() if authority is None or authority.port is not None else authority.host


def _parse_name(text: str) -> str | None:
    name = text.lower()
    labels = name.removesuffix(".").split(".")
    if not all(labels):
        return None
    if _NUMERIC.fullmatch(labels[-1]) is None:
        return name
    octets = [label for label in labels if label == "0" or (label.isdigit() and label[0] != "0" and int(label) < 256)]
    return name if len(octets) == len(labels) == 4 and not name.endswith(".") else None
