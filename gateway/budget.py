"""A bound for the bytes that many holders keep in memory together.

The runtime owns one `Budget` for all bytes waiting for clients. Every connection, of whatever transport, counts its own
in a `Share`. When the sum exceeds the bound, the connections with the most bytes are closed until the others fit, and
the router refuses new calls until those bytes are released. Refusing alone would let a few clients that do not read
block all others.
"""

from __future__ import annotations

import logging
from operator import attrgetter
from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from collections.abc import Callable

MAX_UNSENT_BYTES: Final = 2**28
"""Bytes waiting for all clients together: sixteen results of the largest size that a backend may send by default,
or a quarter of a mebibyte for each of a thousand sessions."""

log = logging.getLogger("gateway.budget")


class Budget:
    """Bytes that all holders may keep together: now `used`, at most `most`."""

    __slots__ = ("_shares", "is_exceeded", "most", "used")

    def __init__(self, most: int) -> None:
        self.most = most
        self.used = 0
        self.is_exceeded = False
        """Whether shares exceed the bound: those closed for it have not released their bytes yet."""
        self._shares: dict[Share, None] = {}  # those with any bytes, in the order of their first

    def note(self, share: Share, change: int) -> None:
        """Count a share's change; close the largest ones if the sum exceeds the bound."""
        self.used += change
        if share.size:
            self._shares[share] = None
        else:
            self._shares.pop(share, None)
        self.is_exceeded = self.used > self.most
        if change <= 0 or not self.is_exceeded:
            return
        shares = [share for share in reversed(self._shares) if not share.is_closed]
        shares.sort(key=attrgetter("size"))  # of equal ones, close the one that has waited longer
        kept = sum(share.size for share in shares)
        while kept > self.most:
            largest = shares.pop()
            kept -= largest.size
            log.warning("connection closed: its client does not read, and %d bytes wait for it", largest.size)
            largest.close()


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
