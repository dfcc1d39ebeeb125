"""How many connections may be open at once, which of them make room for new ones, and how long each state may last.

Up to `Limits.connections` have a place. Over that, connections that wait for their client make room: first those
without a request (silent, in a TLS handshake, in the middle of a head), then idle ones, then uploads that are slow.
Where all are busy, a newcomer is accepted into a small reserve: a probe is answered from there at once, every other
request waits for a place, and is refused with 503 when it has waited too long or a newcomer needs its place there.
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import IntEnum
from typing import TYPE_CHECKING, Final

import trio

if TYPE_CHECKING:
    from collections.abc import Callable

RECHECK_INTERVAL: Final = 0.25
"""Seconds between two looks, while the bound is reached, whether a connection can make room."""
BATCH: Final = 50
"""One look ends up to this part of all places at once: a flood of silent connections must not cost a look for each."""


@dataclass(frozen=True, kw_only=True)
class Limits:
    """What clients may hold of an HTTP server, and for how long (seconds); each state has a deadline."""

    connections: int = 5_000
    """Connections with a place."""
    per_address: int = 256
    """Connections of one address that have not sent a request yet; over it the oldest is closed. 0: no such bound."""
    reserve: int = 64
    """Connections over `connections`, for probes and for requests that wait for a place."""
    probes: frozenset[str] = frozenset()
    """Paths that are served without a place."""
    place: float = 10.0
    """The longest wait for a place."""
    settle: float = 1.0
    """The age from which a connection without a request makes room; a crowd that arrives at once is not silent yet."""
    handshake: float = 10.0
    """A TLS handshake."""
    head: float = 15.0
    """From the start of a connection to the end of its first head; from the first byte of a later head to its end."""
    window: float = 30.0
    """A body that has not arrived by then must bring `rate` bytes a second from then on, in each such window."""
    rate: int = 256
    """The least rate of a body in bytes a second; what frames it does not count. Also of a client that reads."""
    send: float = 10.0
    """The longest time in which a client takes nothing of a response."""


class Rank(IntEnum):
    """The order in which connections make room."""

    SILENT = 0
    IDLE = 1
    SLOW = 2


class Slot:
    """One connection in the count; its server sets `waits` and `end`."""

    def __init__(self, address: str | None, *, placed: bool) -> None:
        self.address = address
        self.placed = placed
        """Whether it has a place, or is in the reserve."""
        self.opened = trio.current_time()
        self.scope = trio.CancelScope()
        """Around all that is done for it before it speaks HTTP/1.1."""
        self.waits: Callable[[], tuple[Rank, float] | None] = lambda: (Rank.SILENT, self.opened)
        """What it waits for from its client, and since when; None while it is busy."""
        self.end: Callable[[], None] = lambda: self.scope.cancel(reason="the connection makes room")
        self.ended = False
        self.changed = trio.Event()
        """Set when it is given a place, or refused one."""
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

    async def enter(self, address: str | None) -> Slot:
        """Wait for a place, or one in the reserve, and count one more connection."""
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
        await trio.lowlevel.cancel_shielded_checkpoint()  # a connection that has its place is served, also at the end
        return slot

    def note_request(self, slot: Slot) -> None:
        """Exempt a connection that has sent a request from the bound of its address."""
        silent = self._silent.get(slot.address or "")
        if silent is not None:
            silent.pop(slot, None)
            if not silent:
                del self._silent[slot.address or ""]

    def leave(self, slot: Slot) -> None:
        """Count a connection no longer."""
        self.note_request(slot)
        del self._slots[slot]
        del slot.waits, slot.end  # both lead back to it, and would keep its connection until the collector runs
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
        """Wait until a connection of the reserve has a place; False if it gets none in time."""
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
        """End waiting connections, the lowest rank first; False if there are none."""
        now = trio.current_time()
        candidates = [
            (*waits, index, slot)
            for index, slot in enumerate(self._slots)
            if not slot.ended and (waits := slot.waits()) is not None
            if waits[0] is not Rank.SILENT or now - waits[1] >= self._limits.settle
        ]
        if not candidates:
            return False
        rank = min(candidates)[0]
        most = max(1, self._limits.connections // BATCH) if rank is Rank.SILENT else 1
        for *_, slot in sorted(candidate for candidate in candidates if candidate[0] is rank)[:most]:
            self._end(slot)
        return True

    @staticmethod
    def _end(slot: Slot) -> None:
        slot.ended = True
        slot.end()
