"""A bound for the bytes that many holders keep in memory together.

The runtime owns one `Budget` for everything that waits: bytes for clients that have not read them, messages that are
still arriving, large parameters of pending calls, queued notifications and kept events (`max_buffered_bytes`). Every
connection, of whatever transport, counts what waits for its client in a `Share`. When the sum exceeds the bound, the
connections with the most bytes are closed until the others fit, and the router refuses new calls until those bytes are
released. Refusing alone would let a few clients that do not read block all others.

A message that is arriving counts in an `Intake`. If it does not fit even then, it is not kept, and only its own call
fails. Small things (`SMALL_BYTES`) are not counted, since their number is bounded elsewhere.
"""

from __future__ import annotations

import logging
from operator import attrgetter
from typing import TYPE_CHECKING, Final

import trio

if TYPE_CHECKING:
    from collections.abc import Callable

MAX_BUFFERED_BYTES: Final = 2**28
"""The default bound: sixteen results of the largest size that a backend may send by default, or a quarter of a mebibyte
for each of a thousand sessions."""
SMALL_BYTES: Final = 2**14
"""Bytes of one message or call that are not counted, so that small calls cost nothing."""

log = logging.getLogger("gateway.budget")


class Budget:
    """Bytes that all holders may keep together: now `used`, at most `most`."""

    __slots__ = ("_shares", "conversion", "most", "used")

    def __init__(self, most: int) -> None:
        self.most = most
        self.used = 0
        self.conversion = trio.CapacityLimiter(1)
        """Held while a large message is handled: one at a time, with checkpoints between the steps."""
        self._shares: dict[Share, None] = {}  # those with any bytes, in the order of their first

    @property
    def is_exceeded(self) -> bool:
        """Whether the bound is exceeded: shares closed for it have not released their bytes yet."""
        return self.used > self.most

    @property
    def unsent(self) -> int:
        """The bytes that wait for clients."""
        return sum(share.size for share in self._shares)

    def note(self, share: Share, change: int) -> None:
        """Count a share's change; close the largest ones if the sum exceeds the bound."""
        self.used += change
        if share.size:
            self._shares[share] = None
        else:
            self._shares.pop(share, None)
        if change > 0 and self.used > self.most:
            self._close_largest()

    def hold(self, count: int, *, evict: bool = False) -> bool:
        """Count bytes that belong to no connection; return whether they fit, and are counted.

        With `evict`, connections are closed for them.
        """
        if self.used + count > self.most and (not evict or self.used - self.unsent + count > self.most):
            return False
        self.used += count
        if self.used > self.most:
            self._close_largest()
        return True

    def _close_largest(self) -> None:
        """Close the largest shares until the rest fits."""
        shares = [share for share in reversed(self._shares) if not share.is_closed]
        shares.sort(key=attrgetter("size"))  # of equal ones, close the one that has waited longer
        kept = self.used - sum(share.size for share in self._shares if share.is_closed)
        while kept > self.most and shares:
            largest = shares.pop()
            kept -= largest.size
            log.warning("connection closed: its client does not read, and %d bytes wait for it", largest.size)
            largest.close()


class Intake:
    """The bytes of an arriving message, without the last `SMALL_BYTES`."""

    __slots__ = ("_budget", "_counted", "_evict")

    def __init__(self, budget: Budget, *, evict: bool) -> None:
        """Start with no bytes; `evict` says whether connections are closed for them."""
        self._budget = budget
        self._evict = evict
        self._counted = 0

    def fits(self, size: int) -> bool:
        """Count an arriving message's bytes; return False if they must not be kept."""
        grown = size - self._counted
        if grown < 0:
            self._budget.used += grown
            self._counted = size
        if grown <= SMALL_BYTES:
            return True
        if not self._budget.hold(grown, evict=self._evict):
            return False
        self._counted = size
        return True

    def release(self) -> None:
        """Stop counting: the message is complete or dropped. Safe to repeat."""
        self._budget.used -= self._counted
        self._counted = 0


def _ignore() -> None:
    pass


class Share:
    """The bytes that one connection keeps; `size` of them."""

    __slots__ = ("_budget", "_on_close", "is_closed", "size")

    def __init__(self, budget: Budget, on_close: Callable[[], None]) -> None:
        """Make an empty share.

        Args:
            budget: the bound for all shares.
            on_close: ends the connection, which then calls `release`; called at most once. It must not wait.
        """
        self._budget = budget
        self._on_close = on_close
        self.is_closed = False
        self.size = 0

    def add(self, count: int) -> None:
        """Count further bytes. This connection or others may be closed for it."""
        self.size += count
        self._budget.note(self, count)

    def remove(self, count: int) -> None:
        """Count bytes that were sent or dropped."""
        self.size -= count
        self._budget.note(self, -count)

    def release(self) -> None:
        """Stop counting: the connection has ended. Safe to repeat."""
        self.remove(self.size)
        self._on_close = _ignore  # a cycle with the connection would keep both until the garbage collector runs

    def close(self) -> None:
        """End the connection because the bound is exceeded."""
        self.is_closed = True
        try:
            self._on_close()
        except Exception:
            log.exception("a connection could not be closed because of a bug")
