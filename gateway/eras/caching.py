"""For how long, and for whom, a modern result may be kept (2026-07-28 server/utilities/caching).

What is put together from several parts may be kept no longer than the part that may be kept least, and is private if
any part is. A legacy backend says nothing, which counts as nothing may be kept. Pure.
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
        """As two members of a result."""
        return b'"ttlMs":%d,"cacheScope":"%b"' % (self.ttl_ms, b"public" if self.public else b"private")


KEEP_NOTHING: Final = Hint()


def read_hint(members: dict[str, msgspec.Raw]) -> Hint:
    """What a result says; what is missing or wrong counts as nothing may be kept."""
    try:
        ttl = msgspec.json.decode(members["ttlMs"], type=int)
    except (KeyError, *jsonrpc.UNDECODABLE):
        return KEEP_NOTHING
    return Hint(min(max(ttl, 0), LONGEST_TTL_MS), bytes(members.get("cacheScope", b"")) == b'"public"')


def merge_hints(hints: Iterable[Hint]) -> Hint:
    """The hint of what is made of these parts; of no parts: nothing may be kept."""
    parts = set(hints)
    if not parts:
        return KEEP_NOTHING
    return Hint(min(part.ttl_ms for part in parts), all(part.public for part in parts))
