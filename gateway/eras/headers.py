"""The HTTP headers that mirror a modern request's body, checked against it.

2026-07-28 basic/transports/streamable-http, "Request Metadata" and "Server Validation": a server that reads the body
must refuse a request whose headers are missing, malformed or different (400 and -32020). Names here are lower case, as
ASGI passes them; values are bytes.
"""

from __future__ import annotations

import base64
import binascii
import re
from typing import TYPE_CHECKING, ClassVar, Final

from gateway import surrogates
from gateway.errors import RequestError

if TYPE_CHECKING:
    from collections.abc import Iterable

    from gateway.calls import Call

VERSION_HEADER: Final = b"mcp-protocol-version"
METHOD_HEADER: Final = b"mcp-method"
NAME_HEADER: Final = b"mcp-name"
PARAM_PREFIX: Final = b"mcp-param-"
SESSION_HEADER: Final = b"mcp-session-id"
MAX_MIRRORED: Final = 64
"""Maximum `Mcp-*` headers on one request; more are refused before any is decoded."""

_VALUE = re.compile(rb"[\x20-\x7e\t]*")
_SENTINEL_START: Final = b"=?base64?"
_SENTINEL_END: Final = b"?="


class HeaderMismatch(RequestError):
    """The headers do not match the body; -32020 and HTTP 400."""

    code: ClassVar[str] = "header_mismatch"


def decode_value(name: str, value: bytes) -> str:
    """Decode a header value, the Base64 sentinel included ("Value Encoding").

    Raises:
        HeaderMismatch: it has characters not allowed in a header, or a sentinel around invalid Base64 or UTF-8.
    """
    if _VALUE.fullmatch(value) is None:
        text = f"Header mismatch: {name} has characters that a header value must not have"
        raise HeaderMismatch(text)
    if not (value.startswith(_SENTINEL_START) and value.endswith(_SENTINEL_END) and len(value) >= 11):
        return value.decode("ascii")
    encoded = value[len(_SENTINEL_START) : -len(_SENTINEL_END)]
    try:
        decoded = base64.b64decode(encoded, validate=True)
        if base64.b64encode(decoded) == encoded:  # only one spelling, as proxies that compare headers expect
            return decoded.decode()
    except (binascii.Error, UnicodeDecodeError):
        pass
    text = f"Header mismatch: {name} is marked as Base64 but does not decode to UTF-8 text"
    raise HeaderMismatch(text)


def encode_value(value: str) -> str:
    """Encode a header value: verbatim if that is safe, else in the Base64 sentinel."""
    value = surrogates.text_without_surrogates(value)
    plain = value.encode()
    safe = value.isascii() and _VALUE.fullmatch(plain) is not None and value == value.strip(" \t")
    if safe and not (plain.startswith(_SENTINEL_START) and plain.endswith(_SENTINEL_END)):
        return value
    return f"=?base64?{base64.b64encode(plain).decode()}?="


def mirrored(headers: Iterable[tuple[bytes, bytes]]) -> dict[bytes, bytes]:
    """Return the `mcp-*` headers of a request.

    Raises:
        HeaderMismatch: one of them appears twice, or there are more than `MAX_MIRRORED`.
    """
    pairs = [(name, value.strip(b" \t")) for name, value in headers if name.startswith(b"mcp-")]
    found = dict(pairs)
    if len(found) < len(pairs) or len(pairs) > MAX_MIRRORED:
        names = [name for name, _ in pairs]
        name = max(names, key=names.count)
        text = f"Header mismatch: {name.decode('ascii', 'replace')} appears more than once, or too many Mcp- headers"
        raise HeaderMismatch(text)
    return found


def check(found: dict[bytes, bytes], call: Call) -> None:
    """Check the standard headers of a modern request against its body.

    Raises:
        HeaderMismatch: one is missing, malformed, or differs.
    """
    _expect(found, VERSION_HEADER, "MCP-Protocol-Version", call.caller.version)
    _expect(found, METHOD_HEADER, "Mcp-Method", call.method)
    if call.name:
        _expect(found, NAME_HEADER, "Mcp-Name", call.name, encoded=True)


def _expect(found: dict[bytes, bytes], key: bytes, name: str, expected: str, *, encoded: bool = False) -> None:
    value = found.get(key)
    is_plain = expected.isascii() and expected.isprintable() and not expected.startswith("=?")
    if is_plain and value == expected.encode():  # nearly always
        return
    if value is None:
        text = f"Header mismatch: the {name} header is required (body value {expected!r})"
        raise HeaderMismatch(text)
    expected = surrogates.text_without_surrogates(expected)  # not representable in a header
    got = decode_value(name, value) if encoded else value.decode("latin-1")
    if got != expected:
        text = f"Header mismatch: {name} header value {got!r} does not match body value {expected!r}"
        raise HeaderMismatch(text)
