"""The limit of open connections, and of the time that each state may last.

Up to `Limits.connections` have a slot. Above that, connections that wait for their client are closed: first those
without a request (silent, in a TLS handshake, in the middle of a head), then idle ones, then slow uploads. If all are
busy, a new connection is accepted into a small reserve: a probe is answered from there immediately; every other request
waits for a slot, and is refused with 503 when it has waited too long or a newer connection needs its place.
"""

from __future__ import annotations

import heapq
import math
from dataclasses import dataclass
from enum import IntEnum
from typing import TYPE_CHECKING, Final

import trio

if TYPE_CHECKING:
    from collections.abc import Callable

RECHECK_INTERVAL: Final = 0.25
"""Seconds between two checks at the limit for connections to close."""
BATCH: Final = 50
"""Maximum fraction of all slots freed by one check: a flood of silent connections must not cost a check for each."""
SCAN_INTERVAL: Final = 5e-5
"""Seconds for each connection until all are scanned again: some ten times what a scan takes."""


@dataclass(frozen=True, kw_only=True)
class Limits:
    """Limits of an HTTP server's clients, in number and in seconds for each state."""

    connections: int = 5_000
    """Connections with a slot."""
    per_address: int = 256
    """Connections of one address that have not sent a request yet; above it the oldest is closed. 0: unlimited."""
    reserve: int = 64
    """Connections above `connections`, for probes and for requests that wait for a slot."""
    probes: frozenset[str] = frozenset()
    """Paths that are served without a slot."""
    place: float = 10.0
    """The longest wait for a slot."""
    settle: float = 1.0
    """The age from which a connection without a request may be closed; a burst of new ones is not silent yet."""
    handshake: float = 10.0
    """A TLS handshake."""
    head: float = 15.0
    """From the start of a connection to the end of its first head; from the first byte of a later head to its end."""
    window: float = 30.0
    """A body that has not arrived by then must deliver `rate` bytes a second from then on, in each such window."""
    rate: int = 256
    """The minimum rate of a body in bytes a second, without its framing; also for a client that reads."""
    send: float = 10.0
    """The longest time for which a client may read nothing of a response."""


class Rank(IntEnum):
    """The order in which connections are closed."""

    SILENT = 0
    IDLE = 1
    SLOW = 2


class Slot:
    """One connection in the count; its server sets `waits` and `end`."""

    def __init__(self, address: str | None, *, placed: bool) -> None:
        self.address = address
        self.placed = placed
        """Whether it has a slot, or is in the reserve."""
        self.opened = trio.current_time()
        self.scope = trio.CancelScope()
        """Around everything before its HTTP/1.1 begins."""
        self.waits: Callable[[], tuple[Rank, float] | None] = lambda: (Rank.SILENT, self.opened)
        """Returns the state that its client must end, and its start; None while it is busy."""
        self.end: Callable[[], None] = lambda: self.scope.cancel(reason="closed for a new connection")
        self.ended = False
        self.changed = trio.Event()
        """Set when it is given a slot, or refused one."""
        self.refused = False


class ConnectionLimit:
    """The connections of one server."""

    def __init__(self, limits: Limits) -> None:
        self._limits = limits
        self._slots: dict[Slot, None] = {}
        self._taken = 0
        self._silent: dict[str, dict[Slot, None]] = {}
        self._waiting: dict[Slot, None] = {}
        self._freed = trio.Event()
        self._candidates: list[tuple[Rank, float, int, Slot]] = []  # to be ended next, as of the last scan
        self._candidates_found = False  # by the last scan
        self._next_scan = -math.inf

    async def enter(self, address: str | None) -> Slot:
        """Wait for a slot, or a place in the reserve, and count one more connection."""
        limits = self._limits
        while self._taken >= limits.connections:
            if not self.make_room():
                if len(self._slots) - self._taken < limits.reserve:
                    break
                if self._waiting:  # refuse the request that has waited longest in the reserve
                    first = next(iter(self._waiting))
                    del self._waiting[first]
                    first.refused = True
                    first.changed.set()
            if self._freed.is_set():
                self._freed = trio.Event()
            with trio.move_on_after(RECHECK_INTERVAL):
                await self._freed.wait()
        slot = Slot(address, placed=self._taken < limits.connections)
        self._taken += slot.placed
        self._slots[slot] = None
        if address is not None and limits.per_address:
            silent = self._silent.setdefault(address, {})
            silent[slot] = None
            oldest = next(iter(silent))
            if len(silent) > limits.per_address and trio.current_time() - oldest.opened >= limits.settle:
                self._end(oldest)
        await trio.lowlevel.cancel_shielded_checkpoint()  # an admitted connection is served, even at the end
        return slot

    def note_request(self, slot: Slot) -> None:
        """Exempt a connection that has sent a request from the bound of its address."""
        silent = self._silent.get(slot.address or "")
        if silent is not None:
            silent.pop(slot, None)
            if not silent:
                del self._silent[slot.address or ""]

    def leave(self, slot: Slot) -> None:
        """Stop counting a connection."""
        self.note_request(slot)
        del self._slots[slot]
        del slot.waits, slot.end  # both refer to it, and would keep its connection until the garbage collector runs
        if slot.placed:
            self._taken -= 1
            if self._waiting:
                self._give_place(next(iter(self._waiting)))
        self._freed.set()

    def _give_place(self, slot: Slot) -> None:
        self._waiting.pop(slot, None)
        self._taken += 1
        slot.placed = True
        slot.changed.set()
        self._freed.set()  # in the reserve

    async def wait_for_place(self, slot: Slot) -> bool:
        """Wait for a slot for a connection of the reserve; return whether it got one."""
        self._waiting[slot] = None
        try:
            with trio.move_on_after(self._limits.place):
                while not (slot.placed or slot.refused):
                    if self._taken < self._limits.connections:
                        self._give_place(slot)
                        break
                    self.make_room()
                    with trio.move_on_after(RECHECK_INTERVAL):
                        await slot.changed.wait()
        finally:
            self._waiting.pop(slot, None)
        await trio.lowlevel.checkpoint()
        return slot.placed

    def make_room(self) -> bool:
        """End waiting connections, the lowest rank first; return False if there are none."""
        self._candidates = [found for found in self._candidates if self._still_waits(*found)]
        if trio.current_time() >= self._next_scan or (self._candidates_found and not self._candidates):
            self._scan()
        if not self._candidates:
            return False
        rank = self._candidates[0][0]
        count = len(self._candidates) if rank is Rank.SILENT else 1
        for candidate_rank, _, _, slot in self._candidates[:count]:
            if candidate_rank is rank:
                self._end(slot)
        return True

    def _scan(self) -> None:
        """Find the next connections to end; too costly for each new connection."""
        now = trio.current_time()
        self._next_scan = now + len(self._slots) * SCAN_INTERVAL
        waiting = (
            (*waits, index, slot)
            for index, slot in enumerate(self._slots)
            if not slot.ended and (waits := slot.waits()) is not None
            if waits[0] is not Rank.SILENT or now - waits[1] >= self._limits.settle
        )
        self._candidates = heapq.nsmallest(max(1, self._limits.connections // BATCH), waiting)
        self._candidates_found = bool(self._candidates)

    def _still_waits(self, rank: Rank, since: float, _: int, slot: Slot) -> bool:
        return not slot.ended and slot in self._slots and slot.waits() == (rank, since)

    @staticmethod
    def _end(slot: Slot) -> None:
        slot.ended = True
        slot.end()
