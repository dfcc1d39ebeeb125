"""Large messages: their long strings are set aside, and the rest is a small message.

A large message consists mostly of a few long strings: a file, an image. `set_aside` checks those in many short steps,
between which other tasks run, and replaces them by placeholders. The rest is read and changed like any other message,
in one short step. `LongStrings.restore` returns what is sent, in parts; HTTP sends them without a copy.
"""

from __future__ import annotations

import io
import re
from typing import Final

import msgspec
import trio

from gateway.jsonrpc import LongStrings

LONG_BYTES: Final = 2**16
"""The length from which a string is set aside."""
FIRST_STEP: Final = 2**16
MAX_STEP: Final = 2**20
"""Bytes of a string that are checked in one step, which takes a few milliseconds."""
MAX_STRINGS: Final = 10_000
"""Strings that are looked at: a message with more before a long one is not mostly a few long strings."""
STRINGS_PER_STEP: Final = 256
"""Each may have `MAX_QUOTES`."""
MAX_QUOTES: Final = 100
"""Escaped quotes of a string that are looked at; one with more is checked like a long string."""

_HIGH_SURROGATE: Final = re.compile(rb"\\u[dD][89abAB][0-9a-fA-F]{2}\Z")
_ESCAPE_BYTES: Final = 6
_CHARACTER_BYTES: Final = 4
_strings: Final = msgspec.json.Decoder(msgspec.Raw)


async def joined(parts: tuple[bytes | memoryview, ...]) -> bytes:
    """Return the bytes of a message in parts, joined in many short steps.

    A thread would not help: with memoryviews, `bytes.join` holds the interpreter's lock.
    """
    whole = io.BytesIO()
    for part in map(memoryview, parts):
        for start in range(0, len(part), MAX_STEP):
            whole.write(part[start : start + MAX_STEP])
            await trio.lowlevel.checkpoint()
    await trio.lowlevel.checkpoint()
    return whole.getvalue()


async def set_aside(data: bytes) -> tuple[bytes, LongStrings] | None:
    """Return a JSON text with placeholders for its long strings, and these.

    Returns None if they are less than half of the text, or if one of them is invalid: then the text is to be read as a
    whole. The strings refer to `data`, which stays in memory as long as they do.
    """
    kept: list[bytes] = []
    strings = LongStrings()
    done = at = rested = 0
    for number in range(MAX_STRINGS):
        start = data.find(b'"', at)
        if start < 0:
            break
        end = _end_of_short(data, start + 1)
        if end < 0:
            end = await _end_of_long(data, start + 1)
            if end < 0:
                return None
            kept += (data[done:start], strings.add(memoryview(data)[start : end + 1]))
            done = end + 1
        at = end + 1
        if at - rested >= MAX_STEP or number % STRINGS_PER_STEP == 0:
            rested = at
            await trio.lowlevel.checkpoint()
    if strings.size < max(1, len(data) / 2):
        return None
    kept.append(data[done:])
    return b"".join(kept), strings


def _end_of_short(data: bytes, at: int) -> int:
    """Return the index of a string's closing quote; -1 if it is long."""
    limit = at + LONG_BYTES
    for _ in range(MAX_QUOTES):
        end = data.find(b'"', at, limit)
        if end < 0:
            break
        before = data[at:end]
        if not (len(before) - len(before.rstrip(b"\\"))) % 2:
            return end
        at = end + 1
    return -1


async def _end_of_long(data: bytes, at: int) -> int:
    """Check a string; return the index of its closing quote, -1 if it is invalid."""
    step = FIRST_STEP
    while at < len(data):
        cut = _cut(data, at, at + step)
        part = data[at:cut]
        plain = part.replace(b"\\\\", b"__").replace(b'\\"', b"__") if b"\\" in part else part
        end = plain.find(b'"')
        if not part or not _is_valid(part if end < 0 else part[:end]):
            break
        if end >= 0:
            return at + end
        at = cut
        step = min(2 * step, MAX_STEP)
        await trio.lowlevel.checkpoint()
    return -1


def _cut(data: bytes, start: int, end: int) -> int:
    """Return the last index up to `end` that splits no escape sequence, pair or character."""
    if end >= len(data):
        return len(data)
    if (escape := data.rfind(b"\\", max(start, end - _ESCAPE_BYTES), end)) >= 0:
        end = start + len(data[start:escape].rstrip(b"\\"))
    if _HIGH_SURROGATE.search(data[max(start, end - _ESCAPE_BYTES) : end]):
        end = start + len(data[start : end - _ESCAPE_BYTES].rstrip(b"\\"))
    for back in range(_CHARACTER_BYTES):
        if data[end - back] & 0xC0 != 0x80:
            return max(start, end - back)
    return end


def _is_valid(part: bytes) -> bool:
    try:
        if not part.isascii():
            part.decode()
        _strings.decode(b'"%b"' % part)
    except ValueError:  # of both decoders
        return False
    return True
