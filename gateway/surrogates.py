r"""Lone surrogates and byte order marks in JSON, which msgspec rejects.

Most parsers accept both. JavaScript writes text truncated inside an emoji as the escape of a lone surrogate
(`"\ud83d"`, RFC 8259, 8.2), and some programs write a byte order mark before a text (8.1). `gateway.jsonrpc` uses this
module only after decoding has failed, so that valid messages cost nothing extra. Pure.
"""

from __future__ import annotations

import re
from itertools import islice
from typing import TYPE_CHECKING, Final, cast

import msgspec

if TYPE_CHECKING:
    from collections.abc import Iterator

BOM: Final = b"\xef\xbb\xbf"
_LEADING = re.compile(rb"(?:\s|\xef\xbb\xbf)+")
_SURROGATE = re.compile(rb"\\u[dD][89a-fA-F][0-9a-fA-F]{2}")
_MARKS: Final = tuple(chr(code) for code in range(0xFDD0, 0xFDF0))
"""Noncharacters, which text should not contain (Unicode 23.7); one that the message lacks marks its lone escapes."""

ESCAPE_BYTES: Final = 6
"""Length of an escape with four hexadecimal digits."""
REPLACEMENT: Final = rb"\ufffd"
MAX_SURROGATES: Final = 200_000
"""Limit of surrogate escapes checked in one message (0.1 s); a message with more is rejected."""
_LONE = re.compile(r"[\ud800-\udfff]")


def masked(text: bytes) -> tuple[bytes, str | None]:
    """Return JSON that msgspec decodes, and the mark in place of backslashes.

    The mark replaces the backslash of each lone escape. None without one.

    `unmasked` reverses this in the decoded result.
    """
    unused = (
        mark
        for mark in _MARKS
        if mark.encode() not in text and not re.search(rb"(?i)\\u%04x" % ord(mark), text)  # nor escaped
    )
    mark = next(unused, None)
    found = text if mark is None else _marked(text, _lone_escapes(text), mark.encode())
    return (text, None) if found is text else (found, mark)


def unmasked(value: object, mark: str) -> object:
    """Restore a masked message after decoding: escapes in spans, surrogates in strings."""
    match value:
        case str():
            return re.sub(mark + "u(....)", lambda found: chr(int(found[1], 16)), value) if mark in value else value
        case msgspec.Raw():
            span, masked = bytes(value), mark.encode()
            return msgspec.Raw(span.replace(masked, b"\\")) if masked in span else value
        case dict():
            members = cast("dict[str, object]", value).items()
            return {str(unmasked(key, mark)): unmasked(member, mark) for key, member in members}
        case list():
            return [unmasked(member, mark) for member in cast("list[object]", value)]
        case tuple():
            return tuple(unmasked(member, mark) for member in cast("tuple[object, ...]", value))
        case msgspec.Struct():
            for name in value.__struct_fields__:
                msgspec.structs.force_setattr(value, name, unmasked(getattr(value, name), mark))
            return value
        case _:
            return value


def _lone_escapes(data: bytes) -> Iterator[int]:
    """Return the offsets of unpaired surrogate escapes; none if there are too many surrogates."""
    matches = [match.start() for match in islice(_SURROGATE.finditer(data), MAX_SURROGATES + 1)]
    if len(matches) > MAX_SURROGATES:
        return
    high = -1  # the last high surrogate, until it is known whether a low one follows
    for start in matches:
        if data[start - 1 : start] == b"\\" and _backslashes(data, start) % 2:
            continue  # it is the text "\\ud83d", whose backslash is escaped
        is_low = data[start + 3] in b"cdefCDEF"
        if is_low and 0 <= high == start - ESCAPE_BYTES:
            high = -1
            continue
        if high >= 0:
            yield high
        high = -1 if is_low else start
        if is_low:
            yield start
    if high >= 0:
        yield high


def _backslashes(data: bytes, end: int) -> int:
    """Return the number of consecutive backslashes before an offset."""
    begin, step = end, 64
    while begin:
        part = data[max(begin - step, 0) : begin]
        left = part.rstrip(b"\\")
        begin -= len(part) - len(left)
        if left:
            break
        step *= 2
    return end - begin


def _marked(data: bytes, places: Iterator[int], mark: bytes, length: int = 1) -> bytes:
    """Return the data with a mark for the `length` bytes at each offset.

    The same object if there are none.
    """
    parts = bytearray()
    end = 0
    for place in places:
        parts += data[end:place]
        parts += mark
        end = place + length
    return bytes(parts + data[end:]) if end else data


def find_lone_surrogate(data: bytes) -> int | None:
    """Return the offset of the first lone surrogate escape; None if there is none."""
    return next(_lone_escapes(data), None)


def without_lone_surrogates(data: bytes) -> bytes:
    r"""Return the JSON with each lone surrogate escape as `\ufffd`.

    The same object if it has none.

    For lists and `initialize` results sent to clients: a parser that rejects such an escape would lose the whole
    message.
    """
    if b"\\ud" not in data and b"\\uD" not in data:
        return data
    return _marked(data, _lone_escapes(data), REPLACEMENT, ESCAPE_BYTES)


def text_without_surrogates(text: str) -> str:
    """Return an encodable text: lone surrogates become U+FFFD, as in a browser's TextEncoder."""
    return text if text.isascii() else _LONE.sub("\ufffd", text)


def without_bom(data: bytes) -> bytes:
    """Return the text without leading byte order marks (and the white space around them)."""
    leading = _LEADING.match(data)
    return data[leading.end() :] if leading is not None and BOM in leading[0] else data
