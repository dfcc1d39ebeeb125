"""Recovery of list responses that are invalid JSON: the items that decode are kept.

One tool with a lone surrogate, a NaN or 50,000 nested brackets makes the whole message undecodable. Only such messages
get here: a lenient scanner that recognizes strings, brackets and commas, and nothing else of JSON, finds the bounds of
each item. It does not recurse, its work is bounded, and it never raises; the recovered items have been decoded
strictly. Pure.
"""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, Final

import msgspec

from gateway import jsonrpc
from gateway.catalog.listing import bound_problems

if TYPE_CHECKING:
    from collections.abc import Iterator

    from gateway.eras.methods import Kind

MAX_TOKENS: Final = 400_000
"""Limit of scanned strings, brackets and commas (0.2 s); a longer response is dropped entirely."""
MAX_NAMED: Final = 20
"""Limit of dropped items reported by name."""

_TOKEN = re.compile(rb'"[^"\\]*(?:\\.[^"\\]*)*"|["\[\]{},]', re.DOTALL)
_MEMBER = re.compile(rb'\s*("[^"\\]*(?:\\.[^"\\]*)*")\s*:\s*', re.DOTALL)
_items = msgspec.json.Decoder(msgspec.Raw)


class _TooMuchError(Exception):
    """The scanner has reached its limit, or a string or bracket is unterminated."""


class _Scanner:
    """Splits one message; `max_tokens` bounds its tokens over all calls."""

    def __init__(self, data: bytes, max_tokens: int) -> None:
        self.data = data
        self._left = max_tokens

    def pieces(self, start: int) -> Iterator[tuple[int, int]]:
        """Yield the spans between the commas of the array or object that opens at `start`."""
        depth, begin = 0, start + 1
        for token in _TOKEN.finditer(self.data, start):
            self._left -= 1
            first = self.data[token.start()]
            if self._left < 0 or token[0] == b'"':
                raise _TooMuchError
            if first in b"[{":
                depth += 1
            elif first in b"]}":
                depth -= 1
                if not depth:
                    yield begin, token.start()
                    return
            elif first == ord(",") and depth == 1:
                yield begin, token.start()
                begin = token.end()
        raise _TooMuchError

    def member(self, start: int, name: str) -> tuple[int, int] | None:
        """Return the last value of a member of the object that opens at `start`."""
        found = None
        for begin, end in self.pieces(start):
            key = _MEMBER.match(self.data, begin, end)
            if key is not None and _text(key[1]) == name:
                found = key.end(), end
        return found


def salvage(data: bytes, kind: Kind, *, max_tokens: int = MAX_TOKENS) -> tuple[bytes, tuple[str, ...]] | None:
    """Return a list response without its invalid items, and a problem for each of them.

    Returns None if it cannot be split or is also invalid outside its items.
    """
    scanner = _Scanner(data, max_tokens)
    kept: list[bytes] = []
    problems: list[str] = []
    try:
        place = 0, len(data)
        for name in ("result", kind.member):
            place = scanner.member(_opening(data, place, b"{"), name) or (0, 0)
        opening = _opening(data, place, b"[")
        pieces = list(scanner.pieces(opening))
        for index, (begin, end) in enumerate(pieces):
            item = data[begin:end].strip(b" \t\r\n")
            if not item and len(pieces) == 1:
                break  # an empty array
            try:
                item.decode()
                jsonrpc.read(_items, item)
            except jsonrpc.UNDECODABLE as exc:
                name = _name_of(scanner, kind, begin, end)
                problems.append(f"{kind.member}[{index}]{name} left out: invalid JSON: {exc}")
            else:
                kept.append(item)
    except (_TooMuchError, ValueError):
        return None
    fixed = data[:opening] + b"[" + b",".join(kept) + b"]" + data[pieces[-1][1] + 1 :]
    try:
        jsonrpc.decode(fixed)
    except jsonrpc.Malformed:
        return None
    return fixed, bound_problems(kind, problems, MAX_NAMED)


def _opening(data: bytes, place: tuple[int, int], bracket: bytes) -> int:
    begin, end = place
    while begin < end and data[begin] in b" \t\r\n":
        begin += 1
    if data[begin : begin + 1] != bracket or begin >= end:
        text = f"expected {bracket!r}"
        raise ValueError(text)
    return begin


def _name_of(scanner: _Scanner, kind: Kind, begin: int, end: int) -> str:
    """Return the item's name for a problem; empty if it cannot be found."""
    try:
        place = scanner.member(_opening(scanner.data, (begin, end), b"{"), kind.key)
    except (_TooMuchError, ValueError):
        return ""
    name = None if place is None else _text(scanner.data[slice(*place)])
    return "" if name is None else f" ({name!r})"


def _text(span: bytes) -> str | None:
    try:
        return jsonrpc.decode_string(span)
    except ValueError:
        return None
