"""Cache hints of modern results: for how long, and for whom (2026-07-28 server/utilities/caching).

A result made of several parts has the shortest time of its parts, and is private if any part is. A legacy backend gives
no hint, which counts as not cacheable. Pure.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

import msgspec

from gateway import jsonrpc

if TYPE_CHECKING:
    from collections.abc import Iterable

LONGEST_TTL_MS: Final = 86_400_000
"""A day; longer values count as that."""


class Hint(msgspec.Struct, frozen=True, gc=False):
    """`ttlMs` and `cacheScope`."""

    ttl_ms: int = 0
    public: bool = False

    def encode(self) -> bytes:
        """Return the hint as two members of a result."""
        return b'"ttlMs":%d,"cacheScope":"%b"' % (self.ttl_ms, b"public" if self.public else b"private")


KEEP_NOTHING: Final = Hint()


def read_hint(members: dict[str, msgspec.Raw]) -> Hint:
    """Read the hint of a result; a missing or invalid one counts as not cacheable."""
    try:
        ttl = msgspec.json.decode(members["ttlMs"], type=int)
    except (KeyError, *jsonrpc.UNDECODABLE):
        return KEEP_NOTHING
    return Hint(min(max(ttl, 0), LONGEST_TTL_MS), bytes(members.get("cacheScope", b"")) == b'"public"')


def merge_hints(hints: Iterable[Hint]) -> Hint:
    """Combine the hints of these parts; without parts: not cacheable."""
    parts = set(hints)
    if not parts:
        return KEEP_NOTHING
    return Hint(min(part.ttl_ms for part in parts), all(part.public for part in parts))
