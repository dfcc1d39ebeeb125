"""The fields of a server that runs elsewhere: `url` and `headers`."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING

from gateway.config.findings import shown
from gateway.config.process import read_text, read_texts
from gateway.config.substitution import is_unicode

if TYPE_CHECKING:
    from gateway.config.findings import Entry, Scope

_TOKEN = re.compile(r"[!#$%&'*+.^_`|~0-9A-Za-z-]+", re.ASCII)  # RFC 9110, 5.6.2
_UNSAFE = re.compile(r"[^\t\x20-\x7e]")
_BLANK = re.compile(r"[\x00-\x20\x7f]")
# The transport writes these itself. Other clients' files hold some of them, so they are dropped, not refused.
_OWN = frozenset({
    "accept", "connection", "content-length", "content-type", "last-event-id", "mcp-method", "mcp-name",
    "mcp-protocol-version", "mcp-session-id", "transfer-encoding", "upgrade",
})  # fmt: skip


def read_url(scope: Scope, entry: Entry) -> str | None:
    """Return an http or https address with a host. It is never shown, for keys travel in addresses."""
    url = read_text(scope, entry)
    if url is None:
        return None
    fault = _url_fault(url)
    if fault is not None:
        scope.problem(entry.label, fault)
        return None
    if "@" in url.split("/", 3)[2]:
        scope.warn(entry.label, "holds a user name or password; an 'Authorization' entry in 'headers' is safer")
    return url


def _url_fault(url: str) -> str | None:
    from urllib.parse import urlsplit  # 2 ms that a config of stdio servers need not spend

    if _BLANK.search(url) or not is_unicode(url):
        return "must not hold spaces, line breaks or control characters"
    try:
        parts = urlsplit(url)
        host, port = parts.hostname, parts.port
    except ValueError:
        return "is not a valid address; check its host and port"
    if parts.scheme not in {"http", "https"}:
        return "must begin with http:// or https://"
    if not host:
        return "has no host; write it as https://HOST/PATH"
    return "has port 0; leave the port out or name one" if port == 0 else None


def read_headers(scope: Scope, entry: Entry) -> dict[str, str]:
    """Return headers that are safe to send as they are."""
    headers: dict[str, str] = {}
    seen: set[str] = set()
    for name, value in read_texts(scope, entry).items():
        label = f"{entry.label}.{name}"
        folded = name.lower()
        if _TOKEN.fullmatch(name) is None:
            scope.problem(entry.label, f"has the name {shown(name)}; a header's name takes letters, digits and '-'")
        elif folded in seen:
            scope.problem(label, "is there twice, in different case; keep one")
        elif _UNSAFE.search(value):
            scope.problem(label, _unsafe(value))
        elif folded in _OWN:
            scope.warn(label, "is ignored: the gateway writes this header itself")
        else:
            headers[name] = value.strip(" \t")
        seen.add(folded)
    return headers


def _unsafe(value: str) -> str:
    if "\n" in value or "\r" in value:
        return "must not hold a line break; check the end of the text or variable"
    return "must be plain ASCII without control characters"
